//! Why a check fails: a ladder of questions to the real, and what their answers mean together. Pure: it is given answers,
//! and says what to ask next or what is wrong.

use std::{fmt, net::IpAddr};

use serde::{Serialize, Serializer};

use crate::{
    check::{CheckKey, Kind},
    claim::Mac,
    finding::{Detail, Finding},
    reply::{IcmpError, Trouble},
    report::Reason,
    state::Event,
};

/// A question: which packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Question {
    /// The check itself, through the tunnel.
    Check,
    /// An echo request to the VIP, through the tunnel.
    Vip,
    /// An echo request to the real's own address, through the tunnel.
    Own,
    /// An echo request to the real's own address, outside of the tunnel.
    Plain,
    /// An echo request to the VIP, through the tunnel, in a packet that fills the path.
    Full,
    /// Who has the VIP, on the real's own link: ARP, or a neighbour solicitation.
    Claim,
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The right answer.
    Passed,
    /// SYN-ACK, and the MSS that it announces.
    Accepted(u16),
    /// The real says that it has the VIP, from its hardware address.
    Claimed(Mac),
    /// RST, or port unreachable from the target.
    Refused,
    /// An ICMP error about the innermost packet.
    Error(IcmpError),
    /// Nothing, but perhaps an ICMP error about the tunnel packet, which proves nothing by itself.
    Silent(Option<IcmpError>),
    /// An answer, but not the expected one.
    Mismatch,
    /// Nothing was learnt.
    Unknown(Option<Detail>),
}

impl Answer {
    /// What a probe's result is as an answer.
    #[must_use]
    pub fn of(finding: &Finding) -> Self {
        match (finding.event, finding.reason, finding.detail) {
            (Event::Pass, _, _) => finding.mss.map_or(Self::Passed, Self::Accepted),
            (Event::Unknown, _, detail) => Self::Unknown(detail),
            (Event::Fail(_), Reason::PortClosed, _) => Self::Refused,
            (Event::Fail(_), Reason::Mismatch, _) => Self::Mismatch,
            (Event::Fail(_), _, Some(Detail::Inner(error))) => Self::Error(error),
            (Event::Fail(_), _, Some(Detail::Outer(error))) => Self::Silent(Some(error)),
            (Event::Fail(_), _, _) => Self::Silent(None),
        }
    }
}

/// What is wrong: a stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// `OK`: the check passes.
    Ok,
    /// `HOST_DOWN`: the host does not answer at all.
    HostDown,
    /// `DECAP_MISSING`: the host says that it has no use for the tunnel's packets.
    DecapMissing,
    /// `DECAP_SILENT`: the host answers outside the tunnel, and nothing that comes through it.
    DecapSilent,
    /// `RPF_SUSPECT`: as `DECAP_SILENT`, where decapsulation worked before.
    RpfSuspect,
    /// `VIP_NOT_LOCAL`: the host decapsulates, but the VIP is not one of its addresses.
    VipNotLocal,
    /// `PORT_CLOSED`: the VIP answers, nobody listens on the port.
    PortClosed,
    /// `SERVICE_SILENT`: the VIP answers, the port neither accepts nor refuses.
    ServiceSilent,
    /// `MISMATCH`: the service answers otherwise than expected.
    Mismatch,
    /// `MSS_TOO_BIG`: the check passes, but the real takes segments that are too big for the path once they are in the tunnel.
    MssTooBig,
    /// `ARP_LEAK`: the check passes, but the real also claims the VIP on its link, which draws traffic past the load balancer.
    ArpLeak,
    /// `MTU_BLACKHOLE`: the check passes, but packets that fill the path get lost, and nobody says so.
    MtuBlackhole,
    /// `UNKNOWN`: could not be found out; the fault may be on our side.
    Unknown,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "OK",
            Self::HostDown => "HOST_DOWN",
            Self::DecapMissing => "DECAP_MISSING",
            Self::DecapSilent => "DECAP_SILENT",
            Self::RpfSuspect => "RPF_SUSPECT",
            Self::VipNotLocal => "VIP_NOT_LOCAL",
            Self::PortClosed => "PORT_CLOSED",
            Self::ServiceSilent => "SERVICE_SILENT",
            Self::Mismatch => "MISMATCH",
            Self::MssTooBig => "MSS_TOO_BIG",
            Self::ArpLeak => "ARP_LEAK",
            Self::MtuBlackhole => "MTU_BLACKHOLE",
            Self::Unknown => "UNKNOWN",
        })
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask this.
    Ask(Question),
    /// This is wrong.
    Found(Code),
}

/// What is known before anything is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The check has passed before.
    pub decap_worked: bool,
    /// The largest packet that the path to the real takes, in bytes from the outer IP header on.
    pub mtu: Option<u32>,
    /// The real is on our own link, and can be asked there.
    pub on_link: bool,
}

/// What is known so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    key: CheckKey,
    known: Known,
    answers: Vec<(Question, Answer)>,
}

impl Case {
    /// Nothing has been asked about this check yet.
    #[must_use]
    pub fn new(key: CheckKey, known: Known) -> Self {
        Self { key, known, answers: Vec::new() }
    }

    /// Which check.
    #[must_use]
    pub fn key(&self) -> &CheckKey {
        &self.key
    }

    /// Takes note of an answer.
    pub fn note(&mut self, question: Question, answer: Answer) {
        self.answers.push((question, answer));
    }

    /// The next rung of the ladder: from the check itself down to the bare host.
    #[must_use]
    pub fn next(&self) -> Step {
        if self.is_up() {
            return self.when_up();
        }
        self.answers.last().map_or(Step::Ask(Question::Check), |(question, answer)| match question {
            // Asked only where the check passes.
            Question::Full | Question::Claim => Step::Found(Code::Unknown),
            Question::Check | Question::Vip => self.after_target(*question, answer),
            Question::Own => self.after_own(answer),
            Question::Plain => self.after_plain(answer),
        })
    }

    fn after_target(&self, question: Question, answer: &Answer) -> Step {
        match (question, answer) {
            // The echo answers, the check did not.
            (_, Answer::Passed | Answer::Accepted(_) | Answer::Claimed(_)) => Step::Found(Code::ServiceSilent),
            (_, Answer::Refused) => Step::Found(Code::PortClosed),
            (_, Answer::Mismatch) => Step::Found(Code::Mismatch),
            (_, Answer::Error(error)) if error.from == self.key.target => Step::Found(Code::PortClosed),
            (_, Answer::Error(error)) => match error.trouble() {
                // Only a router that the packet has left the tunnel at quotes the inner packet.
                Trouble::TimeExceeded | Trouble::NetworkUnreachable | Trouble::HostUnreachable => {
                    Step::Found(Code::VipNotLocal)
                }
                _ => Step::Ask(Question::Own),
            },
            // Whatever an error about some tunnel packet says, which may be another's.
            (Question::Check, Answer::Silent(_)) if self.key.kind != Kind::Icmp => Step::Ask(Question::Vip),
            (_, Answer::Silent(_)) => Step::Ask(Question::Own),
            (_, Answer::Unknown(_)) => Step::Found(Code::Unknown),
        }
    }

    /// The check itself passes.
    fn is_up(&self) -> bool {
        matches!(self.answers.first(), Some((Question::Check, Answer::Passed | Answer::Accepted(_))))
    }

    /// The check passes: do packets that fill the path, if a small one of that kind does? Does the real keep to the tunnel?
    fn when_up(&self) -> Step {
        let echoes = |answer: &Answer| matches!(answer, Answer::Passed);
        let small = if self.key.kind == Kind::Icmp { Question::Check } else { Question::Vip };
        match (self.full_echo(), self.answer(small), self.answer(Question::Full), self.answer(Question::Claim)) {
            (Some(_), None, _, _) => Step::Ask(Question::Vip),
            (Some(_), Some(answer), None, _) if echoes(answer) => Step::Ask(Question::Full),
            (_, _, _, None) if self.known.on_link => Step::Ask(Question::Claim),
            // With an ICMP error about the full packet whoever sends learns what does pass.
            (_, _, full, claim) => Step::Found(match (full, claim) {
                (_, Some(Answer::Claimed(_))) => Code::ArpLeak,
                (Some(Answer::Silent(None)), _) => Code::MtuBlackhole,
                _ if self.is_segment_too_big() => Code::MssTooBig,
                _ => Code::Ok,
            }),
        }
    }

    fn answer(&self, question: Question) -> Option<&Answer> {
        self.answers.iter().find_map(|(asked, answer)| (*asked == question).then_some(answer))
    }

    fn is_segment_too_big(&self) -> bool {
        matches!((self.mss(), self.known.mtu), (Some(mss), Some(mtu)) if self.tunnelled(mss) > mtu)
    }

    /// What the target's SYN-ACK announced.
    fn mss(&self) -> Option<u16> {
        self.answers.iter().find_map(|(_, answer)| match answer {
            Answer::Accepted(mss) => Some(*mss),
            _ => None,
        })
    }

    /// How much data an echo request to the VIP carries that fills the path, in bytes; `None`: nothing is known of the path.
    #[must_use]
    pub fn full_echo(&self) -> Option<usize> {
        const ICMP: u32 = 8;
        // An IP packet's length is a number of 16 bits.
        let mtu = self.known.mtu?.min(u16::MAX.into());
        usize::try_from(mtu.checked_sub(self.headers() + ICMP)?).ok()
    }

    /// The length of both IP headers. Those of the data plane have no options.
    fn headers(&self) -> u32 {
        [self.key.target, self.key.real].map(|address| if address.is_ipv4() { 20 } else { 40 }).iter().sum()
    }

    /// The length of the tunnel packet with a segment of this size. RFC 9293, 3.7.1: an MSS counts neither IP nor TCP headers,
    /// and does count options.
    fn tunnelled(&self, mss: u16) -> u32 {
        const TCP: u32 = 20;
        u32::from(mss) + TCP + self.headers()
    }

    fn after_own(&self, answer: &Answer) -> Step {
        match answer {
            Answer::Passed | Answer::Accepted(_) | Answer::Claimed(_) => Step::Found(Code::VipNotLocal),
            Answer::Silent(Some(error)) if self.refuses_tunnel(error) => Step::Found(Code::DecapMissing),
            Answer::Silent(_) | Answer::Error(_) | Answer::Refused | Answer::Mismatch => {
                // Errors are rationed: one about an earlier question counts as well.
                let refused = self
                    .answers
                    .iter()
                    .any(|(_, answer)| matches!(answer, Answer::Silent(Some(error)) if self.refuses_tunnel(error)));
                if refused { Step::Found(Code::DecapMissing) } else { Step::Ask(Question::Plain) }
            }
            Answer::Unknown(_) => Step::Found(Code::Unknown),
        }
    }

    fn after_plain(&self, answer: &Answer) -> Step {
        // An error from the host itself, such as a filter's, is an answer too.
        let alive = match answer {
            Answer::Passed | Answer::Accepted(_) | Answer::Claimed(_) | Answer::Refused | Answer::Mismatch => true,
            Answer::Error(error) => error.from == self.key.real,
            Answer::Silent(_) => false,
            Answer::Unknown(_) => return Step::Found(Code::Unknown),
        };
        Step::Found(match (alive, self.known.decap_worked) {
            (false, _) => Code::HostDown,
            // IPv6 has no rp_filter.
            (true, true) if self.key.target.is_ipv4() => Code::RpfSuspect,
            (true, _) => Code::DecapSilent,
        })
    }

    fn refuses_tunnel(&self, error: &IcmpError) -> bool {
        error.from == self.key.real && error.refuses_tunnel()
    }

    /// A line for each answer, for people.
    pub fn evidence(&self) -> impl Iterator<Item = String> {
        self.answers
            .iter()
            .map(|(question, answer)| {
                let asked = match question {
                    Question::Check => format!("{} to the VIP, through the tunnel", self.key.kind.name()),
                    Question::Vip => "echo to the VIP, through the tunnel".into(),
                    Question::Own => "echo to the real's own address, through the tunnel".into(),
                    Question::Plain => "echo to the real's own address, outside the tunnel".into(),
                    Question::Claim => "who has the VIP, on the real's link".into(),
                    Question::Full => match self.known.mtu {
                        Some(mtu) => format!("echo to the VIP, through the tunnel, {mtu} bytes in all"),
                        None => "echo to the VIP, through the tunnel, that fills the path".into(),
                    },
                };
                format!("{asked}: {answer}")
            })
            .chain(self.room())
    }

    /// What a full segment needs and the path has, where both are known.
    fn room(&self) -> Option<String> {
        let (length, mtu) = (self.tunnelled(self.mss()?), self.known.mtu?);
        Some(format!("a full segment to the VIP, in the tunnel: {length} bytes; the path takes {mtu}"))
    }

    /// What the code means here; the commands are for the real, but for those that say otherwise.
    #[must_use]
    pub fn meaning(&self, code: Code) -> Meaning {
        let CheckKey { real, target: vip, hops, kind } = &self.key;
        let apply = Some(format!("realsrv-setup apply --vip {vip}"));
        let (text, mend) = match code {
            Code::Ok => ("nothing is wrong".into(), None),
            Code::HostDown => {
                (format!("{real} does not answer at all"), Some(format!("on the load balancer: ip neigh show {real}")))
            }
            Code::DecapMissing => (
                format!(
                    "{real} refuses the tunnel: nothing decapsulates there, or a filter rejects it with that error"
                ),
                apply,
            ),
            Code::DecapSilent => (
                format!(
                    "{real} answers, but nothing that comes through the tunnel: the tunnel's protocol or what is inside is \
                     dropped there or on the way"
                ),
                Some(format!("realsrv-setup check --vip {vip}")),
            ),
            Code::RpfSuspect => (
                format!(
                    "{real} answers, but nothing that comes through the tunnel, which worked before: rp_filter, or a filter"
                ),
                Some(format!("realsrv-setup check --vip {vip}")),
            ),
            Code::VipNotLocal if hops.get() > 1 => {
                (format!("{real} decapsulates, but {vip} does not answer within {hops} hops"), apply)
            }
            Code::VipNotLocal => (format!("{real} decapsulates, but {vip} is not one of its addresses"), apply),
            Code::PortClosed => {
                (format!("{vip} is there, and refuses: nobody listens, or a filter rejects"), listeners(kind, *vip))
            }
            Code::ServiceSilent => {
                (format!("{vip} is there, and the port is silent: backlog full, or filtered"), listeners(kind, *vip))
            }
            Code::Mismatch => ("the service answers otherwise than expected".into(), None),
            Code::MssTooBig => (
                format!(
                    "{vip} announces an MSS that leaves no room for the tunnel's header: full packets do not fit the path"
                ),
                Some(format!("realsrv-setup apply --vip {vip} --mss auto")),
            ),
            Code::ArpLeak => (
                format!("{real} answers for {vip} on its link: whoever asks there sends past the load balancer"),
                apply,
            ),
            Code::MtuBlackhole => (
                format!(
                    "packets to {real} that fill the path get lost on the way, and no router says so: a link there is \
                     narrower than ours, or full-sized echo requests are filtered"
                ),
                Some(format!("on the load balancer: tracepath -n {real}")),
            ),
            Code::Unknown => ("could not be found out".into(), None),
        };
        Meaning { text, mend }
    }
}

/// A code in its case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// For people.
    pub text: String,
    /// The command that mends it, or shows what is to be mended.
    pub mend: Option<String>,
}

/// A command that shows who listens.
fn listeners(kind: &Kind, vip: IpAddr) -> Option<String> {
    let family = if vip.is_ipv4() { "-4" } else { "-6" };
    match kind {
        Kind::Icmp => None,
        Kind::Tcp { port } => Some(format!("ss -ltnp {family} 'sport = :{port}'")),
        Kind::Udp { port, .. } | Kind::Named { port, .. } => Some(format!("ss -lunp {family} 'sport = :{port}'")),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("answered"),
            Self::Claimed(mac) => {
                let octets: Vec<_> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
                write!(f, "claimed by the real, {}", octets.join(":"))
            }
            Self::Accepted(mss) => write!(f, "answered, with an MSS of {mss}"),
            Self::Refused => f.write_str("refused"),
            Self::Error(error) => write!(f, "{error} quoting the probe"),
            Self::Silent(Some(error)) => write!(f, "silent, but for {error} quoting the tunnel"),
            Self::Silent(None) => f.write_str("silent"),
            Self::Mismatch => f.write_str("an unexpected answer"),
            Self::Unknown(Some(detail)) => write!(f, "nothing learnt: {detail}"),
            Self::Unknown(None) => f.write_str("nothing learnt"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const REAL: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 101, 10));
    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 10, 1));
    const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 101, 1));
    const SILENT: Answer = Answer::Silent(None);

    const fn error(from: IpAddr, kind: u8, code: u8) -> IcmpError {
        IcmpError { from, kind, code }
    }

    const NO_PROTOCOL: Answer = Answer::Silent(Some(error(REAL, 3, 2)));
    const NO_TUNNEL_UP: Answer = Answer::Silent(Some(error(REAL, 3, 3)));
    const NO_HOST: Answer = Answer::Silent(Some(error(ROUTER, 3, 1)));

    /// What is asked, and found, if the real answers like this.
    fn climb(kind: Kind, decap_worked: bool, answers: [Answer; 4]) -> (Vec<Question>, Code) {
        let known = Known { decap_worked, ..Known::default() };
        let mut case = Case::new(CheckKey::new(REAL, VIP, kind), known);
        let mut asked = Vec::new();
        loop {
            match case.next() {
                Step::Found(code) => return (asked, code),
                Step::Ask(question) => {
                    assert!(!asked.contains(&question), "{question:?} twice");
                    asked.push(question);
                    case.note(question, answers[question as usize]);
                }
            }
        }
    }

    /// The answers to the check, and to an echo to the VIP, to the real in the tunnel, and to the real outside.
    #[test]
    fn ladder_ends_at_the_code_of_the_table() {
        use Answer::{Error, Passed, Refused, Unknown};
        let forwards = Error(error(REAL, 11, 0));
        for (answers, questions, code) in [
            ([Passed; 4], 1, Code::Ok),
            ([Refused, Passed, Passed, Passed], 1, Code::PortClosed),
            ([Error(error(VIP, 3, 3)), Passed, Passed, Passed], 1, Code::PortClosed),
            ([SILENT, Passed, Passed, Passed], 2, Code::ServiceSilent),
            // Of another's packet in the tunnel: it says nothing of this VIP.
            ([NO_PROTOCOL, Passed, Passed, Passed], 2, Code::ServiceSilent),
            ([forwards, forwards, Passed, Passed], 1, Code::VipNotLocal),
            ([SILENT, SILENT, Passed, Passed], 3, Code::VipNotLocal),
            ([NO_PROTOCOL, NO_PROTOCOL, Passed, Passed], 3, Code::VipNotLocal),
            ([NO_PROTOCOL, NO_PROTOCOL, NO_PROTOCOL, Passed], 3, Code::DecapMissing),
            ([NO_TUNNEL_UP, NO_TUNNEL_UP, NO_TUNNEL_UP, Passed], 3, Code::DecapMissing),
            // The second error was not granted.
            ([NO_PROTOCOL, SILENT, SILENT, Passed], 3, Code::DecapMissing),
            ([SILENT, SILENT, SILENT, Passed], 4, Code::DecapSilent),
            ([SILENT; 4], 4, Code::HostDown),
            ([NO_HOST, NO_HOST, NO_HOST, Error(error(ROUTER, 3, 1))], 4, Code::HostDown),
            // A filter there: alive.
            ([SILENT, SILENT, SILENT, Error(error(REAL, 3, 13))], 4, Code::DecapSilent),
            ([Unknown(None); 4], 1, Code::Unknown),
        ] {
            let (asked, found) = climb(Kind::Tcp { port: 80 }, false, answers);
            assert_eq!((asked.len(), found), (questions, code), "{answers:?}");
        }
    }

    #[test]
    fn segment_of_the_announced_size_must_fit_the_path_with_both_headers() {
        const REAL_6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
        // 20 bytes of TCP, and two headers.
        for (real, target, fits) in [(REAL, VIP, 1440), (REAL_6, VIP, 1420), (REAL_6, REAL_6, 1400)] {
            let key = CheckKey::new(real, target, Kind::Tcp { port: 80 });
            let found = |mss, mtu| {
                let mut case = Case::new(key.clone(), Known { mtu, ..Known::default() });
                case.note(Question::Check, Answer::Accepted(mss));
                if mtu.is_some() {
                    assert_eq!(case.next(), Step::Ask(Question::Vip));
                    case.note(Question::Vip, Answer::Passed);
                    assert_eq!(case.next(), Step::Ask(Question::Full));
                    case.note(Question::Full, Answer::Passed);
                }
                case.next()
            };
            assert_eq!(found(fits, Some(1500)), Step::Found(Code::Ok));
            assert_eq!(found(fits + 1, Some(1500)), Step::Found(Code::MssTooBig));
            assert_eq!(found(fits + 1, None), Step::Found(Code::Ok), "nothing is known of the path");
        }
    }

    #[test]
    fn full_packet_that_is_lost_without_a_word_is_a_black_hole_if_a_small_one_is_not() {
        let too_big = Answer::Silent(Some(error(ROUTER, 3, 4)));
        let tcp = Kind::Tcp { port: 80 };
        for (kind, answers, code) in [
            (&Kind::Icmp, &[Answer::Passed, SILENT][..], Code::MtuBlackhole),
            (&Kind::Icmp, &[Answer::Passed, Answer::Passed], Code::Ok),
            (&Kind::Icmp, &[Answer::Passed, too_big], Code::Ok),
            (&tcp, &[Answer::Accepted(1460), Answer::Passed, SILENT], Code::MtuBlackhole),
            (&tcp, &[Answer::Accepted(1460), Answer::Passed, too_big], Code::MssTooBig),
            // Echo requests are filtered.
            (&tcp, &[Answer::Accepted(1440), SILENT], Code::Ok),
        ] {
            let key = CheckKey::new(REAL, VIP, kind.clone());
            let mut case = Case::new(key, Known { mtu: Some(1500), ..Known::default() });
            for answer in answers {
                let Step::Ask(question) = case.next() else { panic!("{case:?}") };
                case.note(question, *answer);
            }
            assert_eq!(case.next(), Step::Found(code), "{case:?}");
            assert_eq!(case.full_echo(), Some(1500 - 20 - 20 - 8));
        }
    }

    #[test]
    fn vip_claimed_by_the_real_is_a_leak_whatever_else_is_found() {
        let found = |on_link, answers: &[Answer]| {
            let key = CheckKey::new(REAL, VIP, Kind::Icmp);
            let mut case = Case::new(key, Known { mtu: Some(1500), on_link, ..Known::default() });
            for answer in answers {
                let Step::Ask(question) = case.next() else { panic!("{case:?}") };
                case.note(question, *answer);
            }
            case.next()
        };
        let claimed = Answer::Claimed([2, 0, 0, 0, 0, 2]);
        assert_eq!(found(true, &[Answer::Passed, SILENT, claimed]), Step::Found(Code::ArpLeak));
        assert_eq!(found(true, &[Answer::Passed, SILENT, SILENT]), Step::Found(Code::MtuBlackhole));
        assert_eq!(found(true, &[Answer::Passed, Answer::Passed, Answer::Unknown(None)]), Step::Found(Code::Ok));
        assert_eq!(found(false, &[Answer::Passed, Answer::Passed]), Step::Found(Code::Ok), "a router is in between");
    }

    #[test]
    fn protocol_unreachable_of_a_stranger_is_no_proof() {
        let stranger = Answer::Silent(Some(error(ROUTER, 3, 2)));
        let (_, found) = climb(Kind::Icmp, false, [stranger, stranger, stranger, Answer::Passed]);
        assert_eq!(found, Code::DecapSilent);
    }

    #[test]
    fn tunnel_that_worked_before_and_is_silent_makes_rp_filter_suspect() {
        let answers = [SILENT, SILENT, SILENT, Answer::Passed];
        assert_eq!(
            climb(Kind::Icmp, true, answers),
            (vec![Question::Check, Question::Own, Question::Plain], Code::RpfSuspect)
        );
    }

    #[test]
    fn meaning_names_the_command_that_mends() {
        let case = Case::new(CheckKey::new(REAL, VIP, Kind::Tcp { port: 80 }), Known::default());
        assert_eq!(case.meaning(Code::VipNotLocal).mend.unwrap(), "realsrv-setup apply --vip 198.19.10.1");
        assert_eq!(case.meaning(Code::PortClosed).mend.unwrap(), "ss -ltnp -4 'sport = :80'");
        assert_eq!(case.meaning(Code::Ok).mend, None);
    }
}
