//! The lab: a small network of namespaces on which everything is tried.
//!
//! ```text
//!   client ──────── router ──────── lb                 198.18.10.10, 198.18.221.11
//!                     ├──────────── real1               198.18.101.10
//!                     └──────────── realN               198.18.(100+N).10
//! ```
//!
//! Each host has its own subnet, `/24`, with the router at `.1`, so every packet between two of them is routed, as it
//! is between racks. The router sends 198.19.10.0/24, where the [`VIP`] is, to the LB.
//!
//! A lab lives in the kernel and in `/run/lbd-lab/NAME`: one process may raise it and another take it down.

mod capture;
mod error;
mod host;
mod load;
mod nginx;
pub mod packet;
mod process;
mod services;
mod topology;

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;

pub use self::{
    capture::Capture,
    error::{Error, Result},
    host::Host,
    load::{Load, LoadConfig, Request},
    nginx::{BIG_LEN, Nginx},
    packet::{Body, Datagram, Packet, Payload, TcpFlags},
    process::{Running, run, wait_until as wait_for},
    services::{Lbd, LbdStart, binary},
};
use self::{
    error::file,
    process::{send, wait_until},
};

/// The virtual address that the router sends to the LB.
pub const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 1);
/// The same in IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x19, 0x10, 0, 0, 0, 0, 1);
/// How many reals a lab can have: their subnets lie between the client's and the LB's.
pub const MAX_REALS: usize = 100;

/// Where the state of all labs is kept.
const STATE: &str = "/run/lbd-lab";
/// Where BPF objects of all labs are pinned.
const PINS: &str = "/sys/fs/bpf/lbd-lab";
/// What the processes of a lab are given to end when it goes down.
const GRACE: Duration = Duration::from_secs(3);

/// What can be chosen about a lab.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// 1 to 32 lower-case letters, digits and hyphens; prefixes the namespaces.
    pub name: String,
    /// 1 to [`MAX_REALS`].
    pub reals: usize,
}

/// A lab that is up. Dropping it takes it down, unless it is [kept](Lab::keep).
#[derive(Debug)]
pub struct Lab {
    name: String,
    client: Host,
    router: Host,
    lb: Host,
    /// Beside it, with an address on a subnet of its own.
    second_lb: Option<Host>,
    reals: Vec<Host>,
    kept: bool,
}

impl Lab {
    /// Raises a lab: hosts, links and routes, and an nginx on each real. No VIP is configured anywhere yet.
    ///
    /// # Errors
    /// The first command that failed; whatever was made until then is removed.
    pub fn up(config: &LabConfig) -> Result<Self> {
        let mut lab = Self::planned(&config.name, config.reals)?;
        lab.claim()?;
        // From here on, dropping the lab cleans up.
        lab.kept = false;
        topology::raise(&lab)?;
        for real in &lab.reals {
            real.nginx().start()?;
        }
        Ok(lab)
    }

    /// Gives every host an IPv6 address too, and the router the way to [`VIP6`].
    ///
    /// # Errors
    /// The first command that failed: for example, this kernel has no IPv6.
    pub fn add_ipv6(&self) -> Result<()> {
        topology::add_ipv6(self)
    }

    /// Raises a second load balancer, `lb2` with 198.18.231.11, that nothing is routed to yet.
    ///
    /// # Errors
    /// The first command that failed.
    pub fn add_second_lb(&mut self) -> Result<()> {
        let lb2 = Self::second_lb(&self.name);
        self.second_lb = Some(lb2.clone());
        topology::add_lb(self, &lb2)
    }

    /// The lab of this name that is up. It stays up when this value is dropped.
    ///
    /// # Errors
    /// [`Error::NotUp`].
    pub fn attach(name: &str) -> Result<Self> {
        let state = Path::new(STATE).join(name);
        let reals = (1..=MAX_REALS).take_while(|n| state.join(format!("real{n}")).is_dir()).count();
        // At least one, to reach what is left of a lab whose raising was interrupted.
        let mut lab = Self::planned(name, reals.max(1))?;
        lab.second_lb = Some(Self::second_lb(name)).filter(|lb| lb.dir().is_dir());
        if state.is_dir() { Ok(lab) } else { Err(Error::NotUp(lab.name.clone())) }
    }

    /// Ends the lab's processes and removes its namespaces, pins and files. A lab that is half there is removed as well.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn down(mut self) -> Result<()> {
        self.kept = true;
        self.remove()
    }

    /// Leaves the lab up when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// The name it was raised with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the requests come from.
    #[must_use]
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// What connects all subnets; its links are called `to-client`, `to-lb`, `to-real1` …
    #[must_use]
    pub fn router(&self) -> &Host {
        &self.router
    }

    /// Where the load balancer runs.
    #[must_use]
    pub fn lb(&self) -> &Host {
        &self.lb
    }

    /// The load balancer that [`Lab::add_second_lb`] raised.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`].
    pub fn lb2(&self) -> Result<&Host> {
        self.host("lb2")
    }

    /// The real with this number, counted from 1.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`].
    pub fn real(&self, number: usize) -> Result<&Host> {
        self.host(&format!("real{number}"))
    }

    /// All reals, in order.
    #[must_use]
    pub fn reals(&self) -> &[Host] {
        &self.reals
    }

    /// The host of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`], listing those there are.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts().find(|host| host.name() == name).ok_or_else(|| Error::NoSuchHost {
            lab: self.name.clone(),
            host: name.to_owned(),
            hosts: self.hosts().map(Host::name).collect::<Vec<_>>().join(", "),
        })
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.client, &self.router, &self.lb].into_iter().chain(&self.second_lb).chain(&self.reals)
    }

    /// The virtual address that the router sends to the LB.
    #[must_use]
    pub fn vip(&self) -> Ipv4Addr {
        VIP
    }

    /// The lab's state directory; each host has a directory in it.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        Path::new(STATE).join(&self.name)
    }

    /// The directory in bpffs for what the lab's programs pin.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(PINS).join(&self.name)
    }

    /// The same of what the load balancer on this host pins.
    fn pins_of(&self, host: &Host) -> PathBuf {
        match host.name() {
            "lb" => self.pins(),
            other => Path::new(PINS).join(format!("{}-{other}", self.name)),
        }
    }

    /// The lab as it will be: nothing is touched.
    fn planned(name: &str, reals: usize) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=32).contains(&name.len()) || !name.chars().all(allowed) || name.starts_with('-') {
            return Err(Error::Name(name.to_owned()));
        }
        let addr_of_real = |n: usize| u8::try_from(100 + n).ok().map(|subnet| Ipv4Addr::new(198, 18, subnet, 10));
        if !(1..=MAX_REALS).contains(&reals) {
            return Err(Error::Reals(reals));
        }
        let host = |host: &str, addr| Host::planned(name, host, addr);
        Ok(Self {
            name: name.to_owned(),
            client: host("client", Ipv4Addr::new(198, 18, 10, 10)),
            router: host("router", Ipv4Addr::new(198, 18, 10, 1)),
            lb: host("lb", Ipv4Addr::new(198, 18, 221, 11)),
            second_lb: None,
            reals: (1..=reals).filter_map(|n| Some(host(&format!("real{n}"), addr_of_real(n)?))).collect(),
            kept: true,
        })
    }

    fn second_lb(name: &str) -> Host {
        Host::planned(name, "lb2", Ipv4Addr::new(198, 18, 231, 11))
    }

    /// Takes the name: whoever creates the state directory has the lab.
    fn claim(&self) -> Result<()> {
        fs::create_dir_all(STATE).map_err(file("creating", STATE))?;
        let dir = self.dir();
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::AlreadyUp { name: self.name.clone(), dir })
            }
            other => other.map_err(file("creating", dir)),
        }
    }

    fn remove(&self) -> Result<()> {
        self.end_processes()?;
        for host in self.hosts().filter(|host| host.exists()) {
            run(std::process::Command::new("ip").args(["netns", "delete", host.namespace()]))?;
        }
        let pins = self.second_lb.iter().map(|lb| self.pins_of(lb));
        for dir in pins.chain([self.pins(), self.dir()]) {
            if dir.exists() {
                fs::remove_dir_all(&dir).map_err(file("removing", &dir))?;
            }
        }
        Ok(())
    }

    /// SIGTERM first, so that a daemon can detach what it attached; SIGKILL for what does not heed it.
    fn end_processes(&self) -> Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            for (pid, _) in self.processes()? {
                // It may have ended by itself since it was listed.
                let _ = send(pid, signal);
            }
            match wait_until("the lab's processes to end", GRACE, || Ok(self.processes()?.is_empty().then_some(()))) {
                Err(Error::TimedOut { .. }) if signal == Signal::SIGTERM => {}
                ended => return ended,
            }
        }
        Ok(())
    }

    fn processes(&self) -> Result<Vec<(u32, String)>> {
        let mut all = Vec::new();
        for host in self.hosts() {
            all.extend(host.processes()?);
        }
        Ok(all)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.remove() {
            eprintln!("taking lab `{}` down: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_name_that_would_leave_its_directory_is_refused() {
        for name in ["", "..", "a/b", "-x", "Lab"] {
            assert!(matches!(Lab::planned(name, 1), Err(Error::Name(_))), "{name}");
        }
    }

    #[test]
    fn lab_without_or_with_too_many_reals_is_refused() {
        assert!(matches!(Lab::planned("x", 0), Err(Error::Reals(0))));
        assert!(matches!(Lab::planned("x", MAX_REALS + 1), Err(Error::Reals(_))));
    }

    #[test]
    fn ipv6_address_has_the_digits_of_the_ipv4_one() {
        let lab = Lab::planned("x", 1).unwrap();
        let addresses = [lab.client(), lab.lb(), lab.real(1).unwrap()].map(|host| host.addr6().to_string());
        assert_eq!(addresses, ["fd00:10::10", "fd00:221::11", "fd00:101::10"]);
    }

    #[test]
    fn every_real_has_a_subnet_of_its_own() {
        let lab = Lab::planned("x", MAX_REALS).unwrap();
        let subnets: std::collections::HashSet<_> = lab.hosts().map(|host| host.addr().octets()[2]).collect();
        // The router's address is on the client's subnet.
        assert_eq!(subnets.len(), MAX_REALS + 2);
    }
}
