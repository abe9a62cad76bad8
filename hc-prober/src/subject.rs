//! One check under way: its probes that await results, and its verdict.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
    time::Duration,
};

use crate::{
    batch::ProbeId,
    check::{Check, Kind},
    ends::Ends,
    finding::{Detail, Finding},
    ration::{Ration, Silence},
    report::{Reason, Severity, State},
    rtt::Window,
    settings::OuterSource,
    state::{Event, Limits, Machine},
    time::Monotonic,
};

/// The tunnel to a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// Outer headers are IPv4.
    V4 {
        /// What they have as their source.
        source: OuterSource,
        /// The real.
        real: Ipv4Addr,
    },
    /// Outer headers are IPv6.
    V6 {
        /// What they have as their source.
        source: Ipv6Addr,
        /// The real.
        real: Ipv6Addr,
    },
}

impl Tunnel {
    /// Destination of the outer header.
    #[must_use]
    pub fn real(&self) -> IpAddr {
        match *self {
            Self::V4 { real, .. } => real.into(),
            Self::V6 { real, .. } => real.into(),
        }
    }

    /// The outer addresses whose turn it is the `n`th time; turn 0 is that of a prefix's first address.
    #[must_use]
    pub fn ends(&self, n: u32) -> Ends {
        match *self {
            Self::V4 { source, real } => Ends::V4 { source: source.turn(n), destination: real },
            Self::V6 { source, real } => Ends::V6 { source, destination: real },
        }
    }
}

/// The addresses of a check's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Outside; `None`: there is no tunnel.
    pub tunnel: Option<Tunnel>,
    /// Inside: from us to the target.
    pub inner: Ends,
    /// TTL or hop limit inside.
    pub hops: NonZeroU8,
}

impl Path {
    /// The outer addresses of a probe. The sources take turns: each probe of a check has the one after its predecessor's,
    /// and each check begins with the one after its predecessor's.
    #[must_use]
    pub fn outer(&self, probe: ProbeId) -> Option<Ends> {
        self.tunnel.map(|tunnel| tunnel.ends(probe.check.wrapping_add(probe.serial)))
    }

    /// Where the outermost header goes.
    #[must_use]
    pub fn real(&self) -> IpAddr {
        self.tunnel.map_or(self.inner.destination(), |tunnel| tunnel.real())
    }
}

/// A probe without a result that counts yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    sent_at: Monotonic,
    /// The echo request alongside was answered.
    echoed: bool,
    /// An ICMP error about that echo request.
    hint: Option<Detail>,
    /// A datagram came that is not the expected one.
    mismatched: bool,
    result: Option<Finding>,
}

/// A verdict that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Until now.
    pub from: State,
    /// From now on.
    pub to: State,
    /// Why.
    pub reason: Reason,
    /// The evidence.
    pub detail: Option<Detail>,
    /// From the probe that changed it to its answer; `None`: it had none.
    pub rtt: Option<Duration>,
    /// When.
    pub at: Monotonic,
}

/// A check under way.
#[derive(Debug)]
pub struct Subject {
    /// What is checked, and when.
    pub check: Check,
    /// Where its packets go, or why they cannot.
    pub path: Result<Path, Detail>,
    /// The verdict.
    pub machine: Machine,
    /// Why the verdict is what it is.
    pub reason: Reason,
    /// The evidence behind the last failure.
    pub detail: Option<Detail>,
    /// When the state was entered.
    pub since: Monotonic,
    /// When a probe was last sent.
    pub last_run: Option<Monotonic>,
    /// The same before the last attempt.
    pub ran_before: Option<Monotonic>,
    /// When it was last tried to send one.
    pub last_attempt: Option<Monotonic>,
    /// From the last probe that has a result to its answer; `None`: it had none.
    pub rtt: Option<Duration>,
    /// The same of the last probes that were answered.
    pub rtts: Window,
    /// When the next probe goes out; `None`: only on demand.
    pub next_at: Option<Monotonic>,
    /// Probes in order of sending; the first one's number is `first`.
    window: VecDeque<Pending>,
    first: u32,
    /// When a UDP probe was last refused.
    refused_at: Option<Monotonic>,
    /// See [`Silence::quiet_since`].
    quiet_since: Monotonic,
}

impl Subject {
    /// A check that has not run yet.
    #[must_use]
    pub fn new(check: Check, path: Result<Path, Detail>, now: Monotonic) -> Self {
        Self {
            check,
            detail: path.as_ref().err().copied(),
            path,
            machine: Machine::default(),
            reason: Reason::Init,
            since: now,
            last_run: None,
            ran_before: None,
            last_attempt: None,
            rtt: None,
            rtts: Window::default(),
            next_at: None,
            window: VecDeque::new(),
            first: 0,
            refused_at: None,
            quiet_since: now,
        }
    }

    /// The number of the next probe.
    #[must_use]
    pub fn next_serial(&self) -> u32 {
        self.first.wrapping_add(u32::try_from(self.window.len()).unwrap_or(u32::MAX))
    }

    /// Probes that await a result or their turn.
    #[must_use]
    pub fn awaited(&self) -> usize {
        self.window.len()
    }

    /// Records that probe number [`Self::next_serial`] leaves, or is to.
    pub fn launched(&mut self, now: Monotonic) {
        self.last_attempt = Some(now);
        self.ran_before = self.last_run;
        self.last_run = Some(now);
        if self.window.len() == self.window.capacity() {
            // With each of many checks, one probe at a time is under way.
            self.window.reserve_exact(1 + self.window.len() / 2);
        }
        self.window.push_back(Pending { sent_at: now, echoed: false, hint: None, mismatched: false, result: None });
    }

    /// Whether the probe still awaits its result.
    #[must_use]
    pub fn is_open(&self, serial: u32) -> bool {
        self.pending(serial).is_some_and(|pending| pending.result.is_none())
    }

    /// When the probe was sent, if it still awaits its result.
    #[must_use]
    pub fn sent_at(&self, serial: u32) -> Option<Monotonic> {
        self.pending(serial).filter(|pending| pending.result.is_none()).map(|pending| pending.sent_at)
    }

    /// The echo request that went alongside the probe was answered.
    pub fn echoed(&mut self, serial: u32) {
        if let Some(pending) = self.pending_mut(serial) {
            pending.echoed = true;
        }
    }

    /// An error came for the echo request that went alongside the probe: evidence, should the probe fail.
    pub fn hinted(&mut self, serial: u32, hint: Detail) {
        if let Some(pending) = self.pending_mut(serial) {
            pending.hint = Some(hint);
        }
    }

    /// An unexpected datagram came for the probe. Anybody who guesses the port can send one: the right one may still come.
    pub fn mismatched(&mut self, serial: u32) {
        if let Some(pending) = self.pending_mut(serial) {
            pending.mismatched = true;
        }
    }

    /// What it means that the probe got no (right) answer in time; `evidence`: what is known about its real; `ration`: of the real.
    #[must_use]
    pub fn silence(&self, serial: u32, now: Monotonic, evidence: Option<Detail>, ration: Option<&Ration>) -> Finding {
        let pending = self.pending(serial);
        let evidence = pending.and_then(|pending| pending.hint).or(evidence);
        let timeout = Finding::fail(Severity::Hard, Reason::Timeout, evidence);
        match (&self.check.key.kind, pending) {
            (_, Some(Pending { mismatched: true, .. })) => Finding::fail(Severity::Soft, Reason::Mismatch, None),
            (Kind::Udp { require_reply: false, .. }, Some(Pending { echoed: true, sent_at, .. })) => {
                let Self { refused_at, quiet_since, .. } = *self;
                let interval = self.check.timing.interval;
                let silence = Silence { sent_at: *sent_at, now, refused_at, quiet_since, interval };
                if ration.is_none_or(|ration| ration.proves_open(&silence)) {
                    Finding::pass(Reason::L3Ok)
                } else {
                    Finding::unknown(Reason::Silent, None)
                }
            }
            (Kind::Icmp | Kind::Tcp { .. } | Kind::Udp { .. } | Kind::Named { .. }, _) => timeout,
        }
    }

    /// Records a probe's result and counts all results that now have their turn. A result counts once, after all those of
    /// earlier probes. False: the probe had its result already.
    pub fn resolve(&mut self, serial: u32, finding: Finding, now: Monotonic, changes: &mut Vec<Change>) -> bool {
        match self.pending_mut(serial) {
            Some(pending) if pending.result.is_none() => pending.result = Some(finding),
            Some(_) | None => return false,
        }
        while let Some(finding) = self.window.front().and_then(|pending| pending.result) {
            self.window.pop_front();
            self.first = self.first.wrapping_add(1);
            changes.extend(self.count(finding, now));
        }
        true
    }

    fn count(&mut self, finding: Finding, now: Monotonic) -> Option<Change> {
        let from = self.machine.state;
        self.machine = self.machine.step(finding.event, self.limits());
        let to = self.machine.state;
        self.rtt = finding.rtt;
        if let Some(rtt) = finding.rtt {
            self.rtts.record(rtt);
        }
        match finding.event {
            Event::Pass => self.detail = self.detail.filter(|_| to != State::Up),
            Event::Fail(_) => self.detail = finding.detail,
            Event::Unknown => self.detail = finding.detail.or(self.detail),
        }
        if finding.reason == Reason::PortClosed {
            self.refused_at = Some(now);
        }
        if finding.event != Event::Pass && finding.reason != Reason::Silent {
            self.quiet_since = now;
        }
        match (to, finding.event) {
            (State::Up, Event::Pass) | (State::Down(_), Event::Fail(_)) => self.reason = finding.reason,
            (State::Init, _) | (State::Up, Event::Fail(_)) | (State::Down(_), Event::Pass) | (_, Event::Unknown) => {}
        }
        if from == to {
            return None;
        }
        self.since = now;
        Some(Change { from, to, reason: self.reason, detail: self.detail, rtt: finding.rtt, at: now })
    }

    fn limits(&self) -> Limits {
        Limits { rise: self.check.timing.rise, fall: self.check.timing.fall }
    }

    fn pending(&self, serial: u32) -> Option<&Pending> {
        self.window.get(usize::try_from(serial.wrapping_sub(self.first)).ok()?)
    }

    fn pending_mut(&mut self, serial: u32) -> Option<&mut Pending> {
        self.window.get_mut(usize::try_from(serial.wrapping_sub(self.first)).ok()?)
    }
}
