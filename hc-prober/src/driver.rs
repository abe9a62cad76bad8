//! One turn of the prober: receive, update, send.

use nix::time::{ClockId, clock_gettime};

use crate::{
    batch::ProbeId,
    capture::Capture,
    engine::{Engine, Output},
    finding::Detail,
    report::Counters,
    time::Monotonic,
    transport::Transport,
};

/// The engine with its sockets.
#[derive(Debug)]
pub struct Driver {
    /// The core.
    pub engine: Engine,
    /// What comes in.
    pub capture: Capture,
    /// What goes out.
    pub transport: Transport,
    /// What the engine has found since it was last [taken](Output::clear); packets in it are sent each turn.
    pub output: Output,
}

impl Driver {
    /// Receives what has arrived, sends what is due and what answers it.
    pub fn turn(&mut self) {
        self.receive();
        // What has arrived by now was counted before its time is declared to be up.
        self.engine.poll(now(), &mut self.output);
        self.send();
    }

    /// Receives what has arrived. Nothing falls due.
    pub fn receive(&mut self) {
        let (engine, output) = (&mut self.engine, &mut self.output);
        self.capture.drain(|packet, at| engine.receive(packet, at, output));
    }

    /// Sends what the engine has put out.
    pub fn send(&mut self) {
        if self.output.packets.is_empty() {
            return;
        }
        let mut refused: Vec<(ProbeId, i32)> = Vec::new();
        self.transport.send(&self.output.packets, |probe, errno| refused.push((probe, errno)));
        self.output.packets.clear();
        for (probe, errno) in refused {
            self.engine.not_sent(probe, Detail::Refused(errno), now(), &mut self.output);
        }
    }

    /// What the engine and the capture have counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let capture = self.capture.counters();
        Counters { captured: capture.taken + capture.evidence, ring_full: capture.ring_full, ..self.engine.counters() }
    }
}

/// The time. The clock cannot fail on Linux.
#[must_use]
pub fn now() -> Monotonic {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(|time| Monotonic::default() + time.into()).unwrap_or_default()
}
