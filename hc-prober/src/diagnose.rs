//! Asks a real what is wrong with it: the edge of `diagnosis`.

use std::{io, net::IpAddr, time::Duration};

use crate::{
    check::{Check, CheckKey, Kind, Timing},
    claim::{self, Link},
    diagnosis::{Answer, Case, Code, Known, Question, Step},
    finding::Detail,
    route,
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
    // Without a route the first question fails, and says so.
    let way = way(&key).ok();
    let link = way.as_ref().and_then(|way| way.link);
    let known = Known { decap_worked, mtu: way.map(|way| way.mtu), on_link: link.is_some() };
    let mut case = Case::new(key, known);
    loop {
        match case.next() {
            Step::Found(code) => return Ok((case, code)),
            Step::Ask(question) => {
                let answer = match (question, link) {
                    (Question::Claim, Some((link, ours))) => claim(case.key(), link, ours, timeout),
                    _ => ask(question, &case, timeout, settings)?,
                };
                case.note(question, answer);
            }
        }
    }
}

/// What the kernel knows of the way to the real.
struct Way {
    mtu: u32,
    /// If the real is on it: the link, and an address of ours for each of real and target.
    link: Option<(Link, [IpAddr; 2])>,
}

fn way(key: &CheckKey) -> io::Result<Way> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, routes, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let route = route::lookup(&routes, key.real).await?;
        let interface = route::interface(&routes, route.interface).await?;
        let ours = match key.target {
            target if target.is_ipv4() == key.real.is_ipv4() => Some(route.source),
            target => route::lookup(&routes, target).await.ok().map(|route| route.source),
        };
        let link = match (route.gateway.is_none(), interface.mac, ours) {
            (true, Some(mac), Some(ours)) => Some((Link { interface: route.interface, mac }, [route.source, ours])),
            _ => None,
        };
        Ok(Way { mtu: route.mtu.unwrap_or(interface.mtu), link })
    })
}

/// Whether the real claims the VIP: whether who has the real's own address also has that.
fn claim(key: &CheckKey, link: Link, [towards_real, towards_target]: [IpAddr; 2], timeout: Duration) -> Answer {
    let found = claim::ask(link, towards_real, key.real, timeout, |_| true).and_then(|real| match real {
        Some(real) => claim::ask(link, towards_target, key.target, timeout, |mac| mac == real)
            .map(|claimed| claimed.map_or(Answer::Silent(None), Answer::Claimed)),
        // Nobody tells who the real is.
        None => Ok(Answer::Unknown(None)),
    });
    let refused = |error: io::Error| Answer::Unknown(error.raw_os_error().map(Detail::Refused));
    found.unwrap_or_else(refused)
}

fn ask(question: Question, case: &Case, timeout: Duration, settings: &Settings) -> Result<Answer, SessionError> {
    let key = case.key();
    let real = key.real;
    let timing = Timing { timeout, ..Timing::default() };
    let check = |target, kind| Check { key: CheckKey { real, target, hops: key.hops, kind }, timing };
    let settings = settings.clone();
    let mut session = match question {
        Question::Check => Session::open(&check(key.target, key.kind.clone()), settings, PROBES)?,
        Question::Vip | Question::Full => Session::open(&check(key.target, Kind::Icmp), settings, PROBES)?,
        Question::Own => Session::open(&check(real, Kind::Icmp), settings, PROBES)?,
        // Not without a link: see above.
        Question::Claim => return Ok(Answer::Unknown(None)),
        Question::Plain => Session::open_direct(&check(real, Kind::Icmp), settings, PROBES)?,
    };
    if let (Question::Full, Some(data)) = (question, case.full_echo()) {
        session.fill_echoes(data);
    }
    let summary = session.run(PROBES, PACE);
    Ok(match summary.telling {
        _ if summary.passed > 0 => summary.mss.map_or(Answer::Passed, Answer::Accepted),
        Some(finding) => Answer::of(&finding),
        None => Answer::Unknown(None),
    })
}
