//! Why checks are down: what was found out last, and who is being asked. A diagnosis awaits answers that may never come,
//! so each has a thread of its own, beside verdicts and rings, and one-shot source ports, none of the prober's.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use hc_prober::{CheckKey, Settings, diagnose::diagnose, diagnosis::Code};
use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, oneshot},
    task::{AbortHandle, JoinSet},
};

use crate::{data_plane::chain, model::Finding};

/// So many reals are asked at a time of those whose check went down; the others wait for their turn. With those below, and
/// each with a block of source ports, this leaves some of the one-shot probers' blocks to others.
const BY_ITSELF: usize = 4;
/// So many are asked at a time because somebody wants to know: they do not wait for those above.
const ON_DEMAND: usize = 2;

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Case {
    /// The check.
    pub key: CheckKey,
    /// How long each answer is awaited.
    pub timeout: Duration,
    /// The check has passed before.
    pub decap_worked: bool,
}

/// What is known of the checks that are down. Pure.
#[derive(Debug, Default)]
struct Board {
    down: HashMap<CheckKey, Down>,
}

#[derive(Debug)]
struct Down {
    since: Instant,
    finding: Option<Finding>,
}

impl Board {
    /// What was found before may be no longer so.
    fn went_down(&mut self, key: CheckKey, now: Instant) {
        self.down.insert(key, Down { since: now, finding: None });
    }

    fn went_up(&mut self, key: &CheckKey) {
        self.down.remove(key);
    }

    fn retain(&mut self, is_checked: impl Fn(&CheckKey) -> bool) {
        self.down.retain(|key, _| is_checked(key));
    }

    /// Keeps what was found out, if the check is down and has been since the question; true if it is kept.
    fn keep(&mut self, key: &CheckKey, asked: Instant, finding: &Finding) -> bool {
        let Some(down) = self.down.get_mut(key).filter(|down| down.since <= asked) else { return false };
        down.finding = Some(finding.clone());
        true
    }

    fn finding(&self, key: &CheckKey) -> Option<&Finding> {
        self.down.get(key)?.finding.as_ref()
    }
}

/// The diagnoses of a daemon: finished, under way and waiting.
#[derive(Debug)]
pub struct Diagnoses {
    settings: Settings,
    board: Board,
    /// For each check that is down, the diagnosis that this led to.
    begun: HashMap<CheckKey, Begun>,
    under_way: JoinSet<Answer>,
    by_itself: Arc<Semaphore>,
    on_demand: Arc<Semaphore>,
}

#[derive(Debug)]
struct Answer {
    key: CheckKey,
    asked: Instant,
    finding: Finding,
    /// To whom wants to know, if it was somebody.
    reply: Option<oneshot::Sender<Finding>>,
}

/// Dropping it ends the wait for a turn. A real that is being asked already is asked to the end, and nobody listens.
#[derive(Debug)]
struct Begun(AbortHandle);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Diagnoses {
    /// None yet. Probes are sent as these settings say, but for their source ports.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let [by_itself, on_demand] = [BY_ITSELF, ON_DEMAND].map(|number| Arc::new(Semaphore::new(number)));
        Self {
            settings,
            board: Board::default(),
            begun: HashMap::new(),
            under_way: JoinSet::new(),
            by_itself,
            on_demand,
        }
    }

    /// A check went down: asks why, once.
    pub fn went_down(&mut self, case: Case) {
        let (key, now) = (case.key.clone(), Instant::now());
        self.board.went_down(key.clone(), now);
        let handle = self.spawn(case, now, Arc::clone(&self.by_itself), None);
        self.begun.insert(key, Begun(handle));
    }

    /// A check came up: whatever was wrong is no longer so.
    pub fn went_up(&mut self, key: &CheckKey) {
        self.board.went_up(key);
        self.begun.remove(key);
    }

    /// Forgets the checks that are no longer made.
    pub fn retain(&mut self, is_checked: impl Fn(&CheckKey) -> bool) {
        self.board.retain(&is_checked);
        self.begun.retain(|key, _| is_checked(key));
    }

    /// Asks afresh; the answer is also kept, if the check is down.
    pub fn ask(&mut self, case: Case) -> oneshot::Receiver<Finding> {
        let (reply, answer) = oneshot::channel();
        self.spawn(case, Instant::now(), Arc::clone(&self.on_demand), Some(reply));
        answer
    }

    /// Waits for the next diagnosis that is kept; `None`: none is under way. May be dropped at any time.
    pub async fn next(&mut self) -> Option<(CheckKey, Finding)> {
        loop {
            // An error: it was aborted, or its panic has been reported where it happened.
            let Ok(Answer { key, asked, finding, reply }) = self.under_way.join_next().await? else { continue };
            let kept = self.board.keep(&key, asked, &finding);
            // An asker that is gone wants no answer.
            let _ = reply.map(|reply| reply.send(finding.clone()));
            if kept {
                return Some((key, finding));
            }
        }
    }

    /// What was found out last about a check that is down.
    #[must_use]
    pub fn finding(&self, key: &CheckKey) -> Option<&Finding> {
        self.board.finding(key)
    }

    fn spawn(
        &mut self,
        case: Case,
        asked: Instant,
        turns: Arc<Semaphore>,
        reply: Option<oneshot::Sender<Finding>>,
    ) -> AbortHandle {
        let settings = self.settings.clone();
        self.under_way.spawn(async move {
            let key = case.key.clone();
            Answer { key, asked, finding: on_a_thread(case, settings, turns).await, reply }
        })
    }
}

/// Waits for a turn, and asks.
async fn on_a_thread(case: Case, settings: Settings, turns: Arc<Semaphore>) -> Finding {
    // Fails when nobody gives turns any more; ours are given for ever.
    let turn = turns.acquire_owned().await;
    let (tell, told) = oneshot::channel();
    let body = move || {
        let _turn = turn;
        // Whoever wanted to know may be gone.
        let _ = tell.send(find_out(case, &settings));
    };
    match std::thread::Builder::new().name("diagnosis".into()).spawn(body) {
        Ok(_) => told.await.unwrap_or_else(|_| not_asked("its thread has ended")),
        Err(error) => not_asked(&format!("start a thread: {error}")),
    }
}

fn find_out(case: Case, settings: &Settings) -> Finding {
    match diagnose(case.key, case.decap_worked, case.timeout, settings) {
        Ok((case, code)) => {
            let meaning = case.meaning(code);
            Finding {
                code: code.to_string(),
                text: meaning.text,
                evidence: case.evidence().collect(),
                mend: meaning.mend,
                at: Timestamp::now(),
            }
        }
        Err(error) => not_asked(&chain(&error)),
    }
}

fn not_asked(error: &str) -> Finding {
    Finding {
        code: Code::Unknown.to_string(),
        text: format!("the real could not be asked: {error}"),
        evidence: Vec::new(),
        mend: None,
        at: Timestamp::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hc_prober::Kind;

    fn key(port: u16) -> CheckKey {
        let (real, target) = ([198, 18, 222, 11].into(), [198, 19, 10, 1].into());
        CheckKey::new(real, target, Kind::Tcp { port })
    }

    fn finding(text: &str) -> Finding {
        Finding { at: Timestamp::UNIX_EPOCH, ..not_asked(text) }
    }

    #[test]
    fn finding_is_kept_until_the_check_is_up_or_gone() {
        let (mut board, now) = (Board::default(), Instant::now());
        for port in [80, 443] {
            board.went_down(key(port), now);
            assert!(board.finding(&key(port)).is_none());
            assert!(board.keep(&key(port), now, &finding("a")));
            assert_eq!(board.finding(&key(port)), Some(&finding("a")));
        }
        board.went_up(&key(80));
        assert!(board.finding(&key(80)).is_none());
        board.retain(|key| key.kind != Kind::Tcp { port: 443 });
        assert!(board.finding(&key(443)).is_none());
    }

    #[test]
    fn finding_of_a_question_before_the_last_transition_is_not_kept() {
        let (mut board, asked) = (Board::default(), Instant::now());
        assert!(!board.keep(&key(80), asked, &finding("up")));
        board.went_down(key(80), asked + Duration::from_secs(1));
        assert!(!board.keep(&key(80), asked, &finding("asked before")));
        assert!(board.keep(&key(80), asked + Duration::from_secs(2), &finding("asked since")));
        // Down again, otherwise: known no longer.
        board.went_down(key(80), asked + Duration::from_secs(3));
        assert!(board.finding(&key(80)).is_none());
    }
}
