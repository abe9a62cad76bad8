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
use lb_ebpf::net::{ICMP, IPIP, TCP, UDP};
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

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// The first part of an IPv4 header, all fields as on the wire.
#[repr(C)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_len: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
}

/// The part of it that follows the checksum.
#[repr(C)]
struct Addresses {
    source: [u8; 4],
    destination: [u8; 4],
}

const ADDRESSES: u32 = 12;

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
    let ip: Ipv4 = load(ctx, 0)?;
    let claim = claim(ctx, &ip)?;
    let counters = COUNTERS.get_ptr_mut(0)?;
    // SAFETY: a per-CPU element that only this CPU writes, and tc programs do not nest on one CPU.
    let counters = unsafe { &mut *counters };
    let Some(mut entry) = CAPTURED.reserve::<Captured>(0) else {
        counters.ring_full += 1;
        return None;
    };
    if fill(ctx, &ip, entry.as_mut_ptr()).is_none() {
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
fn claim(ctx: &TcContext, ip: &Ipv4) -> Option<Claim> {
    let l4 = payload_offset(ip)?;
    match ip.protocol {
        TCP | UDP => {
            let [_, _, high, low]: [u8; 4] = load(ctx, l4)?;
            is_reply(ctx, high, low)?.then_some(Claim::Take)
        }
        ICMP => {
            let [kind, _, _, _, high, low, _, _]: [u8; 8] = load(ctx, l4)?;
            match kind {
                ECHO_REPLY => is_reply(ctx, high, low)?.then_some(Claim::Look),
                UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => is_error(ctx, l4 + 8)?.then_some(Claim::Look),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A packet from one of our targets to one of our ports.
#[inline(always)]
fn is_reply(ctx: &TcContext, high: u8, low: u8) -> Option<bool> {
    if !is_ours(high, low) {
        return None;
    }
    let Addresses { source, destination } = load(ctx, ADDRESSES)?;
    Some(watched(&Watch { local: destination, remote: source }, INNER))
}

/// An ICMP error quotes the header and at least 8 bytes of the packet it is about (RFC 792).
#[inline(always)]
fn is_error(ctx: &TcContext, offset: u32) -> Option<bool> {
    let quoted: Ipv4 = load(ctx, offset)?;
    let l4 = payload_offset(&quoted)?;
    let [a, b, _, _, e, f, _, _]: [u8; 8] = load(ctx, offset + l4)?;
    let Addresses { source, destination } = load(ctx, offset + ADDRESSES)?;
    let watch = Watch { local: source, remote: destination };
    let ours = match quoted.protocol {
        TCP | UDP => is_ours(a, b),
        ICMP if a == ECHO_REQUEST => is_ours(e, f),
        IPIP => return Some(watched(&Watch { local: first_of(source), ..watch }, OUTER)),
        _ => false,
    };
    Some(ours && watched(&watch, INNER))
}

/// The first of the outer sources, of which this may be one.
#[inline(always)]
fn first_of(source: [u8; 4]) -> [u8; 4] {
    (u32::from_ne_bytes(source) & !HOST_MASK.load()).to_ne_bytes()
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

/// Where the payload begins, from the header's start; `None` for what is not IPv4 or a later fragment.
#[inline(always)]
fn payload_offset(ip: &Ipv4) -> Option<u32> {
    let offset = u16::from_be_bytes(ip.fragment) & 0x1fff;
    let len = u32::from(ip.version_ihl & 0x0f) * 4;
    (ip.version_ihl >> 4 == 4 && len >= 20 && offset == 0).then_some(len)
}

/// Copies the packet's first bytes to the ring's entry.
#[inline(always)]
fn fill(ctx: &TcContext, ip: &Ipv4, entry: *mut Captured) -> Option<()> {
    let mut len = u32::from(u16::from_be_bytes(ip.total_len));
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
