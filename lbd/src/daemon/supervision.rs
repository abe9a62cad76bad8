//! What the daemon tells the service manager of itself, and when it may say that everything works.

use super::Daemon;
use crate::{
    manager::{self, Manager},
    model::ReloadResult,
    service::Service,
};
use hc_prober::{Condition, State};
use std::time::Instant;
use tokio::task::JoinHandle;

/// The service manager, and whether the data plane's thread works.
pub(super) struct Supervision {
    manager: Manager,
    /// Ends when the data plane has done all that it was told before.
    data_plane: Option<JoinHandle<()>>,
}

/// The daemon in a line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Summary<'a> {
    attached: bool,
    vips: usize,
    up: usize,
    reals: usize,
    condition: Condition,
    reload_error: Option<&'a str>,
}

impl Supervision {
    pub(super) fn new() -> Self {
        Self { manager: Manager::of_environment(Instant::now()), data_plane: None }
    }
}

impl Daemon {
    /// With each tick of the loop, so that it says nothing when the loop hangs.
    pub(super) fn supervise(&mut self) {
        let now = Instant::now();
        if self.supervision.manager.wants_status(now) {
            let line = self.summary().line();
            self.supervision.manager.status(line, now);
        }
        if self.supervision.manager.wants_pulse(now) {
            self.pulse();
        }
    }

    /// Packets are served.
    pub(super) fn tell_ready(&mut self) {
        let line = self.summary().line();
        self.supervision.manager.ready(&line);
    }

    /// Says that everything works, if it does: checks are made, and the data plane has done what it was told before the last
    /// time. That nothing leaves the host, or nothing is answered, is no reason to start lbd again.
    fn pulse(&mut self) {
        let busy = self.supervision.data_plane.as_ref().is_some_and(|answer| !answer.is_finished());
        if self.prober.condition() == Condition::Stalled || busy {
            tracing::error!(prober = ?self.prober.condition(), data_plane_busy = busy, "no word to the watchdog");
            return;
        }
        manager::pulse();
        let settled = self.worker.settled();
        // What the kernel refused was told where it happened.
        self.supervision.data_plane = Some(tokio::spawn(async move { drop(settled.await) }));
    }

    /// Takes the configuration file anew; a bad one leaves the running one in force.
    pub(super) async fn reload(&mut self) -> Result<ReloadResult, String> {
        let told = self.supervision.manager.reloading();
        let result = self.take_configuration().await;
        if told {
            let settled = self.worker.settled();
            tokio::spawn(async move {
                // What the kernel refused is tried again.
                drop(settled.await);
                manager::reloaded();
            });
        }
        result
    }

    fn summary(&self) -> Summary<'_> {
        let is_up = |service: &Service| service.configured().filter(|(_, s)| s.state == State::Up).count();
        Summary {
            attached: !self.attached.is_empty(),
            vips: self.core.services().count(),
            up: self.core.services().map(is_up).sum(),
            reals: self.core.services().map(|service| service.configured().count()).sum(),
            condition: self.prober.condition(),
            reload_error: self.last_reload_error.as_deref(),
        }
    }
}

impl Summary<'_> {
    fn line(self) -> String {
        let Self { attached, vips, up, reals, condition, reload_error } = self;
        let phase = if attached { "running" } else { "starting, the first round of checks" };
        let health = match condition {
            Condition::Running => "",
            Condition::Stalled => "; the prober is STALLED",
            Condition::NotSending => "; NO PROBE LEAVES this host",
            Condition::CutOff => "; CUT OFF: the gateway does not answer",
        };
        let reload = reload_error.and_then(|error| error.lines().next());
        let reload = reload.map_or_else(String::new, |error| format!("; last reload refused: {error}"));
        format!("{phase}: VIPs: {vips}, reals up: {up} of {reals}{health}{reload}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_is_one_line_that_names_what_is_wrong() {
        let mut summary = Summary { vips: 2, up: 3, reals: 4, ..Summary::default() };
        assert_eq!(summary.line(), "starting, the first round of checks: VIPs: 2, reals up: 3 of 4");
        summary.attached = true;
        summary.condition = Condition::Stalled;
        summary.reload_error = Some("lbd.toml:7: unknown key\nallowed: x");
        let line =
            "running: VIPs: 2, reals up: 3 of 4; the prober is STALLED; last reload refused: lbd.toml:7: unknown key";
        assert_eq!(summary.line(), line);
    }
}
