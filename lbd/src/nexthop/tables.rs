//! Netlink messages to a next hop: pure, no socket here.

use std::collections::HashMap;
use std::net::IpAddr;

use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia};

use super::{NextHop, Unresolved};

/// What the kernel answered to "how do I reach this real?".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    ifindex: u32,
    via: IpAddr,
    source: IpAddr,
    mtu: Option<u32>,
}

impl Route {
    pub(super) fn read(real: IpAddr, message: &RouteMessage) -> Result<Self, Unresolved> {
        if message.header.kind != RouteType::Unicast {
            return Err(Unresolved::NotForwarded { real, kind: message.header.kind });
        }
        let (mut ifindex, mut source, mut via, mut mtu) = (None, None, real, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => ifindex = Some(*index),
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Gateway(address) => via = ip(address).unwrap_or(via),
                // RFC 8950: an IPv4 route through an IPv6 gateway.
                RouteAttribute::Via(RouteVia::Inet6(address)) => via = (*address).into(),
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        match (ifindex, source) {
            (Some(ifindex), Some(source)) => Ok(Self { ifindex, via, source, mtu }),
            _ => Err(Unresolved::NoRoute { real }),
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The link and neighbour tables, as far as next hops need them.
#[derive(Debug, Default)]
pub(super) struct Tables {
    links: HashMap<u32, Link>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
}

#[derive(Debug)]
struct Link {
    name: String,
    up: bool,
    mtu: u32,
    /// `None`: not Ethernet.
    mac: Option<[u8; 6]>,
    is_vlan: bool,
}

#[derive(Debug, Clone, Copy)]
enum Neighbour {
    Known([u8; 6]),
    Unknown,
    Failed,
}

impl Tables {
    pub(super) fn add_link(&mut self, message: &LinkMessage) {
        let (mut name, mut mtu, mut mac, mut is_vlan) = (String::new(), 0, None, false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name.clone_from(text),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::LinkInfo(infos) => is_vlan = infos.contains(&LinkInfo::Kind(InfoKind::Vlan)),
                _ => {}
            }
        }
        let header = &message.header;
        let link = Link {
            name,
            mtu,
            up: header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            mac: mac.filter(|_| header.link_layer_type == LinkLayerType::Ether),
            is_vlan,
        };
        self.links.insert(header.index, link);
    }

    pub(super) fn add_neighbour(&mut self, message: &NeighbourMessage) {
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                _ => {}
            }
        }
        let Some(address) = address else { return };
        // NUD_VALID of the kernel's <net/neighbour.h>: the states in which it sends to the address it has.
        let neighbour = match (message.header.state, mac) {
            (
                NeighbourState::Permanent
                | NeighbourState::Noarp
                | NeighbourState::Reachable
                | NeighbourState::Probe
                | NeighbourState::Stale
                | NeighbourState::Delay,
                Some(mac),
            ) => Neighbour::Known(mac),
            (NeighbourState::Failed, _) => Neighbour::Failed,
            _ => Neighbour::Unknown,
        };
        self.neighbours.insert((message.header.ifindex, address), neighbour);
    }

    /// Puts a real's route, its device and its neighbour together.
    pub(super) fn join(&self, real: IpAddr, route: &Route) -> Result<NextHop, Unresolved> {
        let Some(link) = self.links.get(&route.ifindex) else {
            return Err(Unresolved::DeviceDown { real, device: format!("#{}", route.ifindex) });
        };
        let device = link.name.clone();
        if !link.up {
            return Err(Unresolved::DeviceDown { real, device });
        }
        if link.is_vlan {
            return Err(Unresolved::Vlan { real, device });
        }
        let Some(source_mac) = link.mac else {
            return Err(Unresolved::NotEthernet { real, device });
        };
        let via = route.via;
        match self.neighbours.get(&(route.ifindex, via)) {
            Some(&Neighbour::Known(dest_mac)) => Ok(NextHop {
                ifindex: route.ifindex,
                mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
                source_mac,
                dest_mac,
                source: route.source,
            }),
            Some(Neighbour::Failed) => Err(Unresolved::NeighbourFailed { via, device }),
            Some(Neighbour::Unknown) | None => Err(Unresolved::NeighbourUnresolved { via, device }),
        }
    }
}
