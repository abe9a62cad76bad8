//! What is printed: a line of JSON a packet, and a summary.

use super::{capture::Frame, subject::Counted};
use crate::data_plane::{TEST_RUN_FRAME, XdpAction};
use lb_ebpf::counter::Reason;
use serde::Serialize;
use std::{collections::BTreeMap, fmt, net::IpAddr};

/// A packet in a line of JSON. Every key is always there; fields are added, never renamed or removed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    /// The packet's number in the capture, from 1.
    n: u64,
    /// What the program decided; `None`: it was not run.
    verdict: Option<&'static str>,
    /// Why.
    pub(super) reason: &'static str,
    /// The VIP that it was counted for.
    vip: Option<String>,
    /// The real that it was sent to.
    real: Option<IpAddr>,
    /// Why it was not run, for people.
    note: Option<String>,
}

impl Line {
    /// Of a packet that was run.
    pub(super) fn ran(n: u64, action: XdpAction, counted: &Counted) -> Self {
        Self {
            n,
            verdict: Some(action.code()),
            reason: counted.reason.map_or("not_counted", Reason::code),
            vip: counted.vip.map(|vip| vip.to_string()),
            real: counted.real,
            note: None,
        }
    }

    /// Of one that was not.
    pub(super) fn not_run(n: u64, why: &NotRun) -> Self {
        Self { n, verdict: None, reason: why.code(), vip: None, real: None, note: Some(why.to_string()) }
    }
}

/// Why a packet cannot be run. Lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotRun {
    /// The capture has a part of it.
    #[error("{captured} of its {length} bytes were captured (snap length)")]
    CutShort {
        /// What there is.
        captured: usize,
        /// What there was on the wire.
        length: u32,
    },
    /// It has no Ethernet header.
    #[error("{length} bytes, fewer than the {} of an Ethernet header", TEST_RUN_FRAME.start())]
    TooShort {
        /// What there is.
        length: usize,
    },
    /// The kernel does not take it.
    #[error("{length} bytes, more than the {} that the kernel's test run takes", TEST_RUN_FRAME.end())]
    TooLong {
        /// What there is.
        length: usize,
    },
    /// The kernel did not take it after all.
    #[error("{0}")]
    Refused(String),
}

impl NotRun {
    /// What keeps this frame from being run.
    pub(super) fn of(frame: &Frame) -> Option<Self> {
        let length = frame.data.len();
        if length < frame.length as usize {
            Some(Self::CutShort { captured: length, length: frame.length })
        } else if length < *TEST_RUN_FRAME.start() {
            Some(Self::TooShort { length })
        } else if length > *TEST_RUN_FRAME.end() {
            Some(Self::TooLong { length })
        } else {
            None
        }
    }

    /// What it is called where a packet that was run has its reason.
    const fn code(&self) -> &'static str {
        match self {
            Self::CutShort { .. } => "not_run_cut_short",
            Self::TooShort { .. } => "not_run_too_short",
            Self::TooLong { .. } => "not_run_too_long",
            Self::Refused(_) => "not_run_refused",
        }
    }
}

/// How many packets there were, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary(BTreeMap<&'static str, u64>);

impl Summary {
    /// Whether there was no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Counts a packet.
    pub(super) fn add(&mut self, reason: &'static str) {
        *self.0.entry(reason).or_default() += 1;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packets: {}", self.0.values().sum::<u64>())?;
        self.0.iter().try_for_each(|(reason, packets)| write!(f, ", {reason}: {packets}"))
    }
}
