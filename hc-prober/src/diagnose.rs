//! Asks a real what is wrong with it: the edge of `diagnosis`.

use std::time::Duration;

use crate::{
    check::{Check, CheckKey, Kind, Timing},
    diagnosis::{Answer, Case, Code, Question, Step},
    session::{Session, SessionError},
    settings::Settings,
};

/// So many probes a question: one that is lost decides nothing.
const PROBES: u64 = 2;

/// From one of them to the next.
const PACE: Duration = Duration::from_millis(50);

/// Climbs the ladder for a check, until it ends; each question takes `timeout` at most, and a little more.
///
/// # Errors
/// A question cannot be asked: see [`SessionError`].
pub fn diagnose(
    key: CheckKey,
    decap_worked: bool,
    timeout: Duration,
    settings: &Settings,
) -> Result<(Case, Code), SessionError> {
    let mut case = Case::new(key, decap_worked);
    loop {
        match case.next() {
            Step::Found(code) => return Ok((case, code)),
            Step::Ask(question) => {
                let answer = ask(question, case.key(), timeout, settings)?;
                case.note(question, answer);
            }
        }
    }
}

fn ask(question: Question, key: &CheckKey, timeout: Duration, settings: &Settings) -> Result<Answer, SessionError> {
    let real = key.real;
    let timing = Timing { timeout, ..Timing::default() };
    let check = |target, kind| Check { key: CheckKey { real, target, kind }, timing };
    let settings = settings.clone();
    let mut session = match question {
        Question::Check => Session::open(&check(key.target, key.kind.clone()), settings, PROBES)?,
        Question::Vip => Session::open(&check(key.target, Kind::Icmp), settings, PROBES)?,
        Question::Own => Session::open(&check(real, Kind::Icmp), settings, PROBES)?,
        Question::Plain => Session::open_direct(&check(real, Kind::Icmp), settings, PROBES)?,
    };
    let summary = session.run(PROBES, PACE);
    Ok(match summary.telling {
        _ if summary.passed > 0 => Answer::Passed,
        Some(finding) => Answer::of(&finding),
        None => Answer::Unknown(None),
    })
}
