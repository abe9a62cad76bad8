//! The kernel's tunnel module: whether there is one, loading and unloading it.

use std::{collections::BTreeMap, fs, process::Command};

use super::Error;
use crate::{
    observed::{Ipip, Link},
    plan::{TUNNEL, TUNNEL_MODULE},
    run::Undone,
};

/// Whether the kernel has the tunnel. Loads nothing.
#[must_use]
pub fn support(links: &BTreeMap<String, Link>) -> Ipip {
    if links.contains_key(TUNNEL) {
        Ipip::Present
    } else if !is_loaded(TUNNEL_MODULE) && fallback_devices_everywhere() && modprobe_finds(TUNNEL_MODULE) {
        Ipip::Loadable
    } else {
        Ipip::Absent
    }
}

/// `net.core.fb_tunnels_only_for_init_net`: 0 unless somebody changed it; otherwise `tunl0` may not appear here.
fn fallback_devices_everywhere() -> bool {
    fs::read_to_string("/proc/sys/net/core/fb_tunnels_only_for_init_net").map_or(true, |value| value.trim() == "0")
}

fn is_loaded(name: &str) -> bool {
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    modules.lines().any(|line| line.split_whitespace().next() == Some(name))
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
    modprobe(&[name]).map_err(|reason| Error::Module { name: name.to_owned(), reason })
}

/// Unloads a module and what only it depends on, unless somebody uses it.
///
/// A tunnel device holds no reference on its module: unloading takes the device away, in every network namespace. So all
/// namespaces that can be found are looked into first.
///
/// # Errors
/// It seems unused, and `modprobe` failed.
pub fn unload(name: &str) -> Result<Undone, Error> {
    if !is_loaded(name) {
        return Ok(Undone::Already);
    }
    if let Some(user) = super::namespaces::tunnel_user() {
        return Ok(Undone::Left(format!("stays loaded: {user}")));
    }
    let unloaded = modprobe(&["--remove", name]);
    unloaded.map(|()| Undone::Restored).map_err(|reason| Error::Module { name: name.to_owned(), reason })
}
