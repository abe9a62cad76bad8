//! What the daemon tells the service manager of itself, and when it may say that everything works.

use super::Daemon;
use crate::{manager::Manager, model::ReloadResult};
use hc_prober::Condition;
use std::time::Instant;
use tokio::sync::oneshot::{Receiver, channel, error::TryRecvError};

/// The service manager, and whether the data plane's thread works.
pub(super) struct Supervision {
    manager: Manager,
    /// What the data plane says when it has done all that it was told before; `None`: it has.
    asked: Option<Receiver<bool>>,
    /// The same, of the last reload that the service manager knows of.
    reload: Option<Receiver<bool>>,
    /// Packets meet all that the data plane was told, as it said last.
    is_updated: bool,
    /// That the watchdog hears nothing was told.
    is_silent: bool,
}

/// The daemon in a line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Summary<'a> {
    attached: bool,
    vips: usize,
    up: usize,
    reals: usize,
    condition: Condition,
    not_updated: bool,
    reload_error: Option<&'a str>,
}

impl Supervision {
    pub(super) fn new() -> Self {
        Self::of(Manager::of_environment(Instant::now()))
    }

    fn of(manager: Manager) -> Self {
        Self { manager, asked: None, reload: None, is_updated: true, is_silent: false }
    }

    /// Takes the data plane's answers; true if it has answered for the last reload.
    fn hear(&mut self) -> bool {
        let mut take = |asked: &mut Option<Receiver<bool>>| match asked.as_mut().map(Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => false,
            Some(answer) => {
                (*asked, self.is_updated) = (None, answer.unwrap_or(false));
                true
            }
        };
        take(&mut self.asked);
        take(&mut self.reload)
    }

    /// Asks the data plane, unless it is asked already.
    fn ask<E>(&mut self, settled: impl Future<Output = Result<(), E>> + Send + 'static) {
        if self.asked.is_none() {
            self.asked = Some(heard_of(settled));
        }
    }

    /// Checks are made, and the data plane has done what it was told before it was asked last. That nothing leaves the host,
    /// or nothing is answered, is no reason to start lbd again.
    fn works(&self, condition: Condition) -> bool {
        condition != Condition::Stalled && self.asked.is_none()
    }

    /// Tells the watchdog that everything works, if it does; if not, with the next tick.
    fn pulse(&mut self, condition: Condition, now: Instant) {
        if self.works(condition) {
            self.manager.pulse(now);
            self.is_silent = false;
        } else if self.manager.lacks_pulse(now) && !self.is_silent {
            self.is_silent = true;
            tracing::error!(prober = ?condition, data_plane_busy = self.asked.is_some(), "no word to the watchdog");
        }
    }
}

/// What comes of it. What the kernel refused was told where it happened, and is tried again.
fn heard_of<E>(settled: impl Future<Output = Result<(), E>> + Send + 'static) -> Receiver<bool> {
    let (tell, told) = channel();
    // Nobody waits any more for an earlier reload.
    tokio::spawn(async move {
        let _ = tell.send(settled.await.is_ok());
    });
    told
}

impl Daemon {
    /// With each tick of the loop, so that it says nothing when the loop hangs.
    pub(super) fn supervise(&mut self) {
        let (now, condition) = (Instant::now(), self.prober.condition());
        if self.supervision.hear() {
            let line = self.summary().line();
            self.supervision.manager.reloaded(line);
        }
        let wants_status = self.supervision.manager.wants_status(now);
        if wants_status {
            let (line, works) = (self.summary().line(), self.supervision.works(condition));
            self.supervision.manager.status(line, works, now);
        }
        if self.supervision.manager.wants_pulse(now) {
            self.supervision.pulse(condition, now);
        }
        // Last: it has until the next tick to answer.
        if wants_status {
            self.supervision.ask(self.worker.settled());
        }
    }

    /// Packets are served.
    pub(super) fn tell_ready(&mut self) {
        let line = self.summary().line();
        self.supervision.manager.ready(&line);
    }

    /// Takes the configuration file anew; a bad one leaves the running one in force.
    pub(super) async fn reload(&mut self) -> Result<ReloadResult, String> {
        // The end of an earlier one is no news any more.
        self.supervision.reload = None;
        let told = self.supervision.manager.reloading();
        let result = self.take_configuration().await;
        self.supervision.reload = told.then(|| heard_of(self.worker.settled()));
        result
    }

    fn summary(&self) -> Summary<'_> {
        Summary {
            attached: !self.attached.is_empty(),
            vips: self.core.services().count(),
            up: self.core.services().map(|service| self.reals_up(service)).sum(),
            reals: self.core.services().map(|service| service.configured().count()).sum(),
            condition: self.prober.condition(),
            not_updated: !self.supervision.is_updated,
            reload_error: self.last_reload_error.as_deref(),
        }
    }
}

impl Summary<'_> {
    fn line(self) -> String {
        let Self { attached, vips, up, reals, condition, not_updated, reload_error } = self;
        let phase = if attached { "running" } else { "starting, the first round of checks" };
        let health = match condition {
            Condition::Running => "",
            Condition::Stalled => "; the prober is STALLED",
            Condition::NotSending => "; NO PROBE LEAVES this host",
            Condition::CutOff => "; CUT OFF: the gateway does not answer",
        };
        let data_plane = if not_updated { "; the data plane is NOT UPDATED: the journal tells why" } else { "" };
        let reload = reload_error.and_then(|error| error.lines().next());
        let reload = reload.map_or_else(String::new, |error| format!("; last reload refused: {error}"));
        format!("{phase}: VIPs: {vips}, reals up: {up} of {reals}{health}{data_plane}{reload}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn summary_is_one_line_that_names_what_is_wrong() {
        let mut summary = Summary { vips: 2, up: 3, reals: 4, ..Summary::default() };
        assert_eq!(summary.line(), "starting, the first round of checks: VIPs: 2, reals up: 3 of 4");
        summary.attached = true;
        summary.condition = Condition::Stalled;
        summary.not_updated = true;
        summary.reload_error = Some("lbd.toml:7: unknown key\nallowed: x");
        let line = "running: VIPs: 2, reals up: 3 of 4; the prober is STALLED; the data plane is NOT UPDATED: the journal \
                    tells why; last reload refused: lbd.toml:7: unknown key";
        assert_eq!(summary.line(), line);
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pulse_that_was_refused_comes_as_soon_as_all_works_again() {
        let start = Instant::now();
        let mut supervision = Supervision::of(Manager::new(Some(10 * SECOND), start));
        let at = |second| start + second * SECOND;
        supervision.pulse(Condition::Running, start);
        for second in 5..9 {
            supervision.pulse(Condition::Stalled, at(second));
            assert!(supervision.manager.wants_pulse(at(second)) && supervision.is_silent == (second == 8));
        }
        supervision.pulse(Condition::CutOff, at(9));
        assert!(!supervision.manager.wants_pulse(at(9)) && !supervision.is_silent);
    }

    #[tokio::test]
    async fn data_plane_works_when_it_has_answered_and_says_whether_packets_meet_all() {
        let mut supervision = Supervision::of(Manager::new(None, Instant::now()));
        for refused in [true, false] {
            let (answer, settled) = channel::<Result<(), ()>>();
            supervision.ask(async { settled.await.unwrap() });
            // Asked already.
            supervision.ask(async { Ok::<(), ()>(()) });
            tokio::task::yield_now().await;
            supervision.hear();
            assert!(!supervision.works(Condition::Running), "busy");
            answer.send(if refused { Err(()) } else { Ok(()) }).unwrap();
            while supervision.asked.is_some() {
                tokio::task::yield_now().await;
                assert!(!supervision.hear(), "no reload");
            }
            assert!(supervision.works(Condition::Running) && supervision.is_updated != refused);
        }
    }

    #[tokio::test]
    async fn only_the_newest_reload_ends() {
        let mut supervision = Supervision::of(Manager::new(None, Instant::now()));
        supervision.reload = Some(heard_of(async { Ok::<(), ()>(()) }));
        let (answer, settled) = channel::<Result<(), ()>>();
        supervision.reload = Some(heard_of(async { settled.await.unwrap() }));
        tokio::task::yield_now().await;
        assert!(!supervision.hear());
        answer.send(Ok(())).unwrap();
        while !supervision.hear() {
            tokio::task::yield_now().await;
        }
        assert!(supervision.reload.is_none());
    }
}
