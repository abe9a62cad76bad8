//! What to check, and how often: the questions that a prober is asked.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;

/// Names a check. Two checks with the same key are one check: it runs once and its verdict is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct CheckKey {
    /// The real: destination of the outer header.
    pub real: IpAddr,
    /// The inner TIP: destination of the inner header, normally the VIP.
    pub target: IpAddr,
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
}

impl Kind {
    /// The name in configurations and JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp { .. } => "tcp",
            Self::Udp { .. } => "udp",
        }
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
