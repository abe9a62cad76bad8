//! Why a packet got its verdict, and the counters: one per-CPU array for reasons, VIPs and reals.

use crate::{pod, real::MAX_REALS, ring::RealId, vip::MAX_VIPS};

/// What happens to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the kernel, untouched.
    Pass,
    /// Discarded.
    Drop,
    /// Out of the interface it came in by.
    Transmit,
    /// Out of another interface.
    Redirect,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $action:ident, $code:literal;)+) => {
        /// Why a packet got its verdict. Every packet has exactly one.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $name = $value,)+ }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Reason] = &[$(Reason::$name,)+];

            /// What happens to a packet with this reason.
            #[must_use]
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Reason::$name => Action::$action,)+ }
            }

            /// The name that people and scripts see.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)+ }
            }
        }
    };
}

reasons! {
    /// Encapsulated, out of the interface it came in by.
    Forwarded = 0, Transmit, "forwarded";
    /// Encapsulated, out of another interface.
    Redirected = 1, Redirect, "redirected";
    /// An ICMP echo request for a VIP, answered.
    EchoReply = 2, Transmit, "echo_reply";
    /// Neither IPv4 nor IPv6, or too short to be.
    PassNotIp = 3, Pass, "pass_not_ip";
    /// For an address that no VIP has.
    PassNotVip = 4, Pass, "pass_not_vip";
    /// ICMP for a VIP that is neither an echo request nor an error about a flow of it, and the configuration says `pass`;
    /// neighbour discovery always.
    PassIcmp = 5, Pass, "pass_icmp";
    /// A VIP's address with a port nobody configured, and the configuration says `pass`.
    PassUnmatched = 6, Pass, "pass_unmatched";
    /// The same, and the configuration says `drop` (the default).
    DropUnmatched = 7, Drop, "drop_unmatched";
    /// A fragment for a VIP that needs to know its ports.
    DropFragment = 8, Drop, "drop_fragment";
    /// IPv4 options in a packet for a VIP.
    DropOptions = 9, Drop, "drop_options";
    /// A header for a VIP that is cut short or contradicts itself.
    DropMalformed = 10, Drop, "drop_malformed";
    /// The VIP has no real that takes this flow.
    DropNoReal = 11, Drop, "drop_no_real";
    /// The real's next hop is not known.
    DropNoNextHop = 12, Drop, "drop_no_next_hop";
    /// Larger than the way to the real allows once encapsulated, and the client may not be told.
    DropTooBig = 13, Drop, "drop_too_big";
    /// The driver has no room in front of the packet.
    DropNoHeadroom = 14, Drop, "drop_no_headroom";
    /// ICMP for a VIP that is neither an echo request nor an error about a flow of it (the default).
    DropIcmp = 15, Drop, "drop_icmp";
    /// More or longer IPv6 extension headers than are looked through, or any before an echo request.
    DropExtension = 16, Drop, "drop_extension";
    /// Larger than the way to the real allows, and the client was told: frag-needed, packet-too-big.
    TooBigReply = 17, Transmit, "too_big_reply";
    /// The same, and too many were told just before.
    DropTooBigLimited = 18, Drop, "drop_too_big_limited";
    /// An ARP request or a neighbour solicitation for a VIP, answered.
    NeighbourReply = 19, Transmit, "neighbour_reply";
}

macro_rules! flow_events {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $code:literal;)+) => {
        /// What the tracked-flow table did for a packet of a slot that is looked up.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FlowEvent { $($(#[$doc])* $name = $value,)+ }

        impl FlowEvent {
            /// All events, in the order of their numbers.
            pub const ALL: &[FlowEvent] = &[$(FlowEvent::$name,)+];

            /// The name that people and scripts see.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(FlowEvent::$name => $code,)+ }
            }
        }
    };
}

flow_events! {
    /// An entry lived and its real still serves.
    Hit = 32, "hit";
    /// A TCP SYN: entries are not asked.
    MissSyn = 33, "miss_syn";
    /// TCP without a SYN, and no entry.
    MissTcp = 34, "miss_tcp";
    /// UDP without an entry.
    MissUdp = 35, "miss_udp";
    /// A flow was remembered, anew or for the first time.
    Insert = 36, "insert";
    /// To make room, a flow was forgotten that still lived.
    Evict = 37, "evict";
}

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes from the Ethernet header on, as received; those of VIPs and reals without VLAN tags.
    pub bytes: u64,
}

const REASONS: u32 = 64;

/// Entries of the counter array: reasons and flow events, then VIPs, then reals.
pub const COUNTERS: usize = REASONS as usize + MAX_VIPS + MAX_REALS;

/// Index of a reason's counter.
#[must_use]
#[inline(always)]
pub const fn reason_index(reason: Reason) -> u32 {
    reason as u32
}

/// Index of a flow event's counter.
#[must_use]
#[inline(always)]
pub const fn flow_event_index(event: FlowEvent) -> u32 {
    event as u32
}

/// Index of a VIP's counter.
#[must_use]
#[inline(always)]
pub const fn vip_index(vip: u16) -> u32 {
    REASONS + vip as u32
}

/// Index of a real's counter.
#[must_use]
#[inline(always)]
pub const fn real_index(real: RealId) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "512")]
    let vips = MAX_VIPS as u32;
    REASONS + vips + real as u32
}

const _: () = assert!(size_of::<Counter>() == 16);
pod!(Counter);
