//! The load balancer as a configuration would have it in service: every real up but those said to be down, each behind
//! a next hop that is made up. Pure.

use crate::{
    config::{Config, VipKey},
    nexthop::NextHop,
    reconcile::{Core, Event, Inheritance, Op},
};
use hc_prober::{Check, Severity, State};
use lb_ebpf::ring::RealId;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

/// The interface that test runs seem to come in by; a real behind it is sent to by `XDP_TX`.
const INGRESS: u32 = 1;
/// The made-up MAC address of that interface, locally administered.
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The outer sources where the configuration names none: which one the kernel would prefer is the host's business. From
/// networks for documentation (RFC 5737, RFC 3849).
const OUTER_SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTER_SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// What a load balancer in service has in its maps.
pub(super) struct World {
    /// What fills the maps.
    pub(super) ops: Vec<Op>,
    /// The VIPs and the index of each.
    pub(super) vips: Vec<(VipKey, u16)>,
    /// The reals and the index of each.
    pub(super) reals: Vec<(IpAddr, RealId)>,
}

impl World {
    /// Has the daemon's own core go through a start in which every check passes, and then the reals that are `down`
    /// fail as if their hosts were gone. Paths to reals carry outer packets of up to `mtu` bytes.
    ///
    /// # Errors
    /// The first of `down` that is no real of the configuration.
    pub(super) fn new(config: Config, down: &[IpAddr], mtu: u16, now: Instant) -> Result<Self, IpAddr> {
        let (mut core, mut ops) = Core::start(config, Inheritance::default(), now);
        let (checks, wanted) = asked_for(&ops);
        if let Some(stranger) = down.iter().find(|real| !checks.iter().any(|check| check.key.real == **real)) {
            return Err(*stranger);
        }
        let hops = wanted.into_iter().map(|real| (real, made_up_hop(real, mtu))).collect();
        ops.extend(core.apply(Event::NextHops(hops), now));
        let failing = checks.iter().filter(|check| down.contains(&check.key.real));
        let passes = checks.iter().map(|check| (check, State::Up));
        for (check, state) in passes.chain(failing.map(|check| (check, State::Down(Severity::Hard)))) {
            ops.extend(core.apply(Event::Verdict(check.key.clone(), state), now));
        }
        let vips = core.services().map(|service| (service.config.key(), service.index)).collect();
        Ok(Self { ops, vips, reals: core.reals().collect() })
    }
}

/// The checks and the next hops that the core wants.
fn asked_for(ops: &[Op]) -> (Vec<Check>, Vec<IpAddr>) {
    let (mut checks, mut reals) = (Vec::new(), Vec::new());
    for op in ops {
        match op {
            Op::Checks(wanted) => checks.clone_from(wanted),
            Op::Resolve(wanted) => reals.clone_from(wanted),
            Op::Real(..)
            | Op::Ring(..)
            | Op::Vips(_)
            | Op::Vacate(_)
            | Op::ClearCount(_)
            | Op::NoIndex(_)
            | Op::OtherRingSize(..)
            | Op::Tell(_)
            | Op::Attach
            | Op::Sweep(_) => {}
        }
    }
    (checks, reals)
}

/// A locally administered MAC address that ends as the real's own address does.
fn made_up_hop(real: IpAddr, mtu: u16) -> NextHop {
    let (source, tail) = match real {
        IpAddr::V4(real) => (OUTER_SOURCE.into(), real.to_bits()),
        #[expect(clippy::cast_possible_truncation, reason = "the last four bytes")]
        IpAddr::V6(real) => (OUTER_SOURCE6.into(), real.to_bits() as u32),
    };
    let [a, b, c, d] = tail.to_be_bytes();
    NextHop { ifindex: INGRESS, mtu: mtu.into(), source_mac: OWN_MAC, dest_mac: [2, 0, a, b, c, d], source }
}
