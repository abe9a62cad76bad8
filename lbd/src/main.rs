//! `lbd`: the load balancer's daemon.

use clap::{Parser, Subcommand};
use lbd::{
    config::Config,
    daemon::{self, Options},
    data_plane::Mode,
    simulate::{self, Summary},
};
use std::{
    io::{self, BufWriter, IsTerminal as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Balances traffic to VIPs over real servers: XDP, DSR inside IPIP, health checked through the tunnel.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM or SIGINT; SIGHUP reloads the configuration.
    Run(Run),
    /// Read a configuration and say what is wrong with it: exit 0 if nothing is, else 1.
    Check {
        /// The configuration.
        #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
        config: PathBuf,
    },
    Simulate(Simulate),
}

/// Run each packet of a capture through the XDP program, off the wire, and say what becomes of it.
///
/// The program is the real one, with the maps that the configuration gives; what it remembers of a packet holds for the
/// next ones. Nothing is attached, pinned or sent. Each packet is a line of JSON on standard output:
///
/// {"n":1,"verdict":"TX","reason":"forwarded","vip":"198.19.10.1:80/tcp","real":"198.18.222.11","note":null}
///
/// Every key is always there. A packet that cannot be run (not captured whole, or longer than 3520 bytes) has the
/// verdict null, and its note says why. A summary follows on standard error.
///
/// Made up: every real is up but those given with --down; MAC addresses are 02:00 and the real's address; the outer
/// source is 192.0.2.1 where the configuration has no `outer_source`. Time is that of the run, not of the capture.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 done, 1 the configuration, the capture or the kernel is at fault (packets before \
                  that are told all the same), 2 usage. Takes root."
)]
struct Simulate {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
    config: PathBuf,
    /// The capture: pcap or pcapng, of Ethernet.
    #[arg(long, value_name = "IN")]
    pcap: PathBuf,
    /// Where to write the packets that would leave: a pcap file with the times of the capture, replaced if it is there.
    #[arg(short = 'w', long = "write", value_name = "OUT")]
    out: Option<PathBuf>,
    /// A real that is down, as if it had failed after it was up; may be given several times.
    #[arg(long, value_name = "REAL")]
    down: Vec<IpAddr>,
    /// The largest outer packet that the paths to the reals carry, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..))]
    mtu: u16,
}

#[derive(clap::Args)]
struct Run {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
    config: PathBuf,
    /// The socket that lbctl speaks to.
    #[arg(long, value_name = "PATH", default_value = lbd::cli::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// For what is to outlive the host: which reals are drained or disabled. Created if it is not there.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lbd")]
    state_dir: PathBuf,
    /// Where links and maps are pinned, on a BPF file system.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lbd/v1")]
    bpffs: PathBuf,
    /// Where the kernel runs the XDP program; generic is for drivers without XDP, and slow.
    #[arg(long, value_enum, default_value_t)]
    xdp_mode: Mode,
    /// On SIGTERM and SIGINT, leave the data plane attached: packets flow on as the last rings say.
    #[arg(long)]
    leave_attached: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(run) => start(run).await,
        Command::Check { config } => check(&config),
        Command::Simulate(options) => simulate(options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(path: &Path) -> Result<(), String> {
    let config = Config::load(path).map_err(|error| error.to_string())?;
    let reals: usize = config.vips().iter().map(|vip| vip.reals().len()).sum();
    println!("{}: valid; VIPs: {}, reals: {reals}", path.display(), config.vips().len());
    for caution in config.cautions() {
        eprintln!("{}: warning: {caution}", path.display());
    }
    Ok(())
}

fn simulate(args: Simulate) -> Result<(), String> {
    let Simulate { config, pcap, out, down, mtu } = args;
    let mut summary = Summary::default();
    let mut lines = BufWriter::new(io::stdout().lock());
    let outcome = simulate::run(&simulate::Options { config, pcap, out, down, mtu }, &mut lines, &mut summary);
    if outcome.is_ok() || !summary.is_empty() {
        eprintln!("{summary}");
    }
    outcome.map_err(|error| error.to_string())
}

async fn start(run: Run) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    std::fs::create_dir_all(&run.state_dir).map_err(|e| format!("create {}: {e}", run.state_dir.display()))?;
    let options = Options {
        config: run.config,
        socket: run.socket,
        bpffs: run.bpffs,
        state_dir: run.state_dir,
        mode: run.xdp_mode,
        leave_attached: run.leave_attached,
    };
    daemon::run(options).await.map_err(|error| error.to_string())
}
