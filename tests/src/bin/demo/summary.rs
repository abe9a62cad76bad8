//! What was measured, as a table, as promises that held or did not, and as JSON.

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::{
    act::Outcome,
    hops::Hops,
    say,
    stage::{FALL, INTERVAL, Stage, TIMEOUT},
    traces::Traces,
};

/// The contract of `--json`. Times are milliseconds, shares fractions of the ring.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    reals: usize,
    interval_ms: u128,
    timeout_ms: u128,
    fall: u32,
    faults: Vec<Row>,
    probe_traces: Traces,
    promises: Vec<Promise>,
}

/// One fault.
#[derive(Debug, Serialize)]
struct Row {
    fault: &'static str,
    state: String,
    reason: String,
    detection_ms: u128,
    bound_ms: u128,
    recovery_ms: u128,
    share_before: f64,
    share_during: f64,
    share_after: f64,
    requests: usize,
    failed_on_failing_real: usize,
    failed_on_failing_real_once_connected: usize,
    failed_on_failing_real_once_down: usize,
    failed_elsewhere: usize,
    slowest_answer_ms: u128,
    downloads_elsewhere: usize,
    downloads_elsewhere_complete: usize,
    own_download_complete: bool,
}

/// Something that is promised, and where it did not hold.
#[derive(Debug, Serialize)]
struct Promise {
    promise: &'static str,
    broken_by: Vec<&'static str>,
}

impl Summary {
    pub(crate) fn new(stage: &Stage, hops: &Hops, traces: Traces, outcomes: Vec<Outcome>) -> Self {
        let mut promises = vec![
            Promise::once("every hop of a request was seen on the wires", hops.complete),
            Promise::once("no reply passed the LB", hops.replies_past_lb == 0),
            Promise::once("a thousand checks left no trace", traces.none_left()),
        ];
        promises.extend(EACH_FAULT.map(|(promise, holds)| Promise {
            promise,
            broken_by: outcomes.iter().filter(|outcome| !holds(outcome)).map(|outcome| outcome.fault.name()).collect(),
        }));
        Self {
            reals: stage.lab.reals().len(),
            interval_ms: INTERVAL.as_millis(),
            timeout_ms: TIMEOUT.as_millis(),
            fall: FALL,
            faults: outcomes.into_iter().map(Row::from).collect(),
            probe_traces: traces,
            promises,
        }
    }

    /// Whether all promises held.
    pub(crate) fn holds(&self) -> bool {
        self.promises.iter().all(|promise| promise.broken_by.is_empty())
    }

    pub(crate) fn tell(&self, stage: &Stage) {
        say::heading(format_args!(
            "Summary: {} reals, interval {} ms, timeout {} ms, fall {}; load 160 requests/s",
            self.reals, self.interval_ms, self.timeout_ms, self.fall
        ));
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header([
            "FAULT",
            "REASON",
            "DETECTED",
            "BOUND",
            "SHARE",
            "BACK AFTER",
            "REQUESTS",
            "FAILED THERE",
            "ELSEWHERE",
            "DOWNLOADS ELSEWHERE",
        ]);
        for row in &self.faults {
            table.add_row(row.cells());
        }
        println!("{table}\n");
        for Promise { promise, broken_by } in &self.promises {
            if broken_by.is_empty() {
                say::line(format_args!("held      {promise}"));
            } else {
                say::line(format_args!("NOT HELD  {promise}: {}", broken_by.join(", ")));
            }
        }
        println!();
        if !self.holds() {
            say::line(format_args!("lbd's log: {}", stage.lab.lbd().log.display()));
        }
    }
}

impl Promise {
    /// A promise about what happened once, before any fault.
    fn once(promise: &'static str, held: bool) -> Self {
        Self { promise, broken_by: if held { vec![] } else { vec!["before any fault"] } }
    }
}

/// Something that can be said of every fault.
type Claim = (&'static str, fn(&Outcome) -> bool);

/// What is promised of every fault.
const EACH_FAULT: [Claim; 6] = [
    ("detected within the bound", |outcome| outcome.detection < outcome.fault.bound()),
    ("its share of the ring went, and came back", |outcome| {
        let [before, during, after] = outcome.shares;
        during == 0.0 && before > 0.0 && (before - after).abs() < f64::EPSILON
    }),
    ("no request failed on a healthy real", |outcome| outcome.requests.failed_elsewhere == 0),
    ("no request failed once the real was down", |outcome| outcome.requests.failed_there_late == 0),
    ("long downloads from healthy reals survived", |outcome| {
        let (complete, all) = outcome.downloads_elsewhere();
        complete == all && all > 0
    }),
    ("nginx -s quit: the real served its own download to the end", |outcome| {
        !outcome.fault.keeps_established() || outcome.own_download_complete()
    }),
];

impl From<Outcome> for Row {
    fn from(outcome: Outcome) -> Self {
        let [share_before, share_during, share_after] = outcome.shares;
        let (complete, all) = outcome.downloads_elsewhere();
        Self {
            fault: outcome.fault.name(),
            state: format!("{:?}", outcome.row.state).to_uppercase(),
            reason: outcome.row.reason.clone(),
            detection_ms: outcome.detection.as_millis(),
            bound_ms: outcome.fault.bound().as_millis(),
            recovery_ms: outcome.recovery.as_millis(),
            share_before,
            share_during,
            share_after,
            requests: outcome.requests.total,
            failed_on_failing_real: outcome.requests.failed_there,
            failed_on_failing_real_once_connected: outcome.requests.broken_there,
            failed_on_failing_real_once_down: outcome.requests.failed_there_late,
            failed_elsewhere: outcome.requests.failed_elsewhere,
            slowest_answer_ms: outcome.requests.slowest.as_millis(),
            downloads_elsewhere: all,
            downloads_elsewhere_complete: complete,
            own_download_complete: outcome.own_download_complete(),
        }
    }
}

impl Row {
    fn cells(&self) -> [String; 10] {
        let percent = |share: f64| format!("{:.0}", share * 100.0);
        let [before, during, after] = [self.share_before, self.share_during, self.share_after].map(percent);
        [
            self.fault.to_owned(),
            format!("{} {}", self.state, self.reason),
            format!("{} ms", self.detection_ms),
            format!("{} ms", self.bound_ms),
            format!("{before} → {during} → {after} %"),
            format!("{} ms", self.recovery_ms),
            self.requests.to_string(),
            self.failed_on_failing_real.to_string(),
            self.failed_elsewhere.to_string(),
            format!("{} of {}", self.downloads_elsewhere_complete, self.downloads_elsewhere),
        ]
    }
}
