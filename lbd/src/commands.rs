//! The command line of `lbd`.

use crate::data_plane::Mode;
use clap::{Parser, Subcommand};
use std::{net::IpAddr, path::PathBuf};

/// Balances traffic to VIPs over real servers: XDP, DSR inside IPIP, health checked through the tunnel.
#[derive(Parser)]
#[command(name = "lbd", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    #[expect(missing_docs, reason = "that of its arguments is shown")]
    Run(Run),
    /// Read a configuration and say what is wrong with it: exit 0 if nothing is, else 1.
    Check {
        /// The configuration.
        #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
        config: PathBuf,
    },
    /// Take away what an lbd that has ended left attached: packets for VIPs go to the kernel from then on.
    Detach {
        /// Where links and maps are pinned.
        #[arg(long, value_name = "DIR", default_value = PINS)]
        bpffs: PathBuf,
    },
    #[expect(missing_docs, reason = "that of its arguments is shown")]
    Simulate(Simulate),
    #[expect(missing_docs, reason = "that of its arguments is shown")]
    Withdraw(Withdraw),
}

const PINS: &str = "/sys/fs/bpf/lbd/v1";

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
pub struct Simulate {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
    pub config: PathBuf,
    /// The capture: pcap or pcapng, of Ethernet.
    #[arg(long, value_name = "IN")]
    pub pcap: PathBuf,
    /// Where to write the packets that would leave: a pcap file with the times of the capture, replaced if it is there.
    #[arg(short = 'w', long = "write", value_name = "OUT")]
    pub out: Option<PathBuf>,
    /// A real that is down, as if it had failed after it was up; may be given several times.
    #[arg(long, value_name = "REAL")]
    pub down: Vec<IpAddr>,
    /// The largest outer packet that the paths to the reals carry, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..))]
    pub mtu: u16,
}

/// Withdraw the VIPs that an lbd which has ended has left announced: delete its routes.
///
/// An lbd that dies, or ends with `--leave-attached`, leaves them, as it leaves the data plane. Nothing to withdraw is no
/// error. The table and the protocol number are those of the configuration; where that cannot be read, or names others by now,
/// those given.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 none is left, 1 the configuration or the kernel is at fault, or an lbd still runs; 2 usage."
)]
pub struct Withdraw {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
    pub config: PathBuf,
    /// The routing table; the configuration is not read.
    #[arg(long, value_name = "N", requires = "protocol")]
    pub table: Option<u32>,
    /// The protocol number; the configuration is not read.
    #[arg(long, value_name = "N", requires = "table")]
    pub protocol: Option<u8>,
    /// The socket of lbd: one that answers there would announce them again, so nothing is done.
    #[arg(long, value_name = "PATH", default_value = crate::cli::DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// Run in the foreground until SIGTERM or SIGINT; SIGHUP reloads the configuration.
#[derive(clap::Args)]
pub struct Run {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
    pub config: PathBuf,
    /// The socket that lbctl speaks to.
    #[arg(long, value_name = "PATH", default_value = crate::cli::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// For what is to outlive the host: which reals are drained or disabled, and what became of
    /// checks. Created if it is not there.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lbd")]
    pub state_dir: PathBuf,
    /// Where links and maps are pinned, on a BPF file system.
    #[arg(long, value_name = "DIR", default_value = PINS)]
    pub bpffs: PathBuf,
    /// Where the kernel runs the XDP program; generic is for drivers without XDP, and slow.
    #[arg(long, value_enum, default_value_t)]
    pub xdp_mode: Mode,
    /// On SIGTERM and SIGINT, leave the data plane attached: packets flow on as the last rings say.
    #[arg(long)]
    pub leave_attached: bool,
}
