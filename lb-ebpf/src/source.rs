//! The outer source: what encapsulated packets, those of the traffic and those of the probes, come from.

use core::{error::Error, fmt, net::Ipv4Addr, str::FromStr};

/// One IPv4 address, or all those of a prefix, /16 to /32. The prefix is routed to the node, not on a link, so that its
/// first and last address are addresses like the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterSource {
    first: Ipv4Addr,
    length: u8,
}

/// Why a text is no [`OuterSource`]; says what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidSource {
    /// Neither an IPv4 address nor one with a length.
    Form,
    /// The prefix has more addresses than a /16, or a length that there is not.
    Length,
    /// The address has bits set that the prefix leaves open.
    HostBits,
    /// Nobody sends from such addresses: 0.0.0.0/8, loopback, multicast, broadcast.
    Unusable,
}

impl OuterSource {
    /// Length of the largest prefix: what flows vary is in the last two bytes of the address.
    const SHORTEST: u8 = 16;

    fn new(first: Ipv4Addr, length: u8) -> Result<Self, InvalidSource> {
        if !(Self::SHORTEST..=32).contains(&length) {
            return Err(InvalidSource::Length);
        }
        let source = Self { first, length };
        if first.to_bits() & source.host_mask() != 0 {
            return Err(InvalidSource::HostBits);
        }
        let is_this_network = |a: Ipv4Addr| a.octets()[0] == 0;
        let unusable = |a: Ipv4Addr| is_this_network(a) || a.is_loopback() || a.is_multicast() || a.is_broadcast();
        // Each but the last is a range of whole /8; a prefix that has the last ends with it.
        if unusable(first) || unusable(source.turn(u32::MAX)) {
            return Err(InvalidSource::Unusable);
        }
        Ok(source)
    }

    /// The first address; its bits in [`Self::host_mask`] are zero.
    #[must_use]
    pub const fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The only address; `None` if there are several.
    #[must_use]
    pub fn only(self) -> Option<Ipv4Addr> {
        (self.length == 32).then_some(self.first)
    }

    /// Whether it is one of the addresses.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first.to_bits() ^ address.to_bits()) & !self.host_mask() == 0
    }

    /// The bits that differ between the addresses, host byte order: some of the low 16.
    #[must_use]
    pub fn host_mask(self) -> u32 {
        u32::MAX.checked_shr(self.length.into()).unwrap_or(0)
    }

    /// The address whose turn it is the `n`th time: they take turns in their order.
    #[must_use]
    pub fn turn(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | (n & self.host_mask()))
    }
}

impl From<Ipv4Addr> for OuterSource {
    fn from(address: Ipv4Addr) -> Self {
        Self { first: address, length: 32 }
    }
}

impl FromStr for OuterSource {
    type Err = InvalidSource;

    /// An address, or an address and a length with a slash between them.
    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        let (first, length) = text.split_once('/').unwrap_or((text, "32"));
        let first = first.parse().map_err(|_| InvalidSource::Form)?;
        Self::new(first, length.parse().map_err(|_| InvalidSource::Form)?)
    }
}

impl fmt::Display for OuterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        if self.length == 32 { Ok(()) } else { write!(f, "/{}", self.length) }
    }
}

impl fmt::Display for InvalidSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = match self {
            Self::Form => "is not an IPv4 address or prefix",
            Self::Length => "is too large, or has a length that there is not",
            Self::HostBits => "has host bits set",
            Self::Unusable => "cannot be used here",
        };
        write!(
            f,
            "{wrong}: allowed is a unicast IPv4 address such as \"198.18.221.11\", or a prefix /16 to /32 with host bits \
             zero such as \"198.18.221.0/28\", which must be routed to this node: every address in it is used, the first \
             (network) and the last (broadcast) too"
        )
    }
}

impl Error for InvalidSource {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn parse(text: &str) -> Result<OuterSource, InvalidSource> {
        text.parse()
    }

    #[test]
    fn address_is_its_own_only_source() {
        for text in ["198.18.221.11", "198.18.221.11/32"] {
            let source = parse(text).unwrap();
            assert_eq!(source.only(), Some(Ipv4Addr::new(198, 18, 221, 11)));
            assert_eq!((source.turn(7), source.host_mask()), (source.first(), 0));
            assert_eq!(source.to_string(), "198.18.221.11");
            assert_eq!(OuterSource::from(source.first()), source);
        }
    }

    #[test]
    fn text_that_is_no_source_says_why() {
        for (text, why) in [
            ("", InvalidSource::Form),
            ("198.18.221", InvalidSource::Form),
            ("198.18.221.0/", InvalidSource::Form),
            ("198.18.221.0/24/24", InvalidSource::Form),
            ("2001:db8::/64", InvalidSource::Form),
            ("198.18.0.0/15", InvalidSource::Length),
            ("198.18.221.11/33", InvalidSource::Length),
            ("198.18.221.1/28", InvalidSource::HostBits),
            ("198.18.221.0/16", InvalidSource::HostBits),
            ("0.0.0.0/16", InvalidSource::Unusable),
            ("0.1.2.3", InvalidSource::Unusable),
            ("127.0.0.0/28", InvalidSource::Unusable),
            ("224.0.0.1", InvalidSource::Unusable),
            ("255.255.255.240/28", InvalidSource::Unusable),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
    }

    proptest! {
        #[test]
        fn turns_take_each_address_of_the_prefix_once_a_round(length in 16..=32_u8, start: u32) {
            let text = format!("198.18.0.0/{length}");
            let source = parse(&text).unwrap();
            let round: Vec<_> = (0..1 << (32 - length)).map(|n| source.turn(start.wrapping_add(n))).collect();
            prop_assert_eq!(round.iter().collect::<HashSet<_>>().len(), round.len());
            let open = source.host_mask();
            prop_assert!(round.iter().all(|a| source.contains(*a)));
            prop_assert!(!source.contains(Ipv4Addr::from_bits(source.first().to_bits() ^ (open + 1))));
            prop_assert_eq!(source.turn(start), source.turn(start.wrapping_add(open + 1)));
        }
    }
}
