//! `lab`: raises the lab and leaves it up, to look around in it.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};
use tests::lab::{Host, Lab, LabConfig, Running, binary, packet};

/// A client, a router, a load balancer and some reals, in network namespaces of this machine.
#[derive(Parser)]
#[command(name = "lab", version)]
struct Arguments {
    /// Which lab: several can be up at once
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Raise the lab, provision the reals and start lbd
    Up {
        /// How many reals
        #[arg(long, default_value_t = 3)]
        reals: usize,
    },
    /// End the lab's processes and remove its hosts and files
    Down,
    /// Show hosts, addresses and processes
    Status,
    /// Open a shell on a host, or run a command there
    Shell {
        /// client, router, lb, real1 …
        host: String,
        /// The command; a shell without it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Print packets as they pass a host, one a line, tunnels with what they carry
    Pcap {
        /// client, router, lb, real1 …
        host: String,
        /// On which interface; the router's are called to-client, to-lb, to-real1 …
        #[arg(short, long, default_value = "any")]
        interface: String,
        /// What to show, in the language of pcap-filter(7)
        #[arg(trailing_var_arg = true)]
        filter: Vec<String>,
    },
}

fn main() -> ExitCode {
    let Arguments { name, action } = Arguments::parse();
    match run(&name, action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, action: Action) -> Result<()> {
    match action {
        Action::Up { reals } => up(&LabConfig { name: name.to_owned(), reals }),
        Action::Down => down(name),
        Action::Status => status(&Lab::attach(name)?),
        Action::Shell { host, command } => shell(&Lab::attach(name)?, &host, &command),
        Action::Pcap { host, interface, filter } => {
            pcap(Lab::attach(name)?.host(&host)?, &interface, &filter.join(" "))
        }
    }
}

fn up(config: &LabConfig) -> Result<()> {
    let mut lab = Lab::up(config).context("raising the lab")?;
    // A lab in which something is not built yet is still a network to look around in.
    if is_built("realsrv-setup") {
        lab.provision().context("provisioning the reals")?;
    }
    if is_built("lbd") {
        let _pid = lab.start_lbd(&lab.lbd_config(""), &[]).map(Running::detach).context("starting lbd")?;
    }
    lab.keep();
    status(&lab)
}

fn is_built(program: &'static str) -> bool {
    binary(program).inspect_err(|error| eprintln!("lab: left out: {error}")).is_ok()
}

fn down(name: &str) -> Result<()> {
    Lab::attach(name)?.down().context("taking the lab down")
}

fn status(lab: &Lab) -> Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["HOST", "ADDRESS", "NAMESPACE", "PROCESSES"]);
    for host in lab.hosts() {
        let processes = host.processes()?.into_iter().map(|(pid, name)| format!("{name} {pid}")).collect::<Vec<_>>();
        table.add_row([host.name(), &host.addr().to_string(), host.namespace(), &processes.join(", ")]);
    }
    println!("{table}\n\n VIP    {}:80, by way of lb\n files  {}", lab.vip(), lab.dir().display());
    let socket = lab.lbd().socket;
    if socket.exists() {
        println!(" lbctl  --socket {}", socket.display());
    }
    Ok(())
}

fn shell(lab: &Lab, host: &str, command: &[String]) -> Result<()> {
    let host = lab.host(host)?;
    let mut shell = match command {
        [] => interactive(lab, host),
        [program, arguments @ ..] => {
            let mut command = host.command(program);
            command.args(arguments);
            command
        }
    };
    // Only returns if it could not be started.
    Err(shell.exec()).context("starting nsenter")
}

fn interactive(lab: &Lab, host: &Host) -> Command {
    let mut bash = host.command("bash");
    bash.args(["--norc", "-i"]).env("PS1", format!("[{} {} {}] \\w# ", lab.name(), host.name(), host.addr()));
    bash
}

fn pcap(host: &Host, interface: &str, filter: &str) -> Result<()> {
    let mut tcpdump = host.tcpdump(interface, filter, Path::new("-"));
    let mut tcpdump = Running::start(tcpdump.stdout(Stdio::piped()))?;
    let Some(stdout) = tcpdump.child().and_then(|child| child.stdout.take()) else { bail!("tcpdump has no output") };
    let mut first = None;
    packet::stream(stdout, "from tcpdump", |packet| {
        let since_first = packet.at.saturating_sub(*first.get_or_insert(packet.at));
        println!("{:10.6} {packet}", since_first.as_secs_f64());
    })?;
    Ok(())
}
