//! What the prober has found out: the answers it gives.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Serialize, Serializer};

use crate::{check::CheckKey, lag::Lag, rtt::Rtts};

/// The verdict on a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// No verdict yet.
    #[default]
    Init,
    /// `rise` passes in a row.
    Up,
    /// `fall` failures in a row, and how bad the last of them were.
    Down(Severity),
}

/// How a check is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The host, its decapsulation or the VIP is gone: established flows are dead.
    Hard,
    /// Only the port is closed or answers wrongly: no new flows, established ones may finish.
    Soft,
}

impl State {
    /// Of several checks that must all pass, the verdict of the highest gravity counts: down hard, down soft, no verdict yet,
    /// up.
    #[must_use]
    pub fn gravity(self) -> u8 {
        match self {
            Self::Up => 0,
            Self::Init => 1,
            Self::Down(Severity::Soft) => 2,
            Self::Down(Severity::Hard) => 3,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Init => "INIT",
            Self::Up => "UP",
            Self::Down(_) => "DOWN",
        })
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a check is in its state: a stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Reason {
    /// `INIT`: has not run yet.
    #[default]
    Init,
    /// `L3OK`: the target answered an echo request.
    L3Ok,
    /// `L4OK`: the port answered.
    L4Ok,
    /// `PORT_CLOSED`: RST, or port unreachable from the target.
    PortClosed,
    /// `TIMEOUT`: no answer in time.
    Timeout,
    /// `UNREACHABLE`: an ICMP error about the inner packet.
    Unreachable,
    /// `MISMATCH`: an answer, but not the expected one.
    Mismatch,
    /// `SILENT`: silence that proves nothing (only of a single probe).
    Silent,
    /// `NOT_SENT`: the probe could not be sent; the fault is on our side (only of a single probe).
    NotSent,
}

impl Reason {
    /// The code as it is printed.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Init => "INIT",
            Self::L3Ok => "L3OK",
            Self::L4Ok => "L4OK",
            Self::PortClosed => "PORT_CLOSED",
            Self::Timeout => "TIMEOUT",
            Self::Unreachable => "UNREACHABLE",
            Self::Mismatch => "MISMATCH",
            Self::Silent => "SILENT",
            Self::NotSent => "NOT_SENT",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

/// Where a check stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckStatus {
    /// Which check.
    pub key: CheckKey,
    /// The verdict.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// The evidence behind the last failure, for people.
    pub detail: Option<String>,
    /// When the check entered this state.
    pub since: SystemTime,
    /// When a probe was last sent; `None`: has not run yet.
    pub last_run: Option<SystemTime>,
    /// From the last probe that has a result to its answer; `None`: it had none.
    pub rtt: Option<Duration>,
    /// The same of the last 65 to 128 probes that were answered; `None`: none was.
    pub rtts: Option<Rtts>,
    /// Passes in a row up to now.
    pub rise: u32,
    /// Failures in a row up to now.
    pub fall: u32,
}

/// A verdict has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Which check.
    pub key: CheckKey,
    /// The verdict until now.
    pub from: State,
    /// The verdict from now on.
    pub to: State,
    /// Why.
    pub reason: Reason,
    /// The evidence, for people.
    pub detail: Option<String>,
    /// From the probe that changed it to its answer; `None`: it had none.
    pub rtt: Option<Duration>,
    /// When it changed.
    pub at: SystemTime,
}

/// What has happened since the start. Every captured packet is counted in one of the lower group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Probes handed to the kernel.
    pub sent: u64,
    /// RSTs sent through the tunnel in answer to SYN-ACKs, repeated ones included.
    pub resets: u64,
    /// Packets that the kernel refused to send.
    pub send_errors: u64,
    /// Probes that found no free source port.
    pub no_port: u64,

    /// Probes that passed.
    pub passed: u64,
    /// Probes that met a closed port.
    pub port_closed: u64,
    /// Probes that brought an ICMP error about the inner packet.
    pub unreachable: u64,
    /// Probes without an answer in time, where that means failure.
    pub timeout: u64,
    /// Probes with a wrong answer.
    pub mismatch: u64,
    /// Probes that prove nothing: silence that is allowed, or not sent.
    pub unknown: u64,

    /// Packets that the capture handed up.
    pub captured: u64,
    /// Packets that claim to answer a probe and do not prove it. They change nothing.
    pub forged: u64,
    /// Genuine answers to a probe that already had its result. They change nothing.
    pub late: u64,
    /// SYN-ACKs of a connection that had already been reset: that RST was lost.
    pub repeated: u64,
    /// Genuine packets that prove nothing by themselves (a challenge ACK).
    pub neutral: u64,
    /// ICMP errors about an outer packet, or about the echo request alongside a UDP probe: evidence, never a verdict.
    pub evidence: u64,
    /// Captured packets that could not be parsed.
    pub malformed: u64,
    /// Packets that the capture had to leave to the kernel because the ring was full.
    pub ring_full: u64,
    /// How late probes left, compared with their schedule.
    #[serde(flatten)]
    pub lag: Lag,
}
