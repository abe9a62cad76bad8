//! What an answer proves, and what it means.

use std::{fmt, net::Ipv4Addr, time::Duration};

use crate::{
    check::Kind,
    cookie::{Cookie, Protocol},
    reply::{Answer, IcmpError},
    report::{Reason, Severity},
    state::Event,
};

/// How many bytes of a UDP reply are compared with `expect` at most: what the capture is sure to hand up.
pub const EXPECT_MAX: usize = 124;

/// The result of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it means for the verdict.
    pub event: Event,
    /// Why.
    pub reason: Reason,
    /// The evidence.
    pub detail: Option<Detail>,
    /// From the probe to its answer, if there was one.
    pub rtt: Option<Duration>,
}

impl Finding {
    /// The right answer.
    #[must_use]
    pub fn pass(reason: Reason) -> Self {
        Self { event: Event::Pass, reason, detail: None, rtt: None }
    }

    /// No answer or the wrong one.
    #[must_use]
    pub fn fail(severity: Severity, reason: Reason, detail: Option<Detail>) -> Self {
        Self { event: Event::Fail(severity), reason, detail, rtt: None }
    }

    /// Nothing learnt.
    #[must_use]
    pub fn unknown(reason: Reason, detail: Option<Detail>) -> Self {
        Self { event: Event::Unknown, reason, detail, rtt: None }
    }
}

/// Evidence, small enough to be kept for every check; `Display` says it to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// An ICMP error about the inner packet.
    Inner(IcmpError),
    /// An ICMP error about an outer packet to this real.
    Outer(IcmpError),
    /// The kernel refused to send, with this error number.
    Refused(i32),
    /// No route to the real, with this error number.
    NoRoute(i32),
    /// Every source port awaits an answer.
    NoPort,
    /// The payload does not fit in a packet.
    TooLong,
    /// An address family that cannot be probed yet.
    Family,
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(error) if error.kind == 11 => {
                write!(f, "{error} quoting the probe: it forwards, the target is not local there")
            }
            Self::Inner(error) => write!(f, "{error} quoting the probe"),
            Self::Outer(error) if error.kind == 3 && matches!(error.code, 2 | 3) => {
                write!(f, "{error} quoting the tunnel: no decapsulation there")
            }
            Self::Outer(error) => write!(f, "{error} quoting the tunnel"),
            Self::Refused(errno) => write!(f, "sending failed: {}", std::io::Error::from_raw_os_error(*errno)),
            Self::NoRoute(errno) => write!(f, "no route to the real: {}", std::io::Error::from_raw_os_error(*errno)),
            Self::NoPort => f.write_str("every source port awaits an answer"),
            Self::TooLong => f.write_str("the payload does not fit in a packet"),
            Self::Family => f.write_str("only IPv4 reals and targets can be probed"),
        }
    }
}

impl fmt::Display for IcmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, kind, code } = self;
        let name = match (kind, code) {
            (3, 0) => "network unreachable",
            (3, 1) => "host unreachable",
            (3, 2) => "protocol unreachable",
            (3, 3) => "port unreachable",
            (3, 4) => "fragmentation needed",
            (3, 9 | 10 | 13) => "administratively prohibited",
            (11, 0) => "time exceeded",
            _ => return write!(f, "ICMP {kind}/{code} from {from}"),
        };
        write!(f, "{name} from {from}")
    }
}

/// Whether an answer is what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Only who received the probe can have sent it.
    Genuine,
    /// It does not prove it.
    Forged,
    /// It may be genuine, but means nothing.
    Neutral,
}

/// Checks an answer against the cookie of the probe that it claims to answer.
#[must_use]
pub fn prove(answer: &Answer<'_>, protocol: Protocol, cookie: Cookie) -> Proof {
    let genuine = match *answer {
        Answer::Echo { sequence, payload } => {
            sequence == cookie.echo_sequence() && payload.starts_with(&cookie.bytes())
        }
        // RFC 9293, 3.10.7.3: the acknowledgement of a SYN is its sequence number plus one.
        Answer::SynAck { acknowledgement } | Answer::Reset { acknowledgement } => {
            acknowledgement == cookie.sequence().wrapping_add(1)
        }
        // Nothing but the port that it came to: see [`Cookie`]. So it is believed when it is the expected one, and another
        // does not end the wait.
        Answer::Datagram { .. } => true,
        Answer::Error { id, sequence, .. } => {
            let expected = match protocol {
                Protocol::Icmp => Some(u32::from(cookie.echo_sequence())),
                Protocol::Tcp => Some(cookie.sequence()),
                Protocol::Udp => None,
            };
            id == cookie.ip_id() && sequence == expected
        }
        Answer::Ack => return Proof::Neutral,
        Answer::Unproven => false,
    };
    if genuine { Proof::Genuine } else { Proof::Forged }
}

/// What a genuine answer means to a check of `kind`; `None`: nothing.
#[must_use]
pub fn interpret(answer: &Answer<'_>, kind: &Kind, target: Ipv4Addr) -> Option<Finding> {
    match *answer {
        Answer::Echo { .. } => Some(Finding::pass(Reason::L3Ok)),
        Answer::SynAck { .. } => Some(Finding::pass(Reason::L4Ok)),
        Answer::Reset { .. } => Some(Finding::fail(Severity::Soft, Reason::PortClosed, None)),
        Answer::Datagram { payload } => Some(if is_expected(payload, kind) {
            Finding::pass(Reason::L4Ok)
        } else {
            Finding::fail(Severity::Soft, Reason::Mismatch, None)
        }),
        Answer::Error { error, .. } => interpret_error(error, kind, target),
        Answer::Ack | Answer::Unproven => None,
    }
}

fn interpret_error(error: IcmpError, kind: &Kind, target: Ipv4Addr) -> Option<Finding> {
    let detail = Some(Detail::Inner(error));
    match (error.kind, error.code, kind) {
        // Probes are small: this says nothing about the service.
        (3, 4, _) => None,
        (3, 3, Kind::Udp { .. }) if error.from == target => {
            Some(Finding::fail(Severity::Soft, Reason::PortClosed, detail))
        }
        _ => Some(Finding::fail(Severity::Hard, Reason::Unreachable, detail)),
    }
}

fn is_expected(payload: &[u8], kind: &Kind) -> bool {
    match kind {
        Kind::Udp { expect: Some(expect), .. } => {
            payload.starts_with(expect.get(..EXPECT_MAX).unwrap_or(expect.as_slice()))
        }
        Kind::Udp { expect: None, .. } | Kind::Icmp | Kind::Tcp { .. } => true,
    }
}
