//! The engine opens nothing and reads no clock: what it was told, told again, has the same outcome.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test, a panic is the message")]

use std::{net::Ipv4Addr, num::NonZeroU8, time::Duration};

use hc_prober::{
    Check, CheckKey, Counters, Kind, Timing,
    batch::ProbeId,
    ends::Ends,
    engine::{Engine, Output, Planned},
    finding::{Detail, Finding},
    subject::{Change, Path, Tunnel},
    time::Monotonic,
};
use proptest::prelude::*;

const US: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const TIMING: Timing = Timing {
    interval: Duration::from_millis(300),
    timeout: Duration::from_millis(200),
    fast_interval: Duration::from_millis(50),
    rise: 2,
    fall: 2,
};

/// What an engine can be told.
#[derive(Clone, Debug)]
enum Input {
    Set(Vec<Planned>),
    Poll(Monotonic),
    Receive(Vec<u8>, Monotonic),
    Offered(bool, Monotonic),
    NotSent(ProbeId, i32, Monotonic),
}

/// What an engine says.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    transitions: Vec<(CheckKey, Change)>,
    findings: Vec<(ProbeId, Finding)>,
    packets: Vec<Vec<u8>>,
    counters: Counters,
}

/// An engine, what it was told, and what it said.
struct Run {
    engine: Engine,
    out: Output,
    record: Vec<Input>,
    outcome: Outcome,
}

impl Run {
    fn new() -> Self {
        let engine = Engine::new(&[3; 16], 61_000..=61_063);
        Self { engine, out: Output::default(), record: Vec::new(), outcome: Outcome::default() }
    }

    /// Tells the engine, and returns the packets that it sends, with their probes.
    fn tell(&mut self, input: Input) -> Vec<(Vec<u8>, Option<ProbeId>)> {
        let Self { engine, out, .. } = self;
        match input.clone() {
            Input::Set(planned) => engine.set_checks(planned, now_of(&self.record)),
            Input::Poll(now) => drop(engine.poll(now, now, out)),
            Input::Receive(bytes, at) => engine.receive(&bytes, at, out),
            Input::Offered(left, now) => engine.offered(left, now, out),
            Input::NotSent(probe, errno, now) => engine.not_sent(probe, Detail::Refused(errno), now, out),
        }
        self.record.push(input);
        let packets: Vec<_> = out.packets.iter().map(|packet| (packet.bytes.to_vec(), packet.probe)).collect();
        out.packets.clear();
        self.outcome.packets.extend(packets.iter().map(|(bytes, _)| bytes.clone()));
        self.outcome.transitions.append(&mut out.transitions);
        self.outcome.findings.append(&mut out.findings);
        self.outcome.counters = engine.counters();
        packets
    }
}

/// When the last poll was.
fn now_of(record: &[Input]) -> Monotonic {
    let polls = record.iter().rev().filter_map(|input| if let Input::Poll(now) = input { Some(*now) } else { None });
    polls.take(1).next().unwrap_or(Monotonic(1 << 40))
}

/// The checks whose bit is set: two ports of two VIPs on two reals, and a UDP port whose silence is judged by an echo.
fn checks(bits: u8) -> Vec<Planned> {
    let planned = |n: u8| {
        let (real, vip) = (Ipv4Addr::new(198, 18, 101, n & 1), Ipv4Addr::new(198, 19, 10, n >> 1 & 1));
        let kind = if n & 4 == 0 {
            Kind::Tcp { port: 80 }
        } else {
            Kind::Udp { port: 53, payload: Vec::new(), expect: None, require_reply: n & 1 == 0 }
        };
        let key = CheckKey::new(real.into(), vip.into(), kind);
        let path = Path {
            tunnel: Some(Tunnel::V4 { source: US.into(), real }),
            inner: Ends::V4 { source: US, destination: vip },
            hops: NonZeroU8::MIN,
        };
        Planned { check: Check { key, timing: TIMING }, path: Ok(path) }
    };
    (0..8).filter(|n| bits >> n & 1 == 1).map(planned).collect()
}

/// An answer to a probe in IPv4 in IPv4: a SYN-ACK, a RST, an echo reply or a datagram, genuine or not; or none.
fn answer(packet: &[u8], choice: u8) -> Option<Vec<u8>> {
    let mut bytes = packet[20..].to_vec();
    let (ip, rest) = bytes.split_at_mut(20);
    ip[12..20].rotate_left(4);
    match ip[9] {
        1 => rest[0] = 0,
        6 => {
            rest[..4].rotate_left(2);
            let sequence = u32::from_be_bytes(*rest[4..].first_chunk().unwrap());
            let wrong = u32::from(choice & 0x30 == 0);
            rest[8..12].copy_from_slice(&sequence.wrapping_add(1 + wrong).to_be_bytes());
            rest[13] = if choice & 1 == 0 { 0x12 } else { 0x14 };
        }
        _ => rest[..4].rotate_left(2),
    }
    (choice & 0x0c != 0).then_some(bytes)
}

proptest! {
    #[test]
    fn recorded_run_told_again_has_the_same_transitions(
        steps in prop::collection::vec((1_u64..80, any::<u8>(), any::<u8>(), prop::collection::vec(any::<u8>(), 8)), 20..200),
    ) {
        let mut run = Run::new();
        let mut now = Monotonic(1 << 40);
        run.tell(Input::Set(checks(0xff)));
        for (ms, change, refused, choices) in steps {
            now = now + Duration::from_millis(ms);
            if change < 8 {
                run.tell(Input::Set(checks(choices[0])));
            }
            let sent = run.tell(Input::Poll(now));
            run.tell(Input::Offered(refused >= 16, now));
            for ((bytes, probe), choice) in sent.into_iter().zip(choices.into_iter().cycle()) {
                match probe {
                    Some(probe) if refused < 16 => drop(run.tell(Input::NotSent(probe, libc::ENOBUFS, now))),
                    _ => {
                        let answer = answer(&bytes, choice);
                        let _ = answer.map(|answer| run.tell(Input::Receive(answer, now + Duration::from_millis(choice.into()))));
                    }
                }
            }
        }
        prop_assert!(!run.outcome.transitions.is_empty());
        let mut again = Run::new();
        for input in run.record {
            again.tell(input);
        }
        prop_assert_eq!(again.outcome, run.outcome);
    }
}

proptest! {
    /// Whatever came and went before, and in which order.
    #[test]
    fn checks_set_are_those_that_were_given_and_keep_their_state(
        sets in prop::collection::vec(prop::collection::vec(0_u8..8, 0..10), 1..8),
    ) {
        let mut run = Run::new();
        let mut since = std::collections::HashMap::new();
        for (n, set) in (0_u64..).zip(sets) {
            let now = Monotonic(1 << 40) + Duration::from_millis(n);
            run.record.push(Input::Poll(now));
            let planned: Vec<Planned> = set.iter().flat_map(|n| checks(1 << n)).collect();
            let wanted: std::collections::HashSet<CheckKey> =
                planned.iter().map(|planned| planned.check.key.clone()).collect();
            since.retain(|key, _| wanted.contains(key));
            for key in wanted {
                since.entry(key).or_insert(now);
            }
            run.tell(Input::Set(planned));
            let found: Vec<_> = run.engine.subjects().map(|subject| (subject.check.key.clone(), subject.since)).collect();
            prop_assert_eq!(found.len(), since.len(), "each once");
            prop_assert_eq!(found.into_iter().collect::<std::collections::HashMap<_, _>>(), since.clone());
        }
    }
}
