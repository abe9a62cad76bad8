//! The JSON contract of what is told about one real: its checks, and what became of them.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Finding, Health, RealRow};
use crate::config::{Protocol, VipKey};

/// The question of `GET /v1/reals/history`: whose history, if not everybody's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuestion {
    /// The real's address; absent: all.
    pub real: Option<IpAddr>,
    /// The VIP's address; absent: any.
    pub vip: Option<IpAddr>,
    /// The VIP's port; absent: any.
    pub port: Option<u16>,
}

/// `GET /v1/reals/history`: one change of one check of one real of one VIP, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// When it changed.
    pub at: Timestamp,
    /// The VIP's address.
    pub vip: IpAddr,
    /// The VIP's protocol.
    pub protocol: Protocol,
    /// The VIP's port; 0: all.
    pub port: u16,
    /// The real's address.
    pub real: IpAddr,
    /// The check, for people.
    pub check: String,
    /// Its verdict before.
    pub before: Health,
    /// Its verdict from then on.
    pub after: Health,
    /// How it is down from then on.
    pub severity: Option<Severity>,
    /// The code of the result that changed it.
    pub reason: String,
    /// The evidence, for people.
    pub detail: Option<String>,
    /// From the probe that changed it to its answer, in microseconds; null: it had none.
    pub rtt_us: Option<u64>,
    /// What was found out about it then: the code; null: it is not DOWN, or nothing was found out before it changed again.
    pub why: Option<String>,
}

/// The question of `GET /v1/reals/trace?real=…`: whose packets, and how long to wait for some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceQuestion {
    /// The real's address.
    pub real: IpAddr,
    /// The VIP's address; absent: any.
    pub vip: Option<IpAddr>,
    /// The VIP's port; absent: any.
    pub port: Option<u16>,
    /// How long packets are taken before the answer, in milliseconds, at most [`TraceQuestion::MOST_WAIT_MS`]; absent: the
    /// answer has only what there is already.
    pub wait_ms: Option<u64>,
}

impl TraceQuestion {
    /// Well within what the API gives an answer.
    pub const MOST_WAIT_MS: u64 = 20_000;
}

/// How a check is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Host, decapsulation or VIP are gone.
    Hard,
    /// Only the port is.
    Soft,
}

/// `GET /v1/reals/show`: one real of one VIP, with all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RealDetail {
    /// What `GET /v1/reals` tells.
    #[serde(flatten)]
    pub row: RealRow,
    /// Its checks, in the order of the configuration; all must pass.
    pub checks: Vec<CheckRow>,
    /// What was found out last about the check that decides; null while it is not DOWN, and until that is known.
    pub finding: Option<Finding>,
}

/// One check of a real.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRow {
    /// What is checked, for people.
    pub check: String,
    /// Its verdict.
    pub state: Health,
    /// How it is down.
    pub severity: Option<Severity>,
    /// The code of the result that its verdict rests on.
    pub reason: String,
    /// The evidence behind the last failure, for people.
    pub detail: Option<String>,
    /// Since when the verdict stands.
    pub since: Timestamp,
    /// When the last probe was sent; null before the first.
    pub last_check: Option<Timestamp>,
    /// From the last probe to its answer, in microseconds; null: it had none.
    pub rtt_us: Option<u64>,
    /// The same of the last 65 to 128 probes that were answered; null: none was.
    pub rtts: Option<RttStats>,
    /// Passes in a row, now.
    pub rise: u32,
    /// Failures in a row, now.
    pub fall: u32,
}

/// Times from probes to their answers, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RttStats {
    /// Of so many answers.
    pub count: u32,
    /// The shortest.
    pub min_us: u64,
    /// Their mean.
    pub avg_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl HistoryRow {
    /// The identity of the VIP this row belongs to.
    #[must_use]
    pub fn key(&self) -> VipKey {
        VipKey { address: self.vip, protocol: self.protocol, port: self.port }
    }
}
