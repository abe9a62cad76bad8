//! Probing on demand, without a thread: one check, a number of probes, at a pace.

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    os::fd::AsFd,
    process,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    capture::{CaptureError, Watched},
    check::Check,
    driver::{Driver, now},
    engine::Planned,
    finding::{Detail, Finding},
    gateway,
    plan::{direct, plan, watches},
    report::{Counters, Reason},
    route,
    runner::{Error, open},
    settings::{BLOCK_PORTS, ONE_SHOT_BLOCK, SINGLE_PORTS, Settings},
    state::Event,
    time::Monotonic,
    trace::Trace,
};

/// How long to wait for source ports, in timeouts of the check: others, who wait for answers, give theirs back after one.
const PATIENCE: u32 = 3;

/// From one look for free source ports to the next.
const RETRY: Duration = Duration::from_millis(20);

/// Why a session could not begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The kernel has no route to the real, or cannot be asked.
    #[error("find the route to {real}")]
    Route {
        /// The real.
        real: IpAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The probe cannot be sent.
    #[error("probe the real: {0}")]
    Plan(Detail),
    /// Sockets or the capture were refused.
    #[error(transparent)]
    Open(#[from] Error),
    /// The capture's map is not accessible.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Something that cannot be otherwise.
    #[error("start the check")]
    Start,
}

/// What all probes of a session found.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Probes that passed.
    pub passed: u64,
    /// Probes that failed.
    pub failed: u64,
    /// Probes that prove nothing.
    pub unknown: u64,
    /// The last failure; else the last one that proves nothing; else the last pass. `None`: there was no probe.
    pub telling: Option<Finding>,
    /// What the last SYN-ACK announced.
    pub mss: Option<u16>,
    /// From the first probe to the last result.
    pub elapsed: Duration,
    /// What was sent and received.
    pub counters: Counters,
}

/// How packets reach the real.
#[derive(Clone, Copy, Debug)]
enum Way {
    Tunnel,
    Direct,
}

/// One check, ready to be probed.
#[derive(Debug)]
pub struct Session {
    driver: Driver,
    number: u32,
    /// So many probes may be under way: one for each source port.
    window: usize,
}

impl Session {
    /// Opens sockets and capture in the caller's network namespace, for `count` probes. With no interface given, replies are
    /// captured on the one that leads to the real. The ports are free ones for one-shot probers; while there are none, they
    /// are awaited, for three times the check's timeout.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn open(check: &Check, settings: Settings, count: u64) -> Result<Self, SessionError> {
        Self::open_by(check, settings, count, Way::Tunnel)
    }

    /// As [`Self::open`], for packets to the real itself, outside of any tunnel; the check's target is the real.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn open_direct(check: &Check, settings: Settings, count: u64) -> Result<Self, SessionError> {
        Self::open_by(check, settings, count, Way::Direct)
    }

    fn open_by(check: &Check, mut settings: Settings, count: u64, way: Way) -> Result<Self, SessionError> {
        let real = check.key.real;
        let no_route = |source| SessionError::Route { real, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_route)?;
        let planned = runtime.block_on(async {
            let (connection, routes, _) = rtnetlink::new_connection().map_err(no_route)?;
            tokio::spawn(connection);
            if settings.interfaces.is_empty() {
                settings.interfaces.push(route::interface_to(&routes, real).await.map_err(no_route)?);
            }
            Ok::<_, SessionError>(match way {
                Way::Tunnel => plan(std::slice::from_ref(check), &settings, &routes).await.into_iter().next(),
                Way::Direct => {
                    let path = direct(real, &settings, &routes).await;
                    Some(Planned { check: check.clone(), path })
                }
            })
        })?;
        let planned = planned.ok_or(SessionError::Start)?;
        if let Err(detail) = planned.path {
            return Err(SessionError::Plan(detail));
        }
        let mut driver = open_when_free(&mut settings, count, check.timing.timeout * PATIENCE)?;
        Watched::default().update(&mut driver.capture, &watches(std::slice::from_ref(&planned)), now())?;
        let number = driver.engine.add(planned, now()).ok_or(SessionError::Start)?;
        Ok(Self { driver, number, window: settings.ports.len() })
    }

    /// From now on echo requests carry so many bytes of data; never less than a cookie.
    pub fn fill_echoes(&mut self, data: usize) {
        self.driver.engine.fill_echoes(data);
    }

    /// From now on keeps the last so many packets that are sent and received.
    pub fn trace(&mut self, packets: usize) {
        if let Some(check) = self.driver.engine.check(self.number).cloned() {
            self.driver.tracer.ask(self.number, &check.key, Monotonic(u64::MAX), packets);
        }
    }

    /// The packets that were kept.
    #[must_use]
    pub fn traced(&self) -> Option<&Trace> {
        self.driver.tracer.trace(self.number)
    }

    /// Sends `count` probes, one each `pace`; with a pace of zero as fast as answers and ports allow.
    pub fn run(&mut self, count: u64, pace: Duration) -> Summary {
        let start = Instant::now();
        let mut summary = Summary {
            passed: 0,
            failed: 0,
            unknown: 0,
            telling: None,
            mss: None,
            elapsed: Duration::ZERO,
            counters: Counters::default(),
        };
        let (mut sent, mut next, mut silence) = (0, now(), true);
        while sent < count || self.driver.engine.awaited() > 0 {
            while sent < count && next <= now() && self.driver.engine.awaited() < self.window {
                self.driver.engine.launch(self.number, now(), &mut self.driver.output);
                (sent, next) = (sent + 1, next + pace);
            }
            let more = self.driver.turn();
            for (_, finding) in &self.driver.output.findings {
                summary.add(*finding);
                silence &= finding.is_silence() || finding.event == Event::Unknown;
            }
            self.driver.output.clear();
            if !more && (sent < count || self.driver.engine.awaited() > 0) {
                self.wait((sent < count).then_some(next));
            }
        }
        summary.elapsed = start.elapsed();
        if silence {
            self.excuse(&mut summary);
        }
        summary.counters = self.driver.counters();
        summary
    }

    /// Failures that are only silence are none if our side of the way is broken.
    fn excuse(&self, summary: &mut Summary) {
        let real = self.driver.engine.check(self.number).map(|check| check.key.real);
        if let Some(fault) = real.filter(|_| summary.failed > 0).and_then(fault) {
            (summary.unknown, summary.failed) = (summary.unknown + summary.failed, 0);
            summary.telling = Some(Finding::unknown(Reason::NotSent, Some(fault)));
        }
    }

    /// Sleeps until something arrives, a timeout ends, or `next` has come and a port is free.
    fn wait(&self, next: Option<Monotonic>) {
        let engine = &self.driver.engine;
        let next = next.filter(|_| engine.awaited() < self.window);
        let until = engine.next_due().into_iter().chain(next).min();
        let Some(wait) = until.map(|until| until.since(now())) else { return };
        if wait.is_zero() {
            return;
        }
        // Rounded up: waking early would only mean to wait again.
        let timeout = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut ring = [PollFd::new(self.driver.capture.as_fd(), PollFlags::POLLIN)];
        // Interrupted or not: the loop looks again.
        let _ = poll(&mut ring, timeout);
    }
}

impl Summary {
    fn add(&mut self, finding: Finding) {
        let rank = |finding: &Finding| match finding.event {
            Event::Pass => 0,
            Event::Unknown => 1,
            Event::Fail(_) => 2,
        };
        match finding.event {
            Event::Pass => (self.passed, self.mss) = (self.passed + 1, finding.mss),
            Event::Unknown => self.unknown += 1,
            Event::Fail(_) => self.failed += 1,
        }
        if self.telling.is_none_or(|telling| rank(&finding) >= rank(&telling)) {
            self.telling = Some(finding);
        }
    }

    /// Why the result is what it is.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.telling.map_or(Reason::Init, |finding| finding.reason)
    }
}

fn fault(real: IpAddr) -> Option<Detail> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let (connection, routes, _) = rtnetlink::new_connection().ok()?;
        tokio::spawn(connection);
        let way = gateway::only(&routes, &[real].into()).await?;
        gateway::fault(&routes, way, real).await
    })
}

/// Several one-shot probers may run at a time: each takes ports of its own, as soon as there are some.
fn open_when_free(settings: &mut Settings, count: u64, patience: Duration) -> Result<Driver, Error> {
    let (all, size) = if count == 1 { (SINGLE_PORTS, 1) } else { (BLOCK_PORTS, ONE_SHOT_BLOCK) };
    let end = Instant::now() + patience;
    loop {
        match open_any(settings, &all, size) {
            Err(Error::Capture(error)) if error.is_busy() && Instant::now() < end => std::thread::sleep(RETRY),
            result => return result,
        }
    }
}

/// Opens on the first free block of `size` ports of `all`.
fn open_any(settings: &mut Settings, all: &RangeInclusive<u16>, size: u16) -> Result<Driver, Error> {
    let blocks = (all.end() - all.start()) / size + 1;
    // Neighbours in time begin at different places, and a port rests before its turn comes again.
    let first = u16::try_from(process::id() % u32::from(blocks)).unwrap_or(0);
    let mut result = Err(Error::Ports { first: *all.start(), last: *all.end() });
    for n in 0..blocks {
        let start = all.start() + (first + n) % blocks * size;
        settings.ports = start..=start + (size - 1);
        result = open(settings);
        match &result {
            Err(Error::Capture(error @ CaptureError::Claim { .. })) if error.is_busy() => {}
            Ok(_) | Err(_) => break,
        }
    }
    result
}
