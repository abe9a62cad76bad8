//! Kernel settings of this network namespace. Names have no device names with dots in them, which the crate cannot
//! address.

use std::collections::BTreeMap;

use sysctl::{Ctl, Sysctl as _, SysctlError};

use super::Error;
use crate::{family::Family, run::Undone};

/// All that a plan may ask for. A tunnel's own is there only with the tunnel.
const OBSERVED: [&str; 12] = [
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.arp_announce",
    Family::Ipv4.icmp_ratelimit(),
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv4.conf.tunl0.rp_filter",
    Family::Ipv6.icmp_ratelimit(),
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.conf.lo.disable_ipv6",
    "net.ipv6.conf.default.disable_ipv6",
    "net.ipv6.conf.ip6tnl0.disable_ipv6",
];

/// Reads the settings that exist.
///
/// # Errors
/// One exists and cannot be read.
pub fn observe() -> Result<BTreeMap<String, String>, Error> {
    let mut values = BTreeMap::new();
    for name in OBSERVED {
        if let Some(value) = read(name)? {
            values.insert(name.to_owned(), value);
        }
    }
    Ok(values)
}

/// `None`: there is no such setting.
fn read(name: &str) -> Result<Option<String>, Error> {
    match Ctl::new(name).and_then(|ctl| ctl.value_string()) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(SysctlError::NotFound(_)) => Ok(None),
        Err(source) => Err(Error::Sysctl { name: name.to_owned(), source }),
    }
}

/// Writes a setting.
///
/// # Errors
/// It does not exist, or the kernel refuses.
pub fn write(name: &str, value: &str) -> Result<(), Error> {
    let written = Ctl::new(name).and_then(|ctl| ctl.set_value_string(value));
    written.map(drop).map_err(|source| Error::Sysctl { name: name.to_owned(), source })
}

/// Whether `now` is what `written` reads as. Ticks are at most 10 ms, and the kernel rounds up.
fn reads_as(name: &str, written: &str, now: &str) -> bool {
    let rounded = || Some(now.parse::<i64>().ok()? - written.parse::<i64>().ok()?);
    let in_ticks = Family::ALL.iter().any(|family| family.icmp_ratelimit() == name);
    now == written || in_ticks && rounded().is_some_and(|more| (0..10).contains(&more))
}

/// Back to `from`, if it is still what we wrote.
///
/// # Errors
/// It cannot be read or written.
pub fn restore(name: &str, from: &str, to: &str) -> Result<Undone, Error> {
    match read(name)? {
        None => Ok(Undone::Already),
        Some(now) if reads_as(name, to, &now) => write(name, from).map(|()| Undone::Restored),
        Some(now) if now == from => Ok(Undone::Already),
        Some(now) => Ok(Undone::Left(format!("it is {now} by now, not the {to} that was set"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratelimit_rounded_to_ticks_is_still_ours() {
        for name in Family::ALL.map(Family::icmp_ratelimit) {
            assert!(reads_as(name, "10", "12"));
            assert!(!reads_as(name, "10", "1000"));
        }
        assert!(!reads_as("net.ipv4.conf.all.arp_ignore", "1", "2"));
    }
}
