//! The file as it is written: shapes and types, no meaning yet. Every value carries its place, for the messages.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) node: Node,
    #[serde(default)]
    pub(super) defaults: Defaults,
    #[serde(default)]
    pub(super) vip: Vec<Vip>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) interface: Spanned<Interfaces>,
    pub(super) outer_source: Option<Spanned<String>>,
    pub(super) outer_source6: Option<Spanned<String>>,
    pub(super) seed: Option<Spanned<String>>,
    pub(super) unmatched: Option<Spanned<String>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Defaults {
    pub(super) interval: Option<Spanned<Span>>,
    pub(super) timeout: Option<Spanned<Span>>,
    pub(super) fast_interval: Option<Spanned<Span>>,
    pub(super) rise: Option<Spanned<Integer>>,
    pub(super) fall: Option<Spanned<Integer>>,
    pub(super) flow_idle: Option<Spanned<Span>>,
    pub(super) all_down: Option<Spanned<String>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vip {
    pub(super) address: Spanned<String>,
    pub(super) protocol: Spanned<String>,
    pub(super) port: Spanned<Integer>,
    pub(super) check: Check,
    pub(super) flow_idle: Option<Spanned<Span>>,
    pub(super) hash: Option<Spanned<String>>,
    pub(super) ring_slots: Option<Spanned<Integer>>,
    pub(super) all_down: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) real: Vec<Real>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    pub(super) kind: Spanned<String>,
    pub(super) port: Option<Spanned<Integer>>,
    pub(super) target: Option<Spanned<String>>,
    pub(super) payload: Option<Spanned<String>>,
    pub(super) expect: Option<Spanned<String>>,
    pub(super) require_reply: Option<Spanned<bool>>,
    pub(super) interval: Option<Spanned<Span>>,
    pub(super) timeout: Option<Spanned<Span>>,
    pub(super) fast_interval: Option<Spanned<Span>>,
    pub(super) rise: Option<Spanned<Integer>>,
    pub(super) fall: Option<Spanned<Integer>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Real {
    pub(super) address: Spanned<String>,
    pub(super) weight: Option<Spanned<Integer>>,
}

/// The keys that `[defaults]` and every check share.
pub(super) struct Clock<'a> {
    pub(super) interval: Option<&'a Spanned<Span>>,
    pub(super) timeout: Option<&'a Spanned<Span>>,
    pub(super) fast_interval: Option<&'a Spanned<Span>>,
    pub(super) rise: Option<&'a Spanned<Integer>>,
    pub(super) fall: Option<&'a Spanned<Integer>>,
}

// serde(flatten) would share them in the types too, but it loses the spans.
macro_rules! has_clock {
    ($($table:ty),+) => { $(
        impl $table {
            pub(super) fn clock(&self) -> Clock<'_> {
                Clock {
                    interval: self.interval.as_ref(),
                    timeout: self.timeout.as_ref(),
                    fast_interval: self.fast_interval.as_ref(),
                    rise: self.rise.as_ref(),
                    fall: self.fall.as_ref(),
                }
            }
        }
    )+ };
}
has_clock!(Defaults, Check);

/// A whole number; its range is a matter of meaning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Integer(pub(super) i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl Visitor<'_> for Numbers {
            type Value = Integer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Integer, E> {
                Ok(Integer(value))
            }
        }
        deserializer.deserialize_i64(Numbers)
    }
}

/// A duration, still text.
#[derive(Debug, Clone)]
pub(super) struct Span(pub(super) String);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl Visitor<'_> for Texts {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"500ms\", \"2s\" or \"15m\"")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Span, E> {
                Ok(Span(value.to_owned()))
            }
        }
        deserializer.deserialize_str(Texts)
    }
}

/// One device name, or a list of them.
#[derive(Debug)]
pub(super) struct Interfaces(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Interfaces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Interfaces;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a device name or a list of them")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Interfaces, E> {
                Ok(Interfaces(vec![value.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Interfaces, A::Error> {
                let mut all = Vec::new();
                while let Some(name) = names.next_element()? {
                    all.push(name);
                }
                Ok(Interfaces(all))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}
