//! One turn of the prober: receive, update, send.

use std::time::SystemTime;

use nix::time::{ClockId, clock_gettime};

use crate::{
    batch::ProbeId,
    capture::Capture,
    engine::{Engine, Output},
    finding::Detail,
    report::Counters,
    time::Monotonic,
    trace::Tracer,
    transport::Transport,
};

/// So many packets are received in one turn, so that a flood of them does not keep probes from being sent: some two
/// milliseconds, if each is answered by a RST. More than probes in one turn, so that they do not pile up.
const RECEIVE_LIMIT: usize = 512;

/// The engine with its sockets.
#[derive(Debug)]
pub struct Driver {
    /// The core.
    pub engine: Engine,
    /// What comes in.
    pub capture: Capture,
    /// What goes out.
    pub transport: Transport,
    /// The last packets of some checks.
    pub tracer: Tracer,
    /// What the engine has found since it was last [taken](Output::clear); packets in it are sent each turn.
    pub output: Output,
}

impl Driver {
    /// Receives what has arrived, sends what is due and what answers it. True: more may have arrived or be due already, take
    /// another turn before you wait.
    pub fn turn(&mut self) -> bool {
        // Before looking: what arrives meanwhile may be seen or not.
        let before = now();
        // What has arrived by now was counted before its time is declared to be up.
        let heard = self.receive().unwrap_or(before);
        let more = self.engine.poll(now(), heard, &mut self.output);
        self.send();
        self.tracer.found(&self.output.findings, &self.engine);
        more || heard < before
    }

    /// Receives what has arrived. Nothing falls due. `Some`: there may be more, that arrived after this time.
    pub fn receive(&mut self) -> Option<Monotonic> {
        let Self { engine, tracer, output, .. } = self;
        let mut latest = Monotonic::default();
        let more = self.capture.drain(RECEIVE_LIMIT, |packet, at| {
            latest = latest.max(at);
            if tracer.is_idle() {
                engine.receive(packet, at, output);
            } else {
                tracer.receive(engine, packet, at, output);
            }
        });
        more.then_some(latest)
    }

    /// Sends what the engine has put out.
    pub fn send(&mut self) {
        if self.output.packets.is_empty() && self.output.due.is_empty() {
            return;
        }
        // Before it is answered.
        let at = now();
        let mut refused: Vec<(Option<ProbeId>, i32)> = Vec::new();
        self.transport.send(&self.output.packets, |probe, errno| refused.push((probe, errno)));
        let probes = self.output.packets.iter().filter(|packet| packet.probe.is_some()).count();
        let left = probes > refused.iter().filter(|(probe, _)| probe.is_some()).count();
        if !self.tracer.is_idle() {
            let errno = |probe| refused.iter().find(|(of, _)| *of == Some(probe)).map(|(_, errno)| *errno);
            for packet in self.output.packets.iter() {
                self.tracer.sent(&packet, errno, at);
            }
        }
        self.output.packets.clear();
        if probes > 0 || !self.output.due.is_empty() {
            self.engine.offered(left, now(), &mut self.output);
        }
        for (probe, errno) in refused {
            match probe {
                Some(probe) => self.engine.not_sent(probe, Detail::Refused(errno), now(), &mut self.output),
                None => self.engine.reset_not_sent(),
            }
        }
    }

    /// What the engine and the capture have counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let capture = self.capture.counters();
        Counters { captured: capture.taken + capture.passed, ring_full: capture.ring_full, ..self.engine.counters() }
    }
}

/// The time of day at a time in the past.
#[must_use]
pub fn wall(at: Monotonic) -> SystemTime {
    let today = SystemTime::now();
    today.checked_sub(now().since(at)).unwrap_or(today)
}

/// The time. The clock cannot fail on Linux.
#[must_use]
pub fn now() -> Monotonic {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(|time| Monotonic::default() + time.into()).unwrap_or_default()
}
