//! Why a check fails: a ladder of questions to the real, and what their answers mean together. Pure: it is given answers,
//! and says what to ask next or what is wrong.

use std::{fmt, net::IpAddr};

use serde::{Serialize, Serializer};

use crate::{
    check::{CheckKey, Kind},
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
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The right answer.
    Passed,
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
            (Event::Pass, _, _) => Self::Passed,
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

/// What is known so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    key: CheckKey,
    decap_worked: bool,
    answers: Vec<(Question, Answer)>,
}

impl Case {
    /// Nothing is known yet of this check; `decap_worked`: but that it passed before.
    #[must_use]
    pub fn new(key: CheckKey, decap_worked: bool) -> Self {
        Self { key, decap_worked, answers: Vec::new() }
    }

    /// Which check.
    #[must_use]
    pub fn key(&self) -> &CheckKey {
        &self.key
    }

    /// The answers so far, in order.
    #[must_use]
    pub fn answers(&self) -> &[(Question, Answer)] {
        &self.answers
    }

    /// Takes note of an answer.
    pub fn note(&mut self, question: Question, answer: Answer) {
        self.answers.push((question, answer));
    }

    /// The next rung of the ladder: from the check itself down to the bare host.
    #[must_use]
    pub fn next(&self) -> Step {
        self.answers.last().map_or(Step::Ask(Question::Check), |(question, answer)| match question {
            Question::Check | Question::Vip => self.after_target(*question, answer),
            Question::Own => self.after_own(answer),
            Question::Plain => self.after_plain(answer),
        })
    }

    fn after_target(&self, question: Question, answer: &Answer) -> Step {
        match (question, answer) {
            (Question::Check, Answer::Passed) => Step::Found(Code::Ok),
            // The echo answers, the check did not.
            (_, Answer::Passed) => Step::Found(Code::ServiceSilent),
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
            (Question::Check, Answer::Silent(None)) if self.key.kind != Kind::Icmp => Step::Ask(Question::Vip),
            (_, Answer::Silent(_)) => Step::Ask(Question::Own),
            (_, Answer::Unknown(_)) => Step::Found(Code::Unknown),
        }
    }

    fn after_own(&self, answer: &Answer) -> Step {
        match answer {
            Answer::Passed => Step::Found(Code::VipNotLocal),
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
            Answer::Passed | Answer::Refused | Answer::Mismatch => true,
            Answer::Error(error) => error.from == self.key.real,
            Answer::Silent(_) => false,
            Answer::Unknown(_) => return Step::Found(Code::Unknown),
        };
        Step::Found(match (alive, self.decap_worked) {
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
        self.answers.iter().map(|(question, answer)| {
            let asked = match question {
                Question::Check => format!("{} to the VIP, through the tunnel", self.key.kind.name()),
                Question::Vip => "echo to the VIP, through the tunnel".into(),
                Question::Own => "echo to the real's own address, through the tunnel".into(),
                Question::Plain => "echo to the real's own address, outside the tunnel".into(),
            };
            format!("{asked}: {answer}")
        })
    }

    /// What the code means here; the commands are for the real, but for those that say otherwise.
    #[must_use]
    pub fn meaning(&self, code: Code) -> Meaning {
        let CheckKey { real, target: vip, kind } = &self.key;
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
            Code::VipNotLocal => (format!("{real} decapsulates, but {vip} is not one of its addresses"), apply),
            Code::PortClosed => {
                (format!("{vip} is there, and refuses: nobody listens, or a filter rejects"), listeners(kind, *vip))
            }
            Code::ServiceSilent => {
                (format!("{vip} is there, and the port is silent: backlog full, or filtered"), listeners(kind, *vip))
            }
            Code::Mismatch => ("the service answers otherwise than expected".into(), None),
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
        Kind::Udp { port, .. } => Some(format!("ss -lunp {family} 'sport = :{port}'")),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("answered"),
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
        let mut case = Case::new(CheckKey { real: REAL, target: VIP, kind }, decap_worked);
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
            ([forwards, forwards, Passed, Passed], 1, Code::VipNotLocal),
            ([SILENT, SILENT, Passed, Passed], 3, Code::VipNotLocal),
            ([NO_PROTOCOL, NO_PROTOCOL, Passed, Passed], 2, Code::VipNotLocal),
            ([NO_PROTOCOL, NO_PROTOCOL, NO_PROTOCOL, Passed], 2, Code::DecapMissing),
            ([NO_TUNNEL_UP, NO_TUNNEL_UP, NO_TUNNEL_UP, Passed], 2, Code::DecapMissing),
            // The second error was not granted.
            ([NO_PROTOCOL, SILENT, SILENT, Passed], 2, Code::DecapMissing),
            ([SILENT, SILENT, SILENT, Passed], 4, Code::DecapSilent),
            ([SILENT; 4], 4, Code::HostDown),
            ([NO_HOST, NO_HOST, NO_HOST, Error(error(ROUTER, 3, 1))], 3, Code::HostDown),
            // A filter there: alive.
            ([SILENT, SILENT, SILENT, Error(error(REAL, 3, 13))], 4, Code::DecapSilent),
            ([Unknown(None); 4], 1, Code::Unknown),
        ] {
            let (asked, found) = climb(Kind::Tcp { port: 80 }, false, answers);
            assert_eq!((asked.len(), found), (questions, code), "{answers:?}");
        }
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
        let case = Case::new(CheckKey { real: REAL, target: VIP, kind: Kind::Tcp { port: 80 } }, false);
        assert_eq!(case.meaning(Code::VipNotLocal).mend.unwrap(), "realsrv-setup apply --vip 198.19.10.1");
        assert_eq!(case.meaning(Code::PortClosed).mend.unwrap(), "ss -ltnp -4 'sport = :80'");
        assert_eq!(case.meaning(Code::Ok).mend, None);
    }
}
