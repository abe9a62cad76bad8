//! The prober without its edges: it is given the time, checks and captured packets, and returns packets to send and what
//! has changed. Opens nothing, reads no clock.

use std::{collections::HashMap, net::IpAddr, ops::RangeInclusive, time::Duration};

use crate::{
    batch::{Batch, ProbeId},
    check::{Check, CheckKey, Kind},
    codec::{Inner, Segment},
    cookie::{Cookie, Cookies, LaneKey, Protocol},
    finding::{Detail, Finding, Proof, interpret, prove},
    lane::{Flight, Lane},
    ration::Ration,
    reply::{Answer, IcmpError, Reply, parse},
    report::{Counters, Reason, State},
    roster::Roster,
    schedule::{Queue, jitter, phase},
    state::Event,
    subject::{Change, Path, Subject},
    time::Monotonic,
};

/// How long a flight is remembered: a Linux real repeats its SYN-ACK for 63 s (`tcp_synack_retries` = 5), and each one
/// must be answered by a RST.
pub const MEMORY: Duration = Duration::from_secs(64);

/// How long an ICMP error about the tunnel explains silence.
const EVIDENCE_LIFE: Duration = Duration::from_secs(5);

/// The least time between two probes of a check, whatever its timing says.
const SHORTEST: Duration = Duration::from_millis(1);

/// So many probes leave in one poll: their answers fit in the capture's ring many times, and they are on their way within
/// some two milliseconds, before the next are looked for.
const SEND_LIMIT: usize = 256;

/// See [`Engine::patience`]: so many intervals, but no less than this.
const PATIENT_INTERVALS: u32 = 3;
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// A check, and where its packets go.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The check.
    pub check: Check,
    /// The addresses, or why it cannot be sent now.
    pub path: Result<Path, Detail>,
}

/// What the engine wants done.
#[derive(Debug, Default)]
pub struct Output {
    /// To be sent.
    pub packets: Batch,
    /// Verdicts that changed.
    pub transitions: Vec<(CheckKey, Change)>,
    /// When the probes among them were to leave.
    pub due: Vec<Monotonic>,
    /// Each probe's result, as it becomes known.
    pub findings: Vec<(ProbeId, Finding)>,
}

impl Output {
    /// Empties it, keeping the memory.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.due.clear();
        self.transitions.clear();
        self.findings.clear();
    }
}

/// All checks under way.
#[derive(Debug)]
pub struct Engine {
    cookies: Cookies,
    ports: RangeInclusive<u16>,
    lanes: HashMap<LaneKey, Lane>,
    checks: Roster,
    /// Checks, by when their next probe is due.
    sends: Queue<u32>,
    /// Probes, by when their time is up.
    expiries: Queue<ProbeId>,
    evidence: HashMap<IpAddr, (IcmpError, Monotonic)>,
    /// Of each real with UDP checks.
    rations: HashMap<IpAddr, Ration>,
    counters: Counters,
    changes: Vec<Change>,
    /// How much data echo requests carry, in bytes; at least the cookie.
    echo_data: usize,
    refused_since: Option<Monotonic>,
    patience: Duration,
    /// What is broken on our side of the way to all reals.
    fault: Option<Detail>,
    /// When a probe was last answered, in whatever way.
    answered_at: Monotonic,
    /// Silence was put down to it since.
    cut_off: bool,
    /// What was broken, and when that ended.
    released: Option<(Detail, Monotonic)>,
}

impl Engine {
    /// An engine without checks that uses these source ports.
    #[must_use]
    pub fn new(secret: &[u8; 16], ports: RangeInclusive<u16>) -> Self {
        Self {
            cookies: Cookies::new(secret),
            ports,
            lanes: HashMap::new(),
            checks: Roster::default(),
            sends: Queue::default(),
            expiries: Queue::default(),
            evidence: HashMap::new(),
            rations: HashMap::new(),
            counters: Counters::default(),
            changes: Vec::new(),
            echo_data: 0,
            refused_since: None,
            patience: LEAST_PATIENCE,
            fault: None,
            answered_at: Monotonic::default(),
            cut_off: false,
            released: None,
        }
    }

    /// Whether the last silence was put down to a fault of our side, and nothing was answered since.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// As long as this is broken on our side of the way to all reals, and nothing at all is answered, silence is no real's.
    pub fn set_fault(&mut self, fault: Option<Detail>, now: Monotonic) {
        if fault.is_none() && self.cut_off {
            // Packets get through again: those that left before may still be lost.
            self.released = self.fault.map(|fault| (fault, now));
            self.cut_off = false;
        }
        self.fault = fault;
    }

    /// From now on echo requests carry so many bytes of data; never less than a cookie.
    pub fn fill_echoes(&mut self, data: usize) {
        self.echo_data = data;
    }

    /// Makes these the checks; of those with equal keys the last. Those that stay keep their state; new ones first run
    /// somewhere within their interval.
    pub fn set_checks(&mut self, planned: Vec<Planned>, now: Monotonic) {
        self.lanes.retain(|_, lane| !lane.is_idle(now));
        self.evidence.retain(|_, (_, at)| now.since(*at) < EVIDENCE_LIFE);
        self.checks.retain_gone(|since| now.since(since) <= MEMORY);
        let mut kept = vec![false; self.checks.given()];
        let mut next = 0;
        for planned in planned {
            // Most often they come in the order in which they came before.
            match self.checks.number(&planned.check.key, next) {
                Some(number) => {
                    if let Some(kept) = usize::try_from(number).ok().and_then(|number| kept.get_mut(number)) {
                        *kept = true;
                    }
                    next = number.saturating_add(1);
                    self.renew(number, planned, now);
                }
                None => self.start(planned, now),
            }
        }
        for (number, _) in (0..).zip(kept).filter(|(_, kept)| !kept) {
            self.checks.remove(number, now);
        }
        self.checks.sort(now);
        self.share_rations();
        let shortest = self.subjects().map(|subject| subject.check.timing.interval).min();
        self.patience = shortest.map_or(LEAST_PATIENCE, |interval| LEAST_PATIENCE.max(interval * PATIENT_INTERVALS));
        if shortest.is_none() {
            self.refused_since = None;
        }
    }

    /// A check that stays, as it is to be from now on.
    fn renew(&mut self, number: u32, planned: Planned, now: Monotonic) {
        let Some(subject) = self.subject(number) else { return };
        let sooner = planned.check.timing.interval < subject.check.timing.interval;
        subject.check = planned.check;
        subject.path = planned.path;
        if sooner {
            self.advance(number, now);
        }
    }

    /// A shorter interval holds from now on, not from the end of the longer one.
    fn advance(&mut self, number: u32, now: Monotonic) {
        let spread = self.cookies.spread(number, u32::MAX);
        let Some(subject) = self.subject(number) else { return };
        let at = now + phase(subject.check.timing.interval, spread);
        if subject.next_at.is_some_and(|planned| planned > at) {
            self.schedule(number, at);
        }
    }

    /// Gives a check another path; its state stays.
    pub fn set_path(&mut self, planned: &Planned) {
        let number = self.checks.number(&planned.check.key, 0);
        if let Some(subject) = number.and_then(|number| self.subject(number)) {
            subject.path = planned.path;
        }
    }

    /// Counts the UDP checks of each real.
    fn share_rations(&mut self) {
        self.rations.values_mut().for_each(|ration| ration.checks = 0);
        for subject in self.checks.iter() {
            if subject.check.key.kind.is_datagram() {
                self.rations.entry(subject.check.key.real).or_default().checks += 1;
            }
        }
        self.rations.retain(|_, ration| ration.checks > 0);
    }

    fn start(&mut self, planned: Planned, now: Monotonic) {
        let interval = planned.check.timing.interval;
        let Some(number) = self.checks.push(Subject::new(planned.check, planned.path, now)) else { return };
        let at = now + phase(interval, self.cookies.spread(number, u32::MAX));
        self.schedule(number, at);
    }

    /// Adds a check that runs only when [`Self::launch`] is called; returns its number. `None`: out of numbers.
    pub fn add(&mut self, planned: Planned, now: Monotonic) -> Option<u32> {
        let number = self.checks.push(Subject::new(planned.check, planned.path, now))?;
        self.checks.sort(now);
        Some(number)
    }

    /// The packets in `out` have been offered to the kernel, which took some probe (`left`) or none.
    pub fn offered(&mut self, left: bool, now: Monotonic, out: &mut Output) {
        for at in out.due.drain(..) {
            self.counters.lag.record(now.since(at));
        }
        self.refused_since = if left { None } else { self.refused_since.or(Some(now)) };
    }

    /// Since when no probe has left although some were to; `None`: the last one has, or there was none.
    #[must_use]
    pub fn refused_since(&self) -> Option<Monotonic> {
        self.refused_since
    }

    /// When the next probe is to leave.
    #[must_use]
    pub fn next_send(&self) -> Option<Monotonic> {
        self.sends.next_due()
    }

    /// How long no probe may leave, while some are due, before that is a fault of ours: several of the shortest intervals.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// When [`Self::poll`] has something to do next.
    #[must_use]
    pub fn next_due(&self) -> Option<Monotonic> {
        self.sends.next_due().into_iter().chain(self.expiries.next_due()).min()
    }

    /// Ends the wait of probes whose time is up, and sends what is due. All packets that arrived until `heard` have been
    /// [received](Self::receive): what arrived in time counts, even if it is looked at late. True: more may be due; receive
    /// before the next poll, so that the answers to a belated crowd of probes find room.
    pub fn poll(&mut self, now: Monotonic, heard: Monotonic, out: &mut Output) -> bool {
        while let Some((_, probe)) = self.expiries.pop_due(heard.min(now)) {
            self.expire(probe, now, out);
        }
        for _ in 0..SEND_LIMIT {
            let Some((at, number)) = self.sends.pop_due(now) else { return false };
            self.send(number, at, now, out);
        }
        true
    }

    fn send(&mut self, number: u32, at: Monotonic, now: Monotonic, out: &mut Output) {
        // Rescheduled or removed since.
        let Some(subject) = self.subject(number).filter(|subject| subject.next_at == Some(at)) else { return };
        let (timing, serial) = (subject.check.timing, subject.next_serial());
        let interval = if subject.machine.pending() { timing.fast_interval } else { timing.interval };
        let interval = jitter(interval, self.cookies.spread(number, serial)).max(SHORTEST);
        // From the time that was planned, so that delays do not add up; from now after a long stall.
        let next = Some(at + interval).filter(|next| *next > now).unwrap_or(now + interval);
        self.schedule(number, next);
        out.due.push(at);
        self.launch(number, now, out);
    }

    /// Sends a probe of a check now.
    pub fn launch(&mut self, number: u32, now: Monotonic, out: &mut Output) {
        let Some(subject) = self.subject(number) else { return };
        let (kind, path, timeout) = (subject.check.key.kind.clone(), subject.path, subject.check.timing.timeout);
        let probe = ProbeId { check: number, serial: subject.next_serial() };
        subject.launched(now);
        self.counters.sent += 1;
        let launched = path.and_then(|path| self.encode(probe, &kind, &path, now, out));
        if let Err(detail) = launched {
            return self.not_sent(probe, detail, now, out);
        }
        self.expiries.push(now + timeout, probe);
    }

    /// The kernel refused a probe. That is our side's fault and proves nothing about the real.
    pub fn not_sent(&mut self, probe: ProbeId, detail: Detail, now: Monotonic, out: &mut Output) {
        if let Some(subject) = self.subject(probe.check).filter(|subject| subject.is_open(probe.serial)) {
            subject.last_run = subject.ran_before;
            self.counters.sent = self.counters.sent.saturating_sub(1);
        }
        match detail {
            Detail::NoPort => self.counters.no_port += 1,
            _ => self.counters.send_errors += 1,
        }
        self.resolve(probe, Finding::unknown(Reason::NotSent, Some(detail)), now, out);
    }

    /// The kernel refused a RST: the real repeats its SYN-ACK, which will be answered by another.
    pub fn reset_not_sent(&mut self) {
        self.counters.resets = self.counters.resets.saturating_sub(1);
        self.counters.send_errors += 1;
    }

    fn encode(
        &mut self,
        probe: ProbeId,
        kind: &Kind,
        path: &Path,
        now: Monotonic,
        out: &mut Output,
    ) -> Result<(), Detail> {
        match kind {
            Kind::Icmp => self.push_echo(probe, path, false, now, out),
            Kind::Tcp { port } => {
                let (from, cookie) = self.depart(probe, path, Protocol::Tcp, *port, false, now)?;
                let segment = Segment::Syn { from, to: *port, sequence: cookie.sequence() };
                push(out, probe, path, cookie, segment)
            }
            Kind::Udp { port, payload, require_reply, .. } => {
                let (from, cookie) = self.depart(probe, path, Protocol::Udp, *port, false, now)?;
                self.rations.entry(path.real()).or_default().departed(now);
                let ours = cookie.bytes();
                let payload = if payload.is_empty() { ours.as_slice() } else { payload.as_slice() };
                push(out, probe, path, cookie, Segment::Datagram { from, to: *port, payload })?;
                // Silence is judged by the path: an echo request goes along.
                if *require_reply { Ok(()) } else { self.push_echo(probe, path, true, now, out) }
            }
            Kind::Named { port, probe: named } => {
                let (from, cookie) = self.depart(probe, path, Protocol::Udp, *port, false, now)?;
                self.rations.entry(path.real()).or_default().departed(now);
                let payload = &named.payload(cookie);
                push(out, probe, path, cookie, Segment::Datagram { from, to: *port, payload })
            }
        }
    }

    fn push_echo(
        &mut self,
        probe: ProbeId,
        path: &Path,
        companion: bool,
        now: Monotonic,
        out: &mut Output,
    ) -> Result<(), Detail> {
        let (id, cookie) = self.depart(probe, path, Protocol::Icmp, 0, companion, now)?;
        let ours = cookie.bytes();
        let filled = (self.echo_data > ours.len()).then(|| {
            let mut data = ours.to_vec();
            data.resize(self.echo_data, 0);
            data
        });
        let payload = filled.as_deref().unwrap_or(&ours);
        let segment = Segment::Echo { id, sequence: cookie.echo_sequence(), payload };
        push(out, probe, path, cookie, segment)
    }

    /// Takes a source port and remembers what leaves from it.
    fn depart(
        &mut self,
        probe: ProbeId,
        path: &Path,
        protocol: Protocol,
        port: u16,
        companion: bool,
        now: Monotonic,
    ) -> Result<(u16, Cookie), Detail> {
        let rest = self.subject(probe.check).map_or(MEMORY, |subject| subject.check.timing.timeout);
        let key = LaneKey { ends: path.inner, protocol, port };
        let (cookies, ports) = (&self.cookies, &self.ports);
        let lane = self.lanes.entry(key).or_insert_with(|| Lane::new(ports, cookies.rotation(&key), MEMORY));
        let flight = Flight::new(probe, companion, now);
        let (from, epoch) = lane.launch(flight, rest, now).ok_or(Detail::NoPort)?;
        Ok((from, cookies.cookie(&key, from, epoch)))
    }

    /// A captured packet, from its IP header on, that arrived at `at`.
    pub fn receive(&mut self, bytes: &[u8], at: Monotonic, out: &mut Output) {
        match parse(bytes) {
            None => self.counters.malformed += 1,
            Some(Reply::Outer { real, error }) => {
                self.counters.evidence += 1;
                self.evidence.insert(real, (error, at));
            }
            Some(Reply::Answer { lane, port, answer }) => self.answer(&lane, port, &answer, at, out),
        }
    }

    fn answer(&mut self, key: &LaneKey, port: u16, answer: &Answer<'_>, at: Monotonic, out: &mut Output) {
        let Some((flight, epoch)) = self.lanes.get_mut(key).and_then(|lane| lane.find(port)) else {
            self.counters.forged += 1;
            return;
        };
        let cookie = self.cookies.cookie(key, port, epoch);
        let subject = self.checks.get(flight.probe().check);
        match prove(answer, key, cookie, subject.map(|subject| &subject.check.key.kind)) {
            Proof::Forged => self.counters.forged += 1,
            Proof::Neutral => self.counters.neutral += 1,
            Proof::Genuine => {
                let (repeated, flight) = (flight.answer(), *flight);
                let syn_ack = matches!(answer, Answer::SynAck { .. });
                if syn_ack {
                    self.reset(key, port, cookie, flight.probe(), out);
                }
                self.genuine(key, flight, answer, repeated && syn_ack, at, out);
            }
        }
    }

    /// Leaves nothing behind on the real: RFC 9293, 3.10.7.4, a RST in the window ends SYN-RECEIVED.
    fn reset(&mut self, key: &LaneKey, from: u16, cookie: Cookie, probe: ProbeId, out: &mut Output) {
        let Some(path) = self.checks.path(probe.check) else { return };
        let sequence = cookie.sequence().wrapping_add(1);
        let segment = Segment::Rst { from, to: key.port, sequence };
        let inner = Inner { ends: key.ends, tag: cookie.tag(key.ends), hops: path.hops, segment };
        if out.packets.push(path.outer(probe), &inner, None) {
            self.counters.resets += 1;
        }
    }

    fn genuine(
        &mut self,
        key: &LaneKey,
        flight: Flight,
        answer: &Answer<'_>,
        repeated: bool,
        at: Monotonic,
        out: &mut Output,
    ) {
        let probe = flight.probe();
        // Whatever it says, packets come and go.
        self.answered_at = self.answered_at.max(at);
        self.set_fault(None, at);
        if let Answer::Error { .. } = answer {
            self.refused(flight, at);
        }
        if flight.is_companion() {
            return self.alongside(probe, answer);
        }
        let subject = self.subject(probe.check);
        let open = subject.and_then(|subject| subject.sent_at(probe.serial).map(|sent_at| (subject, sent_at)));
        let Some((subject, sent_at)) = open else {
            let counter = if repeated { &mut self.counters.repeated } else { &mut self.counters.late };
            *counter += 1;
            return;
        };
        let Some(finding) = interpret(answer, &subject.check.key.kind, key.ends.destination()) else {
            self.counters.neutral += 1;
            return;
        };
        // What arrived too late changes nothing, even if the timeout was not noticed yet.
        let rtt = at.since(sent_at);
        if rtt > subject.check.timing.timeout {
            self.counters.late += 1;
            return;
        }
        // What proves itself need not be waited for.
        if finding.reason == Reason::Mismatch && !matches!(subject.check.key.kind, Kind::Named { .. }) {
            return subject.mismatched(probe.serial);
        }
        self.resolve(probe, Finding { rtt: Some(rtt), ..finding }, at, out);
    }

    /// A real has refused a packet of ours.
    fn refused(&mut self, flight: Flight, at: Monotonic) {
        let real = self.checks.path(flight.probe().check).map(|path| path.real());
        if let Some(ration) = real.and_then(|real| self.rations.get_mut(&real)) {
            ration.refused(at.before(flight.age(at)), MEMORY);
        }
    }

    /// The echo request alongside a UDP probe was answered. Its only use is to explain the datagram's silence: it decides
    /// nothing itself.
    fn alongside(&mut self, probe: ProbeId, answer: &Answer<'_>) {
        let Some(subject) = self.checks.get_mut(probe.check) else { return };
        match *answer {
            Answer::Echo { .. } => subject.echoed(probe.serial),
            Answer::Error { error, .. } => {
                subject.hinted(probe.serial, Detail::Inner(error));
                self.counters.evidence += 1;
            }
            Answer::SynAck { .. } | Answer::Reset { .. } | Answer::Ack | Answer::Unproven | Answer::Datagram { .. } => {
            }
        }
    }

    fn expire(&mut self, probe: ProbeId, now: Monotonic, out: &mut Output) {
        let Some(subject) = self.checks.get_mut(probe.check) else { return };
        if !subject.is_open(probe.serial) {
            return;
        }
        let evidence = self.evidence.get(&subject.check.key.real);
        let evidence =
            evidence.filter(|(_, at)| now.since(*at) < EVIDENCE_LIFE).map(|(error, _)| Detail::Outer(*error));
        let ration = self.rations.get(&subject.check.key.real);
        let left_at = now.before(subject.check.timing.timeout);
        let fault = self.fault.filter(|_| self.answered_at <= left_at);
        let released = self.released.filter(|(_, at)| left_at <= *at).map(|(fault, _)| fault);
        let silence = subject.silence(probe.serial, now, evidence, ration);
        let finding = match fault.or(released) {
            Some(detail) if silence.reason == Reason::Timeout => {
                self.cut_off |= fault.is_some();
                Finding::unknown(Reason::NotSent, Some(detail))
            }
            _ => silence,
        };
        self.resolve(probe, finding, now, out);
    }

    fn resolve(&mut self, probe: ProbeId, finding: Finding, now: Monotonic, out: &mut Output) {
        let Some(subject) = self.checks.get_mut(probe.check) else { return };
        if !subject.resolve(probe.serial, finding, now, &mut self.changes) {
            return;
        }
        out.transitions.extend(self.changes.drain(..).map(|change| (subject.check.key.clone(), change)));
        out.findings.push((probe, finding));
        let fast = jitter(subject.check.timing.fast_interval, self.cookies.spread(probe.check, probe.serial));
        let hasten = hastened(subject, fast.max(SHORTEST));
        *self.counter(finding) += 1;
        if let Some(at) = hasten {
            self.schedule(probe.check, at.max(now));
        }
    }

    fn counter(&mut self, finding: Finding) -> &mut u64 {
        let counters = &mut self.counters;
        match (finding.event, finding.reason) {
            (Event::Pass, _) => &mut counters.passed,
            (Event::Unknown, _) => &mut counters.unknown,
            (Event::Fail(_), Reason::PortClosed) => &mut counters.port_closed,
            (Event::Fail(_), Reason::Unreachable) => &mut counters.unreachable,
            (Event::Fail(_), Reason::Mismatch) => &mut counters.mismatch,
            (Event::Fail(_), _) => &mut counters.timeout,
        }
    }

    fn schedule(&mut self, number: u32, at: Monotonic) {
        if let Some(subject) = self.subject(number) {
            subject.next_at = Some(at);
            self.sends.push(at, number);
        }
    }

    /// The checks under way, in order of their start.
    pub fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.checks.iter()
    }

    /// The number of a check.
    #[must_use]
    pub fn number(&self, key: &CheckKey) -> Option<u32> {
        self.checks.number(key, 0)
    }

    /// The check with this number.
    #[must_use]
    pub fn check(&self, number: u32) -> Option<&Check> {
        self.checks.get(number).map(|subject| &subject.check)
    }

    /// Whether the verdict of the check with this number is UP.
    #[must_use]
    pub fn is_up(&self, number: u32) -> bool {
        self.checks.get(number).is_some_and(|subject| subject.machine.state == State::Up)
    }

    /// Probes that await a result.
    #[must_use]
    pub fn awaited(&self) -> usize {
        self.subjects().map(Subject::awaited).sum()
    }

    /// What has been counted; what the capture counts is not in it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn subject(&mut self, number: u32) -> Option<&mut Subject> {
        self.checks.get_mut(number)
    }
}

/// When the next probe must leave earlier than planned because a verdict is pending now. Counted from the last attempt,
/// also one that failed: else a probe that cannot be sent would be due again at once, forever.
fn hastened(subject: &Subject, fast: Duration) -> Option<Monotonic> {
    let wish = subject.last_attempt? + fast;
    (subject.machine.pending() && subject.next_at? > wish).then_some(wish)
}

fn push(out: &mut Output, probe: ProbeId, path: &Path, cookie: Cookie, segment: Segment<'_>) -> Result<(), Detail> {
    let inner = Inner { ends: path.inner, tag: cookie.tag(path.inner), hops: path.hops, segment };
    out.packets.push(path.outer(probe), &inner, Some(probe)).then_some(()).ok_or(Detail::TooLong)
}
