//! What lbd may do on this host. It needs four capabilities and no more, whichever user it runs as
//! (docs/decisions/capabilities.md).

use std::{fs, io};

/// A capability that lbd needs (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As people write it.
    pub name: &'static str,
    /// What lbd cannot do without it.
    pub purpose: &'static str,
    /// Its number in include/uapi/linux/capability.h.
    number: u32,
    /// `CAP_SYS_ADMIN` will do as well, as it did before Linux 5.8 (`bpf_capable` and `perfmon_capable` in the kernel).
    is_part_of_sys_admin: bool,
}

const fn needed(name: &'static str, purpose: &'static str, number: u32, is_part_of_sys_admin: bool) -> Capability {
    Capability { name, purpose, number, is_part_of_sys_admin }
}

/// Without these lbd does not start.
const NEEDED: [Capability; 4] = [
    needed("CAP_BPF", "to load BPF programs and make maps", 39, true),
    needed("CAP_NET_ADMIN", "to attach programs to interfaces", 12, false),
    needed("CAP_NET_RAW", "to send probes from raw sockets", 13, false),
    // `allow_ptr_leaks` in the verifier: the program subtracts pointers, to know a packet's length.
    needed("CAP_PERFMON", "to have the kernel accept the XDP program", 38, true),
];
const SYS_ADMIN: u32 = 21;

/// The capabilities that a thread may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective(u64);

/// Capabilities that lbd cannot do without.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "missing {}: lbd needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON, as root has them, and no others",
    .0.iter().map(|missing| format!("{} ({})", missing.name, missing.purpose)).collect::<Vec<_>>().join(", ")
)]
pub struct Missing(Vec<Capability>);

impl Effective {
    /// Those of the calling thread.
    ///
    /// # Errors
    /// /proc does not tell.
    pub fn of_this_thread() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/thread-self/status")?;
        Self::parse(&status).ok_or_else(|| io::Error::other("/proc/thread-self/status has no line CapEff"))
    }

    /// Those that a file `status` in /proc tells (`proc_pid_status(5)`).
    fn parse(status: &str) -> Option<Self> {
        let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(hex.trim(), 16).ok().map(Self)
    }

    /// Whether lbd can work with these.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn check(self) -> Result<(), Missing> {
        let missing: Vec<_> = NEEDED.into_iter().filter(|&needed| !self.has(needed)).collect();
        if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
    }

    fn has(self, Capability { number, is_part_of_sys_admin, .. }: Capability) -> bool {
        let bit = |number: u32| self.0 & (1 << number) != 0;
        bit(number) || is_part_of_sys_admin && bit(SYS_ADMIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(cap_eff: &str) -> Result<(), Missing> {
        Effective::parse(&format!("Name:\tlbd\nCapPrm:\t0\nCapEff:\t{cap_eff}\n")).unwrap().check()
    }

    #[test]
    fn four_capabilities_are_enough_and_sys_admin_stands_for_two_of_them() {
        assert_eq!(checked("000000c000003000"), Ok(()));
        assert_eq!(checked("000001ffffffffff"), Ok(()));
        assert_eq!(checked("0000000000203000"), Ok(()));
    }

    #[test]
    fn missing_ones_are_named_with_what_they_are_for() {
        let text = checked("000000c000002000").unwrap_err().to_string();
        assert!(
            text.starts_with("missing CAP_NET_ADMIN (to attach programs to interfaces): lbd needs CAP_BPF"),
            "{text}"
        );
        let text = checked("0000000000000000").unwrap_err().to_string();
        assert!(["CAP_BPF (", "CAP_NET_ADMIN (", "CAP_NET_RAW ("].iter().all(|name| text.contains(name)), "{text}");
    }

    #[test]
    fn status_without_the_line_is_no_answer() {
        assert_eq!(Effective::parse("Name:\tlbd\n"), None);
        Effective::of_this_thread().unwrap();
    }
}
