//! The real of a flow whose slot is looked up: a window is open, or has been while entries may live.

use crate::maps::{FLOWS, REALS, count};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use lb_ebpf::{
    counter::{FlowEvent, flow_event_index},
    flow::Flow,
    net::TCP,
    real::{SERVES_TCP, SERVES_UDP},
    ring::{RealId, Slot},
};

/// What a packet means for its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TCP SYN without ACK: the flow begins.
    Syn,
    /// Any other packet of the flow.
    Other,
    /// An ICMP error about the flow: it goes where the flow goes and is not remembered.
    Error,
}

/// An entry that lives and whose real still serves decides. Without one a TCP SYN gets `cur`, and so does
/// anything else unless a window is open on the slot whose `prev` still serves.
#[inline(always)]
pub(crate) fn choose(slot: Slot, hash: u64, protocol: u8, idle_s: u16, kind: Kind) -> RealId {
    let is_syn = kind == Kind::Syn;
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let serves = if protocol == TCP { SERVES_TCP } else { SERVES_UDP };
    if !is_syn && let Some(real) = remembered(hash, now, idle_s, serves) {
        count(flow_event_index(FlowEvent::Hit), 0);
        return real;
    }
    count(flow_event_index(miss(protocol, is_syn)), 0);
    let choice = if !is_syn && real_serves(slot.prev(), serves) { slot.prev() } else { slot.cur() };
    if slot.track() && choice != 0 && kind != Kind::Error {
        if FLOWS.insert(hash, Flow::new(choice, now), 0).is_ok() {
            count(flow_event_index(FlowEvent::Insert), 0);
        }
    } else if is_syn {
        // A new connection on old ports: what was remembered of the old one is stale. Absent is fine.
        let _ = FLOWS.remove(hash);
    }
    choice
}

#[inline(always)]
fn remembered(hash: u64, now: u64, idle_s: u16, serves: u16) -> Option<RealId> {
    let flow = FLOWS.get_ptr_mut(hash)?;
    // SAFETY: the kernel keeps an LRU entry's memory valid for the program's run. It may be reused for
    // another flow meanwhile; then one packet refreshes or reads that flow's entry, which is harmless.
    let flow = unsafe { &mut *flow };
    let real = flow.real as RealId;
    if !flow.lives(now, idle_s) || !real_serves(real, serves) {
        return None;
    }
    flow.last_seen_ns = now;
    Some(real)
}

#[inline(always)]
fn real_serves(real: RealId, serves: u16) -> bool {
    real != 0 && REALS.get(u32::from(real)).is_some_and(|entry| entry.serves & serves != 0)
}

#[inline(always)]
fn miss(protocol: u8, is_syn: bool) -> FlowEvent {
    if is_syn {
        FlowEvent::MissSyn
    } else if protocol == TCP {
        FlowEvent::MissTcp
    } else {
        FlowEvent::MissUdp
    }
}
