//! A check: its table in the file, and what it means.

use std::{
    net::IpAddr,
    num::NonZeroU8,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Mistake, Mistakes, optional,
    value::{Integer, OneOrMany, Span},
};
use crate::{
    check::{CheckKey, Kind, Timing},
    named::{Named, Query, QueryType},
};

const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_mins(1);
const COUNT: RangeInclusive<u32> = 1..=255;

/// What a check asks of each real.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What is sent.
    pub kind: Kind,
    /// The destination of the inner packet, of the VIP's family; `None`: the VIP.
    pub target: Option<IpAddr>,
    /// TTL or hop limit of the inner packet.
    pub hops: NonZeroU8,
}

impl Spec {
    /// The check of a real of this VIP.
    #[must_use]
    pub fn key(&self, real: IpAddr, vip: IpAddr) -> CheckKey {
        CheckKey { real, target: self.target.unwrap_or(vip), hops: self.hops, kind: self.kind.clone() }
    }
}

/// A check as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// `icmp`, `tcp` or `udp`.
    pub kind: Spanned<String>,
    /// The destination port; absent: the VIP's.
    pub port: Option<Spanned<Integer>>,
    /// The inner destination; absent: the VIP.
    pub target: Option<Spanned<String>>,
    /// The inner packet's TTL or hop limit; absent: 1.
    pub hops: Option<Spanned<Integer>>,
    /// UDP: what to send, hexadecimal.
    pub payload: Option<Spanned<String>>,
    /// The same as text.
    pub payload_text: Option<Spanned<String>>,
    /// UDP: how a right reply begins, hexadecimal.
    pub expect: Option<Spanned<String>>,
    /// The same as text.
    pub expect_text: Option<Spanned<String>>,
    /// UDP: `dns` or `ntp`, whose payload and right replies the prober knows.
    pub probe: Option<Spanned<String>>,
    /// DNS: the name to ask for.
    pub query: Option<Spanned<String>>,
    /// DNS: the type of record to ask for; absent: A.
    pub query_type: Option<Spanned<String>>,
    /// UDP: silence means down.
    pub require_reply: Option<Spanned<bool>>,
    /// See [`Clock`].
    pub interval: Option<Spanned<Span>>,
    /// See [`Clock`].
    pub timeout: Option<Spanned<Span>>,
    /// See [`Clock`].
    pub fast_interval: Option<Spanned<Span>>,
    /// See [`Clock`].
    pub rise: Option<Spanned<Integer>>,
    /// See [`Clock`].
    pub fall: Option<Spanned<Integer>>,
}

/// The keys that `[defaults]` and every check share.
///
/// `serde(flatten)` would share them in the types too, but it loses the places.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    /// From one probe to the next, before jitter.
    pub interval: Option<&'a Spanned<Span>>,
    /// How long an answer may take.
    pub timeout: Option<&'a Spanned<Span>>,
    /// From one probe to the next while a verdict is pending.
    pub fast_interval: Option<&'a Spanned<Span>>,
    /// Passes in a row that make UP.
    pub rise: Option<&'a Spanned<Integer>>,
    /// Failures in a row that make DOWN.
    pub fall: Option<&'a Spanned<Integer>>,
}

/// A key, and where it is, if it is.
type Key = (&'static str, Option<Range<usize>>);

impl Table {
    /// What the sender of a datagram decides, where the prober does not know the service's language.
    fn datagram_keys(&self) -> [Key; 5] {
        [
            ("payload", self.payload.as_ref().map(Spanned::span)),
            ("payload_text", self.payload_text.as_ref().map(Spanned::span)),
            ("expect", self.expect.as_ref().map(Spanned::span)),
            ("expect_text", self.expect_text.as_ref().map(Spanned::span)),
            ("require_reply", self.require_reply.as_ref().map(Spanned::span)),
        ]
    }

    fn dns_keys(&self) -> [Key; 2] {
        [("query", self.query.as_ref().map(Spanned::span)), ("query_type", self.query_type.as_ref().map(Spanned::span))]
    }

    /// Its own clock.
    #[must_use]
    pub fn clock(&self) -> Clock<'_> {
        Clock {
            interval: self.interval.as_ref(),
            timeout: self.timeout.as_ref(),
            fast_interval: self.fast_interval.as_ref(),
            rise: self.rise.as_ref(),
            fall: self.fall.as_ref(),
        }
    }
}

impl Mistakes {
    /// What each real of a VIP with this port and address is asked: one check or several, all of which must pass. What a
    /// check's clock does not name is as in `base`.
    pub fn checks(
        &mut self,
        written: &Spanned<OneOrMany<Table>>,
        port: Option<u16>,
        vip: Option<IpAddr>,
        base: Timing,
    ) -> Option<Vec<(Spec, Timing)>> {
        let OneOrMany(tables) = written.get_ref();
        if tables.is_empty() {
            return self.add(written.span(), "`check` is empty: give it at least one");
        }
        let mut checks = Vec::with_capacity(tables.len());
        for table in tables {
            let spec = self.check(table, port, vip);
            checks.extend(spec.zip(self.timing(&table.clock(), base)));
        }
        (checks.len() == tables.len()).then_some(checks)
    }

    /// Neither port nor address is given where it was itself a mistake.
    fn check(&mut self, check: &Table, vip_port: Option<u16>, vip: Option<IpAddr>) -> Option<Spec> {
        let target = optional(check.target.as_ref(), |target| self.target(target, vip));
        let hops = optional(check.hops.as_ref(), |hops| self.integer("hops", hops, 1..=u8::MAX));
        let kind = match check.kind.get_ref().as_str() {
            "icmp" => self.icmp(check),
            "tcp" => self.tcp(check, vip_port),
            "udp" => self.udp(check, vip_port),
            other => self.add(
                check.kind.span(),
                format!("`kind` {other:?} is not a kind of check: allowed are \"icmp\", \"tcp\" and \"udp\""),
            ),
        };
        let hops = hops?.and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN);
        Some(Spec { kind: kind?, target: target?, hops })
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

    fn icmp(&mut self, check: &Table) -> Option<Kind> {
        if let Some(port) = &check.port {
            return self.add(port.span(), "an icmp check has no port: remove `port`, or use `kind` \"tcp\" or \"udp\"");
        }
        self.no_udp_keys(check).then_some(Kind::Icmp)
    }

    fn tcp(&mut self, check: &Table, vip_port: Option<u16>) -> Option<Kind> {
        let port = self.check_port(check, vip_port);
        let clean = self.no_udp_keys(check);
        port.filter(|_| clean).map(|port| Kind::Tcp { port })
    }

    fn udp(&mut self, check: &Table, vip_port: Option<u16>) -> Option<Kind> {
        let port = self.check_port(check, vip_port);
        if let Some(probe) = &check.probe {
            let probe = self.named(check, probe);
            return Some(Kind::Named { port: port?, probe: probe? });
        }
        let clean = self.no_keys(check.dns_keys(), "belongs to a check with `probe` \"dns\"");
        let payload = self.bytes_or_text("payload", check.payload.as_ref(), check.payload_text.as_ref());
        let expect = self.bytes_or_text("expect", check.expect.as_ref(), check.expect_text.as_ref());
        let require_reply = check.require_reply.as_ref().is_some_and(|require| *require.get_ref());
        let (payload, expect) = (payload?, Some(expect?).filter(|expect| !expect.is_empty()));
        clean.then_some(Kind::Udp { port: port?, payload, expect, require_reply })
    }

    fn named(&mut self, check: &Table, probe: &Spanned<String>) -> Option<Named> {
        let word = probe.get_ref();
        let clean = self.no_keys(check.datagram_keys(), &format!("is {word}'s own affair: remove it, or `probe`"));
        let named = match word.as_str() {
            "dns" => self.query(check, probe).map(Named::Dns),
            "ntp" => {
                let clean = self.no_keys(check.dns_keys(), "belongs to a check with `probe` \"dns\"");
                clean.then_some(Named::Ntp)
            }
            _ => self.add(probe.span(), format!("`probe` {word:?} is not known: allowed is \"dns\" or \"ntp\"")),
        };
        named.filter(|_| clean)
    }

    fn query(&mut self, check: &Table, probe: &Spanned<String>) -> Option<Query> {
        let kind = optional(check.query_type.as_ref(), |word| self.word("query_type", word, &QueryType::ALL));
        let Some(name) = &check.query else {
            return self
                .add(probe.span(), "`probe` \"dns\" needs a `query`: the name to ask for, such as \"example.org\"");
        };
        match Query::new(name.get_ref(), kind?.unwrap_or_default()) {
            Some(query) => Some(query),
            None => self.add(name.span(), format!("`query` {:?} is not a domain name", name.get_ref())),
        }
    }

    /// Bytes under `key`, or their text under `key_text`; none if there is neither, since what is there is not empty.
    fn bytes_or_text(
        &mut self,
        key: &str,
        bytes: Option<&Spanned<String>>,
        text: Option<&Spanned<String>>,
    ) -> Option<Vec<u8>> {
        let text_key = format!("{key}_text");
        match (bytes, text) {
            (Some(_), Some(text)) => {
                self.add(text.span(), format!("`{text_key}` and `{key}` say the same: only one of them is allowed"))
            }
            (Some(bytes), None) => self.bytes(key, bytes),
            (None, Some(text)) => self.text(&text_key, text),
            (None, None) => Some(Vec::new()),
        }
    }

    /// The check's own port, else the VIP's. Nothing is said about a VIP port that was itself a mistake.
    fn check_port(&mut self, check: &Table, vip_port: Option<u16>) -> Option<u16> {
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
    fn no_udp_keys(&mut self, check: &Table) -> bool {
        let probe = ("probe", check.probe.as_ref().map(Spanned::span));
        let keys = check.datagram_keys().into_iter().chain(check.dns_keys()).chain([probe]);
        self.no_keys(keys, &format!("belongs to a udp check; this one is {}", check.kind.get_ref()))
    }

    /// Whether these keys are absent; of each that is there, `complaint` says what is wrong with it.
    fn no_keys(&mut self, keys: impl IntoIterator<Item = Key>, complaint: &str) -> bool {
        let stray = keys.into_iter().filter_map(|(key, span)| Some((key, span?)));
        let before = self.0.len();
        self.0.extend(stray.map(|(key, span)| Mistake::new(span, format!("`{key}` {complaint}"))));
        self.0.len() == before
    }

    /// When a check asks; what the clock does not name is as in `base`.
    pub fn timing(&mut self, clock: &Clock<'_>, base: Timing) -> Option<Timing> {
        let interval = optional(clock.interval, |span| self.duration("interval", span, &INTERVAL));
        let timeout = optional(clock.timeout, |span| self.duration("timeout", span, &TIMEOUT));
        let rise = optional(clock.rise, |count| self.integer("rise", count, COUNT));
        let fall = optional(clock.fall, |count| self.integer("fall", count, COUNT));

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
}
