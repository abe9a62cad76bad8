//! The proof by packet: which packets, and what their answers mean. Pure; [`crate::system::proof`] sends them.
//!
//! ```text
//! client (documentation address) ─ echo, SYN to the VIP ─ in a tunnel from a load balancer to the host ─▶ device
//! client ◀──────────────────────── answer of the VIP, by a route that is there for the moment ◀────────── host
//! ```

pub mod packet;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Serialize, Serializer};

use self::packet::{Answer, Probe, Target};
use crate::{
    desired::{Desired, Prefix, Vip},
    family::Family,
    observed::{Address, Filter, Hook, Observed, Program, Slot},
    plan::{Refusal, devices, kernel_tunnels},
};

/// The port that the SYN is for if none is named.
pub const DEFAULT_PORT: u16 = 80;

/// Where the packets inside the tunnel come from: addresses that no network has (RFC 5737, RFC 3849).
#[must_use]
pub const fn client(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    }
}

/// Where the tunnel packets are put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// At the device's ingress, before its filters: as if they had just arrived there.
    Device,
    /// At a device of our own, to which the device's program is attached as well. A strict reverse path filter would
    /// drop the client's packet on the device, which is not the way back to it.
    Program,
}

/// How tunnel packets come to one VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The VIP.
    pub vip: Vip,
    /// The device that the load balancer's packets arrive on.
    pub device: String,
    /// Where ours do.
    pub entry: Entry,
    /// Outer source: a load balancer.
    pub source: IpAddr,
    /// Outer destination: an address of the host.
    pub host: IpAddr,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vip, device, source, host, .. } = self;
        let inner = client(vip.family());
        write!(f, "{inner} > {vip} in {source} > {host} on {device}")
    }
}

/// What is wrong: a stable code, of the same meaning as `hc-prober diagnose`'s where that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// `DECAP_MISSING`: nothing takes tunnel packets for the VIP.
    DecapMissing,
    /// `DECAP_SILENT`: nothing that comes through the tunnel is answered.
    DecapSilent,
    /// `RPF_SUSPECT`: as `DECAP_SILENT`, and the reverse path filter dropped packets meanwhile.
    RpfSuspect,
    /// `VIP_NOT_LOCAL`: tunnel packets to the host itself are answered, and the VIP is not one of its addresses.
    VipNotLocal,
    /// `VIP_SILENT`: tunnel packets to the host itself are answered, and none to the VIP, which is there.
    VipSilent,
    /// `ECHO_SILENT`: the VIP answers the SYN only.
    EchoSilent,
    /// `SERVICE_SILENT`: the VIP answers the echo only.
    ServiceSilent,
    /// `UNKNOWN`: could not be found out.
    Unknown,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DecapMissing => "DECAP_MISSING",
            Self::DecapSilent => "DECAP_SILENT",
            Self::RpfSuspect => "RPF_SUSPECT",
            Self::VipNotLocal => "VIP_NOT_LOCAL",
            Self::VipSilent => "VIP_SILENT",
            Self::EchoSilent => "ECHO_SILENT",
            Self::ServiceSilent => "SERVICE_SILENT",
            Self::Unknown => "UNKNOWN",
        })
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One VIP, or the proof as a whole, that was not proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which VIP; `None`: nothing could be sent at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<Vip>,
    /// What is wrong.
    pub code: Code,
    /// The same for people.
    pub text: String,
    /// The packets, and the answer to each.
    pub evidence: Vec<String>,
    /// The command that mends it, or shows what is to be mended.
    pub mend: String,
}

/// What came of a proof.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proof {
    /// What was not proven: if empty, everything was.
    pub findings: Vec<Finding>,
    /// What else to know.
    pub warnings: Vec<String>,
}

impl Proof {
    /// Nothing could be sent, for this reason.
    #[must_use]
    pub fn impossible(reason: &str) -> Self {
        let finding = Finding {
            vip: None,
            code: Code::Unknown,
            text: format!("no packet could be sent: {reason}"),
            evidence: Vec::new(),
            mend: "hc-prober check, from the load balancer; --no-verify leaves the proof out here".to_owned(),
        };
        Self { findings: vec![finding], warnings: Vec::new() }
    }
}

/// Every way to every VIP that `desired` lets a load balancer take, and the VIPs to which there is none.
///
/// # Errors
/// As [`crate::plan::plan`].
pub fn ways(desired: &Desired, observed: &Observed) -> Result<(Vec<Way>, Vec<Finding>), Refusal> {
    let tunnels = kernel_tunnels(desired, observed)?;
    let devices = devices(desired, observed)?;
    let (mut ways, mut unreachable) = (Vec::new(), Vec::new());
    for &vip in &desired.vips {
        let by_kernel = tunnels.contains(&vip.family());
        let before = ways.len();
        for (&device, link) in &devices {
            let strict = is_strict(link.rp_filter, observed) && vip.family() == Family::Ipv4;
            let entry = if strict && !by_kernel { Entry::Program } else { Entry::Device };
            let outers = outer_families(vip, desired, by_kernel).into_iter();
            let way = |family| {
                let (source, host) = outer(family, device, desired, observed)?;
                Some(Way { vip, device: device.to_owned(), entry, source, host })
            };
            ways.extend(outers.filter_map(way));
        }
        if ways.len() == before {
            unreachable.push(no_way(vip));
        }
    }
    Ok((ways, unreachable))
}

/// Whether the reverse path filter of a device with this setting wants the way back to be the way in.
fn is_strict(own: i32, observed: &Observed) -> bool {
    let all = observed.sysctls.get("net.ipv4.conf.all.rp_filter").and_then(|value| value.parse().ok()).unwrap_or(0);
    own.max(all) == 1
}

/// What the outer header may be: the VIP's family; the program takes IPv4 out of IPv6 as well.
fn outer_families(vip: Vip, desired: &Desired, by_kernel: bool) -> BTreeSet<Family> {
    let named = |family| desired.lb_sources.iter().any(|source| Family::of(source.address()) == family);
    let same = vip.family();
    match (desired.lb_sources.is_empty(), by_kernel) {
        (true, _) => [same].into(),
        (false, true) => [same].into_iter().filter(|&family| named(family)).collect(),
        (false, false) => [same, Family::Ipv6].into_iter().filter(|&family| named(family)).collect(),
    }
}

/// Source and destination of the outer header. The destination is on the device if it has any address.
fn outer(family: Family, device: &str, desired: &Desired, observed: &Observed) -> Option<(IpAddr, IpAddr)> {
    let is_own = |found: &&Address| {
        let vip = desired.vips.iter().any(|&vip| IpAddr::from(vip) == found.address);
        Family::of(found.address) == family && found.is_lasting() && !vip
    };
    let own = || observed.addresses.iter().filter(is_own);
    let host = own().find(|found| found.device == device).or_else(|| own().next())?;
    let is_free = |address: &IpAddr| observed.addresses.iter().all(|found| found.address != *address);
    let named = desired.lb_sources.iter().filter(|source| Family::of(source.address()) == family);
    let source = if desired.lb_sources.is_empty() {
        // A neighbour: strict reverse path filtering lets it in on this device.
        hosts_of(host.address, host.length).find(is_free).unwrap_or_else(|| stranger(family))
    } else {
        named.flat_map(|source: &Prefix| hosts_of(source.address(), source.length())).find(is_free)?
    };
    Some((source, host.address))
}

/// Neighbour of [`client`], for a host without neighbours.
const fn stranger(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
    }
}

/// The first hosts of the subnet that an address is in: neither its first address nor, in IPv4, its last, where there
/// are more than two. The address itself if it is alone.
fn hosts_of(address: IpAddr, length: u8) -> impl Iterator<Item = IpAddr> {
    const ENOUGH: u128 = 256;
    let bits = Family::of(address).bits();
    let size = 1_u128.checked_shl(u32::from(bits.saturating_sub(length))).unwrap_or(u128::MAX);
    let (from, to) = if size <= 2 { (0, size) } else { (1, size.saturating_sub(1).min(ENOUGH)) };
    (from..to).filter_map(move |offset| match address {
        IpAddr::V4(address) => {
            let first = address.to_bits() & !u32::try_from(size - 1).ok()?;
            Some(Ipv4Addr::from_bits(first + u32::try_from(offset).ok()?).into())
        }
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits((address.to_bits() & !(size - 1)) + offset).into()),
    })
}

fn no_way(vip: Vip) -> Finding {
    Finding {
        vip: Some(vip),
        code: Code::DecapMissing,
        text: format!(
            "no load balancer can reach {vip}: for its family none of --lb-source, or no address of this host, can be an \
             end of the tunnel"
        ),
        evidence: Vec::new(),
        mend: "realsrv-setup apply --lb-source ADDRESS… with one of that family".to_owned(),
    }
}

/// The packets of the first round to a way, and what came of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// To the echo.
    pub echo: Answer,
    /// To the SYN.
    pub syn: Answer,
}

/// What else is known when something was silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// An echo to the host's own address, if there can be one through this tunnel.
    pub own: Option<Answer>,
    /// Packets that the reverse path filter dropped meanwhile.
    pub filtered: u64,
    /// The port was named: silence there is a fault.
    pub port_named: bool,
}

/// The probes of the first round.
#[must_use]
pub fn probes(way: &Way, port: u16) -> [Probe<'_>; 2] {
    let target = IpAddr::from(way.vip);
    [Probe { way, to: target, target: Target::Echo }, Probe { way, to: target, target: Target::Syn(port) }]
}

/// The probe of the second: decapsulation without the VIP. `None` where the outer header is of another family.
#[must_use]
pub fn own_probe(way: &Way) -> Option<Probe<'_>> {
    let same = Family::of(way.host) == way.vip.family();
    same.then_some(Probe { way, to: way.host, target: Target::Echo })
}

/// What is wrong on this way, if anything is.
#[must_use]
pub fn judge(way: &Way, port: u16, answers: Answers, known: Circumstances, observed: &Observed) -> Option<Finding> {
    let code = match (answers.echo.is_some(), answers.syn.is_some()) {
        (true, true) => return None,
        (true, false) if !known.port_named => return None,
        (true, false) => Code::ServiceSilent,
        (false, true) => Code::EchoSilent,
        (false, false) => silent(way, known, observed),
    };
    let said =
        |answer: Option<_>| answer.map_or_else(|| "nothing".to_owned(), |reply: packet::Reply| reply.to_string());
    let mut evidence =
        vec![format!("echo {way}: {}", said(answers.echo)), format!("SYN to port {port} {way}: {}", said(answers.syn))];
    evidence.extend(known.own.map(|own| format!("echo to {} instead of the VIP: {}", way.host, said(own))));
    let (text, mend) = explain(code, way, port);
    Some(Finding { vip: Some(way.vip), code, text, evidence, mend })
}

/// Neither echo nor SYN was answered.
fn silent(way: &Way, known: Circumstances, observed: &Observed) -> Code {
    let vip = IpAddr::from(way.vip);
    let is_local = observed.addresses.iter().any(|found| found.address == vip);
    match known.own {
        Some(Some(_)) if is_local => Code::VipSilent,
        Some(Some(_)) => Code::VipNotLocal,
        _ if !decapsulates(way, observed) => Code::DecapMissing,
        _ if known.filtered > 0 && way.vip.family() == Family::Ipv4 => Code::RpfSuspect,
        _ if !is_local => Code::VipNotLocal,
        _ => Code::DecapSilent,
    }
}

/// Whether there is something on this way that decapsulates.
fn decapsulates(way: &Way, observed: &Observed) -> bool {
    let slot = Slot { device: way.device.clone(), hook: Hook::Ingress };
    let program = matches!(observed.filters.get(&slot), Some(Filter::Ours { program: Program::Decap, .. }));
    let tunnel = observed.links.get(Family::of(way.host).tunnel()).is_some_and(|link| link.up);
    program || tunnel
}

fn explain(code: Code, way: &Way, port: u16) -> (String, String) {
    let (vip, device) = (way.vip, &way.device);
    let rules = || "nft list ruleset".to_owned();
    match code {
        Code::DecapMissing => {
            (format!("nothing decapsulates what comes to {device} for {vip}"), "realsrv-setup apply".to_owned())
        }
        Code::DecapSilent => {
            (format!("what comes through the tunnel on {device} is lost: a filter, or another program there"), rules())
        }
        Code::RpfSuspect => (
            format!("the reverse path filter drops what comes through the tunnel on {device}"),
            "nstat -az TcpExtIPReversePathFilter; realsrv-setup check".to_owned(),
        ),
        Code::VipNotLocal => (format!("{vip} is not an address of this host"), "realsrv-setup apply".to_owned()),
        Code::VipSilent => (format!("{vip} is there and answers nothing: a filter"), rules()),
        Code::EchoSilent => (
            format!("{vip} answers no echo: a filter, or icmp_echo_ignore_all; checks by ICMP will fail"),
            "sysctl net.ipv4.icmp_echo_ignore_all net.ipv6.icmp.echo_ignore_all; nft list ruleset".to_owned(),
        ),
        Code::ServiceSilent | Code::Unknown => (
            format!("{vip} answers, port {port} neither accepts nor refuses: a filter, or a full backlog"),
            format!("ss -ltn 'sport = :{port}'; nft list ruleset"),
        ),
    }
}

/// A default port that is silent proves nothing, and is worth knowing.
#[must_use]
pub fn silent_port(way: &Way, port: u16, answers: Answers, port_named: bool) -> Option<String> {
    let silent = answers.echo.is_some() && answers.syn.is_none() && !port_named;
    let vip = way.vip;
    silent.then(|| format!("{vip} answers no SYN to port {port}: if it is to, a filter is in the way (--verify-port)"))
}
