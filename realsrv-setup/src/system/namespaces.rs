//! The network namespaces of this machine: which one this is, and who uses the tunnel module in any of them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::{Error, netlink::Netlink};
use crate::{family::Family, journal::Namespace};

/// Who uses the tunnel of a family, or why that cannot be known; `None`: nobody.
#[must_use]
pub(super) fn tunnel_user(family: Family) -> Option<String> {
    all().into_values().find_map(|path| match in_use(family, path.clone()) {
        Ok(false) => None,
        Ok(true) => Some(format!("the network namespace {} has a tunnel", path.display())),
        Err(error) => Some(format!("cannot look into the network namespace {}: {error}", path.display())),
    })
}

/// The network namespace of this thread.
///
/// # Errors
/// `/proc` cannot be read.
pub(super) fn current() -> Result<Namespace, Error> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(Error::io("reading the boot id"))?;
    let this = fs::metadata("/proc/thread-self/ns/net").map_err(Error::io("finding this network namespace"))?;
    Ok(Namespace { boot: boot.trim().to_owned(), inode: this.ino() })
}

/// Whether a namespace other than `current` is meant, and it is still there.
pub(super) fn is_another(noted: &Namespace, current: &Namespace) -> bool {
    noted.boot == current.boot && noted.inode != current.inode && all().contains_key(&noted.inode)
}

/// Every network namespace of a process or a name, once, by inode.
fn all() -> BTreeMap<u64, PathBuf> {
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_processes = entries("/proc").map(|process| process.join("ns/net"));
    let named = entries("/run/netns");
    // A process that has just ended, or a directory of /proc that is none, has no inode here.
    named.chain(of_processes).filter_map(|path| Some((fs::metadata(&path).ok()?.ino(), path))).collect()
}

/// In a thread of its own, which ends there: this one stays in its namespace.
fn in_use(family: Family, path: PathBuf) -> Result<bool, Error> {
    let look = move || {
        let operation = format!("entering {}", path.display());
        let namespace = match File::open(&path) {
            Ok(namespace) => namespace,
            // The process ended, and its namespace may have ended with it; if not, another path led to it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io(operation)(error)),
        };
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::io(operation)(errno.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("starting the runtime"))?;
        runtime.block_on(async { Netlink::open()?.has_tunnel_in_use(family).await })
    };
    match thread::spawn(look).join() {
        Ok(result) => result,
        Err(_) => Err(Error::io("looking into a network namespace")(std::io::Error::other("the thread ended early"))),
    }
}
