//! From the file's shapes to the domain: every rule about values is here, and every broken one is reported.

use std::collections::HashSet;
use std::iter::once;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use lb_ebpf::ring::{MAX_RING_ORDER, RING_SLOTS};
use toml::Spanned;

use super::dto::{self, Integer, Span};
use super::{
    Check, CheckKind, Config, DEFAULT_SEED, HashBy, MAX_REALS, MAX_VIPS, Mistake, Node, OnAllDown, OuterSource,
    Protocol, Real, Timing, Vip, VipKey, VipMiss,
};

const DEFAULT_WEIGHT: u16 = 100;
const MAX_PAYLOAD: usize = 512;
/// `IFNAMSIZ` less the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_mins(1);
const FLOW_IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(18);

const HASHES: [(&str, HashBy); 3] =
    [("5tuple", HashBy::FiveTuple), ("source", HashBy::Source), ("source+dport", HashBy::SourcePort)];

/// What a VIP has of each setting that it does not name.
struct Base {
    timing: Timing,
    flow_idle: Duration,
    on_all_down: OnAllDown,
}

const BUILT_IN: Base = Base {
    timing: Timing {
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        fast_interval: Duration::from_millis(200),
        rise: 2,
        fall: 3,
    },
    flow_idle: Duration::from_mins(15),
    on_all_down: OnAllDown::Keep,
};

/// Checks everything; the domain's `Config`, or all the mistakes.
pub(super) fn config(file: dto::File) -> Result<Config, Vec<Mistake>> {
    let mut mistakes = Mistakes::default();
    let node = mistakes.node(file.node);
    let base = mistakes.base(&file.defaults).unwrap_or(BUILT_IN);
    let mut vips: Vec<_> = file.vip.iter().filter_map(|vip| mistakes.vip(vip, &base)).collect();
    mistakes.across(&file.vip);
    if let Some(node) = &node {
        mistakes.across_sources(node, &file.vip);
    }
    match (node, mistakes.0) {
        (Some(node), mistakes) if mistakes.is_empty() => {
            vips.sort_by_key(|vip| vip.key);
            Ok(Config { node, vips })
        }
        (_, mistakes) => Err(mistakes),
    }
}

/// Collects what is wrong; each method gives `None` exactly when it has added something.
#[derive(Default)]
struct Mistakes(Vec<Mistake>);

impl Mistakes {
    fn add<T>(&mut self, span: Range<usize>, message: impl Into<String>) -> Option<T> {
        self.0.push(Mistake::new(span, message));
        None
    }

    fn node(&mut self, node: dto::Node) -> Option<Node> {
        let interfaces = self.interfaces(node.interface);
        let outer_source = optional(node.outer_source.as_ref(), |source| self.outer_source(source));
        let outer_source6 = optional(node.outer_source6.as_ref(), |source| self.outer_source6(source));
        let seed = optional(node.seed.as_ref(), |seed| self.seed(seed));
        let vip_miss = optional(node.unmatched.as_ref(), |word| {
            self.word("unmatched", word, &[("drop", VipMiss::Drop), ("pass", VipMiss::Pass)])
        });
        Some(Node {
            interfaces: interfaces?,
            outer_source: outer_source?,
            outer_source6: outer_source6?,
            seed: seed?.unwrap_or(DEFAULT_SEED),
            vip_miss: vip_miss?.unwrap_or_default(),
        })
    }

    fn interfaces(&mut self, names: Spanned<dto::Interfaces>) -> Option<Vec<String>> {
        let span = names.span();
        let mut names = names.into_inner().0;
        names.sort();
        if names.is_empty() {
            return self.add(span, "`interface` is empty: name at least one device");
        }
        if let Some([twice, _]) = names.array_windows().find(|[a, b]| a == b) {
            return self.add(span, format!("`interface` names {twice:?} twice"));
        }
        // The kernel's dev_valid_name().
        let wrong = |name: &&String| {
            name.is_empty()
                || name.len() > MAX_INTERFACE_NAME
                || *name == "."
                || *name == ".."
                || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
        };
        match names.iter().find(wrong) {
            Some(name) => self.add(
                span,
                format!(
                    "`interface` {name:?} is not a device name: 1 to {MAX_INTERFACE_NAME} bytes, no '/', ':' or blank"
                ),
            ),
            None => Some(names),
        }
    }

    fn outer_source(&mut self, text: &Spanned<String>) -> Option<OuterSource> {
        let value = text.get_ref();
        match value.parse() {
            Ok(source) => Some(source),
            Err(error) => self.add(text.span(), format!("`outer_source` {value:?} {error}")),
        }
    }

    /// One address: the flow label of outer IPv6 headers spreads flows already.
    fn outer_source6(&mut self, text: &Spanned<String>) -> Option<Ipv6Addr> {
        let value = text.get_ref();
        match parse(text) {
            Some(IpAddr::V6(address)) if is_usable6(address) => Some(address),
            _ => self.add(
                text.span(),
                format!("`outer_source6` {value:?} is not a unicast IPv6 address such as \"fd00:221::11\""),
            ),
        }
    }

    fn seed(&mut self, text: &Spanned<String>) -> Option<[u8; 16]> {
        match from_hex(text.get_ref()).and_then(|bytes| bytes.try_into().ok()) {
            Some(seed) => Some(seed),
            None => self.add(text.span(), format!("`seed` {:?} is not 32 hexadecimal digits", text.get_ref())),
        }
    }

    fn vip(&mut self, vip: &dto::Vip, base: &Base) -> Option<Vip> {
        let address = self.address("address", &vip.address);
        let protocol = self.word("protocol", &vip.protocol, &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]);
        let port = self.integer("port", &vip.port, 0..=u16::MAX);
        let check = self.check(&vip.check, port, address);
        let timing = self.timing(&vip.check.clock(), base.timing);
        let flow_idle = self.flow_idle(vip.flow_idle.as_ref(), base.flow_idle);
        let hash = optional(vip.hash.as_ref(), |word| self.word("hash", word, &HASHES));
        let ring_order = optional(vip.ring_slots.as_ref(), |slots| self.ring_slots(slots));
        let on_all_down = self.all_down(vip.all_down.as_ref(), base.on_all_down);
        let reals = self.reals(vip, address);
        Some(Vip {
            key: VipKey { address: address?, protocol: protocol?, port: port? },
            reals: reals?,
            check: check?,
            timing: timing?,
            flow_idle: flow_idle?,
            hash: hash?.unwrap_or_default(),
            ring_order: ring_order?,
            on_all_down: on_all_down?,
        })
    }

    fn reals(&mut self, vip: &dto::Vip, vip_address: Option<IpAddr>) -> Option<Vec<Real>> {
        if vip.real.is_empty() {
            let message = format!("VIP {} has no reals: give it at least one [[vip.real]]", vip.address.get_ref());
            return self.add(vip.address.span(), message);
        }
        let mut seen = HashSet::new();
        let mut reals = Vec::with_capacity(vip.real.len());
        for real in &vip.real {
            let weight = optional(real.weight.as_ref(), |weight| self.integer("weight", weight, 0..=u16::MAX));
            if let (Some(address), Some(weight)) = (self.address("address", &real.address), weight) {
                if !seen.insert(address) {
                    let message = format!("real {address} is listed twice for VIP {}", vip.address.get_ref());
                    self.add::<()>(real.address.span(), message);
                }
                if address.is_ipv4() && vip_address.is_some_and(|vip| vip.is_ipv6()) {
                    let message = format!(
                        "real {address} is IPv4, and its VIP {} IPv6: IPv6 travels inside IPv6 only, so its reals have \
                         IPv6 addresses",
                        vip.address.get_ref()
                    );
                    self.add::<()>(real.address.span(), message);
                }
                reals.push(Real { address, weight: weight.unwrap_or(DEFAULT_WEIGHT) });
            }
        }
        reals.sort();
        (reals.len() == vip.real.len()).then_some(reals)
    }

    fn check(&mut self, check: &dto::Check, vip_port: Option<u16>, vip: Option<IpAddr>) -> Option<Check> {
        let target = optional(check.target.as_ref(), |target| self.target(target, vip));
        let kind = match check.kind.get_ref().as_str() {
            "icmp" => self.icmp(check),
            "tcp" => self.tcp(check, vip_port),
            "udp" => self.udp(check, vip_port),
            other => self.add(
                check.kind.span(),
                format!("`kind` {other:?} is not a kind of check: allowed are \"icmp\", \"tcp\" and \"udp\""),
            ),
        };
        Some(Check { kind: kind?, target: target? })
    }

    /// The inner packet's destination travels as the VIP's packets do.
    fn target(&mut self, text: &Spanned<String>, vip: Option<IpAddr>) -> Option<IpAddr> {
        let target = self.address("target", text)?;
        match vip {
            Some(vip) if vip.is_ipv4() != target.is_ipv4() => {
                let message = format!("`target` {target} is not of the family of its VIP {vip}");
                self.add(text.span(), message)
            }
            _ => Some(target),
        }
    }

    fn icmp(&mut self, check: &dto::Check) -> Option<CheckKind> {
        if let Some(port) = &check.port {
            return self.add(port.span(), "an icmp check has no port: remove `port`, or use `kind` \"tcp\" or \"udp\"");
        }
        self.no_udp_keys(check).then_some(CheckKind::Icmp)
    }

    fn tcp(&mut self, check: &dto::Check, vip_port: Option<u16>) -> Option<CheckKind> {
        let port = self.check_port(check, vip_port);
        let clean = self.no_udp_keys(check);
        port.filter(|_| clean).map(|port| CheckKind::Tcp { port })
    }

    fn udp(&mut self, check: &dto::Check, vip_port: Option<u16>) -> Option<CheckKind> {
        let port = self.check_port(check, vip_port);
        let payload = optional(check.payload.as_ref(), |hex| self.bytes("payload", hex));
        let expect = optional(check.expect.as_ref(), |hex| self.bytes("expect", hex));
        let require_reply = check.require_reply.as_ref().is_some_and(|require| *require.get_ref());
        Some(CheckKind::Udp { port: port?, payload: payload?, expect: expect?, require_reply })
    }

    /// The check's own port, else the VIP's. Nothing is said about a VIP port that was itself a mistake.
    fn check_port(&mut self, check: &dto::Check, vip_port: Option<u16>) -> Option<u16> {
        match (&check.port, vip_port) {
            (Some(port), _) => self.integer("port", port, 1..=u16::MAX),
            (None, Some(0)) => {
                let kind = check.kind.get_ref();
                let message = format!(
                    "a {kind} check of a VIP with port 0 (all ports) needs a `port` of its own (1..=65535), or `kind` \"icmp\""
                );
                self.add(check.kind.span(), message)
            }
            (None, port) => port,
        }
    }

    /// Whether the keys that only a udp check has are absent.
    fn no_udp_keys(&mut self, check: &dto::Check) -> bool {
        let spans = [
            ("payload", check.payload.as_ref().map(Spanned::span)),
            ("expect", check.expect.as_ref().map(Spanned::span)),
            ("require_reply", check.require_reply.as_ref().map(Spanned::span)),
        ];
        let kind = check.kind.get_ref();
        let stray = spans.into_iter().filter_map(|(key, span)| Some((key, span?)));
        let before = self.0.len();
        self.0.extend(
            stray.map(|(key, span)| Mistake::new(span, format!("`{key}` belongs to a udp check; this one is {kind}"))),
        );
        self.0.len() == before
    }

    /// What `[defaults]` says, over what this program says.
    fn base(&mut self, defaults: &dto::Defaults) -> Option<Base> {
        let timing = self.timing(&defaults.clock(), BUILT_IN.timing);
        let flow_idle = self.flow_idle(defaults.flow_idle.as_ref(), BUILT_IN.flow_idle);
        let on_all_down = self.all_down(defaults.all_down.as_ref(), BUILT_IN.on_all_down);
        Some(Base { timing: timing?, flow_idle: flow_idle?, on_all_down: on_all_down? })
    }

    fn timing(&mut self, clock: &dto::Clock<'_>, base: Timing) -> Option<Timing> {
        let interval = optional(clock.interval, |span| self.duration("interval", span, &INTERVAL));
        let timeout = optional(clock.timeout, |span| self.duration("timeout", span, &TIMEOUT));
        let rise = optional(clock.rise, |count| self.integer("rise", count, 1..=u8::MAX));
        let fall = optional(clock.fall, |count| self.integer("fall", count, 1..=u8::MAX));

        let interval = interval?.unwrap_or(base.interval);
        // Named beside an interval, it must fit it; inherited, it is cut to fit.
        let fast =
            optional(clock.fast_interval, |span| self.duration("fast_interval", span, &(*INTERVAL.start()..=interval)));
        Some(Timing {
            interval,
            timeout: timeout?.unwrap_or(base.timeout),
            fast_interval: fast?.unwrap_or(base.fast_interval.min(interval)),
            rise: rise?.unwrap_or(base.rise),
            fall: fall?.unwrap_or(base.fall),
        })
    }

    fn flow_idle(&mut self, span: Option<&Spanned<Span>>, base: Duration) -> Option<Duration> {
        optional(span, |span| self.duration("flow_idle", span, &FLOW_IDLE)).map(|own| own.unwrap_or(base))
    }

    /// The order of a ring with so many slots.
    fn ring_slots(&mut self, slots: &Spanned<Integer>) -> Option<u8> {
        let Integer(number) = *slots.get_ref();
        let sizes = (0..=MAX_RING_ORDER).map(|order| (order, RING_SLOTS << order));
        if let Some((order, _)) = sizes.clone().find(|(_, size)| i64::try_from(*size) == Ok(number)) {
            return Some(order);
        }
        let sizes: Vec<_> = sizes.map(|(_, size)| size.to_string()).collect();
        let message = format!("`ring_slots` {number} is not a size of a ring: allowed is {}", sizes.join(" or "));
        self.add(slots.span(), message)
    }

    fn all_down(&mut self, word: Option<&Spanned<String>>, base: OnAllDown) -> Option<OnAllDown> {
        let words = [("keep", OnAllDown::Keep), ("withdraw", OnAllDown::Withdraw)];
        optional(word, |word| self.word("all_down", word, &words)).map(|own| own.unwrap_or(base))
    }

    /// The rules that no VIP can break alone.
    fn across(&mut self, vips: &[dto::Vip]) {
        if let Some(vip) = vips.get(MAX_VIPS) {
            let message =
                format!("{} VIPs are too many: at most {MAX_VIPS} are allowed, this is the first beyond", vips.len());
            self.add::<()>(vip.address.span(), message);
        }
        let mut keys = HashSet::new();
        for vip in vips {
            let key = (parse(&vip.address), vip.protocol.get_ref(), vip.port.get_ref().0);
            if key.0.is_some() && !keys.insert(key) {
                let (address, protocol, port) = (vip.address.get_ref(), vip.protocol.get_ref(), vip.port.get_ref().0);
                let message = format!(
                    "VIP {address} {protocol} port {port} is listed twice: address, protocol and port must differ"
                );
                self.add::<()>(vip.address.span(), message);
            }
        }
        self.across_reals(vips);
    }

    fn across_reals(&mut self, vips: &[dto::Vip]) {
        let vip_addresses: HashSet<_> = vips.iter().filter_map(|vip| parse(&vip.address)).collect();
        let mut seen = HashSet::new();
        for real in vips.iter().flat_map(|vip| &vip.real) {
            let Some(address) = parse(&real.address) else { continue };
            if vip_addresses.contains(&address) {
                let message = format!("real {address} is also a VIP: its packets would come straight back");
                self.add::<()>(real.address.span(), message);
            }
            let new = seen.insert(address);
            if new && seen.len() == MAX_REALS + 1 {
                let message = format!(
                    "too many reals: at most {MAX_REALS} different addresses are allowed, this is the first beyond"
                );
                self.add::<()>(real.address.span(), message);
            }
        }
    }

    /// A real would discard what comes from an address of its own, and every real has the VIPs.
    fn across_sources(&mut self, node: &Node, vips: &[dto::Vip]) {
        let addresses = vips.iter().flat_map(|vip| once(&vip.address).chain(vip.real.iter().map(|real| &real.address)));
        for text in addresses {
            let source = match parse(text) {
                Some(IpAddr::V4(address)) => {
                    let source = node.outer_source.filter(|source| source.contains(address));
                    source.map(|source| format!("`outer_source` ({source})"))
                }
                Some(IpAddr::V6(address)) => {
                    node.outer_source6.filter(|source| *source == address).map(|_| "`outer_source6`".to_owned())
                }
                None => None,
            };
            if let Some(source) = source {
                let message = format!("{} is an {source}: what comes from there would be discarded", text.get_ref());
                self.add::<()>(text.span(), message);
            }
        }
    }

    /// An address packets can be sent to and from.
    fn address(&mut self, key: &str, text: &Spanned<String>) -> Option<IpAddr> {
        let value = text.get_ref();
        match parse(text) {
            Some(address) if is_usable(address) => Some(address),
            Some(_) => {
                let message = format!(
                    "`{key}` {value:?} cannot be used here: allowed is a unicast address that is neither loopback, \
                     link-local nor mapped"
                );
                self.add(text.span(), message)
            }
            None => {
                let message = format!(
                    "`{key}` {value:?} is not an address: allowed is one such as \"198.18.222.11\" or \"fd00:222::11\""
                );
                self.add(text.span(), message)
            }
        }
    }

    fn word<T: Copy>(&mut self, key: &str, text: &Spanned<String>, allowed: &[(&str, T)]) -> Option<T> {
        let value = text.get_ref();
        if let Some((_, meaning)) = allowed.iter().find(|(word, _)| word == value) {
            return Some(*meaning);
        }
        let words: Vec<_> = allowed.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.add(text.span(), format!("`{key}` {value:?} is not known: allowed is {}", words.join(" or ")))
    }

    fn integer<T>(&mut self, key: &str, value: &Spanned<Integer>, allowed: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        let Integer(number) = *value.get_ref();
        match T::try_from(number) {
            Ok(number) if allowed.contains(&number) => Some(number),
            _ => {
                let message =
                    format!("`{key}` {number} is out of range: allowed is {}..={}", allowed.start(), allowed.end());
                self.add(value.span(), message)
            }
        }
    }

    fn duration(&mut self, key: &str, text: &Spanned<Span>, allowed: &RangeInclusive<Duration>) -> Option<Duration> {
        let value = &text.get_ref().0;
        match humantime::parse_duration(value) {
            Ok(duration) if allowed.contains(&duration) => Some(duration),
            Ok(_) => {
                let [low, high] = [allowed.start(), allowed.end()].map(|bound| humantime::format_duration(*bound));
                self.add(text.span(), format!("`{key}` {value:?} is out of range: allowed is {low} to {high}"))
            }
            Err(_) => {
                let message = format!("`{key}` {value:?} is not a duration such as \"500ms\", \"2s\" or \"15m\"");
                self.add(text.span(), message)
            }
        }
    }

    fn bytes(&mut self, key: &str, text: &Spanned<String>) -> Option<Vec<u8>> {
        match from_hex(text.get_ref()) {
            Some(bytes) if (1..=MAX_PAYLOAD).contains(&bytes.len()) => Some(bytes),
            _ => {
                let message =
                    format!("`{key}` {:?} is not 1 to {MAX_PAYLOAD} bytes in hexadecimal digits", text.get_ref());
                self.add(text.span(), message)
            }
        }
    }
}

/// IPv4 link-local addresses can: the device is found by the route.
fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_broadcast()),
        IpAddr::V6(a) => is_usable6(a),
    }
}

/// A link-local one would need its device beside it.
fn is_usable6(a: Ipv6Addr) -> bool {
    let is_mapped = a.to_ipv4_mapped().is_some();
    !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_unicast_link_local() || is_mapped)
}

/// `Some(None)`: not there; `None`: there, and a mistake.
#[expect(clippy::option_option, reason = "absent and wrong are two things here, and both end at the same `?`")]
fn optional<V, T>(value: Option<&V>, convert: impl FnOnce(&V) -> Option<T>) -> Option<Option<T>> {
    match value {
        Some(value) => convert(value).map(Some),
        None => Some(None),
    }
}

fn parse(text: &Spanned<String>) -> Option<IpAddr> {
    text.get_ref().parse().ok()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let (pairs, []) = digits.as_deref()?.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
