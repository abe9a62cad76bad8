//! The lab in service, and what is asked of it.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lbd::model::{Health, RealRow};
use tests::lab::{Host, Lab, LabConfig, Running, run, wait_for};

use crate::say;

/// The timing of the checks, as the configuration has it.
pub(crate) const INTERVAL: Duration = Duration::from_millis(500);
/// How long an answer is awaited.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(500);
/// Failures in a row until a real is down.
pub(crate) const FALL: u32 = 2;
/// What a real is given to come up, and a daemon to get into service.
const PATIENCE: Duration = Duration::from_secs(20);

/// A lab whose reals are provisioned and whose lbd is in service. Dropped, it goes.
pub(crate) struct Stage {
    // First, so that it is dropped first: it ends lbd by SIGTERM.
    pub(crate) lab: Lab,
    lbd: Running,
}

impl Stage {
    /// Raises the lab, provisions the reals, starts lbd and waits until every real is up.
    pub(crate) fn raise(config: &LabConfig) -> Result<Self> {
        say::heading("The lab: client ─ router ─ lb, and the reals behind the same router");
        let lab = Lab::up(config).context("raising the lab")?;
        for host in lab.hosts() {
            say::line(format_args!("{:8} {:15} namespace {}", host.name(), host.addr(), host.namespace()));
        }
        say::line(format_args!("{:8} {:15} routed to lb", "VIP", lab.vip()));
        Self::provision(&lab)?;
        let lbd = Self::start(&lab)?;
        let stage = Self { lab, lbd };
        stage.wait_in_service()?;
        Ok(stage)
    }

    /// Leaves everything running.
    pub(crate) fn leave(self) -> Result<()> {
        let Self { mut lab, lbd } = self;
        lab.keep();
        let _pid = lbd.detach();
        say::line(format_args!(
            "The lab stays: ./run lab --name {} status | shell HOST | pcap HOST | down",
            lab.name()
        ));
        say::line(format_args!("lbctl: {} status", say::words(&lab.lbctl()?)));
        Ok(())
    }

    /// What `lbctl` prints.
    pub(crate) fn lbctl(&self, words: &[&str]) -> Result<String> {
        Ok(run(self.lab.lbctl()?.args(words))?)
    }

    /// `lbctl` and its output, shown.
    pub(crate) fn show_lbctl(&self, words: &[&str]) -> Result<()> {
        say::typed("lb", format_args!("lbctl {}", words.join(" ")));
        say::output(&self.lbctl(words)?);
        Ok(())
    }

    /// All reals as lbd sees them.
    pub(crate) fn rows(&self) -> Result<Vec<RealRow>> {
        Ok(serde_json::from_str(&self.lbctl(&["real", "list", "-o", "json"])?)?)
    }

    /// Waits until a real is in this state; the row that showed it.
    pub(crate) fn wait_for_state(&self, real: &Host, state: Health) -> Result<RealRow> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let row = self.rows()?.into_iter().find(|row| row.real == real.addr() && row.state == state);
            if let Some(row) = row {
                return Ok(row);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("{} did not get {state:?} within {PATIENCE:?}; see {}", real.name(), self.lab.lbd().log.display())
    }

    /// What the service carries, by wrk.
    pub(crate) fn measure_throughput(&self) -> Result<()> {
        say::heading("Load: what the whole path carries, connection by connection");
        let mut wrk = self.lab.client().command("wrk");
        wrk.args(["-t1", "-c32", "-d2s", "-H", "Connection: close", &format!("http://{}/", self.lab.vip())]);
        say::typed("client", say::words(&wrk));
        say::output(&run(&mut wrk)?);
        self.show_lbctl(&["stats"])
    }

    fn provision(lab: &Lab) -> Result<()> {
        say::heading("Each real is provisioned by realsrv-setup");
        for (n, real) in lab.reals().iter().enumerate() {
            let mut apply = lab.realsrv_setup(real, "apply")?;
            say::typed(real.name(), say::words(&apply));
            let printed = run(&mut apply).with_context(|| format!("provisioning {}", real.name()))?;
            if n == 0 {
                say::output(&printed);
            }
        }
        Ok(())
    }

    fn start(lab: &Lab) -> Result<Running> {
        say::heading("lbd on the load balancer");
        let timing = format!(
            "interval = \"{}ms\"\ntimeout = \"{}ms\"\nfall = {FALL}",
            INTERVAL.as_millis(),
            TIMEOUT.as_millis()
        );
        let config = lab.lbd_config(&timing);
        let lbd = lab.start_lbd(&config, &[]).context("starting lbd")?;
        say::typed("lb", "cat lbd.toml");
        say::output(&config);
        say::typed("lb", "lbd run --config lbd.toml");
        Ok(lbd)
    }

    fn wait_in_service(&self) -> Result<()> {
        for real in self.lab.reals() {
            self.wait_for_state(real, Health::Up)?;
        }
        let attached = || {
            let status = run(self.lab.lbctl()?.arg("status"))?;
            Ok(status.contains("running for").then_some(()))
        };
        wait_for("lbd to attach its program", PATIENCE, attached)?;
        self.show_lbctl(&["status"])?;
        self.show_lbctl(&["real", "list"])
    }
}

/// Runs a command on a host, showing what is typed.
pub(crate) fn type_on(host: &Host, command_line: &str) -> Result<String> {
    say::typed(host.name(), command_line);
    Ok(host.run(command_line)?)
}

/// Runs a command that is a program of this workspace, showing what is typed.
pub(crate) fn type_command(host: &Host, command: &mut Command) -> Result<String> {
    say::typed(host.name(), say::words(command));
    Ok(run(command)?)
}
