//! Which way the kernel would send to an address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{claim::Mac, finding::Name};
use futures::TryStreamExt;
use netlink_packet_route::{
    link::{LinkAttribute, LinkFlags, LinkLayerType},
    route::{RouteAddress, RouteAttribute, RouteMetric, RouteVia},
};
use rtnetlink::{Handle, RouteMessageBuilder};

/// The kernel's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the outgoing interface.
    pub interface: u32,
    /// Preferred source address.
    pub source: IpAddr,
    /// The route's own MTU, in bytes from the IP header on; `None`: the interface's.
    pub mtu: Option<u32>,
    /// The first router on the way; `None`: the address is on the interface's own link.
    pub gateway: Option<IpAddr>,
}

/// Asks the kernel for the route to `address`.
///
/// # Errors
/// There is none (the kernel's error number), or it has no source address.
pub async fn lookup(handle: &Handle, address: IpAddr) -> io::Result<Route> {
    let request = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build(),
    };
    let mut answers = Box::pin(handle.route().get(request).execute());
    let route = match answers.try_next().await {
        Ok(Some(route)) => route,
        Ok(None) => return Err(io::Error::from_raw_os_error(libc::ENETUNREACH)),
        Err(rtnetlink::Error::NetlinkError(error)) => return Err(error.to_io()),
        Err(error) => return Err(io::Error::other(error)),
    };
    let (mut found, mut mtu, mut gateway) = ((None, None), None, None);
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.0 = Some(index),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)) => found.1 = Some(source.into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(source)) => found.1 = Some(source.into()),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(address.into()),
            // RFC 8950: also an IPv4 route through an IPv6 gateway.
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) | RouteAttribute::Via(RouteVia::Inet6(address)) => {
                gateway = Some(address.into());
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let (Some(interface), Some(source)) = found else {
        return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
    };
    Ok(Route { interface, source, mtu, gateway })
}

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its MTU, in bytes from the IP header on.
    pub mtu: u32,
    /// Its hardware address; `None`: it is no Ethernet.
    pub mac: Option<Mac>,
    /// It is up and has a link, as far as its driver can tell.
    pub has_link: bool,
    /// Its name.
    pub name: Name,
}

/// Asks the kernel for an interface.
///
/// # Errors
/// It has just gone.
pub async fn interface(handle: &Handle, index: u32) -> io::Result<Interface> {
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    let mut answers = Box::pin(handle.link().get().match_index(index).execute());
    let link = answers.try_next().await.map_err(io::Error::other)?.ok_or_else(gone)?;
    let is_ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    let has_link = link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let (mut mtu, mut mac, mut name) = (None, None, Name::new(""));
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::Mtu(found) => mtu = Some(found),
            LinkAttribute::IfName(found) => name = Name::new(&found),
            LinkAttribute::Address(address) if is_ethernet => mac = Mac::try_from(address).ok(),
            _ => {}
        }
    }
    Ok(Interface { mtu: mtu.ok_or_else(gone)?, mac, has_link, name })
}

/// The name of the interface through which `address` is reached.
///
/// # Errors
/// No route, or the interface has just gone.
pub async fn interface_to(handle: &Handle, address: IpAddr) -> io::Result<String> {
    let route = lookup(handle, address).await?;
    let name = nix::net::if_::if_indextoname(route.interface)?;
    name.into_string().map_err(io::Error::other)
}
