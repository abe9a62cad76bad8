//! The real's side of the tunnel, at tc (clsact) on its Ethernet devices.
//!
//! ```text
//! ingress  lb_guard   on every device, where sources are restricted: drops tunnel packets from elsewhere, whatever their
//!                     destination. A kernel tunnel takes them to any local address
//!          lb_decap   guards as well. A tunnel packet to the host around one for a VIP or the host: the outer header goes,
//!                     the packet stays on its device. IPv4 in IPv4, IPv6 in IPv6, IPv4 in IPv6
//! egress   lb_clamp   SYN and SYN-ACK from a VIP: the MSS leaves room for the outer header
//! ```
//!
//! Everything else passes untouched, on to the next filter. The maps are described in [`lb_ebpf::decap`].
//!
//! Between an outer IPv6 header and the tunnelled packet there may be extension headers. The load balancer sends none:
//! with any, a packet is guarded against but not decapsulated.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "BPF programs read map values through raw pointers; each block states its bound")]
#![expect(clippy::needless_pass_by_value, reason = "a program takes its context by value")]
#![expect(clippy::inline_always, reason = "the verifier follows packet pointers through inlined code only")]

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_hdr_start_off::BPF_HDR_START_NET,
    },
    helpers::generated::{bpf_skb_ecn_set_ce, bpf_skb_load_bytes_relative},
    macros::{classifier, map},
    maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::TcContext,
};
use core::mem::MaybeUninit;
use lb_ebpf::{
    decap::{Address, Counter, MAX_ADDRESSES, MAX_DEVICES, MAX_SOURCES, MssLimits, ROLE_HOST, ROLE_VIP},
    header::{Extension, Ipv4Header, Ipv6Header, is_tunnel},
    net::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPIP, TCP},
};

const ETHERNET: u32 = 14;
const IPV4: u32 = 20;
const IPV6: u32 = 40;
const ETH_P_IP: u32 = ETHERTYPE_IPV4 as u32;
const ETH_P_IPV6: u32 = ETHERTYPE_IPV6 as u32;
/// Extension headers that are followed. A longer chain counts as a tunnel packet: it could be one.
const MAX_EXTENSIONS: usize = 8;

#[map]
static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static SOURCES: LpmTrie<Address, u32> = LpmTrie::with_max_entries(MAX_SOURCES, 0);
#[map]
static MSS: HashMap<u32, MssLimits> = HashMap::with_max_entries(MAX_DEVICES, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// A tunnel packet's outer header.
struct Outer {
    source: Address,
    destination: Address,
    /// Octets of header and payload.
    total: u32,
    /// A router on the way marked it Congestion Experienced (RFC 3168 section 5).
    congested: bool,
    form: Form,
}

/// What is in what, if it can be told from the outer header alone.
enum Form {
    Ipv4InIpv4,
    Ipv6InIpv6,
    Ipv4InIpv6,
    Fragment,
    /// With options or extension headers.
    Extended,
}

/// Removes the outer header where the tunnel ends here.
#[classifier]
fn lb_decap(ctx: TcContext) -> i32 {
    match tunnel(&ctx) {
        Some(outer) if !source_allowed(&outer) => refuse(),
        Some(outer) if role(&outer.destination) == Some(ROLE_HOST) => {
            let counter = decapsulate(&ctx, &outer);
            let failed = matches!(counter, Counter::Failed);
            count(counter);
            if failed { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
        }
        _ => TC_ACT_UNSPEC,
    }
}

/// Drops tunnel packets that do not come from a load balancer; the kernel's tunnel device takes the others.
#[classifier]
fn lb_guard(ctx: TcContext) -> i32 {
    match tunnel(&ctx) {
        Some(outer) if !source_allowed(&outer) => refuse(),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn refuse() -> i32 {
    count(Counter::BadSource);
    TC_ACT_SHOT
}

/// Lowers the MSS that a VIP announces.
#[classifier]
fn lb_clamp(ctx: TcContext) -> i32 {
    if clamp(&ctx) == Some(()) {
        count(Counter::MssClamped);
    }
    TC_ACT_UNSPEC
}

/// The outer header, if it is a tunnel packet.
#[inline(always)]
fn tunnel(ctx: &TcContext) -> Option<Outer> {
    match ctx.skb.protocol() {
        ETH_P_IP => tunnel4(ctx),
        ETH_P_IPV6 => tunnel6(ctx),
        _ => None,
    }
}

#[inline(always)]
fn tunnel4(ctx: &TcContext) -> Option<Outer> {
    // SAFETY: any octets make a header.
    let header = unsafe { copy::<Ipv4Header>(ctx, 0)?.0 };
    let form = match header.version_ihl {
        _ if header.protocol != IPIP => return None,
        _ if header.is_fragment() => Form::Fragment,
        0x45 => Form::Ipv4InIpv4,
        _ => Form::Extended,
    };
    let (source, destination) = (Address::ipv4(header.source), Address::ipv4(header.destination));
    let congested = is_congested(header.tos);
    Some(Outer { source, destination, total: header.total_length(), congested, form })
}

#[inline(always)]
fn tunnel6(ctx: &TcContext) -> Option<Outer> {
    // SAFETY: any octets make a header.
    let header = unsafe { copy::<Ipv6Header>(ctx, 0)?.0 };
    let form = match header.next_header {
        IPIP => Form::Ipv4InIpv6,
        next if is_tunnel(next) => Form::Ipv6InIpv6,
        next => extended(ctx, next)?,
    };
    let (source, destination) = (Address::ipv6(header.source), Address::ipv6(header.destination));
    // The traffic class begins in the middle of the first octet.
    let congested = is_congested(header.version_class_flow[1] >> 4);
    Some(Outer { source, destination, total: header.total_length(), congested, form })
}

#[inline(always)]
fn is_congested(traffic_class: u8) -> bool {
    const CE: u8 = 0b11;
    traffic_class & CE == CE
}

/// Follows the extension headers after an IPv6 header; `None`: what they lead to is no tunnel packet.
#[inline(always)]
fn extended(ctx: &TcContext, first: u8) -> Option<Form> {
    const OFFSET_MASK: u8 = 0xf8;
    let (mut next, mut at) = (first, IPV6);
    let (mut is_fragment, mut is_later_fragment) = (false, false);
    for _ in 0..MAX_EXTENSIONS {
        // Not even read for what most packets are.
        Extension::of(next, 0)?;
        // SAFETY: any octets make an array of them.
        let Some(header) = (unsafe { copy::<[u8; Extension::FIXED as usize]>(ctx, at) }) else {
            // A first fragment that ends within its chain of headers: a tunnel packet could follow in the next, which
            // does not tell (RFC 7112).
            return is_fragment.then_some(Form::Fragment);
        };
        let [following, length, high, low, ..] = header.0;
        at += match Extension::of(next, length)? {
            Extension::Octets(octets) => octets,
            Extension::Fragment => {
                is_fragment = true;
                is_later_fragment = high != 0 || low & OFFSET_MASK != 0;
                Extension::FIXED
            }
        };
        next = following;
        if is_tunnel(next) {
            return Some(if is_fragment { Form::Fragment } else { Form::Extended });
        }
        // What follows here is payload; the first fragment tells of what.
        if is_later_fragment {
            return None;
        }
    }
    Some(Form::Extended)
}

/// A copy of what is at this offset from the network header on: guarded devices need not be Ethernet.
///
/// # Safety
/// Any octets must make a `T`.
#[inline(always)]
unsafe fn copy<T>(ctx: &TcContext, at: u32) -> Option<Aligned<T>> {
    let mut to = MaybeUninit::<Aligned<T>>::uninit();
    // SAFETY: the helper writes exactly the size of a T, or fails; the caller says that any octets make one.
    unsafe {
        let (skb, pointer) = (ctx.as_ptr().cast(), to.as_mut_ptr().cast());
        let result = bpf_skb_load_bytes_relative(skb, at, pointer, octets::<T>(), BPF_HDR_START_NET);
        (result == 0).then(|| to.assume_init())
    }
}

#[inline(always)]
fn decapsulate(ctx: &TcContext, outer: &Outer) -> Counter {
    // The length must be within the frame.
    if outer.total > ctx.len() - ETHERNET {
        return Counter::Malformed;
    }
    let inner = match outer.form {
        Form::Fragment => return Counter::Fragment,
        Form::Extended => return Counter::Malformed,
        Form::Ipv4InIpv4 => inner4::<IPV4>(ctx, outer.total),
        Form::Ipv4InIpv6 => inner4::<IPV6>(ctx, outer.total),
        Form::Ipv6InIpv6 => inner6(ctx, outer.total),
    };
    let Some(destination) = inner else { return Counter::Malformed };
    if role(&destination).is_none() {
        return Counter::NotOurs;
    }
    let stripped = match outer.form {
        Form::Ipv4InIpv4 => strip(ctx, IPV4),
        Form::Ipv4InIpv6 => strip_to_ipv4(ctx),
        _ => strip(ctx, IPV6),
    };
    if stripped.is_some() && keep_congestion(ctx, outer) { Counter::Decapsulated } else { Counter::Failed }
}

/// The outer header's Congestion Experienced is the inner packet's from now on. `false`: that one's sender would not
/// understand it, and "the decapsulator MUST drop the packet" (RFC 6040 section 4.2).
#[inline(always)]
fn keep_congestion(ctx: &TcContext, outer: &Outer) -> bool {
    // SAFETY: the context is valid for the program's run.
    !outer.congested || unsafe { bpf_skb_ecn_set_ce(ctx.as_ptr().cast()) } == 1
}

/// Where the packet goes that an outer header of `OUTER` octets carries; `total` is the length of both.
#[inline(always)]
fn inner4<const OUTER: u32>(ctx: &TcContext, total: u32) -> Option<Address> {
    let room = total.checked_sub(OUTER)?;
    let inner = header::<Ipv4Header>(ctx, ETHERNET + OUTER)?;
    inner.is_plausible_inner(room).then(|| Address::ipv4(inner.destination))
}

#[inline(always)]
fn inner6(ctx: &TcContext, total: u32) -> Option<Address> {
    let room = total.checked_sub(IPV6)?;
    let inner = header::<Ipv6Header>(ctx, ETHERNET + IPV6)?;
    inner.is_plausible_inner(room).then(|| Address::ipv6(inner.destination))
}

/// Removes octets after the Ethernet header. The size of the segments GRO merged is TCP payload: it does not change
/// with the header (`FIXED_GSO`).
#[inline(always)]
fn strip(ctx: &TcContext, octets: u32) -> Option<()> {
    ctx.adjust_room(-octets.cast_signed(), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO.into()).ok()
}

/// Removes an IPv6 header and makes it an IPv4 packet. Before 6.3 only one helper changes the packet's protocol, and it
/// takes away the 20 octets by which the two headers differ.
#[inline(always)]
fn strip_to_ipv4(ctx: &TcContext) -> Option<()> {
    const ETHERTYPE: usize = 12;
    strip(ctx, IPV4)?;
    ctx.change_proto(ETHERTYPE_IPV4, 0).ok()?;
    // The stack goes by the packet's protocol; the frame should not tell captures another.
    ctx.store(ETHERTYPE, &ETHERTYPE_IPV4, 0).ok()
}

/// `Some` if the MSS option was lowered.
#[inline(always)]
fn clamp(ctx: &TcContext) -> Option<()> {
    const FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    let (source, tcp) = segment(ctx)?;
    if role(&source) != Some(ROLE_VIP) {
        return None;
    }
    let [offset, flags] = ctx.load::<u16>((tcp + FLAGS - 1) as usize).ok()?.to_ne_bytes();
    if flags & SYN == 0 {
        return None;
    }
    // SAFETY: nothing deletes from MSS while the program is attached, and the value is copied.
    let limits = unsafe { MSS.get(ctx_ifindex(ctx)) }.copied()?;
    let limit = if ctx.skb.protocol() == ETH_P_IP { limits.ipv4 } else { limits.ipv6 };
    let (at, announced) = mss_option(ctx, tcp + 20, tcp + u32::from(offset >> 4) * 4)?;
    if limit == 0 || announced <= limit {
        return None;
    }
    replace(ctx, tcp, at, announced, limit)
}

/// Where a TCP segment comes from, and where its header is. The host's own have no IPv6 extension headers.
#[inline(always)]
fn segment(ctx: &TcContext) -> Option<(Address, u32)> {
    match ctx.skb.protocol() {
        ETH_P_IP => {
            let ip = header::<Ipv4Header>(ctx, ETHERNET)?;
            let is_tcp = ip.protocol == TCP && !ip.is_fragment();
            is_tcp.then(|| (Address::ipv4(ip.source), ETHERNET + ip.header_length()))
        }
        ETH_P_IPV6 => {
            let ip = header::<Ipv6Header>(ctx, ETHERNET)?;
            (ip.next_header == TCP).then(|| (Address::ipv6(ip.source), ETHERNET + IPV6))
        }
        _ => None,
    }
}

/// Where the value of the MSS option is, and the value, host byte order (RFC 9293 section 3.1).
#[inline(always)]
fn mss_option(ctx: &TcContext, options: u32, end: u32) -> Option<(u32, u16)> {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const MSS_KIND: u8 = 2;
    let mut offset = 0;
    // A TCP header has at most 40 octets of options.
    for _ in 0..40 {
        let at = options + offset;
        if at + 4 > end {
            return None;
        }
        offset += match ctx.load::<u32>(at as usize).ok()?.to_ne_bytes() {
            [NOP, ..] => 1,
            [MSS_KIND, 4, high, low] => return Some((at + 2, u16::from_be_bytes([high, low]))),
            [kind, length @ 2..=40, ..] if kind != END => u32::from(length),
            _ => return None,
        };
        // It is below 80 already. Said like this, its range is the same in every round and the verifier of 6.1 merges
        // the ways to get there; else it follows a million of them and gives up.
        offset &= 127;
    }
    None
}

/// Writes the MSS and mends the TCP checksum; one that is still partial covers the pseudo header only, and the helper
/// leaves it alone.
#[inline(always)]
fn replace(ctx: &TcContext, tcp: u32, at: u32, from: u16, to: u16) -> Option<()> {
    const CHECKSUM: u32 = 16;
    const TWO_OCTETS: u64 = 2;
    ctx.store(at as usize, &to.to_be(), 0).ok()?;
    // The checksum adds 16-bit words: at an odd offset the two octets belong to different words, swapped.
    let word = |value: u16| if (at - tcp) & 1 == 0 { value.to_be() } else { value.to_le() };
    ctx.l4_csum_replace((tcp + CHECKSUM) as usize, word(from).into(), word(to).into(), TWO_OCTETS).ok()
}

/// A header in the packet itself: the stack is read aligned only, and copies of octets are not.
#[inline(always)]
fn header<T: Header>(ctx: &TcContext, at: u32) -> Option<&T> {
    if ctx.data() + (at + octets::<T>()) as usize > ctx.data_end() {
        ctx.pull_data(at + octets::<T>()).ok()?;
    }
    let header = ctx.data() + at as usize;
    if header + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the header's octets lie before `data_end`, and its type has no alignment.
    Some(unsafe { &*(header as *const T) })
}

/// A header made of octets alone.
trait Header {}
impl Header for Ipv4Header {}
impl Header for Ipv6Header {}

#[inline(always)]
fn role(address: &Address) -> Option<u32> {
    // SAFETY: nothing deletes from ADDRESSES while the program is attached, and the value is copied.
    unsafe { ADDRESSES.get(address) }.copied()
}

/// The size of a header or key.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "none is longer than a packet")]
const fn octets<T>() -> u32 {
    size_of::<T>() as u32
}

/// What has no alignment of its own; on the stack the verifier wants one.
#[repr(C, align(8))]
struct Aligned<T>(T);

#[inline(always)]
fn source_allowed(outer: &Outer) -> bool {
    let key = Aligned(Key::new(octets::<Address>() * u8::BITS, outer.source));
    SOURCES.get(&key.0).is_some()
}

#[inline(always)]
fn ctx_ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the program's run; the verifier allows reads of `ifindex`.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn count(counter: Counter) {
    if let Some(packets) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU value, and tc programs are not preempted by themselves on one CPU.
        unsafe { *packets += 1 };
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
