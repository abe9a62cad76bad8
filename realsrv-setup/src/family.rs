//! The two address families, and what Linux calls what each needs.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Of a VIP, and of the kernel's tunnel that carries its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// Length of an address.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }

    /// The kernel's fallback tunnel device: it takes tunnel packets from anybody to any local address. `ip6tnl0` takes
    /// IPv6 in IPv6 only, unless somebody changed its mode.
    #[must_use]
    pub const fn tunnel(self) -> &'static str {
        match self {
            Self::Ipv4 => "tunl0",
            Self::Ipv6 => "ip6tnl0",
        }
    }

    /// The module that makes it.
    #[must_use]
    pub const fn tunnel_module(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipip",
            Self::Ipv6 => "ip6_tunnel",
        }
    }

    /// The time between ICMP errors to one peer: the one setting here that may read back as another value than was
    /// written, since the kernel keeps it in ticks.
    #[must_use]
    pub const fn icmp_ratelimit(self) -> &'static str {
        match self {
            Self::Ipv4 => "net.ipv4.icmp_ratelimit",
            Self::Ipv6 => "net.ipv6.icmp.ratelimit",
        }
    }

    /// What the names of its settings begin with.
    #[must_use]
    pub const fn settings(self) -> &'static str {
        match self {
            Self::Ipv4 => "net.ipv4.",
            Self::Ipv6 => "net.ipv6.",
        }
    }
}
