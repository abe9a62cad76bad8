//! `bench prober`: checks a second of `hc-prober` on one CPU, through the lab's tunnels to a real.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use tests::lab::{Host, Lab, LabConfig, Running, binary};

use crate::{machine::Pinned, sample::Sample};

const ECHO_PORT: u16 = 7;

/// How often everything is repeated.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    /// Starts of the prober a row.
    runs: u32,
    /// Checks a run.
    checks: u32,
}

impl Plan {
    /// Enough to say something.
    pub(crate) const FULL: Self = Self { runs: 10, checks: 50_000 };
    /// Enough to see that it works.
    pub(crate) const SMOKE: Self = Self { runs: 2, checks: 500 };
}

/// A check and what it must find.
struct Row {
    name: &'static str,
    options: &'static [&'static str],
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
}

const ROWS: [Row; 4] = [
    Row { name: "prober-icmp", options: &["--icmp"], outcome: Outcome::Passed },
    Row { name: "prober-tcp", options: &["--tcp", "80"], outcome: Outcome::Passed },
    Row { name: "prober-tcp-closed", options: &["--tcp", "81"], outcome: Outcome::Failed },
    Row { name: "prober-udp", options: &["--udp", "7", "--require-reply"], outcome: Outcome::Passed },
];

/// What `bench prober` found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    prober_rows: Vec<RowResult>,
    prober_plan: Plan,
}

#[derive(Debug, Serialize)]
struct RowResult {
    row: &'static str,
    median_checks_per_second: f64,
    max_checks_per_second: f64,
    /// Processor time of the prober, its start and end included, microseconds a check.
    median_cpu_us: f64,
}

/// The part of `hc-prober check -o json` that is of interest.
#[derive(Debug, Deserialize)]
struct Report {
    passed: u32,
    failed: u32,
    unknown: u32,
    checks_per_second: f64,
}

/// Raises a lab with one real and measures all rows.
///
/// # Errors
/// The lab, or a check that did not find what it must.
pub(crate) fn measure(plan: Plan) -> Result<Results> {
    let lab = Lab::up(&LabConfig { name: format!("bench-{}", std::process::id()), reals: 1 })?;
    lab.provision()?;
    let real = lab.real(1)?;
    let _echo = udp_echo(&lab, real)?;
    let _pinned = Pinned::to_last_cpu()?;
    let rows = ROWS.iter().map(|row| measure_row(&lab, real, row, plan)).collect::<Result<_>>()?;
    Ok(Results { prober_rows: rows, prober_plan: plan })
}

fn udp_echo(lab: &Lab, real: &Host) -> Result<Running> {
    let mut command = real.command(binary("udp_echo")?);
    let mut echo = Running::start(command.arg(format!("{}:{ECHO_PORT}", lab.vip())).stdout(Stdio::piped()))?;
    let stdout = echo.child().and_then(|child| child.stdout.take()).context("udp_echo has no output")?;
    let mut bound = String::new();
    BufReader::new(stdout).read_line(&mut bound)?;
    ensure!(bound.starts_with("bound"), "udp_echo did not bind");
    Ok(echo)
}

fn measure_row(lab: &Lab, real: &Host, row: &Row, plan: Plan) -> Result<RowResult> {
    let runs: Vec<_> = (0..plan.runs).map(|_| run(lab, real, row, plan.checks)).collect::<Result<_>>()?;
    let rate: Sample = runs.iter().map(|(rate, _)| *rate).collect();
    let cpu: Sample = runs.iter().map(|(_, cpu)| *cpu).collect();
    Ok(RowResult {
        row: row.name,
        median_checks_per_second: rate.median(),
        max_checks_per_second: rate.max(),
        median_cpu_us: cpu.median(),
    })
}

/// One start of the prober: checks a second, and microseconds of processor time a check.
fn run(lab: &Lab, real: &Host, row: &Row, checks: u32) -> Result<(f64, f64)> {
    let mut command = lab.lb().command(binary("hc-prober")?);
    command.args(["check", "--real", &real.addr().to_string(), "--vip", &lab.vip().to_string()]);
    command.args(row.options).args(["--count", &checks.to_string(), "--rate", "0", "-o", "json"]);
    let before = children_cpu()?;
    let report = report(&mut command).with_context(|| row.name)?;
    let cpu = children_cpu()?.saturating_sub(before);
    let Report { passed, failed, unknown, checks_per_second } = report;
    let expected = match row.outcome {
        Outcome::Passed => (checks, 0, 0),
        Outcome::Failed => (0, checks, 0),
    };
    ensure!(
        (passed, failed, unknown) == expected,
        "{}: {passed} passed, {failed} failed, {unknown} unknown of {checks}",
        row.name
    );
    Ok((checks_per_second, cpu.as_secs_f64() * 1e6 / f64::from(checks)))
}

/// The exit code tells up from down; either can be right here.
fn report(command: &mut Command) -> Result<Report> {
    let output = command.stderr(Stdio::inherit()).output().context("starting hc-prober")?;
    serde_json::from_slice(&output.stdout).context("reading hc-prober's report")
}

/// Processor time of the children that have ended.
fn children_cpu() -> Result<Duration> {
    let usage: Usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = [usage.user_time(), usage.system_time()].map(|time| time.tv_sec() * 1_000_000 + time.tv_usec());
    Ok(Duration::from_micros(u64::try_from(microseconds.iter().sum::<i64>())?))
}

impl Results {
    /// For people.
    pub(crate) fn print(&self) {
        let Plan { runs, checks } = self.prober_plan;
        println!("prober: one CPU, through the lab to one real, {runs} runs × {checks} checks");
        let mut table = Table::new();
        let header = ["ROW", "CHECKS/s MEDIAN", "MAX", "CPU µs/CHECK"];
        table.load_preset(presets::NOTHING).set_header(header);
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        for row in &self.prober_rows {
            let rates = [row.median_checks_per_second, row.max_checks_per_second].map(|rate| format!("{rate:.0}"));
            let cpu = format!("{:.2}", row.median_cpu_us);
            table.add_row([&[row.row.to_owned()], &rates[..], &[cpu]].concat());
        }
        println!("{table}");
    }
}
