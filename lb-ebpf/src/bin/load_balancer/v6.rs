//! IPv6: what a packet is, and the answer to an echo request.

use crate::{
    flows::Kind,
    frame::Frame,
    packet::{Packet, Refusal, TCP_FLAGS, UDP_LEN, is_syn, reversed, transport_len},
    path::{Family, Verdict},
    too_big,
};
use aya_ebpf::programs::XdpContext;
use lb_ebpf::{
    counter::Reason,
    net::{ETH_LEN, ICMP_LEN, ICMPV6, IP6, IPV6_LEN, TCP, checksum_update},
    vip::{VipEntry, VipTable},
};

const PAYLOAD_AT: usize = ETH_LEN + IPV6_LEN;
/// Extension headers that are looked through, and how many units of 8 bytes beyond the first each may have.
const MAX_EXTENSIONS: usize = 4;
const MAX_EXTENSION_UNITS: u8 = 7;
/// Next-header values (RFC 8200 §4.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Types of RFC 4443: the errors, and echo.
const UNREACHABLE: u8 = 1;
const PARAMETER_PROBLEM: u8 = 4;
const ECHO: u8 = 128;
/// Neighbour discovery (RFC 4861): the kernel's business.
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;
/// Type and code as they lie in memory.
const ECHO_REQUEST: u16 = u16::from_ne_bytes([ECHO, 0]);
const ECHO_REPLY: u16 = u16::from_ne_bytes([129, 0]);
const REPLY_HOP_LIMIT: u8 = 64;

/// The family.
pub(crate) struct V6;

impl Family for V6 {
    type Address = [u32; 4];
    const HEADER_LEN: usize = IPV6_LEN;
    const PROTOCOL: u8 = IP6;
    const MIN_MTU: u16 = 1280;

    #[inline(always)]
    fn destination(frame: Frame) -> [u32; 4] {
        // SAFETY: callers check for ETH_LEN + HEADER_LEN bytes first.
        unsafe { frame.load(ETH_LEN + 24) }
    }

    #[inline(always)]
    fn folded(vips: &VipTable, address: [u32; 4]) -> u32 {
        vips.fold6(address)
    }

    #[inline(always)]
    fn find(vips: &VipTable, address: [u32; 4], folded: u32, port: u16, protocol: u8) -> Option<&VipEntry> {
        vips.find6(address, folded, port, protocol)
    }

    #[inline(always)]
    fn read(frame: Frame) -> Result<Packet<[u32; 4]>, Refusal> {
        read(frame)
    }

    #[inline(always)]
    fn answer(frame: Frame) -> Reason {
        answer(frame)
    }

    /// The unspecified address, loopback and multicast stand for no single host (RFC 4443 §2.4 e).
    #[inline(always)]
    fn is_host(address: [u32; 4]) -> bool {
        let [a, b, c, d] = address;
        let nowhere = a | b | c == 0 && u32::from_be(d) <= 1;
        !nowhere && a.to_ne_bytes()[0] != 0xff
    }

    #[inline(always)]
    fn tell_too_big(ctx: &XdpContext, next_hop_mtu: u16) -> Verdict {
        too_big::packet_too_big(ctx, next_hop_mtu)
    }
}

/// Where the extension headers end, bytes from where they began, and what follows them.
struct Chain {
    len: usize,
    next: u8,
}

/// Looks through the extension headers at the start of `rest`, the first of which is of type `next`.
#[inline(always)]
fn extensions(rest: Frame, next: u8) -> Result<Chain, Reason> {
    let mut chain = Chain { len: 0, next };
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(chain.next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            return Ok(chain);
        }
        let header = rest.after(chain.len);
        if !header.has(8) {
            return Err(Reason::DropMalformed);
        }
        // SAFETY: checked just now.
        let [next, units] = unsafe { header.load::<[u8; 2]>(0) };
        if units > MAX_EXTENSION_UNITS {
            return Err(Reason::DropExtension);
        }
        chain = Chain { len: chain.len + (units as usize + 1) * 8, next };
    }
    match chain.next {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => Err(Reason::DropExtension),
        _ => Ok(chain),
    }
}

/// Reads the headers of a frame that has an Ethernet and an IPv6 header.
#[inline(always)]
fn read(frame: Frame) -> Result<Packet<[u32; 4]>, Refusal> {
    // SAFETY: the caller has checked that ETH_LEN + IPV6_LEN bytes are there.
    let (first, payload_len, next, source, destination) = unsafe {
        (
            u32::from_be(frame.load(ETH_LEN)),
            u16::from_be(frame.load(ETH_LEN + 4)) as usize,
            frame.load::<u8>(ETH_LEN + 6),
            frame.load::<[u32; 4]>(ETH_LEN + 8),
            frame.load::<[u32; 4]>(ETH_LEN + 24),
        )
    };
    if first >> 28 != 6 || (PAYLOAD_AT + payload_len) as u64 > frame.len() {
        return Err(Reason::DropMalformed.into());
    }
    let chain = extensions(frame.after(PAYLOAD_AT), next)?;
    let mut packet = Packet {
        source,
        destination,
        ports: 0,
        protocol: chain.next,
        tos: (first >> 20) as u8,
        dont_fragment: true,
        is_fragment: false,
        kind: Kind::Other,
        len: (IPV6_LEN + payload_len) as u32,
    };
    let transport = frame.after(PAYLOAD_AT + chain.len);
    if chain.next == FRAGMENT {
        return fragment(transport, packet);
    }
    let Some(transport_len) = transport_len(chain.next) else {
        let has_extensions = chain.len != 0;
        return if chain.next == ICMPV6 {
            icmp(transport, payload_len - chain.len.min(payload_len), has_extensions, packet)
        } else {
            Err(Reason::DropUnmatched.into())
        };
    };
    // The second comparison repeats what follows from the first, in the form that the verifier knows.
    if payload_len < chain.len + transport_len || !transport.has(UDP_LEN) {
        return Err(Reason::DropMalformed.into());
    }
    // SAFETY: at least UDP_LEN bytes of transport header, checked above.
    packet.ports = unsafe { transport.load(0) };
    if chain.next == TCP && transport.has(TCP_FLAGS + 1) {
        // SAFETY: checked just now.
        packet.kind = if is_syn(unsafe { transport.load(TCP_FLAGS) }) { Kind::Syn } else { Kind::Other };
    }
    Ok(packet)
}

/// A fragment is of the protocol that its own header names; behind extension headers it is of none that has VIPs.
#[inline(always)]
fn fragment(header: Frame, packet: Packet<[u32; 4]>) -> Result<Packet<[u32; 4]>, Refusal> {
    if !header.has(8) {
        return Err(Reason::DropMalformed.into());
    }
    // SAFETY: checked just now.
    let protocol = unsafe { header.load::<u8>(0) };
    Ok(Packet { protocol, is_fragment: true, ..packet })
}

/// Reads an ICMPv6 message of `len` bytes: an echo request, or an error about a packet that a VIP sent.
#[inline(always)]
fn icmp(
    message: Frame,
    len: usize,
    has_extensions: bool,
    error: Packet<[u32; 4]>,
) -> Result<Packet<[u32; 4]>, Refusal> {
    if len < ICMP_LEN || !message.has(ICMP_LEN) {
        return Err(Reason::DropMalformed.into());
    }
    // SAFETY: checked just now.
    match unsafe { message.load::<[u8; 2]>(0) } {
        [ECHO, 0] if has_extensions => Err(Reason::DropExtension.into()),
        [ECHO, 0] if V6::is_host(error.source) => Err(Refusal::Echo),
        [ROUTER_SOLICITATION..=REDIRECT, _] => Err(Reason::PassIcmp.into()),
        [UNREACHABLE..=PARAMETER_PROBLEM, _] => quoted(message.after(ICMP_LEN), len - ICMP_LEN, error),
        _ => Err(Reason::DropIcmp.into()),
    }
}

/// Gives an ICMPv6 error the flow that it is about: `quote` are the `len` bytes that it has of a packet from the VIP
/// to the client.
#[inline(always)]
fn quoted(quote: Frame, len: usize, error: Packet<[u32; 4]>) -> Result<Packet<[u32; 4]>, Refusal> {
    if !quote.has(IPV6_LEN) {
        return Err(Reason::DropMalformed.into());
    }
    // SAFETY: the header is there, checked above.
    let (version, next, source, client) = unsafe {
        (quote.load::<u8>(0) >> 4, quote.load::<u8>(6), quote.load::<[u32; 4]>(8), quote.load::<[u32; 4]>(24))
    };
    if version != 6 {
        return Err(Reason::DropMalformed.into());
    }
    let chain = extensions(quote.after(IPV6_LEN), next)?;
    let transport = quote.after(IPV6_LEN + chain.len);
    if len < IPV6_LEN + chain.len + UDP_LEN || !transport.has(UDP_LEN) {
        return Err(Reason::DropMalformed.into());
    }
    if source != error.destination || transport_len(chain.next).is_none() {
        return Err(Reason::DropIcmp.into());
    }
    // SAFETY: UDP_LEN bytes, checked above.
    let ports = reversed(unsafe { transport.load(0) });
    Ok(Packet { source: client, ports, protocol: chain.next, kind: Kind::Error, ..error })
}

/// Turns an echo request without extension headers, whose headers have been read, into its reply.
#[inline(always)]
fn answer(frame: Frame) -> Reason {
    if !frame.has(PAYLOAD_AT + ICMP_LEN) {
        return Reason::DropMalformed;
    }
    // SAFETY: Ethernet, IPv6 and ICMPv6 header are there, checked above. The checksum covers the addresses, whose
    // exchange leaves the sum as it is; they are not zero, so neither is the sum.
    unsafe {
        frame.exchange::<[u16; 3]>(0, 6);
        frame.exchange::<[u32; 4]>(ETH_LEN + 8, ETH_LEN + 24);
        frame.store(ETH_LEN + 7, REPLY_HOP_LIMIT);
        let checksum = frame.load::<u16>(PAYLOAD_AT + 2);
        frame.store(PAYLOAD_AT, ECHO_REPLY);
        frame.store(PAYLOAD_AT + 2, checksum_update(checksum, ECHO_REQUEST, ECHO_REPLY));
    }
    Reason::EchoReply
}
