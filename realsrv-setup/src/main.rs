//! `realsrv-setup`: the command line.

use std::{
    collections::BTreeMap,
    error::Error,
    ffi::OsString,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::Parser as _;
use realsrv_setup::{
    cli::{Action, Cli, Common, Format, VerifyPort, Wanted},
    desired::{Desired, Vip},
    output::{Command, Report},
    plan::plan_onto,
    proof::{DEFAULT_PORT, Proof},
    run::{self, Host as _},
    system::{System, load_journal, privileged, store::Store},
};

const DIFFERENCES: u8 = 2;
const ERROR: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    let result = match cli.command {
        Action::Plan(wanted) => compare(Command::Plan, wanted, None),
        Action::Check { verify, port, wanted } => {
            let verify = verify || port.verify_port.is_some();
            compare(Command::Check, wanted, verify.then_some(&port))
        }
        Action::Apply { no_verify, port, wanted } => apply(wanted, (!no_verify).then_some(&port)),
        Action::Remove { vip, common } => remove(&vip, &common),
    };
    result.unwrap_or_else(|error| {
        eprintln!("realsrv-setup: {error}");
        ExitCode::from(ERROR)
    })
}

/// `plan` and `check` answer 2 for "differences": a usage error must not look like one.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    // Nothing better can be done about a closed terminal.
    let _ = error.print();
    let compares = arguments.get(1).is_some_and(|command| command == "plan" || command == "check");
    match (error.exit_code(), compares) {
        (0, _) => ExitCode::SUCCESS,
        (_, true) => ExitCode::from(ERROR),
        (_, false) => ExitCode::from(USAGE),
    }
}

/// This host, with the files where they are wanted.
fn system_of(desired: &Desired) -> Result<System, Box<dyn Error>> {
    let system = System::new()?;
    Ok(match &desired.persist {
        Some(persist) => system.with_root(&persist.root),
        None => system,
    })
}

fn compare(command: Command, wanted: Wanted, verify: Option<&VerifyPort>) -> Result<ExitCode, Box<dyn Error>> {
    let (request, common) = wanted.request()?;
    let journal = load_journal(&common.state_dir)?;
    let desired = request.onto(journal.intent.as_ref());
    let mut system = system_of(&desired)?;
    let observed = system.observe()?;
    let plan = plan_onto(&journal, &desired, &observed)?;
    let counters = if command == Command::Check { observed.counters } else { BTreeMap::new() };
    let mut report = Report::of_plan(command, plan, counters);
    if let Some(port) = verify {
        privileged()?;
        report = report.with_proof(prove(&mut system, &desired, port));
    }
    print(&report, common.output)?;
    Ok(match (report.verified, report.differs) {
        (Some(false), _) => ExitCode::from(ERROR),
        (_, true) => ExitCode::from(DIFFERENCES),
        (_, false) => ExitCode::SUCCESS,
    })
}

fn apply(wanted: Wanted, verify: Option<&VerifyPort>) -> Result<ExitCode, Box<dyn Error>> {
    let (request, common) = wanted.request()?;
    privileged()?;
    // Refuse before the first file is written.
    let journal = load_journal(&common.state_dir)?;
    let desired = request.clone().onto(journal.intent.as_ref());
    let mut system = system_of(&desired)?;
    plan_onto(&journal, &desired, &system.observe()?)?;
    // Under the lock everything is read once more: another run may have ended since.
    let mut store = Store::open(&common.state_dir)?;
    let mut journal = load_journal(&common.state_dir)?;
    system.sweep()?;
    let applied = run::apply(&mut system, &mut store, &mut journal, request)?;
    let mut report = Report::of_apply(applied);
    if let (Some(port), Some(desired)) = (verify, &journal.intent) {
        report = report.with_proof(prove(&mut system, desired, port));
    }
    print(&report, common.output)?;
    Ok(if report.verified == Some(false) { ExitCode::from(ERROR) } else { ExitCode::SUCCESS })
}

/// A proof that cannot be had is one that failed.
fn prove(system: &mut System, desired: &Desired, port: &VerifyPort) -> Proof {
    let proof = system.prove(desired, port.verify_port.unwrap_or(DEFAULT_PORT), port.verify_port.is_some());
    proof.unwrap_or_else(|error| Proof::impossible(&error.to_string()))
}

fn remove(vips: &[Vip], common: &Common) -> Result<ExitCode, Box<dyn Error>> {
    privileged()?;
    let removed = if is_absent(&common.state_dir) { Vec::new() } else { remove_noted(vips, &common.state_dir)? };
    print(&Report::of_removal(removed), common.output)?;
    Ok(ExitCode::SUCCESS)
}

fn is_absent(state_dir: &Path) -> bool {
    state_dir.try_exists().is_ok_and(|exists| !exists)
}

fn remove_noted(vips: &[Vip], state_dir: &Path) -> Result<Vec<run::Removed>, Box<dyn Error>> {
    let mut store = Store::open(state_dir)?;
    let mut journal = load_journal(state_dir)?;
    let mut system = system_of(journal.intent.as_ref().unwrap_or(&Desired::default()))?;
    system.sweep()?;
    Ok(run::remove(&mut system, &mut store, &mut journal, vips)?)
}

fn print(report: &Report, format: Format) -> Result<(), Box<dyn Error>> {
    let text = match format {
        Format::Text => report.text(),
        Format::Json => serde_json::to_string_pretty(report)?,
    };
    match writeln!(io::stdout(), "{text}") {
        // The reader has seen enough; the exit code still tells.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
