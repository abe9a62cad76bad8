//! Announcing VIPs: the section `[announce]`, and the key `announce` of VIPs.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use hc_prober::config::{
    Mistakes, optional,
    value::{Integer, Span},
};
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

const HOLD_DOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_mins(10);
/// systemd kills who does not end within 90 seconds, unless it is told otherwise.
const LINGER: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_mins(1);
/// Below are the kernel's own and those of addresses and `ip route`: `RTPROT_STATIC` is 4.
const PROTOCOLS: RangeInclusive<u8> = 5..=u8::MAX;
/// Consulted by rules that every kernel has: `default`, `main`, `local`.
const CONSULTED: RangeInclusive<u32> = 253..=255;

/// How what is to be announced is (`[announce]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announce {
    table: u32,
    protocol: u8,
    hold_down: Duration,
    linger: Duration,
}

impl Default for Announce {
    fn default() -> Self {
        Self { table: 199, protocol: 199, hold_down: Duration::from_secs(5), linger: Duration::from_secs(1) }
    }
}

impl Announce {
    /// With this table and protocol number, and all else as it is by default; `None` if a configuration may not have them:
    /// the table is one that the kernel's rules consult, or the number one that the kernel or `ip route` uses.
    #[must_use]
    pub fn with(table: u32, protocol: u8) -> Option<Self> {
        let fit = table != 0 && !CONSULTED.contains(&table) && PROTOCOLS.contains(&protocol);
        fit.then(|| Self { table, protocol, ..Self::default() })
    }

    /// The routing table that the routes are in: none that a rule consults.
    #[must_use]
    pub fn table(self) -> u32 {
        self.table
    }

    /// Their protocol number (`rtm_protocol`), which tells them from those of others: 5 to 255.
    #[must_use]
    pub fn protocol(self) -> u8 {
        self.protocol
    }

    /// So long a VIP must be able to serve, after it was not, before it is announced again; up to 10 minutes.
    #[must_use]
    pub fn hold_down(self) -> Duration {
        self.hold_down
    }

    /// So long packets still find the data plane after the routes are withdrawn, when the daemon ends; up to a minute.
    #[must_use]
    pub fn linger(self) -> Duration {
        self.linger
    }

    /// The keys whose values differ.
    pub(super) fn differences(self, new: Self) -> impl Iterator<Item = &'static str> {
        let keys = [
            ("table", self.table != new.table),
            ("protocol", self.protocol != new.protocol),
            ("hold_down", self.hold_down != new.hold_down),
            ("linger", self.linger != new.linger),
        ];
        keys.into_iter().filter_map(|(key, changed)| changed.then_some(key))
    }
}

/// By what a VIP's address is announced while it can serve (`announce`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnnounceBy {
    /// A host route, for routing daemons to read.
    pub route: bool,
    /// Answers to ARP requests and neighbour solicitations, on a node that is active.
    pub arp: bool,
}

#[derive(Clone, Copy)]
enum Way {
    Route,
    Arp,
}

/// `[announce]` as it is written.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    table: Option<Spanned<Integer>>,
    protocol: Option<Spanned<Integer>>,
    hold_down: Option<Spanned<Span>>,
    linger: Option<Spanned<Span>>,
}

impl Section {
    /// `None` when a mistake was added.
    pub(super) fn read(&self, mistakes: &mut Mistakes) -> Option<Announce> {
        let base = Announce::default();
        let table = optional(self.table.as_ref(), |table| number(mistakes, table));
        let protocol =
            optional(self.protocol.as_ref(), |number| mistakes.integer("protocol", number, PROTOCOLS.clone()));
        let hold_down = optional(self.hold_down.as_ref(), |span| mistakes.duration("hold_down", span, &HOLD_DOWN));
        let linger = optional(self.linger.as_ref(), |span| mistakes.duration("linger", span, &LINGER));
        Some(Announce {
            table: table?.unwrap_or(base.table),
            protocol: protocol?.unwrap_or(base.protocol),
            hold_down: hold_down?.unwrap_or(base.hold_down),
            linger: linger?.unwrap_or(base.linger),
        })
    }
}

fn number(mistakes: &mut Mistakes, table: &Spanned<Integer>) -> Option<u32> {
    let number = mistakes.integer("table", table, 1..=u32::MAX)?;
    if CONSULTED.contains(&number) {
        let message = format!(
            "`table` {number} is one that the kernel's rules consult, where the routes would take traffic: allowed are 1 to 252 \
             and from 256"
        );
        return mistakes.add(table.span(), message);
    }
    Some(number)
}

/// `announce` as it is written.
#[derive(Debug)]
pub(super) struct Ways(Vec<Spanned<String>>);

impl Ways {
    /// `None` when a mistake was added.
    pub(super) fn read(&self, mistakes: &mut Mistakes) -> Option<AnnounceBy> {
        let mut by = AnnounceBy::default();
        let mut all = true;
        for way in &self.0 {
            match mistakes.word("announce", way, &[("route", Way::Route), ("arp", Way::Arp)]) {
                Some(Way::Route) => by.route = true,
                Some(Way::Arp) => by.arp = true,
                None => all = false,
            }
        }
        all.then_some(by)
    }
}

impl<'de> Deserialize<'de> for Ways {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = Ways;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list: [\"route\"], [\"arp\"], both, or [] for none")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<Ways, A::Error> {
                let mut all = Vec::new();
                while let Some(word) = words.next_element()? {
                    all.push(word);
                }
                Ok(Ways(all))
            }
        }
        deserializer.deserialize_any(Words)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(announce: &str, vip: &str) -> Result<Config, String> {
        let text = format!(
            "[node]\ninterface = \"eth0\"\n[announce]\n{announce}\n[defaults]\nannounce = [\"route\"]\n[[vip]]\naddress = \
             \"198.19.10.1\"\nprotocol = \"tcp\"\nport = 80\ncheck.kind = \"tcp\"\n{vip}\n[[vip.real]]\naddress = \"198.18.1.1\"\n"
        );
        Config::parse("lbd.toml", &text).map_err(|error| error.to_string())
    }

    #[test]
    fn parse_announce_takes_what_is_written_and_has_defaults_for_the_rest() {
        let config = parse("", "").unwrap();
        assert_eq!(config.announce(), Announce::default());
        assert!(config.vips().iter().all(|vip| vip.announce_by().route), "[defaults] holds for every VIP");
        let new = parse("table = 1000\nprotocol = 201\nhold_down = \"0s\"\nlinger = \"3s\"", "announce = []").unwrap();
        let announce = new.announce();
        assert_eq!((announce.table(), announce.protocol()), (1000, 201));
        assert_eq!((announce.hold_down(), announce.linger()), (Duration::ZERO, Duration::from_secs(3)));
        assert!(new.vips().iter().all(|vip| vip.announce_by() == AnnounceBy::default()));
        let arp = parse("", "announce = [\"arp\"]").unwrap();
        assert!(arp.vips().iter().all(|vip| vip.announce_by() == AnnounceBy { route: false, arp: true }));
        let changes: Vec<_> = Config::diff(&config, &new).iter().map(ToString::to_string).collect();
        let announced = ["table", "protocol", "hold_down", "linger"].map(|key| format!("~ announce: {key} changed"));
        assert_eq!(changes, [&announced[..], &["~ vip 198.19.10.1:80/tcp: announce changed".to_owned()]].concat());
    }

    #[test]
    fn table_and_protocol_alone_are_those_that_a_configuration_may_have() {
        assert_eq!(Announce::with(199, 199), Some(Announce::default()));
        for (table, protocol) in [(0, 199), (254, 199), (199, 4)] {
            assert_eq!(Announce::with(table, protocol), None);
        }
    }

    #[test]
    fn parse_announce_that_cannot_be_is_refused_with_what_is_allowed() {
        for (announce, vip, said) in [
            ("table = 254", "", "4:9: `table` 254 is one that the kernel's rules consult"),
            ("table = 0", "", "4:9: `table` 0 is out of range: allowed is 1..=4294967295"),
            ("protocol = 4", "", "4:12: `protocol` 4 is out of range: allowed is 5..=255"),
            ("hold_down = \"11m\"", "", "4:13: `hold_down` \"11m\" is out of range: allowed is 0s to 10m"),
            ("linger = \"61s\"", "", "4:10: `linger` \"61s\" is out of range: allowed is 0s to 1m"),
            ("tabel = 1", "", "4:1: unknown field `tabel`"),
            ("", "announce = [\"ospf\"]", "12:13: `announce` \"ospf\" is not known: allowed is \"route\" or \"arp\""),
            (
                "",
                "announce = \"route\"",
                "12:12: invalid type: string \"route\", expected a list: [\"route\"], [\"arp\"], both, or []",
            ),
        ] {
            let report = parse(announce, vip).unwrap_err();
            assert!(report.starts_with(&format!("lbd.toml:{said}")), "{report}");
        }
    }
}
