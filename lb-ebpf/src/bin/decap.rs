//! The real's side of the tunnel, at tc (clsact) on its Ethernet devices.
//!
//! ```text
//! ingress  lb_guard   on every device, where sources are restricted: drops IPIP from elsewhere, whatever its destination.
//!                     A kernel tunnel takes it to any local address
//!          lb_decap   guards as well. IPIP to the host around a packet for a VIP or the host: the outer header goes, the
//!                     packet stays on its device
//! egress   lb_clamp   SYN and SYN-ACK from a VIP: the MSS leaves room for the outer header
//! ```
//!
//! Everything else passes untouched, on to the next filter. The maps are described in [`lb_ebpf::decap`].
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
    helpers::generated::bpf_skb_load_bytes_relative,
    macros::{classifier, map},
    maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::TcContext,
};
use core::mem::MaybeUninit;
use lb_ebpf::decap::{Counter, Ipv4Header, MAX_ADDRESSES, MAX_DEVICES, MAX_SOURCES, ROLE_HOST, ROLE_VIP};

const ETHERNET: u32 = 14;
const IPV4: u32 = 20;
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;

#[map]
static ADDRESSES: HashMap<u32, u32> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static SOURCES: LpmTrie<u32, u32> = LpmTrie::with_max_entries(MAX_SOURCES, 0);
#[map]
static MSS: HashMap<u32, u16> = HashMap::with_max_entries(MAX_DEVICES, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Removes the outer header where the tunnel ends here.
#[classifier]
fn lb_decap(ctx: TcContext) -> i32 {
    match tunnel(&ctx) {
        Some(outer) if !source_allowed(&outer) => refuse(),
        Some(outer) if role(outer.destination) == Some(ROLE_HOST) => {
            count(decapsulate(&ctx, &outer));
            TC_ACT_UNSPEC
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

/// A copy of the outer header, if the packet is IPIP. Read from the network header on: guarded devices need not be Ethernet.
#[inline(always)]
fn tunnel(ctx: &TcContext) -> Option<Ipv4Header> {
    if ctx.skb.protocol() != ETH_P_IP {
        return None;
    }
    let mut outer = MaybeUninit::<Aligned<Ipv4Header>>::uninit();
    // SAFETY: the helper writes exactly the header's 20 octets or fails; any octets make a header.
    let outer = unsafe {
        let (skb, to) = (ctx.as_ptr().cast(), outer.as_mut_ptr().cast());
        let result = bpf_skb_load_bytes_relative(skb, 0, to, IPV4, BPF_HDR_START_NET);
        (result == 0).then(|| outer.assume_init().0)?
    };
    (outer.protocol == Ipv4Header::IPIP).then_some(outer)
}

#[inline(always)]
fn decapsulate(ctx: &TcContext, outer: &Ipv4Header) -> Counter {
    if outer.is_fragment() {
        return Counter::Fragment;
    }
    // The load balancer sends no outer options; the length must be within the frame.
    if outer.version_ihl != 0x45 || outer.total_length() < 2 * IPV4 || outer.total_length() > ctx.len() - ETHERNET {
        return Counter::Malformed;
    }
    let Some(inner) = ipv4(ctx, ETHERNET + IPV4) else { return Counter::Malformed };
    if !inner.is_plausible_inner(outer.total_length() - IPV4) {
        return Counter::Malformed;
    }
    if role(inner.destination).is_none() {
        return Counter::NotOurs;
    }
    // The size of the segments GRO merged is TCP payload: it does not change with the header (FIXED_GSO).
    match ctx.adjust_room(-IPV4.cast_signed(), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO.into()) {
        Ok(()) => Counter::Decapsulated,
        Err(_) => Counter::Failed,
    }
}

/// `Some` if the MSS option was lowered.
#[inline(always)]
fn clamp(ctx: &TcContext) -> Option<()> {
    const FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    let ip = ipv4(ctx, ETHERNET)?;
    if ip.protocol != Ipv4Header::TCP || ip.is_fragment() || role(ip.source) != Some(ROLE_VIP) {
        return None;
    }
    let tcp = ETHERNET + ip.header_length();
    let [offset, flags] = ctx.load::<u16>((tcp + FLAGS - 1) as usize).ok()?.to_ne_bytes();
    if flags & SYN == 0 {
        return None;
    }
    // SAFETY: nothing deletes from MSS while the program is attached, and the value is copied.
    let limit = unsafe { MSS.get(ctx_ifindex(ctx)) }.copied()?;
    let (at, announced) = mss_option(ctx, tcp + 20, tcp + u32::from(offset >> 4) * 4)?;
    if announced <= limit {
        return None;
    }
    replace(ctx, tcp, at, announced, limit)
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

/// The header in the packet itself: the stack is read aligned only, and copies of octets are not.
#[inline(always)]
fn ipv4(ctx: &TcContext, at: u32) -> Option<&Ipv4Header> {
    if ctx.skb.protocol() != ETH_P_IP {
        return None;
    }
    if ctx.data() + (at + IPV4) as usize > ctx.data_end() {
        ctx.pull_data(at + IPV4).ok()?;
    }
    let header = ctx.data() + at as usize;
    if header + IPV4 as usize > ctx.data_end() {
        return None;
    }
    // SAFETY: the header's 20 octets lie before `data_end`, and its type has no alignment.
    Some(unsafe { &*(header as *const Ipv4Header) })
}

#[inline(always)]
fn role(address: [u8; 4]) -> Option<u32> {
    // SAFETY: nothing deletes from ADDRESSES while the program is attached, and the value is copied.
    unsafe { ADDRESSES.get(u32::from_ne_bytes(address)) }.copied()
}

/// What has no alignment of its own; on the stack the verifier wants one.
#[repr(C, align(8))]
struct Aligned<T>(T);

#[inline(always)]
fn source_allowed(outer: &Ipv4Header) -> bool {
    let key = Aligned(Key::new(32, u32::from_ne_bytes(outer.source)));
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
