//! The kernel's tunnel modules: whether there is one, loading and unloading it.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use super::Error;
use crate::{
    family::Family,
    observed::{Link, Support},
    run::Undone,
};

/// What the kernel has of each family's tunnel. Loads nothing.
#[must_use]
pub fn support(links: &BTreeMap<String, Link>) -> BTreeMap<Family, Support> {
    Family::ALL.map(|family| (family, support_of(family, links))).into()
}

fn support_of(family: Family, links: &BTreeMap<String, Link>) -> Support {
    let module = family.tunnel_module();
    if links.contains_key(family.tunnel()) {
        Support::Present
    } else if loaded(module).is_none() && fallback_devices_everywhere() && modprobe_finds(module) {
        Support::Loadable
    } else {
        Support::Absent
    }
}

/// `net.core.fb_tunnels_only_for_init_net`: 0 unless somebody changed it; otherwise no fallback device may
/// appear here.
fn fallback_devices_everywhere() -> bool {
    fs::read_to_string("/proc/sys/net/core/fb_tunnels_only_for_init_net").map_or(true, |value| value.trim() == "0")
}

/// How many users a loaded module has (other modules, mostly); `None`: it is not loaded.
fn loaded(name: &str) -> Option<u32> {
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    // proc_modules(5): name, size, users.
    let mut fields = modules.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.find_map(|fields| match fields[..] {
        [found, _, users, ..] if found == name => Some(users.parse().unwrap_or(0)),
        _ => None,
    })
}

fn modprobe_finds(name: &str) -> bool {
    modprobe(&["--dry-run", "--quiet", name]).is_ok()
}

/// What `modprobe` said, if it failed.
fn modprobe(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("modprobe").args(arguments).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("running modprobe: {error}")),
    }
}

/// Loads a module and what it depends on.
///
/// # Errors
/// `modprobe` failed.
pub fn load(name: &str) -> Result<(), Error> {
    modprobe(&[name]).map_err(|reason| Error::Module { name: name.to_owned(), reason })?;
    settle();
    Ok(())
}

/// udev has systemd-sysctl write the settings of a device that appears: ours are to come after.
fn settle() {
    if Path::new("/run/udev/control").exists() {
        // Without an answer nothing is lost: looking again afterwards tells most of it, the proof the rest.
        let _ = Command::new("udevadm").args(["settle", "--timeout=10"]).output();
    }
}

/// Unloads a module and what only it depends on, unless somebody uses it.
///
/// A tunnel device holds no reference on its module: unloading takes the device away, in every network namespace. So
/// all namespaces that can be found are looked into first.
///
/// # Errors
/// It seems unused, and `modprobe` failed.
pub fn unload(name: &str) -> Result<Undone, Error> {
    match loaded(name) {
        None => return Ok(Undone::Already),
        Some(0) => {}
        Some(_) => return Ok(Undone::Left("stays loaded: other modules use it".to_owned())),
    }
    let family = Family::ALL.into_iter().find(|family| family.tunnel_module() == name);
    if let Some(user) = family.and_then(super::namespaces::tunnel_user) {
        return Ok(Undone::Left(format!("stays loaded: {user}")));
    }
    let unloaded = modprobe(&["--remove", name]);
    unloaded.map(|()| Undone::Restored).map_err(|reason| Error::Module { name: name.to_owned(), reason })
}
