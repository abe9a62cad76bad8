//! `lbd`: the load balancer's daemon.

use clap::Parser as _;
use lbd::{
    commands::{Cli, Command, Run, Simulate, Withdraw},
    config::{Announce, Config},
    daemon::{self, Options},
    data_plane,
    simulate::{self, Summary},
};
use std::{
    io::{self, BufWriter, IsTerminal as _},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(run) => start(run).await,
        Command::Check { config } => check(&config),
        Command::Detach { bpffs } => detach(&bpffs),
        Command::Simulate(options) => simulate(options),
        Command::Withdraw(options) => withdraw(options).await,
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

fn detach(pins: &Path) -> Result<(), String> {
    let interfaces = data_plane::detach(pins).map_err(|error| error.to_string())?;
    println!("detached; interfaces: {interfaces}");
    Ok(())
}

async fn withdraw(options: Withdraw) -> Result<(), String> {
    let socket = &options.socket;
    let announce = match (options.table, options.protocol) {
        (Some(table), Some(protocol)) => Announce::with(table, protocol).ok_or(
            "--table is none of 0 and 253 to 255, and --protocol from 5: others are the kernel's own, and those of `ip route`",
        )?,
        _ => Config::load(&options.config).map_err(|error| error.to_string())?.announce(),
    };
    if UnixStream::connect(socket).is_ok() {
        return Err(format!("an lbd answers at {} and would announce the VIPs again: stop it first", socket.display()));
    }
    let withdrawn = lbd::announce::withdraw(announce).await.map_err(|error| error.to_string())?;
    for address in &withdrawn.gone {
        println!("withdrawn: {address}");
    }
    for error in &withdrawn.left {
        eprintln!("lbd: {error}");
    }
    let left = withdrawn.left.len();
    if left == 0 { Ok(()) } else { Err(format!("routes that are still there: {left}")) }
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
