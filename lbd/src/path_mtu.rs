//! What routers between the load balancer and its reals say about the size of packets: frag-needed (RFC 1191) and packet
//! too big (RFC 8201) about outer packets. Their word is the real's MTU for a while, so that clients are told in turn.
//!
//! ```text
//! router ── ICMP quoting an outer packet ──▶ watch ──▶ TooBig ──▶ PathMtus ──▶ the real's entry ──▶ frag-needed to the client
//! ```
//!
//! Anybody may forge such a message; it is believed no further than it can do harm: about a packet to one of our reals from
//! an address of ours, that was larger than the MTU told, never below [`MIN4`] and [`MIN6`], for [`LIFETIME`], and only for
//! packets that routers may not fragment.

#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use pnet_packet::{
    Packet,
    icmp::{IcmpPacket, IcmpTypes, destination_unreachable::IcmpCodes},
    icmpv6::{Icmpv6Packet, Icmpv6Types},
    ip::IpNextHeaderProtocols,
    ipv4::{Ipv4Flags, Ipv4Packet},
    ipv6::Ipv6Packet,
};

pub use watch::watch;

/// How long a router's word counts (RFC 1191 §6.3, RFC 8201 §4; the kernel's `mtu_expires`).
pub const LIFETIME: Duration = Duration::from_mins(10);
/// The least MTU of an IPv4 path that is believed: the kernel's default of `net.ipv4.route.min_pmtu`.
pub const MIN4: u16 = 552;
/// The least MTU of an IPv6 path that is believed: what leaves room for a packet of 1,280 bytes, which every client may send
/// (RFC 8200 §5), behind the outer header. A path that carries less cannot carry an IPv6 VIP's traffic.
pub const MIN6: u16 = 1280 + 40;

/// Bytes of header before the MTU, and before the quotation, of both ICMP messages.
const MTU_AT: usize = 4;
const QUOTE_AT: usize = 8;

/// A router's word about an outer packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// The source of the packet that it quotes.
    pub source: IpAddr,
    /// The real to which that packet went.
    pub real: IpAddr,
    /// The largest packet that gets through, in bytes from the outer IP header on.
    pub mtu: u16,
}

/// Reads an IPv4 packet from its header on. `None`: not about a packet in a tunnel that was larger than the MTU told.
#[must_use]
pub fn parse4(bytes: &[u8]) -> Option<TooBig> {
    let ip = Ipv4Packet::new(bytes)?;
    let icmp = IcmpPacket::new(bytes.get(usize::from(ip.get_header_length()) * 4..)?)?;
    let is_told = icmp.get_icmp_type() == IcmpTypes::DestinationUnreachable
        && icmp.get_icmp_code() == IcmpCodes::FragmentationRequiredAndDFFlagSet;
    let [_, _, high, low] = *icmp.packet().get(MTU_AT..)?.first_chunk()?;
    let quoted = Ipv4Packet::new(icmp.packet().get(QUOTE_AT..)?)?;
    let is_tunnel = quoted.get_next_level_protocol() == IpNextHeaderProtocols::Ipv4;
    let mtu = u16::from_be_bytes([high, low]);
    // Routers from before RFC 1191 tell no MTU.
    let is_sound = mtu > 0 && quoted.get_total_length() > mtu && quoted.get_flags() & Ipv4Flags::DontFragment != 0;
    (is_told && is_tunnel && is_sound).then(|| TooBig {
        source: quoted.get_source().into(),
        real: quoted.get_destination().into(),
        mtu: mtu.max(MIN4),
    })
}

/// The same of IPv6, from the ICMPv6 header on: that is what a raw socket gives.
#[must_use]
pub fn parse6(bytes: &[u8]) -> Option<TooBig> {
    let icmp = Icmpv6Packet::new(bytes)?;
    let mtu = u32::from_be_bytes(*bytes.get(MTU_AT..)?.first_chunk()?);
    let mtu = u16::try_from(mtu).ok().filter(|mtu| *mtu >= 1280)?;
    let quoted = Ipv6Packet::new(bytes.get(QUOTE_AT..)?)?;
    let is_tunnel = [IpNextHeaderProtocols::Ipv4, IpNextHeaderProtocols::Ipv6].contains(&quoted.get_next_header());
    let is_sound = usize::from(quoted.get_payload_length()) + Ipv6Packet::minimum_packet_size() > usize::from(mtu);
    (icmp.get_icmpv6_type() == Icmpv6Types::PacketTooBig && is_tunnel && is_sound).then(|| TooBig {
        source: quoted.get_source().into(),
        real: quoted.get_destination().into(),
        mtu: mtu.max(MIN6),
    })
}

/// The MTUs that routers have told, of each real.
#[derive(Clone, Debug, Default)]
pub struct PathMtus(BTreeMap<IpAddr, (u16, Instant)>);

impl PathMtus {
    /// Takes a router's word; true if it is news. A larger MTU than the one that counts is none: the smallest on the way
    /// decides, and may be told again.
    pub fn tell(&mut self, told: &TooBig, now: Instant) -> bool {
        let until = now + LIFETIME;
        match self.0.get_mut(&told.real) {
            Some((mtu, _)) if told.mtu > *mtu => false,
            Some((mtu, end)) => {
                *end = until;
                std::mem::replace(mtu, told.mtu) != told.mtu
            }
            None => self.0.insert(told.real, (told.mtu, until)).is_none(),
        }
    }

    /// Forgets what was told too long ago, and reals that are not wanted any more; true if there was any.
    pub fn retain(&mut self, now: Instant, is_wanted: impl Fn(&IpAddr) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|real, (_, until)| now < *until && is_wanted(real));
        self.0.len() != before
    }

    /// Forgets what was told of a path that is another one now.
    pub fn forget(&mut self, real: &IpAddr) {
        self.0.remove(real);
    }

    /// The MTU of the path to a real, if a router has told one.
    #[must_use]
    pub fn of(&self, real: &IpAddr) -> Option<u16> {
        self.0.get(real).map(|(mtu, _)| *mtu)
    }
}
