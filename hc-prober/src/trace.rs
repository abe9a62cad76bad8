//! The last packets of some checks, with what the prober made of each. Pure: the driver shows it what it sends and receives.
//!
//! Checks are traced because somebody asked, for a time, or because they fail, until they have passed again for a while.
//! With none traced a packet costs the look whether there is one; otherwise its port is looked up.

mod pcapng;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use crate::{
    batch::{Outgoing, ProbeId},
    check::CheckKey,
    cookie::{LaneKey, Protocol},
    engine::{Engine, Output},
    finding::Finding,
    reply::{Reply, departure, parse},
    report::{Counters, Severity},
    state::Event,
    time::Monotonic,
};

pub use self::pcapng::write;

/// So many checks are traced at most, those included that were and of which the packets are still kept.
const MOST: usize = 64;

/// So many packets of each are kept, unless more were asked for.
const DEPTH: usize = 64;

/// Bytes of a packet that are kept: what the capture hands up, and as much of what was sent.
const SNAP: usize = 256;

/// A probe's own packets are among so many of the last, when its result is known.
const UNDER_WAY: usize = 4 * DEPTH;

/// A check that failed is traced until it has passed so many times in a row.
const CALM: u32 = 3;

/// A packet that was sent or received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub at: Monotonic,
    /// It came in.
    pub received: bool,
    /// From the outermost IP header on, as on the wire; not more than the first bytes of a long one.
    pub bytes: Vec<u8>,
    /// How long it was.
    pub len: usize,
    /// What it was to the prober.
    pub comment: String,
    probe: Option<ProbeId>,
}

/// The packets of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Which check.
    pub key: CheckKey,
    /// Oldest first.
    pub records: VecDeque<Record>,
    depth: usize,
    /// The ports of the probes among them, in order of sending.
    ports: VecDeque<(LaneKey, u16)>,
    /// Somebody wants to know until then.
    asked_until: Monotonic,
    /// It failed, and passed so many times in a row since.
    passes: Option<u32>,
}

/// What is traced, by the number of the check.
#[derive(Debug, Default)]
pub struct Tracer {
    follows_failures: bool,
    /// Packets of some check are still taken.
    recording: bool,
    traces: HashMap<u32, Trace>,
    /// Which traced check the last probe from a port was of.
    ports: HashMap<(LaneKey, u16), u32>,
}

impl Tracer {
    /// One that begins by itself to trace checks that fail.
    #[must_use]
    pub fn of_failures() -> Self {
        Self { follows_failures: true, ..Self::default() }
    }

    /// Whether there is nothing to be looked at.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.recording
    }

    /// To be called now and then: finds out whether there is still something to be looked at.
    pub fn rest(&mut self, now: Monotonic) {
        self.recording = self.traces.values().any(|trace| trace.is_open(now));
        if !self.recording {
            // Ports go to other checks meanwhile.
            self.ports.clear();
        }
    }

    /// Traces a check until then; keeps at least so many of its packets.
    pub fn ask(&mut self, number: u32, key: &CheckKey, until: Monotonic, depth: usize) {
        if let Some(trace) = self.begin(number, key, true) {
            trace.asked_until = trace.asked_until.max(until);
            trace.depth = trace.depth.max(depth);
        }
    }

    /// What is known of a check.
    #[must_use]
    pub fn trace(&self, number: u32) -> Option<&Trace> {
        self.traces.get(&number)
    }

    /// Forgets the checks that are no longer made.
    pub fn retain(&mut self, is_checked: impl Fn(u32) -> bool) {
        self.traces.retain(|number, _| is_checked(*number));
        self.ports.retain(|_, number| is_checked(*number));
    }

    /// Takes note of a packet that was sent at `at`; `errno`: with which error the kernel refused one of a probe, if it did.
    pub fn sent(&mut self, packet: &Outgoing<'_>, errno: impl FnOnce(ProbeId) -> Option<i32>, at: Monotonic) {
        let departure = departure(packet.bytes);
        let number = match packet.probe {
            Some(probe) => Some(probe.check),
            None => departure.and_then(|departure| self.ports.get(&departure).copied()),
        };
        let open = number.and_then(|n| Some((n, self.traces.get_mut(&n).filter(|trace| trace.is_open(at))?)));
        let Some((number, trace)) = open else {
            // The port is another check's from now on.
            if let Some(departure) = departure {
                self.ports.remove(&departure);
            }
            return;
        };
        let what = match departure.map(|(lane, _)| lane.protocol) {
            Some(Protocol::Icmp) => "echo request",
            Some(Protocol::Tcp) if packet.probe.is_some() => "SYN",
            Some(Protocol::Tcp) => "RST, so that nothing is left behind",
            Some(Protocol::Udp) => "datagram",
            None => "packet",
        };
        let serial = packet.probe.map_or_else(String::new, |probe| format!("probe {}: ", probe.serial));
        let errno = packet.probe.and_then(errno);
        let fate =
            errno.map_or_else(String::new, |errno| format!("; not sent: {}", std::io::Error::from_raw_os_error(errno)));
        trace.push(Record::new(
            packet.bytes,
            packet.bytes.len(),
            at,
            false,
            format!("{serial}{what}{fate}"),
            packet.probe,
        ));
        if let Some(departure) = departure.filter(|_| packet.probe.is_some()) {
            self.ports.insert(departure, number);
            trace.ports.push_back(departure);
            if trace.ports.len() > trace.depth
                && let Some(old) = trace.ports.pop_front()
                && !trace.ports.contains(&old)
            {
                self.ports.remove(&old);
            }
        }
    }

    /// Has the engine receive a packet, and takes note of it and of what became of it if it is of a traced check.
    pub fn receive(&mut self, engine: &mut Engine, bytes: &[u8], at: Monotonic, out: &mut Output) {
        let numbers = self.meant(bytes);
        if numbers.is_empty() {
            return engine.receive(bytes, at, out);
        }
        let (before, found) = (engine.counters(), out.findings.len());
        engine.receive(bytes, at, out);
        let finding = out.findings.get(found).map(|(probe, finding)| (*probe, *finding));
        let comment = verdict(finding, &before, &engine.counters());
        let len = length(bytes);
        for number in numbers {
            if let Some(trace) = self.traces.get_mut(&number).filter(|trace| trace.is_open(at)) {
                trace.push(Record::new(bytes, len, at, true, comment.clone(), None));
            }
        }
    }

    /// The checks that a received packet may be about: by the port that it came to, or, of errors about tunnel packets, by
    /// the real.
    fn meant(&self, bytes: &[u8]) -> Vec<u32> {
        match parse(bytes) {
            Some(Reply::Answer { lane, port, .. }) => self.ports.get(&(lane, port)).copied().into_iter().collect(),
            Some(Reply::Outer { real, .. }) => {
                let of_real = |(number, trace): (&u32, &Trace)| (trace.key.real == real).then_some(*number);
                self.traces.iter().filter_map(of_real).collect()
            }
            None => Vec::new(),
        }
    }

    /// Takes note of probes' results; begins to trace what fails.
    pub fn found(&mut self, findings: &[(ProbeId, Finding)], engine: &Engine) {
        if !self.follows_failures && self.traces.is_empty() {
            return;
        }
        for (probe, finding) in findings {
            let failed = matches!(finding.event, Event::Fail(_));
            let is_new = failed && self.follows_failures && !self.traces.contains_key(&probe.check);
            if let Some(check) = engine.check(probe.check).filter(|_| is_new) {
                self.begin(probe.check, &check.key, false);
            }
            let Some(trace) = self.traces.get_mut(&probe.check) else { continue };
            for record in trace.records.iter_mut().rev().take(UNDER_WAY).filter(|record| record.probe == Some(*probe)) {
                record.comment = format!("{}; {}", record.comment, Outcome(finding));
            }
            trace.passes = match (finding.event, trace.passes) {
                (Event::Fail(_), _) if self.follows_failures => {
                    self.recording = true;
                    Some(0)
                }
                (Event::Pass, Some(passes)) => Some(passes.saturating_add(1)),
                (Event::Fail(_) | Event::Pass | Event::Unknown, passes) => passes,
            };
        }
    }

    /// The trace of a check: the one there is, or a new one, if there is room: in the place of one that has ended, and if
    /// `urgent`, else in that of any that nobody asked for.
    fn begin(&mut self, number: u32, key: &CheckKey, urgent: bool) -> Option<&mut Trace> {
        if !self.traces.contains_key(&number) && self.traces.len() >= MOST {
            let newest = |trace: &Trace| trace.records.back().map(|record| record.at);
            let now = self.traces.values().filter_map(newest).max().unwrap_or_default();
            let candidates =
                self.traces.iter().filter(|(_, trace)| !trace.is_open(now) || (urgent && trace.asked_until < now));
            let oldest = candidates.min_by_key(|(_, trace)| (trace.is_open(now), newest(trace))).map(|(n, _)| *n)?;
            self.traces.remove(&oldest);
            self.ports.retain(|_, number| *number != oldest);
        }
        self.recording = true;
        Some(self.traces.entry(number).or_insert_with(|| Trace::new(key)))
    }
}

impl Trace {
    fn new(key: &CheckKey) -> Self {
        Self {
            key: key.clone(),
            records: VecDeque::new(),
            depth: DEPTH,
            ports: VecDeque::new(),
            asked_until: Monotonic::default(),
            passes: None,
        }
    }

    /// Whether packets are still taken.
    fn is_open(&self, now: Monotonic) -> bool {
        now < self.asked_until || self.passes.is_some_and(|passes| passes < CALM)
    }

    fn push(&mut self, record: Record) {
        if self.records.len() >= self.depth {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }
}

impl Record {
    fn new(bytes: &[u8], len: usize, at: Monotonic, received: bool, comment: String, probe: Option<ProbeId>) -> Self {
        let bytes = bytes.get(..SNAP).unwrap_or(bytes).to_vec();
        Self { at, received, bytes, len, comment, probe }
    }
}

/// How long a captured packet was on the wire, as its header says.
fn length(bytes: &[u8]) -> usize {
    let field = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |field| u16::from_be_bytes(*field));
    let said = match bytes.first().map(|first| first >> 4) {
        Some(4) => usize::from(field(2)),
        Some(6) => 40 + usize::from(field(4)),
        _ => 0,
    };
    said.max(bytes.len())
}

/// What became of a received packet, by what it added to.
fn verdict(finding: Option<(ProbeId, Finding)>, before: &Counters, after: &Counters) -> String {
    if let Some((probe, finding)) = finding {
        return format!("answer to probe {}: {}", probe.serial, Outcome(&finding));
    }
    let rose = |counter: fn(&Counters) -> u64| counter(after) > counter(before);
    let what = if rose(|counters| counters.forged) {
        "forged: it does not give back what only the probe's receiver knows; not believed"
    } else if rose(|counters| counters.late) {
        "late: the probe has its result; changes nothing"
    } else if rose(|counters| counters.repeated) {
        "the same SYN-ACK again: the RST was lost; answered by another"
    } else if rose(|counters| counters.neutral) {
        "genuine, and means nothing by itself"
    } else if rose(|counters| counters.evidence) {
        "ICMP error that explains silence; no verdict by itself"
    } else {
        "noted, should nothing better come"
    };
    what.to_owned()
}

/// A probe's result, for people.
struct Outcome<'a>(&'a Finding);

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { event, reason, detail, rtt, .. } = self.0;
        let event = match event {
            Event::Pass => "passed",
            Event::Fail(Severity::Hard) => "failed, hard",
            Event::Fail(Severity::Soft) => "failed, soft",
            Event::Unknown => "proves nothing",
        };
        write!(f, "{event}: {reason}")?;
        if let Some(rtt) = rtt {
            write!(f, " after {:.3} ms", rtt.as_secs_f64() * 1e3)?;
        }
        detail.map_or(Ok(()), |detail| write!(f, ", {detail}"))
    }
}
