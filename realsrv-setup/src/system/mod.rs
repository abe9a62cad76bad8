//! The host itself: decides nothing, does what a step says.

pub mod files;
pub mod module;
mod namespaces;
pub mod netlink;
pub mod programs;
pub mod proof;
pub mod store;
pub mod sysctls;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{
    journal::Journal,
    observed::{HookQdisc, Observed},
    plan::{Programs, Step},
    run::{Host, Undone},
};

/// What failed, on which object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink request.
    #[error("netlink: {operation}: {source}")]
    Netlink {
        /// What was asked.
        operation: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A system call or file.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: String,
        /// The error.
        source: io::Error,
    },
    /// A kernel setting.
    #[error("sysctl {name}: {source}")]
    Sysctl {
        /// Its name.
        name: String,
        /// The error.
        source: sysctl::SysctlError,
    },
    /// A BPF program, map or attachment.
    #[error("BPF: {operation}: {source}")]
    Bpf {
        /// What was tried.
        operation: String,
        /// The error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is to be proven cannot be.
    #[error("{0}")]
    Proof(String),
    /// A kernel module.
    #[error("module {name}: {reason}")]
    Module {
        /// Its name.
        name: String,
        /// What `modprobe` said, or why it must stay.
        reason: String,
    },
    /// A device that a step is about is not there (any more).
    #[error("there is no device {0}")]
    NoDevice(String),
    /// A journal that another namespace, which is still there, needs for its own undo.
    #[error("the journal in {} is of another network namespace of this host: give each its own --state-dir", .0.display())]
    AnotherNamespace(PathBuf),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] store::Error),
    /// Capabilities that are missing.
    #[error("missing {0}: run it as root (in a container: with these capabilities)")]
    Privilege(String),
}

impl Error {
    fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }

    fn bpf<E: Into<Box<dyn std::error::Error + Send + Sync>>>(operation: impl Into<String>) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |source| Self::Bpf { operation, source: source.into() }
    }
}

/// This network namespace.
pub struct System {
    runtime: tokio::runtime::Runtime,
    netlink: netlink::Netlink,
    root: PathBuf,
}

impl System {
    /// Opens the netlink socket. The thread must stay in its network namespace.
    ///
    /// # Errors
    /// No runtime or no netlink socket.
    pub fn new() -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("starting the runtime"))?;
        let netlink = {
            let _in_runtime = runtime.enter();
            netlink::Netlink::open()?
        };
        Ok(Self { runtime, netlink, root: PathBuf::from("/") })
    }

    /// With the files of `--persist` below another directory than `/`.
    #[must_use]
    pub fn with_root(self, root: &Path) -> Self {
        Self { root: root.to_owned(), ..self }
    }

    fn install(&mut self, programs: &Programs) -> Result<(), Error> {
        let links = self.runtime.block_on(self.netlink.links())?;
        let hooks = self.runtime.block_on(self.netlink.hooks(&links))?;
        programs::install(programs, &links, &programs::ours(&hooks))
    }

    fn remove_programs(&mut self) -> Result<Undone, Error> {
        let links = self.runtime.block_on(self.netlink.links())?;
        let ours = programs::ours(&self.runtime.block_on(self.netlink.hooks(&links))?);
        ours.iter().try_for_each(|(slot, _)| programs::detach(slot))?;
        Ok(if ours.is_empty() { Undone::Already } else { Undone::Restored })
    }

    fn remove_address(&mut self, device: &str, address: IpAddr) -> Result<Undone, Error> {
        let removed = self.runtime.block_on(self.netlink.remove_address(device, address))?;
        Ok(if removed { Undone::Restored } else { Undone::Already })
    }

    fn remove_clsact(&mut self, device: &str) -> Result<Undone, Error> {
        let links = self.runtime.block_on(self.netlink.links())?;
        let Some((name, link)) = links.get_key_value(device).filter(|(_, link)| link.hook == HookQdisc::Clsact) else {
            return Ok(Undone::Already);
        };
        let only = BTreeMap::from([(name.clone(), link.clone())]);
        if !self.runtime.block_on(self.netlink.hooks(&only))?.is_empty() {
            return Ok(Undone::Left("somebody else's filters use it".to_owned()));
        }
        self.runtime.block_on(self.netlink.remove_clsact(device))?;
        Ok(Undone::Restored)
    }

    fn link_down(&mut self, device: &str) -> Result<Undone, Error> {
        let links = self.runtime.block_on(self.netlink.links())?;
        if !links.get(device).is_some_and(|link| link.up) {
            return Ok(Undone::Already);
        }
        let addresses = self.runtime.block_on(self.netlink.addresses())?;
        let mut others = addresses.iter().filter(|found| found.device == device && found.is_lasting());
        if let Some(other) = others.next() {
            return Ok(Undone::Left(format!("it has the address {}/{} by now", other.address, other.length)));
        }
        self.runtime.block_on(self.netlink.set_up(device, false))?;
        Ok(Undone::Restored)
    }
}

impl Host for System {
    type Error = Error;

    fn observe(&mut self) -> Result<Observed, Error> {
        let mut links = self.runtime.block_on(self.netlink.links())?;
        links.retain(|name, _| !proof::is_near_end(name));
        let hooks = self.runtime.block_on(self.netlink.hooks(&links))?;
        let (filters, counters) = programs::observe(&hooks, &links)?;
        Ok(Observed {
            addresses: self.runtime.block_on(self.netlink.addresses())?,
            sysctls: sysctls::observe()?,
            proxied: self.runtime.block_on(self.netlink.proxied(&links))?,
            tunnels: module::support(&links),
            files: files::observe(&self.root)?,
            links,
            filters,
            counters,
        })
    }

    fn execute(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::SetSysctl { name, to, .. } => sysctls::write(name, to),
            Step::LoadModule { name } => module::load(name),
            Step::AddAddress { device, address } => self.runtime.block_on(self.netlink.add_address(device, *address)),
            Step::LinkUp { device } => self.runtime.block_on(self.netlink.set_up(device, true)),
            Step::AddClsact { device } => {
                aya::programs::tc::qdisc_add_clsact(device).map_err(Error::bpf(format!("adding clsact to {device}")))
            }
            Step::InstallPrograms { to, .. } => self.install(to),
            Step::WriteFile { path, to, .. } => files::write(path, to),
        }
    }

    fn undo(&mut self, step: &Step) -> Result<Undone, Error> {
        match step {
            Step::SetSysctl { name, from, to } => sysctls::restore(name, from, to),
            Step::LoadModule { name } => module::unload(name),
            Step::AddAddress { device, address } => self.remove_address(device, *address),
            Step::LinkUp { device } => self.link_down(device),
            Step::AddClsact { device } => self.remove_clsact(device),
            Step::InstallPrograms { from: None, .. } => self.remove_programs(),
            Step::InstallPrograms { from: Some(from), .. } => self.install(from).map(|()| Undone::Restored),
            Step::WriteFile { path, from, to } => files::restore(path, from.as_ref(), to),
        }
    }
}

/// Reads the journal in `directory` (empty if there is none) for use in this network namespace.
///
/// # Errors
/// It cannot be read, or belongs to another namespace.
pub fn load_journal(directory: &Path) -> Result<Journal, Error> {
    let mut journal = store::load(directory)?;
    let here = namespaces::current()?;
    if journal.namespace.as_ref().is_some_and(|noted| namespaces::is_another(noted, &here)) {
        return Err(Error::AnotherNamespace(directory.to_owned()));
    }
    journal.namespace = Some(here);
    Ok(journal)
}

/// Whether this process may change the host at all.
///
/// # Errors
/// [`Error::Privilege`] names the missing capabilities.
pub fn privileged() -> Result<(), Error> {
    // include/uapi/linux/capability.h. SYS_ADMIN: the kernel asks for it to find a BPF program by its id.
    const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
    let status = std::fs::read_to_string("/proc/self/status").map_err(Error::io("reading /proc/self/status"))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> = NEEDED.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::Privilege(missing.join(" and "))) }
}
