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

    fn new(watchdog: Option<Duration>, now: Instant) -> Self {
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

    /// The state in a line; until it is ready, also that the start goes on.
    pub fn status(&mut self, status: String, now: Instant) {
        self.next_status = now + STATUS_EVERY;
        let mut told = Vec::new();
        if !self.is_ready {
            told.push(NotifyState::ExtendTimeoutUsec(u32::try_from(START_TAKES.as_micros()).unwrap_or(u32::MAX)));
        }
        if status != self.status {
            self.status = status;
            told.push(NotifyState::Status(&self.status));
        }
        if !told.is_empty() {
            send(&told);
        }
    }

    /// A reload begins; true if [`reloaded`] is to be told. Before it is ready the service manager knows of none.
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

    /// Whether the time has come to say that everything works, if it does. Half of what the service manager waits is left
    /// then.
    pub fn wants_pulse(&mut self, now: Instant) -> bool {
        let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| now >= watchdog.next) else { return false };
        // In step: one that came late makes no later one late.
        watchdog.next = (watchdog.next + watchdog.every).max(now);
        true
    }
}

/// A reload has ended: packets meet what the configuration says, be it the new one or, if that was refused, the old one.
pub fn reloaded() {
    send(&[NotifyState::Ready]);
}

/// Everything works.
pub fn pulse() {
    send(&[NotifyState::Watchdog]);
}

/// The end has begun.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("ending")]);
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
        let wanted: Vec<_> = (0..12).filter(|&second| manager.wants_pulse(start + second * SECOND)).collect();
        assert_eq!(wanted, [0, 5, 10]);
        assert!(!Manager::new(None, start).wants_pulse(start + 100 * SECOND));
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
        manager.status("starting".to_owned(), start);
        assert!(!manager.wants_status(start + SECOND / 2) && manager.wants_status(start + SECOND));
    }
}
