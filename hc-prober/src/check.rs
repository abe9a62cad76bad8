//! What to check, and how often: the questions that a prober is asked.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    time::Duration,
};

use serde::Serialize;

use crate::named::Named;

/// Names a check. Two checks with the same key are one check: it runs once and its verdict is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct CheckKey {
    /// The real: destination of the outer header.
    pub real: IpAddr,
    /// The inner TIP: destination of the inner header, normally the VIP.
    pub target: IpAddr,
    /// TTL or hop limit of the inner packet. 1 reaches a target that is local to the real and nothing beyond it; each host
    /// behind the real that the target is away takes one more.
    pub hops: NonZeroU8,
    /// What is sent to the target, and which answer is right.
    #[serde(flatten)]
    pub kind: Kind,
}

/// The packet that a check sends inside the tunnel, and the answer it wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// An ICMP echo request; up on the matching reply (RFC 792).
    Icmp,
    /// A SYN; up on the matching SYN-ACK, which is answered by a RST (RFC 9293).
    Tcp {
        /// Destination port, host byte order.
        port: u16,
    },
    /// A datagram; up on a reply, down on a port unreachable from the target (RFC 1122, 4.1.3.1).
    ///
    /// A reply proves no more than that its sender knew the addresses and guessed the source port, one of some 3,500 in use
    /// for a timeout. Who can send packets with the VIP as their source may so keep a dead service UP; `expect` with an
    /// answer that others cannot know is the remedy. An unexpected datagram takes nothing DOWN before the timeout.
    Udp {
        /// Destination port, host byte order.
        port: u16,
        /// The datagram's payload. Empty: the prober fills in eight bytes that only it can predict.
        payload: Vec<u8>,
        /// How a right reply begins; `None`: any reply is right.
        expect: Option<Vec<u8>>,
        /// Whether silence means down. If not, silence is judged by an echo request sent alongside.
        require_reply: bool,
    },
    /// A datagram in the service's own language, which also says which reply is right; silence means down.
    #[serde(rename = "udp")]
    Named {
        /// Destination port, host byte order.
        port: u16,
        /// The language.
        #[serde(flatten)]
        probe: Named,
    },
}

impl CheckKey {
    /// A check of a target that is local to the real.
    #[must_use]
    pub fn new(real: IpAddr, target: IpAddr, kind: Kind) -> Self {
        Self { real, target, hops: NonZeroU8::MIN, kind }
    }
}

impl Kind {
    /// Whether it sends a UDP datagram.
    #[must_use]
    pub fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp { .. } | Self::Named { .. })
    }

    /// The name in configurations and JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp { .. } => "tcp",
            Self::Udp { .. } | Self::Named { .. } => "udp",
        }
    }
}

impl fmt::Display for CheckKey {
    /// What is asked of whom, but not through which real: `tcp 198.19.10.1:80`, `icmp fd00::1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, hops, kind, .. } = self;
        match kind {
            Kind::Icmp => write!(f, "icmp {target}")?,
            Kind::Tcp { port } => write!(f, "tcp {}", SocketAddr::new(*target, *port))?,
            Kind::Udp { port, .. } => write!(f, "udp {}", SocketAddr::new(*target, *port))?,
            Kind::Named { port, probe } => write!(f, "udp {} {probe}", SocketAddr::new(*target, *port))?,
        }
        if hops.get() == 1 { Ok(()) } else { write!(f, " within {hops} hops") }
    }
}

/// When a check runs and how many results make a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// From one probe to the next while the verdict stands; each time varied by ± 10 %.
    pub interval: Duration,
    /// How long an answer is awaited. May exceed the interval: probes overlap.
    pub timeout: Duration,
    /// From one probe to the next while a verdict is pending, the first one included.
    pub fast_interval: Duration,
    /// Passes in a row that make UP; 0 counts as 1.
    pub rise: u32,
    /// Failures in a row that make DOWN; 0 counts as 1.
    pub fall: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            fast_interval: Duration::from_millis(200),
            rise: 2,
            fall: 3,
        }
    }
}

/// A check and its timing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is checked.
    pub key: CheckKey,
    /// When, and how many results make a verdict.
    pub timing: Timing,
}
