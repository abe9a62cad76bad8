//! How a prober is set up.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

pub use lb_ebpf::source::OuterSource;

/// Source ports (and ICMP identifiers) of a daemon. Above the kernel's default `ip_local_port_range`, so that they never
/// collide with a socket, and below those of one-shot probers.
pub const DAEMON_PORTS: RangeInclusive<u16> = 61_000..=64_511;

/// Source ports of one-shot probers with a single probe, which takes one. Each port is claimed on its own.
pub const SINGLE_PORTS: RangeInclusive<u16> = 64_512..=65_023;

/// Source ports of one-shot probers with several probes, in blocks of [`ONE_SHOT_BLOCK`].
pub const BLOCK_PORTS: RangeInclusive<u16> = 65_024..=65_535;

/// How many source ports a one-shot prober with several probes claims.
pub const ONE_SHOT_BLOCK: u16 = 64;

/// Settings of a prober.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Interfaces on whose ingress replies are captured.
    pub interfaces: Vec<String>,
    /// Source of outer IPv4 headers, the one that the data plane uses; a check's probes take the addresses of a prefix in
    /// turn. `None`: what the route to the real prefers.
    pub outer_source: Option<OuterSource>,
    /// Source of outer IPv6 headers, and of IPv6 headers within. `None`: what the route to the real prefers.
    pub outer_source6: Option<Ipv6Addr>,
    /// Source of inner IPv4 headers: where the real's answer goes. `None`: the outer source if that is one address, otherwise
    /// what the route to the real prefers; to the target, if the real's address is IPv6.
    pub inner_source: Option<Ipv4Addr>,
    /// Source ports and ICMP identifiers, host byte order. No two probers in a network namespace may share any.
    pub ports: RangeInclusive<u16>,
    /// Key of the cookies.
    pub secret: Secret,
}

/// The key of a prober's cookies. Whoever knows it can forge answers: it is never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// A fresh one.
    ///
    /// # Errors
    /// The kernel's random number generator failed.
    pub fn draw() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
        Ok(Self(bytes))
    }

    /// The key itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Settings {
    /// Settings that capture on `interfaces`, with a fresh secret and everything else left to its default.
    ///
    /// # Errors
    /// The kernel's random number generator failed.
    pub fn new(interfaces: Vec<String>) -> std::io::Result<Self> {
        Ok(Self {
            interfaces,
            outer_source: None,
            outer_source6: None,
            inner_source: None,
            ports: DAEMON_PORTS,
            secret: Secret::draw()?,
        })
    }
}

/// The first of `ports` that the kernel may give to a socket by itself: one that is in its `ip_local_port_range` and not in
/// its `ip_local_reserved_ports`. Answers to such a socket from a VIP would be taken for answers to probes.
#[must_use]
pub fn shared_port(ports: &RangeInclusive<u16>) -> Option<u16> {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    shared(ports, &read("ip_local_port_range"), &read("ip_local_reserved_ports"))
}

/// `local` is two numbers; `reserved` a list of numbers and ranges like `8080,61000-64511`.
fn shared(ports: &RangeInclusive<u16>, local: &str, reserved: &str) -> Option<u16> {
    let mut ends = local.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    let is_reserved = |port: &u16| {
        reserved.trim().split(',').any(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            matches!((from.parse::<u16>(), to.parse::<u16>()), (Ok(from), Ok(to)) if (from..=to).contains(port))
        })
    };
    (first.max(*ports.start())..=last.min(*ports.end())).find(|port| !is_reserved(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_fresh_each_time_and_never_printed() {
        let settings = Settings::new(vec![]).unwrap();
        assert_ne!(settings.secret, Settings::new(vec![]).unwrap().secret);
        assert!(format!("{settings:?}").ends_with("secret: Secret }"), "{settings:?}");
    }

    #[test]
    fn port_that_the_kernel_gives_out_is_found_unless_reserved() {
        let ours = 61_000..=64_511;
        assert_eq!(shared(&ours, "32768\t60999\n", "\n"), None);
        assert_eq!(shared(&ours, "1024\t65535\n", "\n"), Some(61_000));
        assert_eq!(shared(&ours, "1024\t65535\n", "8080,61000-64000\n"), Some(64_001));
        assert_eq!(shared(&ours, "1024\t65535\n", "8080,61000-65535\n"), None);
        assert_eq!(shared(&ours, "", ""), None, "unknown");
    }
}
