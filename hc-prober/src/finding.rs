//! What an answer proves, and what it means.

use std::{fmt, net::IpAddr, time::Duration};

use crate::{
    check::Kind,
    cookie::{Cookie, LaneKey, Protocol},
    reply::{Answer, IcmpError, Trouble},
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
    /// The MSS that the answer announces.
    pub mss: Option<u16>,
}

impl Finding {
    /// The right answer.
    #[must_use]
    pub fn pass(reason: Reason) -> Self {
        Self { event: Event::Pass, reason, detail: None, rtt: None, mss: None }
    }

    /// No answer or the wrong one.
    #[must_use]
    pub fn fail(severity: Severity, reason: Reason, detail: Option<Detail>) -> Self {
        Self { event: Event::Fail(severity), reason, detail, rtt: None, mss: None }
    }

    /// Nothing came, nor an error that says why.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        self.reason == Reason::Timeout && self.detail.is_none()
    }

    /// Nothing learnt.
    #[must_use]
    pub fn unknown(reason: Reason, detail: Option<Detail>) -> Self {
        Self { event: Event::Unknown, reason, detail, rtt: None, mss: None }
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
    /// No route to the target, which would say what of ours to send from inside the tunnel, with this error number.
    NoSource(i32),
    /// Nothing at all is answered, and this gateway on the way to the reals is silent too.
    Gateway(IpAddr),
    /// Nothing at all is answered, and the interface on the way to the reals, by this name, has no link.
    Link(Name),
    /// An IPv6 target in an IPv4 tunnel.
    Encapsulation,
    /// A DNS response with this code, which is no answer to the question.
    Rcode(u8),
    /// An NTP server refuses to give the time (a kiss-o'-death), with this code in ASCII.
    Kiss([u8; 4]),
    /// An NTP server does not have the time.
    Unsynchronised,
}

/// The name of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name([u8; Self::MOST]);

impl Name {
    /// `IFNAMSIZ` with its terminating zero.
    const MOST: usize = 16;

    /// What fits of it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; Self::MOST];
        for (byte, new) in bytes.iter_mut().zip(name.bytes()) {
            *byte = new;
        }
        Self(bytes)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        write!(f, "{}", bytes.escape_ascii())
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rcode(code) => match code {
                1 => f.write_str("DNS FORMERR"),
                2 => f.write_str("DNS SERVFAIL"),
                4 => f.write_str("DNS NOTIMP"),
                5 => f.write_str("DNS REFUSED"),
                code => write!(f, "DNS response code {code}"),
            },
            Self::Gateway(gateway) => write!(f, "the gateway {gateway} does not answer"),
            Self::Link(name) => write!(f, "the interface {name} has no link"),
            Self::Kiss(code) => write!(f, "NTP kiss-o'-death {}", code.escape_ascii()),
            Self::Unsynchronised => f.write_str("the NTP server is not synchronised"),
            Self::Inner(error) if error.trouble() == Trouble::TimeExceeded => {
                write!(f, "{error} quoting the probe: it forwards, the target is not local there")
            }
            Self::Inner(error) => write!(f, "{error} quoting the probe"),
            Self::Outer(error) if error.refuses_tunnel() => {
                write!(f, "{error} quoting the tunnel: no decapsulation there")
            }
            Self::Outer(error) => write!(f, "{error} quoting the tunnel"),
            Self::Refused(errno) => write!(f, "sending failed: {}", std::io::Error::from_raw_os_error(*errno)),
            Self::NoRoute(errno) => write!(f, "no route to the real: {}", std::io::Error::from_raw_os_error(*errno)),
            Self::NoPort => f.write_str("every source port awaits an answer"),
            Self::TooLong => f.write_str("the payload does not fit in a packet"),
            Self::NoSource(errno) => {
                let error = std::io::Error::from_raw_os_error(*errno);
                write!(f, "no address of ours for the inner header: no route to the target: {error}")
            }
            Self::Encapsulation => f.write_str(
                "an IPv6 target is reached through an IPv6 tunnel only, as the data plane has it: allowed is an IPv6 \
                 address of the real",
            ),
        }
    }
}

impl fmt::Display for IcmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, kind, code } = self;
        let name = match self.trouble() {
            Trouble::NetworkUnreachable => "network unreachable",
            Trouble::HostUnreachable => "host unreachable",
            Trouble::ProtocolUnreachable => "protocol unreachable",
            Trouble::PortUnreachable => "port unreachable",
            Trouble::TooBig => "packet too big",
            Trouble::Prohibited => "administratively prohibited",
            Trouble::TimeExceeded => "time exceeded",
            Trouble::Other => return write!(f, "ICMP {kind}/{code} from {from}"),
        };
        write!(f, "{name} from {from}")
    }
}

impl IcmpError {
    /// Whether it says, of a tunnel packet, that nothing takes it out of the tunnel: there is no such protocol there, or no
    /// tunnel device that is up.
    #[must_use]
    pub fn refuses_tunnel(&self) -> bool {
        matches!(self.trouble(), Trouble::ProtocolUnreachable | Trouble::PortUnreachable)
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

/// Checks an answer against the cookie of the probe that it claims to answer, and its check's kind, if that still exists.
#[must_use]
pub fn prove(answer: &Answer<'_>, lane: &LaneKey, cookie: Cookie, kind: Option<&Kind>) -> Proof {
    let genuine = match *answer {
        Answer::Echo { sequence, payload } => {
            sequence == cookie.echo_sequence() && payload.starts_with(&cookie.bytes())
        }
        // RFC 9293, 3.10.7.3: the acknowledgement of a SYN is its sequence number plus one.
        Answer::SynAck { acknowledgement, .. } | Answer::Reset { acknowledgement } => {
            acknowledgement == cookie.sequence().wrapping_add(1)
        }
        Answer::Datagram { payload } if let Some(Kind::Named { probe, .. }) = kind => probe.proves(payload, cookie),
        // Nothing but the port that it came to: see [`Cookie`]. So it is believed when it is the expected one, and another
        // does not end the wait.
        Answer::Datagram { .. } => true,
        Answer::Error { tag, sequence, .. } => {
            let expected = match lane.protocol {
                Protocol::Icmp => Some(u32::from(cookie.echo_sequence())),
                Protocol::Tcp => Some(cookie.sequence()),
                Protocol::Udp => None,
            };
            tag == cookie.tag(lane.ends) && sequence == expected
        }
        Answer::Ack => return Proof::Neutral,
        Answer::Unproven => false,
    };
    if genuine { Proof::Genuine } else { Proof::Forged }
}

/// What a genuine answer means to a check of `kind`; `None`: nothing.
#[must_use]
pub fn interpret(answer: &Answer<'_>, kind: &Kind, target: IpAddr) -> Option<Finding> {
    match *answer {
        Answer::Echo { .. } => Some(Finding::pass(Reason::L3Ok)),
        Answer::SynAck { mss, .. } => Some(Finding { mss, ..Finding::pass(Reason::L4Ok) }),
        Answer::Reset { .. } => Some(Finding::fail(Severity::Soft, Reason::PortClosed, None)),
        Answer::Datagram { payload } if let Kind::Named { probe, .. } = kind => Some(probe.finding(payload)),
        Answer::Datagram { payload } => Some(if is_expected(payload, kind) {
            Finding::pass(Reason::L4Ok)
        } else {
            Finding::fail(Severity::Soft, Reason::Mismatch, None)
        }),
        Answer::Error { error, .. } => interpret_error(error, kind, target),
        Answer::Ack | Answer::Unproven => None,
    }
}

fn interpret_error(error: IcmpError, kind: &Kind, target: IpAddr) -> Option<Finding> {
    let detail = Some(Detail::Inner(error));
    match (error.trouble(), kind) {
        // Probes are small: this says nothing about the service.
        (Trouble::TooBig, _) => None,
        (Trouble::PortUnreachable, Kind::Udp { .. } | Kind::Named { .. }) if error.from == target => {
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
        Kind::Udp { expect: None, .. } | Kind::Named { .. } | Kind::Icmp | Kind::Tcp { .. } => true,
    }
}
