//! The real of a flow whose slot is looked up: a window is open, or has been while entries may live.
//!
//! All CPUs and the daemon share the table without locks. An entry is one word and written by one store, so whoever
//! reads it sees a whole flow or none. What two CPUs can do to each other is to choose the same place at the same
//! moment: then one of two new flows has no entry, as if the other had evicted it a moment later. One CPU
//! may also refresh an entry that another has just replaced, which undoes that insertion likewise. The next packet of the
//! flow that lost is one without an entry, and is remembered again. It takes two flows of the same bucket, one of
//! 131,072 by default, within the nanoseconds between load and store; a lock would cost all others more.

use crate::maps::{FLOWS, FLOWS_SIZE, REALS, count};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use lb_ebpf::{
    counter::{FlowEvent, flow_event_index},
    flow::{Bucket, Entry, Tick, WAYS},
    net::TCP,
    real::{SERVES_TCP, SERVES_UDP},
    ring::{RealId, Slot},
};

/// What a packet is to its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TCP SYN: it begins the flow, whatever was remembered under the same ports.
    Syn,
    /// Any other of the flow's own packets.
    Other,
    /// An ICMP error about the flow: it goes where the flow goes, and leaves no trace.
    Error,
}

impl Kind {
    #[inline(always)]
    const fn of(number: u32) -> Self {
        match number {
            0 => Self::Syn,
            1 => Self::Other,
            _ => Self::Error,
        }
    }
}

/// An entry that lives and whose real still serves decides, except for a SYN. Without one a SYN gets `cur`, and so does
/// anything else unless a window is open on the slot whose `prev` still serves.
#[inline(always)]
pub(crate) fn choose(slot: Slot, hash: u64, protocol: u8, idle_s: u16, kind: Kind) -> RealId {
    tracked_real(slot.0, hash, u32::from(protocol), u32::from(idle_s), kind as u32) as RealId
}

/// A function of its own: so the verifier walks through it once, not once for each way through the rest, and the steady
/// state's path stays short.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tracked_real(slot: u32, hash: u64, protocol: u32, idle_s: u32, kind: u32) -> u32 {
    let (slot, idle_s, kind) = (Slot(slot), idle_s as u16, Kind::of(kind));
    let Some(bucket) = FLOWS.get(FLOWS_SIZE.load().bucket_index(hash) as u32) else {
        return u32::from(slot.cur());
    };
    // SAFETY: a helper without arguments.
    let now = Tick::of(unsafe { bpf_ktime_get_coarse_ns() });
    let serves = if protocol == u32::from(TCP) { SERVES_TCP } else { SERVES_UDP };
    let way = bucket.find(hash);
    let entry = if way < WAYS { bucket.load(way) } else { Entry::default() };
    // Another CPU may have put another flow there since.
    let is_own = way < WAYS && entry.matches(hash) == 1;
    if kind != Kind::Syn && is_own && entry.lives(now, idle_s) && real_serves(entry.real(), serves) {
        let seen = entry.seen(now);
        // A store takes the line from other CPUs: once in a tick is enough.
        if kind != Kind::Error && seen != entry {
            bucket.store(way, seen);
        }
        event(FlowEvent::Hit);
        return u32::from(entry.real());
    }
    event(miss(protocol, kind));
    let choice = if kind != Kind::Syn && real_serves(slot.prev(), serves) { slot.prev() } else { slot.cur() };
    if kind != Kind::Error && slot.track() && choice != 0 {
        let entry = Entry::new(hash, choice, now);
        if way < WAYS {
            bucket.store(way, entry);
        } else {
            insert(bucket, hash, entry, idle_s);
        }
        event(FlowEvent::Insert);
    } else if kind != Kind::Error && is_own {
        // A new connection on old ports, or a real that is lost to its flows: what was remembered is stale, and must
        // not take the flow back when that real returns.
        bucket.store(way, Entry::default());
    }
    u32::from(choice)
}

/// Puts a new flow's entry in the place of another.
#[inline(always)]
fn insert(bucket: &Bucket, hash: u64, entry: Entry, idle_s: u16) {
    let place = bucket.place(hash, entry.last_seen(), idle_s);
    if place.evicts {
        event(FlowEvent::Evict);
    }
    bucket.store(place.way, entry);
}

#[inline(always)]
fn real_serves(real: RealId, serves: u16) -> bool {
    real != 0 && REALS.get(u32::from(real)).is_some_and(|entry| entry.serves & serves != 0)
}

#[inline(always)]
fn miss(protocol: u32, kind: Kind) -> FlowEvent {
    if kind == Kind::Syn {
        FlowEvent::MissSyn
    } else if protocol == u32::from(TCP) {
        FlowEvent::MissTcp
    } else {
        FlowEvent::MissUdp
    }
}

#[inline(always)]
fn event(event: FlowEvent) {
    count(flow_event_index(event), 0);
}
