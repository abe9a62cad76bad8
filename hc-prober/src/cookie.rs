//! Keyed cookies: what a genuine answer must give back, and nobody but the probe's receiver can know.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::ends::Ends;

/// Transport protocol of the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// ICMP or ICMPv6 echo.
    Icmp = 1,
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// Everything by which a probe's answer is addressed, but for our port: every real answers from the target, so reals are
/// told apart by our port alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// Inner source, ours, and destination, the VIP.
    pub ends: Ends,
    /// Inner protocol.
    pub protocol: Protocol,
    /// Destination port, host byte order; 0 for ICMP.
    pub port: u16,
}

/// The secret of one prober.
#[derive(Clone)]
pub struct Cookies(SipHasher24);

/// What is proved by which field: 32 bits by a TCP acknowledgement, 64 by an echo reply, 16 (ICMPv6: 20) or more by an ICMP
/// error's quotation. A UDP reply quotes nothing: its proof is the source port: some 12 bits,
/// of a one-shot prober at most 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(u64);

impl Cookies {
    /// Cookies under this key.
    #[must_use]
    pub fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher24::new_with_key(secret))
    }

    /// The cookie of the lane's probe number `epoch`, sent from `local_port`.
    #[must_use]
    pub fn cookie(&self, lane: &LaneKey, local_port: u16, epoch: u64) -> Cookie {
        let mut hasher = self.lane(lane);
        hasher.write_u16(local_port);
        hasher.write_u64(epoch);
        Cookie(hasher.finish())
    }

    /// An unpredictable number for a lane: where its ports start and how they rotate.
    #[must_use]
    pub fn rotation(&self, lane: &LaneKey) -> u64 {
        self.lane(lane).finish()
    }

    /// An even spread over time: for check `id` and its probe number `serial`.
    #[must_use]
    pub fn spread(&self, id: u32, serial: u32) -> u64 {
        let mut hasher = self.0;
        hasher.write_u32(id);
        hasher.write_u32(serial);
        hasher.finish()
    }

    fn lane(&self, lane: &LaneKey) -> SipHasher24 {
        let mut hasher = self.0;
        match lane.ends {
            Ends::V4 { source, destination } => {
                hasher.write_u32(source.to_bits());
                hasher.write_u32(destination.to_bits());
            }
            Ends::V6 { source, destination } => {
                hasher.write_u128(source.to_bits());
                hasher.write_u128(destination.to_bits());
            }
        }
        hasher.write_u8(lane.protocol as u8);
        hasher.write_u16(lane.port);
        hasher
    }
}

impl std::fmt::Debug for Cookies {
    /// Does not show the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookies")
    }
}

impl Cookie {
    /// The whole of it: the payload of echo requests and of UDP probes whose payload is ours.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// TCP initial sequence number.
    #[must_use]
    pub fn sequence(self) -> u32 {
        let [_, _, _, _, a, b, c, d] = self.bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// What an ICMP error gives back of the inner header: the identification of IPv4's, the flow label of IPv6's. Never 0,
    /// which some stacks and routers replace.
    #[must_use]
    pub fn tag(self, ends: Ends) -> u32 {
        let [a, b, .., c] = self.bytes();
        let id = u32::from(u16::from_be_bytes([a, b]));
        match ends {
            Ends::V4 { .. } => id,
            Ends::V6 { .. } => id << 4 | u32::from(c & 0x0f),
        }
        .max(1)
    }

    /// ICMP echo sequence number.
    #[must_use]
    pub fn echo_sequence(self) -> u16 {
        let [_, _, a, b, ..] = self.bytes();
        u16::from_be_bytes([a, b])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    const LANE: LaneKey = LaneKey {
        ends: Ends::V4 { source: SOURCE, destination: Ipv4Addr::new(198, 19, 0, 1) },
        protocol: Protocol::Tcp,
        port: 80,
    };

    #[test]
    fn cookie_same_probe_is_reproducible() {
        let cookies = Cookies::new(&[7; 16]);
        assert_eq!(cookies.cookie(&LANE, 61000, 3), cookies.cookie(&LANE, 61000, 3));
    }

    #[test]
    fn cookie_any_part_differs_changes_it() {
        let cookies = Cookies::new(&[7; 16]);
        let cookie = cookies.cookie(&LANE, 61000, 3);
        let other = LaneKey { port: 81, ..LANE };
        let udp = LaneKey { protocol: Protocol::Udp, ..LANE };
        let destination = Ipv4Addr::new(198, 19, 0, 2);
        let target = LaneKey { ends: Ends::V4 { source: SOURCE, destination }, ..LANE };
        let (source, destination) = (SOURCE.to_ipv6_mapped(), Ipv4Addr::new(198, 19, 0, 1).to_ipv6_mapped());
        let family = LaneKey { ends: Ends::V6 { source, destination }, ..LANE };
        for different in [
            cookies.cookie(&LANE, 61001, 3),
            cookies.cookie(&LANE, 61000, 4),
            cookies.cookie(&other, 61000, 3),
            cookies.cookie(&udp, 61000, 3),
            cookies.cookie(&target, 61000, 3),
            cookies.cookie(&family, 61000, 3),
            Cookies::new(&[8; 16]).cookie(&LANE, 61000, 3),
        ] {
            assert_ne!(cookie.sequence(), different.sequence());
            assert_ne!(cookie.bytes(), different.bytes());
        }
    }
}
