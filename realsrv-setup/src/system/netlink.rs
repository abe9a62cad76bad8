//! Links, addresses, qdiscs and filters, over rtnetlink.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use futures::TryStreamExt as _;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use rtnetlink::{Handle, LinkUnspec};

use super::Error;
use crate::observed::{Address, Hook, HookQdisc, Link, Slot};

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

    /// Whether an `ipip` device other than an idle fallback is here.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn has_tunnel_in_use(&self) -> Result<bool, Error> {
        let messages = self.link_messages().await?;
        Ok(messages.iter().any(|message| {
            let ipip = message.attributes.iter().any(|attribute| match attribute {
                LinkAttribute::LinkInfo(info) => info.contains(&LinkInfo::Kind(InfoKind::IpIp)),
                _ => false,
            });
            let fallback = message.attributes.contains(&LinkAttribute::IfName(crate::plan::TUNNEL.to_owned()));
            ipip && (!fallback || message.header.flags.contains(LinkFlags::Up))
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

    /// Every IPv4 address.
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

    /// Adds `address`/32, scope host.
    ///
    /// # Errors
    /// No such device, or the kernel refuses.
    pub async fn add_address(&self, device: &str, address: Ipv4Addr) -> Result<(), Error> {
        let index = self.index(device).await?;
        let mut request = self.0.address().add(index, address.into(), 32);
        let message = request.message_mut();
        message.header.scope = AddressScope::Host;
        // A broadcast address means nothing to a /32; `ip addr add` sends none either.
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        request.execute().await.map_err(failed(format!("adding {address}/32 to {device}")))
    }

    /// Removes `address`/32; `false` if it is not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_address(&self, device: &str, address: Ipv4Addr) -> Result<bool, Error> {
        let Some(index) = self.links().await?.get(device).map(|link| link.index) else { return Ok(false) };
        let names = BTreeMap::from([(index, device.to_owned())]);
        let wanted = Address { device: device.to_owned(), address, length: 32 };
        let all = self.address_messages().await?;
        let Some(message) = all.into_iter().find(|message| self::address(message, &names).as_ref() == Some(&wanted))
        else {
            return Ok(false);
        };
        let removed = self.0.address().del(message).execute().await;
        removed.map(|()| true).map_err(failed(format!("removing {address}/32 from {device}")))
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
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        enslaved: false,
        hook,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(octets) => link.mtu = *octets,
            LinkAttribute::Controller(index) => link.enslaved = *index != 0,
            _ => {}
        }
    }
    Some((name?, link))
}

fn address(message: &AddressMessage, names: &BTreeMap<u32, String>) -> Option<Address> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    // IFA_LOCAL is the address itself; IFA_ADDRESS would be the peer's on a point-to-point link.
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    let device = names.get(&message.header.index)?.clone();
    Some(Address { device, address, length: message.header.prefix_len })
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
