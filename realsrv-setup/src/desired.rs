//! What the operator wants of a real. Values are parsed, not checked: what exists is valid.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{family::Family, persist::Persist};

/// A value that cannot be what it is meant to be; says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not an address at all.
    #[error("{0:?} is not an IP address (like 198.19.10.1 or fd00:19::1)")]
    Address(String),
    /// An address no service can have.
    #[error("{address} is {what}: a VIP is a unicast address that clients can reach")]
    Vip {
        /// The address.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
    /// Not `ADDRESS` or `ADDRESS/LENGTH` with the host bits zero.
    #[error("{0:?} is not an address or prefix (like 198.18.221.11, 198.18.221.0/28 or fd00:18::/64, host bits zero)")]
    Prefix(String),
    /// Not a way to decapsulate.
    #[error("{0:?} is no way to decapsulate: auto, ipip or ebpf")]
    Decap(String),
    /// Not an MSS.
    #[error("{0:?} is no MSS: auto, off, or {min} to {max}", min = Mss::MIN, max = Mss::MAX)]
    Mss(String),
}

/// A virtual address: unicast, not loopback, not reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "IpAddr", into = "IpAddr")]
pub struct Vip(IpAddr);

impl Vip {
    /// IPv4 or IPv6.
    #[must_use]
    pub fn family(self) -> Family {
        Family::of(self.0)
    }
}

impl TryFrom<IpAddr> for Vip {
    type Error = Invalid;

    fn try_from(address: IpAddr) -> Result<Self, Invalid> {
        let not_unicast = match address {
            IpAddr::V4(address) => not_unicast4(address),
            IpAddr::V6(address) => not_unicast6(address),
        };
        not_unicast.map_or(Ok(Self(address)), |what| Err(Invalid::Vip { address, what }))
    }
}

impl TryFrom<Ipv4Addr> for Vip {
    type Error = Invalid;

    fn try_from(address: Ipv4Addr) -> Result<Self, Invalid> {
        IpAddr::from(address).try_into()
    }
}

fn not_unicast4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("in 0.0.0.0/8 (\"this network\")"),
        [127, ..] => Some("a loopback address"),
        [169, 254, ..] => Some("a link-local address"),
        [255, 255, 255, 255] => Some("the broadcast address"),
        [224..=239, ..] => Some("a multicast address"),
        [240..=255, ..] => Some("in 240.0.0.0/4 (reserved)"),
        _ => None,
    }
}

/// RFC 4291 section 2.4.
fn not_unicast6(address: Ipv6Addr) -> Option<&'static str> {
    match address {
        Ipv6Addr::UNSPECIFIED => Some("the unspecified address"),
        Ipv6Addr::LOCALHOST => Some("the loopback address"),
        address if address.is_unicast_link_local() => Some("a link-local address"),
        address if address.is_multicast() => Some("a multicast address"),
        address if address.to_ipv4_mapped().is_some() => Some("an IPv4-mapped address"),
        _ => None,
    }
}

impl FromStr for Vip {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let address: IpAddr = text.parse().map_err(|_| Invalid::Address(text.to_owned()))?;
        address.try_into()
    }
}

impl From<Vip> for IpAddr {
    fn from(vip: Vip) -> Self {
        vip.0
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address prefix, host bits zero. An address alone is as long as can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Every source, of both families.
    pub const EVERYBODY: [Self; 2] = [
        Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 },
        Self { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 },
    ];

    /// `None` if the length is above that of the address, or a host bit is set.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let host_bits_zero = match address {
            IpAddr::V4(address) => address.to_bits() & u32::MAX.checked_shr(length.into()).unwrap_or(0) == 0,
            IpAddr::V6(address) => address.to_bits() & u128::MAX.checked_shr(length.into()).unwrap_or(0) == 0,
        };
        (length <= Family::of(address).bits() && host_bits_zero).then_some(Self { address, length })
    }

    /// The network address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Bits, 0 to 32 or 128.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }
}

impl FromStr for Prefix {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let parsed = address.parse().ok().and_then(|address| {
            let length = length.map_or(Ok(Family::of(address).bits()), str::parse).ok()?;
            Self::new(address, length)
        });
        parsed.ok_or_else(|| Invalid::Prefix(text.to_owned()))
    }
}

impl TryFrom<String> for Prefix {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Who removes the outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decap {
    /// The kernel's tunnel where it has one, else the eBPF program.
    #[default]
    Auto,
    /// The kernel's tunnels: `ipip` (`tunl0`) for IPv4 VIPs, `ip6_tunnel` (`ip6tnl0`) for IPv6 VIPs.
    Ipip,
    /// The eBPF program at tc ingress.
    Ebpf,
}

impl FromStr for Decap {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "auto" => Ok(Self::Auto),
            "ipip" => Ok(Self::Ipip),
            "ebpf" => Ok(Self::Ebpf),
            _ => Err(Invalid::Decap(text.to_owned())),
        }
    }
}

/// The largest MSS that a VIP announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mss {
    /// The device's MTU less the outer, inner and TCP header: 60 octets for an IPv4 VIP (80 where a load balancer's
    /// source is IPv6: its outer header may be), 100 for an IPv6 VIP.
    #[default]
    Auto,
    /// Leave it as it is.
    Off,
    /// This many octets.
    Fixed(u16),
}

impl Mss {
    /// RFC 9293 section 3.7.1: a peer that announces nothing is sent 536 octets; less helps nobody.
    pub const MIN: u16 = 536;
    /// The largest IPv4 packet less 60 octets of headers.
    pub const MAX: u16 = 65_475;
}

impl FromStr for Mss {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            ("off", _) => Ok(Self::Off),
            (_, Ok(octets)) if (Self::MIN..=Self::MAX).contains(&octets) => Ok(Self::Fixed(octets)),
            _ => Err(Invalid::Mss(text.to_owned())),
        }
    }
}

/// All of it: what `apply` makes true and the journal remembers as the intent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// The addresses served.
    pub vips: BTreeSet<Vip>,
    /// Who removes the outer header.
    pub decap: Decap,
    /// Outer sources that may tunnel; empty: anybody.
    pub lb_sources: BTreeSet<Prefix>,
    /// The largest MSS that a VIP announces.
    pub mss: Mss,
    /// Devices that tunnel packets arrive on; empty: every Ethernet device that is up and has an address.
    pub interfaces: BTreeSet<String>,
    /// Files that make it so again at boot; `None`: none of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<Persist>,
}

impl Desired {
    /// Whether there is a VIP of this family.
    #[must_use]
    pub fn serves(&self, family: Family) -> bool {
        self.vips.iter().any(|vip| vip.family() == family)
    }
}

/// What one command line said; what it left out stays as it was intended before.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// VIPs to add.
    pub vips: BTreeSet<Vip>,
    /// `--decap`.
    pub decap: Option<Decap>,
    /// `--lb-source`.
    pub lb_sources: Option<BTreeSet<Prefix>>,
    /// `--mss`.
    pub mss: Option<Mss>,
    /// `--interface`.
    pub interfaces: Option<BTreeSet<String>>,
    /// `--persist`.
    pub persist: Option<Persist>,
    /// `--no-persist`: not any longer.
    pub no_persist: bool,
}

impl Request {
    /// The intent after this request: VIPs are added, the rest is replaced where it was given.
    #[must_use]
    pub fn onto(self, intent: Option<&Desired>) -> Desired {
        let before = intent.cloned().unwrap_or_default();
        Desired {
            vips: &before.vips | &self.vips,
            decap: self.decap.unwrap_or(before.decap),
            lb_sources: self.lb_sources.unwrap_or(before.lb_sources),
            mss: self.mss.unwrap_or(before.mss),
            interfaces: self.interfaces.unwrap_or(before.interfaces),
            persist: if self.no_persist { None } else { self.persist.or(before.persist) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vip_not_unicast_is_refused() {
        let ipv4 = ["224.0.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "169.254.1.1", "250.0.0.1", "x"];
        let ipv6 = ["::", "::1", "fe80::1", "ff02::1", "::ffff:198.19.10.1", "fd00::1%lo", "fd00::1/128"];
        for bad in ipv4.into_iter().chain(ipv6) {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
        assert_eq!("198.19.10.1".parse::<Vip>().unwrap().family(), Family::Ipv4);
        assert_eq!("fd00:19::1".parse::<Vip>().unwrap().family(), Family::Ipv6);
    }

    #[test]
    fn prefix_with_host_bits_is_refused() {
        assert!("198.18.0.1/24".parse::<Prefix>().is_err());
        assert!("198.18.0.0/33".parse::<Prefix>().is_err());
        assert!("fd00::1/64".parse::<Prefix>().is_err());
        assert!("fd00::/129".parse::<Prefix>().is_err());
        assert_eq!(["0.0.0.0/0", "::/0"].map(|text| text.parse::<Prefix>().unwrap()), Prefix::EVERYBODY);
        assert_eq!("198.18.0.1".parse::<Prefix>().unwrap().to_string(), "198.18.0.1/32");
        assert_eq!("fd00::1".parse::<Prefix>().unwrap().to_string(), "fd00::1/128");
    }

    #[test]
    fn mss_out_of_range_is_refused() {
        assert_eq!("1400".parse(), Ok(Mss::Fixed(1400)));
        for bad in ["535", "65476", "-1", "big", ""] {
            assert!(bad.parse::<Mss>().is_err(), "{bad}");
        }
    }

    #[test]
    fn request_adds_vips_and_keeps_what_it_does_not_name() {
        let before = Desired { vips: ["198.19.10.1".parse().unwrap()].into(), mss: Mss::Off, ..Desired::default() };
        let request =
            Request { vips: ["198.19.10.2".parse().unwrap()].into(), decap: Some(Decap::Ebpf), ..Request::default() };
        let after = request.onto(Some(&before));
        assert_eq!(after.vips.len(), 2);
        assert_eq!((after.mss, after.decap), (Mss::Off, Decap::Ebpf));
    }
}
