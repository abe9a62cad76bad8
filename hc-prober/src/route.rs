//! Which way the kernel would send to an address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, RouteMessageBuilder};

/// The kernel's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the outgoing interface.
    pub interface: u32,
    /// Preferred source address.
    pub source: IpAddr,
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
    let mut found = (None, None);
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.0 = Some(index),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)) => found.1 = Some(source.into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(source)) => found.1 = Some(source.into()),
            _ => {}
        }
    }
    let (Some(interface), Some(source)) = found else {
        return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
    };
    Ok(Route { interface, source })
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
