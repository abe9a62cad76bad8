//! `lbd`: the load balancer's daemon.

use clap::{Parser, Subcommand};
use lbd::{
    config::Config,
    daemon::{self, Options},
    data_plane::Mode,
};
use std::{
    io::IsTerminal as _,
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
}

#[derive(clap::Args)]
struct Run {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
    config: PathBuf,
    /// The socket that lbctl speaks to.
    #[arg(long, value_name = "PATH", default_value = lbd::cli::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// For state that is to outlive the host; nothing is kept there yet. Created if it is not there.
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
    Ok(())
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
        mode: run.xdp_mode,
        leave_attached: run.leave_attached,
    };
    daemon::run(options).await.map_err(|error| error.to_string())
}
