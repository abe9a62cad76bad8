//! A captured packet is whatever somebody sent to the prober's address: reading it must end, and never panic. The first byte
//! says what the packet is made to look like, so that each parser of either family is reached at once: what is in the way
//! of a fuzzer are version and protocol, of the packet and of what an ICMP error quotes.
#![no_main]

use hc_prober::{
    cookie::Cookies,
    named::{Named, Query, QueryType},
    reply::{Answer, Reply},
};

/// Offset of the protocol, and length of the header without options.
const LAYOUT: [(u8, usize, usize); 2] = [(0x45, 9, 20), (0x60, 6, 40)];
const PROTOCOLS: [u8; 8] = [1, 4, 6, 17, 41, 44, 58, 0];
/// Type of an unreachable: ICMP, ICMPv6.
const ERRORS: [(u8, u8); 2] = [(1, 3), (58, 1)];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((shape, packet)) = input.split_first() else { return };
    let mut packet = packet.to_vec();
    let (family, protocol) = (usize::from(shape >> 6 & 1), PROTOCOLS[usize::from(shape >> 3 & 7)]);
    match shape & 7 {
        0 => {}
        1..=3 => dress(&mut packet, family, protocol),
        _ => {
            let (icmp, unreachable) = ERRORS[family];
            let (_, _, header) = LAYOUT[family];
            dress(&mut packet, family, icmp);
            if let Some(kind) = packet.get_mut(header) {
                *kind = unreachable;
            }
            if let Some(quoted) = packet.get_mut(header + 8..) {
                dress(quoted, family ^ usize::from(shape >> 7), protocol);
            }
        }
    }
    let reply = std::hint::black_box(hc_prober::reply::parse(&packet));
    if let Some(Reply::Answer { lane, port, answer: Answer::Datagram { payload } }) = reply {
        let cookie = Cookies::new(&[0; 16]).cookie(&lane, port, 0);
        for named in [Query::new("example.org", QueryType::A).map(Named::Dns), Some(Named::Ntp)].into_iter().flatten() {
            let _ = std::hint::black_box((named.proves(payload, cookie), named.finding(payload)));
        }
    }
});

/// Makes it an IP packet of this family and protocol, if there is room.
fn dress(packet: &mut [u8], family: usize, protocol: u8) {
    let (first, at, header) = LAYOUT[family];
    if packet.len() >= header {
        (packet[0], packet[at]) = (first, protocol);
    }
}
