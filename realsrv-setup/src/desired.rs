//! What the operator wants of a real. Values are parsed, not checked: what exists is valid.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A value that cannot be what it is meant to be; says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not an IPv4 address at all.
    #[error("{0:?} is not an IPv4 address (IPv6 VIPs are not supported yet)")]
    Address(String),
    /// An address no service can have.
    #[error("{address} is {what}: a VIP is a unicast address that clients can reach")]
    Vip {
        /// The address.
        address: Ipv4Addr,
        /// What it is.
        what: &'static str,
    },
    /// Not `ADDRESS` or `ADDRESS/LENGTH` with the host bits zero.
    #[error("{0:?} is not an IPv4 address or prefix (like 198.18.221.11 or 198.18.221.0/28, host bits zero)")]
    Prefix(String),
    /// Not a way to decapsulate.
    #[error("{0:?} is no way to decapsulate: auto, ipip or ebpf")]
    Decap(String),
    /// Not an MSS.
    #[error("{0:?} is no MSS: auto, off, or {min} to {max}", min = Mss::MIN, max = Mss::MAX)]
    Mss(String),
}

/// A virtual IPv4 address: unicast, not loopback, not reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Addr", into = "Ipv4Addr")]
pub struct Vip(Ipv4Addr);

impl TryFrom<Ipv4Addr> for Vip {
    type Error = Invalid;

    fn try_from(address: Ipv4Addr) -> Result<Self, Invalid> {
        let what = match address.octets() {
            [0, ..] => "in 0.0.0.0/8 (\"this network\")",
            [127, ..] => "a loopback address",
            [169, 254, ..] => "a link-local address",
            [255, 255, 255, 255] => "the broadcast address",
            [224..=239, ..] => "a multicast address",
            [240..=255, ..] => "in 240.0.0.0/4 (reserved)",
            _ => return Ok(Self(address)),
        };
        Err(Invalid::Vip { address, what })
    }
}

impl FromStr for Vip {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let address: Ipv4Addr = text.parse().map_err(|_| Invalid::Address(text.to_owned()))?;
        address.try_into()
    }
}

impl From<Vip> for Ipv4Addr {
    fn from(vip: Vip) -> Self {
        vip.0
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An IPv4 prefix, host bits zero. An address alone is a /32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: Ipv4Addr,
    length: u8,
}

impl Prefix {
    /// Every source.
    pub const ALL: Self = Self { address: Ipv4Addr::UNSPECIFIED, length: 0 };

    /// `None` if the length is above 32 or a host bit is set.
    #[must_use]
    pub fn new(address: Ipv4Addr, length: u8) -> Option<Self> {
        let host_bits = u32::MAX.checked_shr(length.into()).unwrap_or(0);
        (length <= 32 && address.to_bits() & host_bits == 0).then_some(Self { address, length })
    }

    /// The network address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Bits, 0 to 32.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }
}

impl FromStr for Prefix {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let parsed = address.parse().ok().zip(length.parse().ok());
        parsed.and_then(|(address, length)| Self::new(address, length)).ok_or_else(|| Invalid::Prefix(text.to_owned()))
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
    /// The kernel's `ipip` (`tunl0`).
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
    /// The device's MTU less 60 octets: outer IPv4, inner IPv4 and TCP header.
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
    /// Devices that tunnel packets arrive on; empty: every Ethernet device that is up and has an IPv4 address.
    pub interfaces: BTreeSet<String>,
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vip_not_unicast_is_refused() {
        for bad in ["224.0.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "169.254.1.1", "250.0.0.1", "fd00::1", "x"]
        {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
        assert!("198.19.10.1".parse::<Vip>().is_ok());
    }

    #[test]
    fn prefix_with_host_bits_is_refused() {
        assert!("198.18.0.1/24".parse::<Prefix>().is_err());
        assert!("198.18.0.0/33".parse::<Prefix>().is_err());
        assert_eq!("0.0.0.0/0".parse(), Ok(Prefix::ALL));
        assert_eq!("198.18.0.1".parse::<Prefix>().unwrap().to_string(), "198.18.0.1/32");
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
