//! The loaded program, and what its own counters say of each packet.

use super::world::World;
use crate::{
    config::VipKey,
    data_plane::{Error, Program, Ran},
};
use lb_ebpf::counter::{Reason, real_index, reason_index, vip_index};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Where in a frame an address is looked for, in bytes from its beginning: the headers of an ICMP error and of the
/// packet that it is about end before, in IPv6 too.
const HEADERS: usize = 192;

/// What a packet was counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// The reason.
    pub(super) reason: Option<Reason>,
    /// The VIP, if it was for one.
    pub(super) vip: Option<VipKey>,
    /// The real, if it was sent to one.
    pub(super) real: Option<IpAddr>,
}

/// The program with the maps of a configuration.
pub(super) struct Subject {
    program: Program,
    reasons: Counters<Reason>,
    vips: Counters<VipKey>,
    vips_at: HashMap<IpAddr, Vec<usize>>,
    reals: Counters<IpAddr>,
    reals_at: HashMap<IpAddr, Vec<usize>>,
}

impl Subject {
    /// Loads the program and fills its maps.
    ///
    /// # Errors
    /// No privilege, or the kernel refuses the program or a map.
    pub(super) fn load(world: World) -> Result<Self, Error> {
        let mut program = Program::load()?;
        program.carry_out(world.ops)?;
        Ok(Self {
            program,
            reasons: Counters::new(Reason::ALL.iter().map(|&reason| (reason, reason_index(reason)))),
            vips_at: places(world.vips.iter().map(|(key, _)| key.address)),
            vips: Counters::new(world.vips.iter().map(|&(key, index)| (key, vip_index(index)))),
            reals_at: places(world.reals.iter().map(|&(real, _)| real)),
            reals: Counters::new(world.reals.iter().map(|&(real, id)| (real, real_index(id)))),
        })
    }

    /// Runs a frame.
    ///
    /// # Errors
    /// The kernel refuses to run it.
    pub(super) fn run(&mut self, frame: &[u8]) -> Result<Ran, Error> {
        self.program.test_run(frame)
    }

    /// What the last frame was counted for. A VIP's address stands in every packet for it, and a real's in every packet
    /// to it: only their counters are read, for reading those of hundreds would take longer than all else.
    ///
    /// # Errors
    /// The kernel refuses to read a counter.
    pub(super) fn counted(&mut self, frame: &[u8], ran: &Ran) -> Result<Counted, Error> {
        let reason = self.reasons.grown(&self.program, 0..Reason::ALL.len())?;
        let vip = self.vips.grown(&self.program, standing_in(frame, &self.vips_at))?;
        let real = self.reals.grown(&self.program, standing_in(&ran.frame, &self.reals_at))?;
        Ok(Counted { reason, vip, real })
    }
}

/// Some of the program's counters of packets and what each stands for.
struct Counters<K> {
    counters: Vec<(K, u32, u64)>,
}

impl<K: Copy> Counters<K> {
    /// Counters that nothing was counted by yet, by their indexes.
    fn new(counters: impl Iterator<Item = (K, u32)>) -> Self {
        Self { counters: counters.map(|(what, index)| (what, index, 0)).collect() }
    }

    /// What the one of these counters stands for that has grown.
    fn grown(&mut self, program: &Program, among: impl Iterator<Item = usize>) -> Result<Option<K>, Error> {
        for at in among {
            let Some((what, index, packets)) = self.counters.get_mut(at) else { continue };
            let now = program.counter(*index)?.packets;
            if now != *packets {
                *packets = now;
                return Ok(Some(*what));
            }
        }
        Ok(None)
    }
}

/// The places of each address in a list.
fn places(addresses: impl Iterator<Item = IpAddr>) -> HashMap<IpAddr, Vec<usize>> {
    let mut places = HashMap::<_, Vec<_>>::new();
    for (at, address) in addresses.enumerate() {
        places.entry(address).or_default().push(at);
    }
    places
}

/// The places of the addresses that occur among a frame's headers, at whatever offset.
fn standing_in<'a>(frame: &'a [u8], places: &'a HashMap<IpAddr, Vec<usize>>) -> impl Iterator<Item = usize> + 'a {
    let headers = frame.get(..HEADERS).unwrap_or(frame);
    let v4 = headers.array_windows::<4>().map(|&octets| IpAddr::V4(Ipv4Addr::from(octets)));
    let v6 = headers.array_windows::<16>().map(|&octets| IpAddr::V6(Ipv6Addr::from(octets)));
    v4.chain(v6).filter_map(|address| places.get(&address)).flatten().copied()
}
