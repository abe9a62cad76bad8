//! tc ingress: takes the replies to our probes before the kernel sees them, which would answer a SYN-ACK it knows nothing
//! about by a RST of its own. Works under any XDP program, and beside other probers: each takes its own ports only.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "BPF helpers and map values are raw pointers; each block states what makes it sound")]
#![expect(
    clippy::inline_always,
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    reason = "one program without calls; its entry takes the context by value; sizes are small constants"
)]
use aya_ebpf::{
    EbpfContext, Global,
    bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::{bpf_ktime_get_ns, generated::bpf_skb_load_bytes_relative},
    macros::{classifier, map},
    maps::{HashMap, PerCpuArray, RingBuf},
    programs::TcContext,
};
use core::{mem::MaybeUninit, ptr};
use lb_ebpf::net::{ICMP, ICMPV6, IP6, IPIP, IPV6_LEN, TCP, UDP};
use lb_ebpf::probe::{CaptureCounters, Captured, INNER, OUTER, Ports, SNAP, Watch};

#[unsafe(no_mangle)]
static PORTS: Global<Ports> = Global::new(Ports { first: 1, last: 0 });
/// See [`Watch::local`].
#[unsafe(no_mangle)]
static HOST_MASK: Global<u32> = Global::new(0);

#[map]
static WATCH: HashMap<Watch, u32> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
#[map]
static CAPTURED: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
#[map]
static COUNTERS: PerCpuArray<CaptureCounters> = PerCpuArray::with_max_entries(1, 0);

/// ICMP: an echo request (RFC 792), an echo reply, the errors that are about a packet of ours.
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// The same of ICMPv6 (RFC 4443): its errors are the types from 1 to 4.
const ECHO_REQUEST_6: u8 = 128;
const ECHO_REPLY_6: u8 = 129;
const FIRST_ERROR_6: u8 = 1;
const LAST_ERROR_6: u8 = 4;

/// Length of an ICMP header, of either family, up to what an error quotes.
const ICMP_HEADER: u32 = 8;

/// Next header of an IPv6 fragment, and the length of its header (RFC 8200, 4.5).
const FRAGMENT: u8 = 44;
const FRAGMENT_HEADER: u32 = 8;

/// Where the addresses are in the headers.
const ADDRESSES: u32 = 12;
const ADDRESSES_6: u32 = 8;

/// What a header says but for the addresses, which are looked at last.
struct Header {
    is_v6: bool,
    protocol: u8,
    /// Offset of the payload from the header's start.
    payload: u32,
    /// Length of header and payload.
    len: u32,
}

/// The addresses of a header, as they stand in a [`Watch`].
#[repr(C)]
struct Addresses {
    source: [u8; 16],
    destination: [u8; 16],
}

/// What a packet is to us.
enum Claim {
    /// A segment or datagram to one of our ports: take it, the kernel would answer it.
    Take,
    /// ICMP: look, and pass it on. The kernel answers none of it, and it may be another's: a `ping` may have an identifier in
    /// our range.
    Look,
}

#[classifier]
fn probe_capture(ctx: TcContext) -> i32 {
    // With UNSPEC, the next tc program or filter has its say.
    capture(&ctx).unwrap_or(TC_ACT_UNSPEC)
}

#[inline(always)]
fn capture(ctx: &TcContext) -> Option<i32> {
    let ip = header(ctx, 0)?;
    let claim = claim(ctx, &ip)?;
    let counters = COUNTERS.get_ptr_mut(0)?;
    // SAFETY: a per-CPU element that only this CPU writes, and tc programs do not nest on one CPU.
    let counters = unsafe { &mut *counters };
    let Some(mut entry) = CAPTURED.reserve::<Captured>(0) else {
        counters.ring_full += 1;
        return None;
    };
    if fill(ctx, ip.len, entry.as_mut_ptr()).is_none() {
        entry.discard(0);
        counters.truncated += 1;
        return None;
    }
    entry.submit(0);
    match claim {
        Claim::Take => {
            counters.taken += 1;
            Some(TC_ACT_SHOT)
        }
        Claim::Look => {
            counters.passed += 1;
            None
        }
    }
}

/// Decides by addresses, ports and identifiers alone; whether the packet is genuine is judged in user space.
#[inline(always)]
fn claim(ctx: &TcContext, ip: &Header) -> Option<Claim> {
    match ip.protocol {
        TCP | UDP => {
            let [_, _, high, low]: [u8; 4] = load(ctx, ip.payload)?;
            is_reply(ctx, ip, high, low)?.then_some(Claim::Take)
        }
        ICMP | ICMPV6 => {
            let [kind, _, _, _, high, low, _, _]: [u8; 8] = load(ctx, ip.payload)?;
            match (ip.protocol, kind) {
                (ICMP, ECHO_REPLY) | (ICMPV6, ECHO_REPLY_6) => is_reply(ctx, ip, high, low)?.then_some(Claim::Look),
                (ICMP, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM) | (ICMPV6, FIRST_ERROR_6..=LAST_ERROR_6) => {
                    is_error(ctx, ip.payload + ICMP_HEADER)?.then_some(Claim::Look)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// A packet from one of our targets to one of our ports.
#[inline(always)]
fn is_reply(ctx: &TcContext, ip: &Header, high: u8, low: u8) -> Option<bool> {
    if !is_ours(high, low) {
        return None;
    }
    let Addresses { source, destination } = addresses(ctx, 0, ip.is_v6)?;
    Some(watched(&Watch { local: destination, remote: source }, INNER))
}

/// An ICMP error quotes the header and at least 8 bytes of the packet it is about (RFC 792); ICMPv6 as much of it as fits in
/// 1,280 bytes (RFC 4443, 2.4).
#[inline(always)]
fn is_error(ctx: &TcContext, at: u32) -> Option<bool> {
    let quoted = header(ctx, at)?;
    let [a, b, _, _, e, f, _, _]: [u8; 8] = load(ctx, at + quoted.payload)?;
    let role = match quoted.protocol {
        TCP | UDP if is_ours(a, b) => INNER,
        ICMP if a == ECHO_REQUEST && is_ours(e, f) => INNER,
        ICMPV6 if a == ECHO_REQUEST_6 && is_ours(e, f) => INNER,
        IPIP | IP6 => OUTER,
        _ => return None,
    };
    let Addresses { source, destination } = addresses(ctx, at, quoted.is_v6)?;
    let local = if role == OUTER && !quoted.is_v6 { first_of(source) } else { source };
    Some(watched(&Watch { local, remote: destination }, role))
}

/// The first of the outer sources, of which this may be one.
#[inline(always)]
fn first_of(mut source: [u8; 16]) -> [u8; 16] {
    let [.., a, b, c, d] = &mut source;
    [*a, *b, *c, *d] = (u32::from_ne_bytes([*a, *b, *c, *d]) & !HOST_MASK.load()).to_ne_bytes();
    source
}

/// Whether a port or identifier, given by its bytes on the wire, is in our range.
#[inline(always)]
fn is_ours(high: u8, low: u8) -> bool {
    let (ports, port) = (PORTS.load(), u16::from_be_bytes([high, low]));
    ports.first <= port && port <= ports.last
}

#[inline(always)]
fn watched(watch: &Watch, role: u32) -> bool {
    // SAFETY: the value is a plain integer; user space replaces it as a whole.
    unsafe { WATCH.get(watch) }.is_some_and(|roles| *roles & role != 0)
}

/// Reads the header at `at`; `None` for what is not IP, a later fragment, and IPv6 extension headers other than that of a
/// first fragment: neither the answers to our probes nor our probes, which errors quote, have any.
#[inline(always)]
fn header(ctx: &TcContext, at: u32) -> Option<Header> {
    // All that is needed of either family, but for the addresses.
    let head: [u8; 10] = load(ctx, at)?;
    match head[0] >> 4 {
        4 => header4(&head),
        6 => header6(ctx, at, &head),
        _ => None,
    }
}

#[inline(always)]
fn header4(head: &[u8; 10]) -> Option<Header> {
    let payload = u32::from(head[0] & 0x0f) * 4;
    let len = u32::from(u16::from_be_bytes([head[2], head[3]]));
    let offset = u16::from_be_bytes([head[6], head[7]]) & 0x1fff;
    (payload >= 20 && offset == 0).then_some(Header { is_v6: false, protocol: head[9], payload, len })
}

#[inline(always)]
fn header6(ctx: &TcContext, at: u32, head: &[u8; 10]) -> Option<Header> {
    let fixed = IPV6_LEN as u32;
    let len = fixed + u32::from(u16::from_be_bytes([head[4], head[5]]));
    let protocol = head[6];
    if protocol != FRAGMENT {
        return Some(Header { is_v6: true, protocol, payload: fixed, len });
    }
    let [protocol, _, high, low]: [u8; 4] = load(ctx, at + fixed)?;
    // The low three bits are no part of the offset.
    let first = u16::from_be_bytes([high, low]) & 0xfff8 == 0;
    first.then_some(Header { is_v6: true, protocol, payload: fixed + FRAGMENT_HEADER, len })
}

#[inline(always)]
fn addresses(ctx: &TcContext, at: u32, is_v6: bool) -> Option<Addresses> {
    if is_v6 {
        return load(ctx, at + ADDRESSES_6);
    }
    let [source, destination]: [[u8; 4]; 2] = load(ctx, at + ADDRESSES)?;
    Some(Addresses { source: mapped(source), destination: mapped(destination) })
}

#[inline(always)]
fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Copies the packet's first bytes, `len` if it is as long as its header says, to the ring's entry.
#[inline(always)]
fn fill(ctx: &TcContext, len: u32, entry: *mut Captured) -> Option<()> {
    let mut len = len;
    if len > SNAP as u32 {
        len = SNAP as u32;
    }
    if len < 20 {
        return None;
    }
    // SAFETY: `entry` is a reserved ring entry of the size of `Captured`; `len` is at most `SNAP`.
    let result = unsafe {
        (*entry).at = bpf_ktime_get_ns();
        (*entry).len = len;
        (*entry).reserved = 0;
        let bytes = ptr::addr_of_mut!((*entry).bytes);
        bpf_skb_load_bytes_relative(ctx.as_ptr().cast(), 0, bytes.cast(), len, BPF_HDR_START_NET)
    };
    (result == 0).then_some(())
}

/// The verifier refuses unaligned access to the stack, and the compiler joins neighbouring fields into one access.
#[repr(C, align(8))]
struct Aligned<T>(T);

/// Reads from `offset` after the network header's start, whatever link layer there is.
#[inline(always)]
fn load<T>(ctx: &TcContext, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<Aligned<T>>::uninit();
    // SAFETY: the helper writes exactly `size_of::<T>()` bytes or fails; `T` is made of bytes only.
    unsafe {
        let to = value.as_mut_ptr().cast();
        let result =
            bpf_skb_load_bytes_relative(ctx.as_ptr().cast(), offset, to, size_of::<T>() as u32, BPF_HDR_START_NET);
        (result == 0).then(|| value.assume_init().0)
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
