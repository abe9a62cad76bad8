//! What the service manager is told: `sd_notify(3)`. Without one, nothing.
//!
//! ```text
//!   first round of checks ─ EXTEND_TIMEOUT ─▶ attached ─ READY ─▶ reload ─ RELOADING ─▶ settled ─ READY ─▶ end ─ STOPPING
//!                                                └── WATCHDOG, at half its time, while everything works ──┘
//! ```

use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// How often the line about the state may change, and the time for the start is asked to be extended.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// By then the start is over, or asks again.
const START_TAKES: Duration = Duration::from_secs(30);

/// The service manager, if one has started this process.
#[derive(Debug)]
pub struct Manager {
    is_ready: bool,
    status: String,
    next_status: Instant,
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Watchdog {
    /// Half of what the service manager waits.
    every: Duration,
    next: Instant,
}

impl Manager {
    /// The one that this process's environment names.
    #[must_use]
    pub fn of_environment(now: Instant) -> Self {
        Self::new(sd_notify::watchdog_enabled(), now)
    }

    /// One that waits so long for a pulse, if for any.
    pub(crate) fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        let watchdog = watchdog.map(|patience| Watchdog { every: patience / 2, next: now });
        Self { is_ready: false, status: String::new(), next_status: now, watchdog }
    }

    /// Packets are served. Later calls change nothing.
    pub fn ready(&mut self, status: &str) {
        if !self.is_ready {
            self.is_ready = true;
            status.clone_into(&mut self.status);
            send(&[NotifyState::Ready, NotifyState::Status(status)]);
        }
    }

    /// Whether the time has come for [`Manager::status`].
    #[must_use]
    pub fn wants_status(&self, now: Instant) -> bool {
        now >= self.next_status
    }

    /// The state in a line; until it is ready, also that the start goes on, if all works.
    pub fn status(&mut self, status: String, works: bool, now: Instant) {
        let told = self.told_of(status, works, now);
        if !told.is_empty() {
            send(&told);
        }
    }

    fn told_of(&mut self, status: String, works: bool, now: Instant) -> Vec<NotifyState<'_>> {
        self.next_status = now + STATUS_EVERY;
        let mut told = Vec::new();
        if !self.is_ready && works {
            told.push(takes(START_TAKES));
        }
        if status != self.status {
            self.status = status;
            told.push(NotifyState::Status(&self.status));
        }
        told
    }

    /// A reload begins; true if [`Manager::reloaded`] is to be told. Before it is ready the service manager knows of none.
    #[must_use]
    pub fn reloading(&self) -> bool {
        if self.is_ready {
            match NotifyState::monotonic_usec_now() {
                Ok(now) => send(&[NotifyState::Reloading, now]),
                Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
            }
        }
        self.is_ready
    }

    /// The last reload has ended: packets meet what the configuration says, be it the new one or, if that was refused, the
    /// old one; or the kernel does not take it, and the status says so.
    pub fn reloaded(&mut self, status: String) {
        self.status = status;
        send(&[NotifyState::Ready, NotifyState::Status(&self.status)]);
    }

    /// Whether the time has come for [`Manager::pulse`]: until it was called. Half of what the service manager waits is left
    /// at first.
    #[must_use]
    pub fn wants_pulse(&self, now: Instant) -> bool {
        self.watchdog.as_ref().is_some_and(|watchdog| now >= watchdog.next)
    }

    /// Whether half of what was left then has passed without a pulse.
    #[must_use]
    pub fn lacks_pulse(&self, now: Instant) -> bool {
        self.watchdog.as_ref().is_some_and(|watchdog| now >= watchdog.next + watchdog.every / 2)
    }

    /// Everything works.
    pub fn pulse(&mut self, now: Instant) {
        if let Some(watchdog) = &mut self.watchdog {
            // In step: one that came late makes no later one late.
            watchdog.next = (watchdog.next + watchdog.every).max(now);
            send(&[NotifyState::Watchdog]);
        }
    }
}

/// The end has begun, and takes so long at most.
pub fn stopping(within: Duration) {
    send(&[NotifyState::Stopping, takes(within), NotifyState::Status("ending")]);
}

fn takes(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

fn send(told: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(told) {
        tracing::warn!(%error, ?told, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pulse_is_wanted_at_half_the_watchdogs_time_and_never_without_one() {
        let start = Instant::now();
        let mut manager = Manager::new(Some(10 * SECOND), start);
        let mut pulses = |seconds: std::ops::Range<u32>| {
            let wanted: Vec<_> = seconds.filter(|&second| manager.wants_pulse(start + second * SECOND)).collect();
            for second in &wanted {
                manager.pulse(start + *second * SECOND);
            }
            wanted
        };
        let each: Vec<_> = (0..12).flat_map(|second| pulses(second..second + 1)).collect();
        assert_eq!(each, [0, 5, 10]);
        assert!(!Manager::new(None, start).wants_pulse(start + 100 * SECOND));
    }

    #[test]
    fn pulse_is_wanted_until_it_is_sent_and_one_that_is_late_makes_no_other_late() {
        let start = Instant::now();
        let mut manager = Manager::new(Some(10 * SECOND), start);
        manager.pulse(start);
        let at = |second| start + second * SECOND;
        assert!((5..10).all(|second| manager.wants_pulse(at(second))));
        assert_eq!([7, 8].map(|second| manager.lacks_pulse(at(second))), [false, true]);
        manager.pulse(at(9));
        assert_eq!([9, 10].map(|second| manager.wants_pulse(at(second))), [false, true]);
    }

    #[test]
    fn start_is_given_more_time_only_while_all_works() {
        let start = Instant::now();
        let mut manager = Manager::new(None, start);
        let mut told = |status: &str, works| {
            let told = manager.told_of(status.to_owned(), works, start);
            told.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told("starting", true), ["EXTEND_TIMEOUT_USEC=30000000", "STATUS=starting"]);
        assert_eq!(told("starting", false), [""; 0]);
        assert_eq!(told("starting", true), ["EXTEND_TIMEOUT_USEC=30000000"]);
        manager.ready("running");
        assert!(manager.told_of("running".to_owned(), true, start).is_empty());
    }

    #[test]
    fn reload_is_told_only_after_the_start() {
        let mut manager = Manager::new(None, Instant::now());
        assert!(!manager.reloading());
        manager.ready("running");
        assert!(manager.reloading());
    }

    #[test]
    fn status_is_wanted_once_a_second() {
        let start = Instant::now();
        let mut manager = Manager::new(None, start);
        assert!(manager.wants_status(start));
        manager.status("starting".to_owned(), true, start);
        assert!(!manager.wants_status(start + SECOND / 2) && manager.wants_status(start + SECOND));
    }
}
