//! The command line: what the program parses, and what its manual and completions are made from.

use std::{collections::BTreeSet, io, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    desired::{Decap, Mss, Prefix, Request, Vip},
    persist::Persist,
};

/// Makes this host a DSR real server, and unmakes it.
///
/// Works on the network namespace it runs in. Exit codes: plan and check: 0 no difference, 2 differences, 1 error
/// (usage errors too); apply and remove: 0 done or nothing to do, 1 error, 2 usage error. A proof by packet that fails is an
/// error, and what was applied stays.
#[derive(Parser)]
#[command(name = "realsrv-setup", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Action,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Action {
    /// Say what apply would change, and change nothing
    Plan(Wanted),
    /// Make it so, look again, or roll back; then prove it with packets through the tunnel to every VIP
    Apply {
        /// Send no packets
        #[arg(long, conflicts_with = "verify_port")]
        no_verify: bool,
        /// Where the proof knocks.
        #[command(flatten)]
        port: VerifyPort,
        /// What is wanted of the host.
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Compare the host with what the last apply made of it (or with the options given)
    Check {
        /// Prove it with packets through the tunnel to every VIP as well, as apply does
        #[arg(long)]
        verify: bool,
        /// Where the proof knocks.
        #[command(flatten)]
        port: VerifyPort,
        /// What is wanted of the host.
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Undo what apply did: for some VIPs, or everything
    Remove {
        /// Only these VIPs; shared settings stay until the last one goes
        #[arg(long, value_name = "ADDRESS", num_args = 1.., value_delimiter = ',')]
        vip: Vec<Vip>,
        /// Journal and output.
        #[command(flatten)]
        common: Common,
    },
}

/// What is wanted of the host; an option left out stays as it was.
#[derive(Args)]
pub struct Wanted {
    /// VIPs to serve, added to those of earlier runs
    #[arg(long, value_name = "ADDRESS", num_args = 1.., value_delimiter = ',')]
    pub vip: Vec<Vip>,
    /// Who removes the outer header: auto (the kernel where it has the tunnels), ipip (`ip6_tunnel` for IPv6 VIPs) or
    /// ebpf
    #[arg(long, value_name = "HOW")]
    pub decap: Option<Decap>,
    /// Only these outer sources may tunnel, of either family: the load balancers
    #[arg(long, value_name = "PREFIX", num_args = 1.., value_delimiter = ',')]
    pub lb_source: Vec<Prefix>,
    /// Largest MSS the VIPs announce: auto (the device's MTU less the headers: 60, or 100 for IPv6), a number or off
    #[arg(long, value_name = "OCTETS")]
    pub mss: Option<Mss>,
    /// Devices that tunnel packets arrive on [default: every Ethernet device that is up and has an address]
    #[arg(long, value_name = "DEVICE", num_args = 1.., value_delimiter = ',')]
    pub interface: Vec<String>,
    /// Do it again at each boot: a systemd unit, modules-load.d and sysctl.d, until remove
    #[arg(long)]
    pub persist: bool,
    /// No longer at each boot: takes away what --persist brought, and leaves the rest
    #[arg(long, conflicts_with = "persist")]
    pub no_persist: bool,
    /// The directory that has etc for --persist
    #[arg(long, value_name = "DIRECTORY", default_value = "/", requires = "persist")]
    pub root: PathBuf,
    /// Journal and output.
    #[command(flatten)]
    pub common: Common,
}

/// Where the proof knocks.
#[derive(Args)]
pub struct VerifyPort {
    /// The TCP port that must answer the proof's SYN, if only with a RST; without it 80 is tried, and its silence a warning
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub verify_port: Option<u16>,
}

/// Options of every subcommand.
#[derive(Args)]
pub struct Common {
    /// Where the journal is kept; each network namespace needs its own
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/realsrv-setup")]
    pub state_dir: PathBuf,
    /// text or json
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// For whom the output is.
#[derive(Clone, Copy, Default, ValueEnum)]
#[expect(missing_docs, reason = "the help would show it, and the names say it")]
pub enum Format {
    #[default]
    Text,
    Json,
}

impl Wanted {
    /// The request, and the common options. Relative paths are made absolute: the unit starts elsewhere.
    ///
    /// # Errors
    /// This program's path, or the current directory, cannot be found out.
    pub fn request(self) -> io::Result<(Request, Common)> {
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
            no_persist: self.no_persist,
        };
        Ok((request, self.common))
    }
}

/// An option that takes a list is either given or not; an empty list is not.
fn given<T: Ord>(values: Vec<T>) -> Option<BTreeSet<T>> {
    (!values.is_empty()).then(|| values.into_iter().collect())
}
