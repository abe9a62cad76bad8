//! Placeholder
use std::net::Ipv4Addr;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason="x")]
pub struct NextHop { pub ifindex: u32, pub mtu: u32, pub source_mac: [u8; 6], pub dest_mac: [u8; 6], pub source: Ipv4Addr }
