//! Who checks the checker: a thread of its own looks whether the prober still sends, since one that hangs cannot say so.
//!
//! ```text
//!   runner ── each turn: when it must be back, since when nothing leaves ──▶ Pulse ◀── each second ── watchdog ──▶ log
//!                                                                             └──◀── Prober::condition
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde::Serialize;

use crate::{driver::now, time::Monotonic};

/// How often the watchdog looks.
const LOOK: Duration = Duration::from_secs(1);

/// How often it repeats what it has said while that lasts.
const REPEAT: Duration = Duration::from_mins(1);

/// Whether the prober does its work. Verdicts are as old as its last work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Probes leave, or none is due.
    #[default]
    Running,
    /// Probes have been due for several intervals, and none was even tried: the prober hangs, or has far too much to do.
    Stalled,
    /// All probes of several intervals failed to leave: a fault of this host, which proves nothing about any real.
    NotSending,
    /// Nothing is answered, and the interface to the reals has no link, or the gateway on the way does not answer either:
    /// silence says nothing.
    CutOff,
}

/// What the prober's thread lets others see of it.
#[derive(Debug)]
pub struct Pulse {
    /// From then on it is late: nanoseconds of [`Monotonic`]; `u64::MAX`: nothing is due.
    stalled_from: AtomicU64,
    /// From then on it can be said that nothing leaves; `u64::MAX`: something does, or nothing is to.
    not_sending_from: AtomicU64,
    cut_off: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            stalled_from: AtomicU64::new(u64::MAX),
            not_sending_from: AtomicU64::new(u64::MAX),
            cut_off: AtomicBool::new(false),
        }
    }
}

impl Pulse {
    /// `due`: when the next probe is to leave; `refused_since`: since when none has left although some were to; `patience`:
    /// how long either may last.
    pub fn beat(&self, due: Option<Monotonic>, refused_since: Option<Monotonic>, patience: Duration) {
        let end = |since: Option<Monotonic>| since.map_or(u64::MAX, |since| (since + patience).0);
        self.stalled_from.store(end(due), Ordering::Relaxed);
        self.not_sending_from.store(end(refused_since), Ordering::Relaxed);
    }

    /// Whether there is a gateway without which silence says nothing.
    pub fn set_cut_off(&self, cut_off: bool) {
        self.cut_off.store(cut_off, Ordering::Relaxed);
    }

    /// How the prober is.
    #[must_use]
    pub fn condition(&self, now: Monotonic) -> Condition {
        let past = |from: &AtomicU64| now.0 > from.load(Ordering::Relaxed);
        if past(&self.stalled_from) {
            Condition::Stalled
        } else if past(&self.not_sending_from) {
            Condition::NotSending
        } else if self.cut_off.load(Ordering::Relaxed) {
            Condition::CutOff
        } else {
            Condition::Running
        }
    }
}

/// The thread that looks, and says what it sees.
#[derive(Debug)]
pub struct Watchdog {
    /// `None` only while dropping: the thread ends when it is gone.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches from now on.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(pulse: Arc<Pulse>) -> std::io::Result<Self> {
        let (end, ended) = channel::<()>();
        let body = move || {
            let mut reporter = Reporter::default();
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let now = now();
                if let Some(condition) = reporter.news(pulse.condition(now), now) {
                    report(condition);
                }
            }
        };
        let thread = std::thread::Builder::new().name("prober-watchdog".into()).spawn(body)?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.end = None;
        // A panic of the thread has been reported where it happened.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn report(condition: Condition) {
    match condition {
        Condition::Running => tracing::info!("the prober sends probes again, and may believe what comes of them"),
        Condition::CutOff => tracing::error!(
            "nothing is answered, and our side of the way to the reals is broken, the interface's link or the gateway: \
             verdicts stand; the checks' detail names it"
        ),
        Condition::Stalled => {
            tracing::error!(
                "the prober is stalled: probes have been due for several intervals; verdicts are out of date"
            );
        }
        Condition::NotSending => tracing::error!(
            "no probe leaves this host: verdicts are out of date; `last_run` is when each check last ran, and its \
             detail says what the kernel answers"
        ),
    }
}

/// What is worth saying.
#[derive(Debug, Default)]
struct Reporter {
    said: Condition,
    at: Monotonic,
}

impl Reporter {
    /// Each change, and now and then what is still wrong.
    fn news(&mut self, condition: Condition, now: Monotonic) -> Option<Condition> {
        let again = condition != Condition::Running && now.since(self.at) >= REPEAT;
        if condition == self.said && !again {
            return None;
        }
        (self.said, self.at) = (condition, now);
        Some(condition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const START: Monotonic = Monotonic(1_000_000_000_000);

    #[test]
    fn pulse_past_its_patience_is_stalled_until_it_beats_again() {
        let pulse = Pulse::default();
        assert_eq!(pulse.condition(Monotonic(u64::MAX)), Condition::Running, "nothing is due");
        pulse.beat(Some(START), None, 3 * SECOND);
        assert_eq!(pulse.condition(START + 3 * SECOND), Condition::Running);
        assert_eq!(pulse.condition(START + 4 * SECOND), Condition::Stalled);
        pulse.beat(Some(START + 5 * SECOND), Some(START), 3 * SECOND);
        assert_eq!(pulse.condition(START + 4 * SECOND), Condition::NotSending);
        pulse.beat(Some(START + 6 * SECOND), None, 3 * SECOND);
        assert_eq!(pulse.condition(START + 5 * SECOND), Condition::Running);
    }

    #[test]
    fn cut_off_is_what_it_is_called_unless_it_does_not_even_send() {
        let pulse = Pulse::default();
        pulse.set_cut_off(true);
        assert_eq!(pulse.condition(START), Condition::CutOff);
        pulse.beat(None, Some(START), 3 * SECOND);
        assert_eq!(pulse.condition(START + 4 * SECOND), Condition::NotSending);
    }

    #[test]
    fn condition_is_told_once_a_minute_and_its_end_at_once() {
        let mut reporter = Reporter::default();
        let told: Vec<_> = (0..150)
            .filter_map(|n| {
                let condition = if n < 130 { Condition::Stalled } else { Condition::Running };
                reporter.news(condition, START + n * SECOND).map(|condition| (n, condition))
            })
            .collect();
        let [stalled, running] = [Condition::Stalled, Condition::Running];
        assert_eq!(told, [(0, stalled), (60, stalled), (120, stalled), (130, running)]);
    }
}
