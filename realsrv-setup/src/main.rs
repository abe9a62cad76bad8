//! `realsrv-setup`: the command line.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use realsrv_setup::{
    desired::{Decap, Desired, Mss, Prefix, Request, Vip},
    output::{Command, Report},
    persist::Persist,
    plan::plan_onto,
    proof::{DEFAULT_PORT, Proof},
    run::{self, Host as _},
    system::{System, load_journal, privileged, store::Store},
};

const DIFFERENCES: u8 = 2;
const ERROR: u8 = 1;
const USAGE: u8 = 2;

/// Makes this host a DSR real server, and unmakes it.
///
/// Works on the network namespace it runs in. Exit codes: plan and check: 0 no difference, 2 differences, 1 error
/// (usage errors too); apply and remove: 0 done or nothing to do, 1 error, 2 usage error. A proof by packet that fails is an
/// error, and what was applied stays.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Say what apply would change, and change nothing
    Plan(Wanted),
    /// Make it so, look again, or roll back; then prove it with packets through the tunnel to every VIP
    Apply {
        /// Send no packets
        #[arg(long, conflicts_with = "verify_port")]
        no_verify: bool,
        #[command(flatten)]
        port: VerifyPort,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Compare the host with what the last apply made of it (or with the options given)
    Check {
        /// Prove it with packets through the tunnel to every VIP as well, as apply does
        #[arg(long)]
        verify: bool,
        #[command(flatten)]
        port: VerifyPort,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Undo what apply did: for some VIPs, or everything
    Remove {
        /// Only these VIPs; shared settings stay until the last one goes
        #[arg(long, value_name = "ADDRESS", num_args = 1.., value_delimiter = ',')]
        vip: Vec<Vip>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Wanted {
    /// VIPs to serve, added to those of earlier runs
    #[arg(long, value_name = "ADDRESS", num_args = 1.., value_delimiter = ',')]
    vip: Vec<Vip>,
    /// Who removes the outer header: auto (the kernel where it has the tunnels), ipip (`ip6_tunnel` for IPv6 VIPs) or
    /// ebpf
    #[arg(long, value_name = "HOW")]
    decap: Option<Decap>,
    /// Only these outer sources may tunnel, of either family: the load balancers
    #[arg(long, value_name = "PREFIX", num_args = 1.., value_delimiter = ',')]
    lb_source: Vec<Prefix>,
    /// Largest MSS the VIPs announce: auto (the device's MTU less the headers: 60, or 100 for IPv6), a number or off
    #[arg(long, value_name = "OCTETS")]
    mss: Option<Mss>,
    /// Devices that tunnel packets arrive on [default: every Ethernet device that is up and has an address]
    #[arg(long, value_name = "DEVICE", num_args = 1.., value_delimiter = ',')]
    interface: Vec<String>,
    /// Do it again at each boot: a systemd unit, modules-load.d and sysctl.d, until remove
    #[arg(long)]
    persist: bool,
    /// The directory that has etc for --persist
    #[arg(long, value_name = "DIRECTORY", default_value = "/", requires = "persist")]
    root: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct VerifyPort {
    /// The TCP port that must answer the proof's SYN, if only with a RST; without it 80 is tried, and its silence a warning
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    verify_port: Option<u16>,
}

#[derive(Args)]
struct Common {
    /// Where the journal is kept; each network namespace needs its own
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/realsrv-setup")]
    state_dir: PathBuf,
    /// text or json
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

impl Wanted {
    fn request(self) -> io::Result<(Request, Common)> {
        let persist = self.persist.then(|| {
            Ok::<_, io::Error>(Persist {
                root: std::path::absolute(&self.root)?,
                program: std::env::current_exe()?,
                state_dir: std::path::absolute(&self.common.state_dir)?,
            })
        });
        let request = Request {
            vips: self.vip.into_iter().collect(),
            decap: self.decap,
            lb_sources: given(self.lb_source),
            mss: self.mss,
            interfaces: given(self.interface),
            persist: persist.transpose()?,
        };
        Ok((request, self.common))
    }
}

/// An option that takes a list is either given or not; an empty list is not.
fn given<T: Ord>(values: Vec<T>) -> Option<BTreeSet<T>> {
    (!values.is_empty()).then(|| values.into_iter().collect())
}

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
