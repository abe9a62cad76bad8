//! The file as it is written: shapes and types, no meaning yet. Every value carries its place, for the messages.

use hc_prober::config::{
    check::{Clock, Table as Check},
    value::{Integer, Interfaces, OneOrMany, Span},
};
use toml::Spanned;

pub(super) use super::announce::{Section as Announce, Ways};
use super::policy::{Amount, Settings};

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) node: Node,
    #[serde(default)]
    pub(super) announce: Announce,
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
    pub(super) tracked_flows: Option<Spanned<Integer>>,
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
    pub(super) min_healthy: Option<Spanned<Amount>>,
    pub(super) hold_down: Option<Spanned<Span>>,
    pub(super) hold_down_max: Option<Spanned<Span>>,
    pub(super) flap_limit: Option<Spanned<Integer>>,
    pub(super) flap_window: Option<Spanned<Span>>,
    pub(super) slow_start: Option<Spanned<Span>>,
    pub(super) announce: Option<Ways>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vip {
    pub(super) address: Spanned<String>,
    pub(super) protocol: Spanned<String>,
    pub(super) port: Spanned<Integer>,
    pub(super) check: Spanned<OneOrMany<Check>>,
    pub(super) flow_idle: Option<Spanned<Span>>,
    pub(super) hash: Option<Spanned<String>>,
    pub(super) ring_slots: Option<Spanned<Integer>>,
    pub(super) all_down: Option<Spanned<String>>,
    pub(super) min_healthy: Option<Spanned<Amount>>,
    pub(super) hold_down: Option<Spanned<Span>>,
    pub(super) hold_down_max: Option<Spanned<Span>>,
    pub(super) flap_limit: Option<Spanned<Integer>>,
    pub(super) flap_window: Option<Spanned<Span>>,
    pub(super) slow_start: Option<Spanned<Span>>,
    pub(super) announce: Option<Ways>,
    #[serde(default)]
    pub(super) real: Vec<Real>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Real {
    pub(super) address: Spanned<String>,
    pub(super) weight: Option<Spanned<Integer>>,
}

impl Vip {
    pub(super) fn policy(&self) -> Settings<'_> {
        Settings {
            min_healthy: self.min_healthy.as_ref(),
            hold_down: self.hold_down.as_ref(),
            hold_down_max: self.hold_down_max.as_ref(),
            flap_limit: self.flap_limit.as_ref(),
            flap_window: self.flap_window.as_ref(),
            slow_start: self.slow_start.as_ref(),
        }
    }
}

impl Defaults {
    pub(super) fn policy(&self) -> Settings<'_> {
        Settings {
            min_healthy: self.min_healthy.as_ref(),
            hold_down: self.hold_down.as_ref(),
            hold_down_max: self.hold_down_max.as_ref(),
            flap_limit: self.flap_limit.as_ref(),
            flap_window: self.flap_window.as_ref(),
            slow_start: self.slow_start.as_ref(),
        }
    }

    /// The clock of checks that have none of their own.
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
