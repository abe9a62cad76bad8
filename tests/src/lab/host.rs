//! A host of the lab: a network namespace, an address and a directory for its files.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use nix::sched::{CloneFlags, setns};

use super::{
    error::{Result, file},
    nginx::Nginx,
    process,
};

/// One host. Its uplink is called `eth0`, save on the router, whose links are called `to-HOST`.
#[derive(Debug, Clone)]
pub struct Host {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) addr: Ipv4Addr,
    pub(super) dir: PathBuf,
}

impl Host {
    /// A host of this lab as it will be.
    pub(super) fn planned(lab: &str, name: &str, addr: Ipv4Addr) -> Self {
        let dir = Path::new(super::STATE).join(lab).join(name);
        Self { name: name.to_owned(), namespace: format!("{lab}-{name}"), addr, dir }
    }

    /// `client`, `router`, `lb`, `real1` …
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace's name, as `ip netns` shows it.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The host's own address; the router's is the one on the client's subnet.
    #[must_use]
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    /// The address it has in a lab with [IPv6](super::Lab::add_ipv6): `fd00:101::10` beside 198.18.101.10.
    #[must_use]
    pub fn addr6(&self) -> Ipv6Addr {
        let [_, _, subnet, host] = self.addr.octets();
        address6(subnet, host)
    }

    /// The router's address on its subnet.
    pub(super) fn gateway6(&self) -> Ipv6Addr {
        let [_, _, subnet, _] = self.addr.octets();
        address6(subnet, 1)
    }

    /// The directory of this host's configurations, logs and captures. It goes when the lab goes.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The nginx of this host.
    #[must_use]
    pub fn nginx(&self) -> Nginx<'_> {
        Nginx::of(self)
    }

    /// A command that runs on this host.
    ///
    /// `nsenter`, not `ip netns exec`: the latter remounts /sys and hides what is pinned in bpffs.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.mount().display())).arg(program);
        command
    }

    /// Moves the calling thread, and no other, onto this host: its sockets are this host's from now on.
    ///
    /// # Errors
    /// [`Error::File`](super::Error::File), for example if the lab is down.
    pub fn enter(&self) -> Result<()> {
        let namespace = File::open(self.mount()).map_err(file("opening", self.mount()))?;
        let entered = setns(namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from);
        entered.map_err(file("entering", self.mount()))
    }

    /// Runs a command line, split at spaces, to its end and returns its standard output.
    ///
    /// # Errors
    /// Names the command and its standard error.
    pub fn run(&self, command_line: &str) -> Result<String> {
        let mut words = command_line.split_whitespace();
        process::run(self.command(words.next().unwrap_or_default()).args(words))
    }

    /// The body of `url`, fetched from this host within five seconds.
    ///
    /// # Errors
    /// What curl says when there is no answer, or a status of 400 or more.
    pub fn http_get(&self, url: &str) -> Result<String> {
        // No proxy: this machine's is out of reach from here.
        let options = ["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "5"];
        process::run(self.command("curl").args(options).arg(url))
    }

    /// The processes on this host: pid and command name.
    ///
    /// # Errors
    /// What `ip netns pids` says.
    pub fn processes(&self) -> Result<Vec<(u32, String)>> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let pids = process::run(Command::new("ip").args(["netns", "pids", &self.namespace]))?;
        let named = pids.lines().filter_map(|line| line.trim().parse().ok()).filter_map(|pid: u32| {
            // A process that ended meanwhile has no name any more.
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some((pid, name.trim().to_owned()))
        });
        Ok(named.collect())
    }

    /// Where the namespace is mounted.
    pub(super) fn mount(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }

    pub(super) fn exists(&self) -> bool {
        self.mount().exists()
    }
}

/// With the decimal digits of the IPv4 address, as people write it.
fn address6(subnet: u8, host: u8) -> Ipv6Addr {
    // At most three decimal digits always are a number of four hexadecimal ones.
    let digits = |number: u8| u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
    Ipv6Addr::new(0xfd00, digits(subnet), 0, 0, 0, 0, 0, digits(host))
}
