//! Links, addresses, qdiscs and filters, over rtnetlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use futures::TryStreamExt as _;
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo},
    link::{
        AfSpecInet, AfSpecUnspec, InetDevConf, InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage, State,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
    route::RouteScope,
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::Error;
use crate::{
    family::Family,
    observed::{Address, Hook, HookQdisc, Layer, Link, Slot},
};

/// A filter at a clsact hook.
#[derive(Debug, Clone)]
pub struct HookFilter {
    /// Device and direction.
    pub slot: Slot,
    /// `tc`'s `pref`.
    pub priority: u16,
    /// Of a BPF filter.
    pub name: Option<String>,
    /// Of a BPF filter: the program in the kernel.
    pub program_id: Option<u32>,
}

/// A netlink socket of this namespace.
pub struct Netlink(Handle);

fn failed(operation: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let operation = operation.into();
    move |source| Error::Netlink { operation, source }
}

impl Netlink {
    /// Must be called inside the runtime that is to serve it.
    ///
    /// # Errors
    /// No socket.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::io("opening a netlink socket"))?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Every device, by name.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn links(&self) -> Result<BTreeMap<String, Link>, Error> {
        let mut hooks = self.qdiscs().await?;
        let messages = self.link_messages().await?;
        let links = messages.into_iter().filter_map(|message| {
            let hook = hooks.remove(&message.header.index).unwrap_or_default();
            link(&message, hook)
        });
        Ok(links.collect())
    }

    /// Whether a tunnel of this family other than an idle fallback is here.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn has_tunnel_in_use(&self, family: Family) -> Result<bool, Error> {
        let kind = match family {
            Family::Ipv4 => InfoKind::IpIp,
            Family::Ipv6 => InfoKind::Ip6Tnl,
        };
        let messages = self.link_messages().await?;
        Ok(messages.iter().any(|message| {
            let tunnel = message.attributes.iter().any(|attribute| match attribute {
                LinkAttribute::LinkInfo(info) => info.contains(&LinkInfo::Kind(kind.clone())),
                _ => false,
            });
            let fallback = message.attributes.contains(&LinkAttribute::IfName(family.tunnel().to_owned()));
            tunnel && (!fallback || message.header.flags.contains(LinkFlags::Up))
        }))
    }

    async fn link_messages(&self) -> Result<Vec<LinkMessage>, Error> {
        self.0.link().get().execute().try_collect().await.map_err(failed("listing links"))
    }

    async fn qdiscs(&self) -> Result<BTreeMap<u32, HookQdisc>, Error> {
        let all: Vec<_> = self.0.qdisc().get().execute().try_collect().await.map_err(failed("listing qdiscs"))?;
        Ok(all.iter().filter_map(|message| Some((index(message)?, hook_qdisc(message)?))).collect())
    }

    /// All filters at the clsact hooks of `links`.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn hooks(&self, links: &BTreeMap<String, Link>) -> Result<Vec<HookFilter>, Error> {
        let mut filters = Vec::new();
        for (device, link) in links.iter().filter(|(_, link)| link.hook == HookQdisc::Clsact) {
            let Ok(index) = i32::try_from(link.index) else { continue };
            for hook in [Hook::Ingress, Hook::Egress] {
                let request = self.0.traffic_filter(index).get();
                let request = match hook {
                    Hook::Ingress => request.ingress(),
                    Hook::Egress => request.egress(),
                };
                let all: Vec<_> = { request.execute().try_collect().await }
                    .map_err(failed(format!("listing the {hook:?} filters of {device}")))?;
                let slot = Slot { device: device.clone(), hook };
                filters.extend(all.iter().filter_map(|message| hook_filter(message, &slot)));
            }
        }
        Ok(filters)
    }

    /// Every address.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let names: BTreeMap<u32, String> =
            self.links().await?.into_iter().map(|(name, link)| (link.index, name)).collect();
        let all = self.address_messages().await?;
        Ok(all.iter().filter_map(|message| address(message, &names)).collect())
    }

    async fn address_messages(&self) -> Result<Vec<AddressMessage>, Error> {
        self.0.address().get().execute().try_collect().await.map_err(failed("listing addresses"))
    }

    /// What devices answer neighbour solicitations for although it is not theirs.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn proxied(&self, links: &BTreeMap<String, Link>) -> Result<BTreeSet<(IpAddr, String)>, Error> {
        let all: Vec<_> = { self.0.neighbours().get().proxies().execute().try_collect().await }
            .map_err(failed("listing proxy neighbours"))?;
        Ok(all.iter().filter_map(|message| proxied(message, links)).collect())
    }

    /// Adds `address`/32 of scope host, or `address`/128 that is deprecated and needs no duplicate address detection:
    /// never chosen as a source. IPv6 addresses have the scope that they are of.
    ///
    /// # Errors
    /// No such device, or the kernel refuses.
    pub async fn add_address(&self, device: &str, address: IpAddr) -> Result<(), Error> {
        let index = self.index(device).await?;
        let length = Family::of(address).bits();
        let mut request = self.0.address().add(index, address, length);
        let message = request.message_mut();
        match Family::of(address) {
            Family::Ipv4 => {
                message.header.scope = AddressScope::Host;
                // A broadcast address means nothing to a /32; `ip addr add` sends none either.
                message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
            }
            Family::Ipv6 => {
                const FOREVER: u32 = u32::MAX;
                message.header.flags |= AddressHeaderFlags::Nodad;
                let mut times = CacheInfo::default();
                (times.ifa_preferred, times.ifa_valid) = (0, FOREVER);
                message.attributes.push(AddressAttribute::CacheInfo(times));
            }
        }
        request.execute().await.map_err(failed(format!("adding {address}/{length} to {device}")))
    }

    /// Removes `address` if it is there with the whole length; `false` if not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_address(&self, device: &str, address: IpAddr) -> Result<bool, Error> {
        let Some(index) = self.links().await?.get(device).map(|link| link.index) else { return Ok(false) };
        let names = BTreeMap::from([(index, device.to_owned())]);
        let length = Family::of(address).bits();
        let is_it = |message: &AddressMessage| {
            self::address(message, &names).is_some_and(|found| (found.address, found.length) == (address, length))
        };
        let Some(message) = self.address_messages().await?.into_iter().find(is_it) else { return Ok(false) };
        let removed = self.0.address().del(message).execute().await;
        removed.map(|()| true).map_err(failed(format!("removing {address}/{length} from {device}")))
    }

    /// Sets a device up or down.
    ///
    /// # Errors
    /// No such device, or the kernel refuses.
    pub async fn set_up(&self, device: &str, up: bool) -> Result<(), Error> {
        let change = LinkUnspec::new_with_index(self.index(device).await?);
        let change = if up { change.up() } else { change.down() };
        self.0.link().set(change.build()).execute().await.map_err(failed(format!("setting {device} up or down")))
    }

    /// Makes a veth pair here, and gives `near` to another namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn lay_pair(&self, far: &str, near: &str, to: &OwnedFd) -> Result<(), Error> {
        let operation = || format!("making the veth pair {near}");
        let pair = LinkVeth::new(far, near).build();
        self.0.link().add(pair).execute().await.map_err(failed(operation()))?;
        let near = LinkUnspec::new_with_index(self.index(near).await?).setns_by_fd(to.as_raw_fd()).build();
        self.0.link().set(near).execute().await.map_err(failed(operation()))
    }

    /// Whether a device takes packets (RFC 2863: operational).
    ///
    /// # Errors
    /// No such device, or the kernel did not answer.
    pub async fn is_operational(&self, device: &str) -> Result<bool, Error> {
        let index = self.index(device).await?;
        let messages = self.link_messages().await?;
        let message = messages.iter().find(|message| message.header.index == index);
        Ok(message.is_some_and(|message| message.attributes.contains(&LinkAttribute::OperState(State::Up))))
    }

    /// Sets a device up that asks nobody for link-layer addresses.
    ///
    /// # Errors
    /// No such device, or the kernel refuses.
    pub async fn set_up_silent(&self, device: &str) -> Result<(), Error> {
        let change = LinkUnspec::new_with_index(self.index(device).await?).arp(false).up();
        self.0.link().set(change.build()).execute().await.map_err(failed(format!("setting {device} up")))
    }

    /// A route to one host, on the link.
    ///
    /// # Errors
    /// No such device, or the kernel refuses: another is there.
    pub async fn add_route(&self, to: IpAddr, device: &str) -> Result<(), Error> {
        let index = self.index(device).await?;
        let message = match to {
            IpAddr::V4(to) => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, Family::Ipv4.bits());
                route.output_interface(index).scope(RouteScope::Link).build()
            }
            IpAddr::V6(to) => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, Family::Ipv6.bits());
                route.output_interface(index).build()
            }
        };
        let added = self.0.route().add(message).execute().await;
        added.map_err(failed(format!("adding a route to {to} on {device}")))
    }

    /// Deletes a device.
    ///
    /// # Errors
    /// The kernel refuses; not if there is no such device.
    pub async fn delete_link(&self, device: &str) -> Result<(), Error> {
        let Ok(index) = self.index(device).await else { return Ok(()) };
        self.0.link().del(index).execute().await.map_err(failed(format!("deleting {device}")))
    }

    /// The link-layer address of an Ethernet device.
    ///
    /// # Errors
    /// No such device, or none of Ethernet.
    pub async fn hardware_address(&self, device: &str) -> Result<[u8; 6], Error> {
        let index = self.index(device).await?;
        let messages = self.link_messages().await?;
        let mut attributes =
            messages.iter().filter(|message| message.header.index == index).flat_map(|m| &m.attributes);
        let address = attributes.find_map(|attribute| match attribute {
            LinkAttribute::Address(octets) => octets.as_slice().try_into().ok(),
            _ => None,
        });
        address.ok_or_else(|| Error::NoDevice(device.to_owned()))
    }

    /// Removes the `clsact` qdisc.
    ///
    /// # Errors
    /// No such device, or the kernel refuses.
    pub async fn remove_clsact(&self, device: &str) -> Result<(), Error> {
        let index = self.index(device).await?;
        let Ok(index) = i32::try_from(index) else { return Err(Error::NoDevice(device.to_owned())) };
        let mut request = self.0.qdisc().del(index);
        let header = &mut request.message_mut().header;
        header.parent = TcHandle::CLSACT;
        header.handle = TcHandle { major: u16::MAX, minor: 0 };
        request.execute().await.map_err(failed(format!("removing clsact from {device}")))
    }

    async fn index(&self, device: &str) -> Result<u32, Error> {
        let links = self.links().await?;
        links.get(device).map(|link| link.index).ok_or_else(|| Error::NoDevice(device.to_owned()))
    }
}

fn link(message: &LinkMessage, hook: HookQdisc) -> Option<(String, Link)> {
    let mut name = None;
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        layer: match message.header.link_layer_type {
            LinkLayerType::Ether => Layer::Ethernet,
            LinkLayerType::Loopback => Layer::Loopback,
            LinkLayerType::Tunnel => Layer::Tunnel(Family::Ipv4),
            LinkLayerType::Tunnel6 => Layer::Tunnel(Family::Ipv6),
            _ => Layer::Other,
        },
        enslaved: false,
        routed: false,
        hook,
        arp_ignore: 0,
        arp_announce: 0,
        rp_filter: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(octets) => link.mtu = *octets,
            LinkAttribute::Controller(index) => link.enslaved = *index != 0,
            LinkAttribute::LinkInfo(info) => link.routed = info.contains(&LinkInfo::PortKind(InfoPortKind::Vrf)),
            LinkAttribute::AfSpecUnspec(families) => {
                if let Some(settings) = ipv4_settings(families) {
                    link.arp_ignore = settings.arp_ignore;
                    link.arp_announce = settings.arp_announce;
                    link.rp_filter = settings.rp_filter;
                }
            }
            _ => {}
        }
    }
    Some((name?, link))
}

/// `None`: the device has no IPv4.
fn ipv4_settings(families: &[AfSpecUnspec]) -> Option<&InetDevConf> {
    let ipv4 = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet(attributes) => Some(attributes),
        _ => None,
    })?;
    ipv4.iter().find_map(|attribute| match attribute {
        AfSpecInet::DevConf(settings) => Some(settings),
        _ => None,
    })
}

fn address(message: &AddressMessage, names: &BTreeMap<u32, String>) -> Option<Address> {
    // IFA_LOCAL is the address itself; IFA_ADDRESS is the peer's on a point-to-point link, and the only one of most
    // IPv6 addresses.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some(Address {
        device: names.get(&message.header.index)?.clone(),
        address,
        length: message.header.prefix_len,
        host_scope: address.is_ipv4() && message.header.scope == AddressScope::Host,
        // include/uapi/linux/if_addr.h: IFA_F_TEMPORARY is IFA_F_SECONDARY.
        temporary: address.is_ipv6() && message.header.flags.contains(AddressHeaderFlags::Secondary),
    })
}

fn proxied(message: &NeighbourMessage, links: &BTreeMap<String, Link>) -> Option<(IpAddr, String)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    let (device, _) = links.iter().find(|(_, link)| link.index == message.header.ifindex)?;
    Some((address, device.clone()))
}

fn index(message: &TcMessage) -> Option<u32> {
    u32::try_from(message.header.index).ok()
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn hook_qdisc(message: &TcMessage) -> Option<HookQdisc> {
    match kind(message)? {
        "clsact" => Some(HookQdisc::Clsact),
        "ingress" => Some(HookQdisc::Ingress),
        _ => None,
    }
}

fn hook_filter(message: &TcMessage, slot: &Slot) -> Option<HookFilter> {
    let TcHeader { handle, info, .. } = message.header;
    // The kernel lists each priority once more, as a whole, with handle 0.
    if handle == TcHandle::UNSPEC {
        return None;
    }
    // tcm_info: priority in the upper half, protocol in the lower.
    let priority = u16::try_from(info >> 16).unwrap_or(0);
    let mut filter = HookFilter { slot: slot.clone(), priority, name: None, program_id: None };
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    for option in options.flatten() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name.clone()),
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program_id = Some(*id),
            _ => {}
        }
    }
    Some(filter)
}
