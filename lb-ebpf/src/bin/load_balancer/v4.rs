//! IPv4: what a packet is, and the answer to an echo request.

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
    net::{ETH_LEN, ICMP, ICMP_LEN, IP_DF, IP_FRAGMENT, IPIP, IPV4_LEN, TCP, VERSION_IHL, checksum_update},
    vip::{VipEntry, VipKey, VipTable},
};

const ICMP_AT: usize = ETH_LEN + IPV4_LEN;
/// The packet that an ICMP error is about.
const QUOTE_AT: usize = ICMP_AT + ICMP_LEN;
/// The fragment offset, in network byte order as loaded from memory.
const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();
/// Types of RFC 792.
const UNREACHABLE: u8 = 3;
const ECHO: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
/// Type and code as they lie in memory.
const ECHO_REQUEST: u16 = u16::from_ne_bytes([ECHO, 0]);
const ECHO_REPLY: u16 = u16::from_ne_bytes([0, 0]);
const REPLY_TTL: u8 = 64;

/// The family.
pub(crate) struct V4;

impl Family for V4 {
    type Address = u32;
    const HEADER_LEN: usize = IPV4_LEN;
    const PROTOCOL: u8 = IPIP;
    const MIN_MTU: u16 = 68;

    #[inline(always)]
    fn destination(frame: Frame) -> u32 {
        // SAFETY: callers check for ETH_LEN + HEADER_LEN bytes first.
        unsafe { frame.load(ETH_LEN + 16) }
    }

    #[inline(always)]
    fn folded(_vips: &VipTable, address: u32) -> u32 {
        address
    }

    #[inline(always)]
    fn find(vips: &VipTable, address: u32, _folded: u32, port: u16, protocol: u8) -> Option<&VipEntry> {
        vips.find(VipKey::new(address, port, protocol))
    }

    #[inline(always)]
    fn read(frame: Frame) -> Result<Packet<u32>, Refusal> {
        read(frame)
    }

    #[inline(always)]
    fn answer(frame: Frame) -> Reason {
        answer(frame)
    }

    /// 0.0.0.0/8, loopback, multicast and class E stand for no single host (RFC 1122 §3.2.2).
    #[inline(always)]
    fn is_host(address: u32) -> bool {
        let [first, ..] = address.to_ne_bytes();
        first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    fn tell_too_big(ctx: &XdpContext, next_hop_mtu: u16) -> Verdict {
        too_big::frag_needed(ctx, next_hop_mtu)
    }
}

/// Reads the headers of a frame that has an Ethernet and an IPv4 header.
#[inline(always)]
fn read(frame: Frame) -> Result<Packet<u32>, Refusal> {
    // SAFETY: the caller has checked that ETH_LEN + IPV4_LEN bytes are there.
    let (version_ihl, tos, total_len, flags, protocol, source, destination) = unsafe {
        (
            frame.load::<u8>(ETH_LEN),
            frame.load::<u8>(ETH_LEN + 1),
            u16::from_be(frame.load(ETH_LEN + 2)),
            frame.load::<u16>(ETH_LEN + 6),
            frame.load::<u8>(ETH_LEN + 9),
            frame.load::<u32>(ETH_LEN + 12),
            frame.load::<u32>(ETH_LEN + 16),
        )
    };
    if version_ihl != VERSION_IHL {
        let has_options = version_ihl >> 4 == 4 && version_ihl & 0xf > 5;
        return Err(if has_options { Reason::DropOptions } else { Reason::DropMalformed }.into());
    }
    if (total_len as usize) < IPV4_LEN || (ETH_LEN + total_len as usize) as u64 > frame.len() {
        return Err(Reason::DropMalformed.into());
    }
    let mut packet = Packet {
        source,
        destination,
        ports: 0,
        protocol,
        tos,
        dont_fragment: flags & IP_DF != 0,
        is_fragment: flags & IP_FRAGMENT != 0,
        kind: Kind::Other,
        len: u32::from(total_len),
    };
    if packet.is_fragment {
        return Ok(packet);
    }
    let Some(transport_len) = transport_len(protocol) else {
        return if protocol == ICMP { icmp(frame, packet) } else { Err(Reason::DropUnmatched.into()) };
    };
    // The second comparison repeats what follows from the first, in the form that the verifier knows.
    if (total_len as usize) < IPV4_LEN + transport_len || !frame.has(ETH_LEN + IPV4_LEN + UDP_LEN) {
        return Err(Reason::DropMalformed.into());
    }
    // SAFETY: at least UDP_LEN bytes of transport header, checked above.
    packet.ports = unsafe { frame.load(ETH_LEN + IPV4_LEN) };
    if protocol == TCP && frame.has(ETH_LEN + IPV4_LEN + TCP_FLAGS + 1) {
        // SAFETY: checked just now.
        let flags = unsafe { frame.load::<u8>(ETH_LEN + IPV4_LEN + TCP_FLAGS) };
        packet.kind = if is_syn(flags) { Kind::Syn } else { Kind::Other };
    }
    Ok(packet)
}

/// Reads an ICMP packet: an echo request, or an error about a packet that a VIP sent.
#[inline(always)]
fn icmp(frame: Frame, error: Packet<u32>) -> Result<Packet<u32>, Refusal> {
    if (error.len as usize) < IPV4_LEN + ICMP_LEN || !frame.has(QUOTE_AT) {
        return Err(Reason::DropMalformed.into());
    }
    // SAFETY: the ICMP header is there, checked above.
    let type_and_code = unsafe { frame.load::<[u8; 2]>(ICMP_AT) };
    match type_and_code {
        [ECHO, 0] if V4::is_host(error.source) => Err(Refusal::Echo),
        [UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM, _] => quoted(frame, error),
        _ => Err(Reason::DropIcmp.into()),
    }
}

/// Gives an ICMP error the flow that it is about. It quotes at least the header, with its options, and 8 bytes more
/// (RFC 792) of a packet from the VIP to the client.
#[inline(always)]
fn quoted(frame: Frame, error: Packet<u32>) -> Result<Packet<u32>, Refusal> {
    if !frame.has(QUOTE_AT + IPV4_LEN) {
        return Err(Reason::DropMalformed.into());
    }
    // SAFETY: a whole header without options is there, checked above.
    let (version_ihl, flags, protocol, source, client) = unsafe {
        (
            frame.load::<u8>(QUOTE_AT),
            frame.load::<u16>(QUOTE_AT + 6),
            frame.load::<u8>(QUOTE_AT + 9),
            frame.load::<u32>(QUOTE_AT + 12),
            frame.load::<u32>(QUOTE_AT + 16),
        )
    };
    let header_len = (version_ihl as usize & 0xf) * 4;
    let transport = frame.after(QUOTE_AT + header_len);
    let len = IPV4_LEN + ICMP_LEN + header_len + UDP_LEN;
    if version_ihl >> 4 != 4 || header_len < IPV4_LEN || (error.len as usize) < len || !transport.has(UDP_LEN) {
        return Err(Reason::DropMalformed.into());
    }
    if source != error.destination || flags & FRAGMENT_OFFSET != 0 || transport_len(protocol).is_none() {
        return Err(Reason::DropIcmp.into());
    }
    // SAFETY: UDP_LEN bytes, checked above.
    let ports = reversed(unsafe { transport.load(0) });
    Ok(Packet { source: client, ports, protocol, kind: Kind::Error, ..error })
}

/// Turns an echo request, whose headers have been read, into its reply.
#[inline(always)]
fn answer(frame: Frame) -> Reason {
    if !frame.has(ICMP_AT + ICMP_LEN) {
        return Reason::DropMalformed;
    }
    // SAFETY: Ethernet, IPv4 and ICMP header are there, checked above. Exchanging the addresses leaves the IPv4
    // checksum as it is.
    unsafe {
        frame.exchange::<[u16; 3]>(0, 6);
        frame.exchange::<u32>(ETH_LEN + 12, ETH_LEN + 16);

        let ttl = frame.load::<[u8; 2]>(ETH_LEN + 8);
        let new_ttl = [REPLY_TTL, ttl[1]];
        let checksum = frame.load::<u16>(ETH_LEN + 10);
        let (old, new) = (u16::from_ne_bytes(ttl), u16::from_ne_bytes(new_ttl));
        frame.store(ETH_LEN + 8, new_ttl);
        frame.store(ETH_LEN + 10, checksum_update(checksum, old, new));

        let checksum = frame.load::<u16>(ICMP_AT + 2);
        let id_and_sequence = frame.load::<u32>(ICMP_AT + 4);
        frame.store(ICMP_AT, ECHO_REPLY);
        frame.store(ICMP_AT + 2, reply_checksum(checksum, id_and_sequence));
    }
    Reason::EchoReply
}

/// The checksum of the reply to a request with this one.
///
/// RFC 1624's update cannot tell a message of zeros, whose checksum is 0xffff, from one whose words add up to 0xffff,
/// whose checksum is 0: the sum before the change is the same. The reply has no word that is surely not zero, so where
/// the update says 0 and nothing is known of the message, 0xffff is stored: it is right for both, as receivers add up.
#[inline(always)]
fn reply_checksum(request: u16, id_and_sequence: u32) -> u16 {
    match checksum_update(request, ECHO_REQUEST, ECHO_REPLY) {
        0 if id_and_sequence == 0 => 0xffff,
        checksum => checksum,
    }
}
