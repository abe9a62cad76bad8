//! `bench packet`: nanoseconds a packet costs in the load balancer's path.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    footprint::Footprint,
    harness::{Harness, Round},
    machine::Pinned,
    rows::{Flows, ROWS, Row, Timed},
    sample::Sample,
};

/// How often everything is repeated.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    /// Fresh loads a row: where its maps come to lie in memory shifts a row by nanoseconds.
    loads: u32,
    /// Timed rounds a load.
    rounds_per_load: u32,
    /// Packets a round.
    packets_per_round: u32,
}

impl Plan {
    /// Enough to say something.
    pub(crate) const FULL: Self = Self { loads: 5, rounds_per_load: 4, packets_per_round: 1 << 20 };
    /// Enough to see that it works.
    pub(crate) const SMOKE: Self = Self { loads: 1, rounds_per_load: 2, packets_per_round: 1 << 14 };
}

/// Packets before the first round of rows without a number of flows to visit.
const WARM_UP: u32 = 1 << 14;
/// Flows are first visited one after the other, so inserted in that order, and then, timed, in steps of this.
const STRIDE: u32 = 0x9e37_79b1;

/// What `bench packet` found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// One for each of [`ROWS`].
    rows: Vec<RowResult>,
    #[serde(flatten)]
    footprint: Footprint,
    plan: Plan,
}

#[derive(Debug, Serialize)]
struct RowResult {
    row: &'static str,
    min_ns: f64,
    median_ns: f64,
    max_ns: f64,
    /// Medians of the floors in the same run.
    floor_pass_ns: f64,
    floor_tx_ns: f64,
    /// Share of the packets whose flow was remembered, 0 to 1.
    hits: f64,
    /// Share of the packets whose flow was remembered from then on, 0 to 1.
    inserts: f64,
}

/// Measures all rows.
///
/// # Errors
/// The kernel refuses, or a row's counters contradict it.
pub(crate) fn measure(plan: Plan) -> Result<Results> {
    let _pinned = Pinned::to_last_cpu()?;
    let mut rounds: Vec<_> = ROWS.iter().map(|row| (row, Vec::new())).collect();
    // Row by row within a load: what else the machine does meanwhile then falls on all rows alike.
    for _ in 0..plan.loads {
        for (row, rounds) in &mut rounds {
            rounds.extend(measure_load(row, plan)?);
        }
    }
    let floor = |timed| {
        let floor = rounds.iter().find(|(row, _)| row.timed == timed);
        floor.map_or(0.0, |(_, rounds)| nanoseconds(rounds).median())
    };
    let floors = (floor(Timed::FloorPass), floor(Timed::FloorTx));
    let rows = rounds.iter().map(|(row, rounds)| RowResult::new(row, rounds, floors)).collect();
    Ok(Results { rows, footprint: Footprint::measure()?, plan })
}

fn measure_load(row: &Row, plan: Plan) -> Result<Vec<Round>> {
    let mut harness = Harness::load(row)?;
    harness.visit(1)?;
    harness.run(match row.flows {
        Flows::Live(flows) => flows.max(WARM_UP),
        Flows::New => WARM_UP,
    })?;
    harness.visit(STRIDE)?;
    (0..plan.rounds_per_load).map(|_| harness.run(plan.packets_per_round)).collect()
}

fn nanoseconds(rounds: &[Round]) -> Sample {
    rounds.iter().map(|round| round.ns).collect()
}

impl RowResult {
    fn new(row: &Row, rounds: &[Round], (floor_pass_ns, floor_tx_ns): (f64, f64)) -> Self {
        let ns = nanoseconds(rounds);
        let packets = rounds.iter().map(|round| round.packets).sum();
        Self {
            row: row.name,
            min_ns: ns.min(),
            median_ns: ns.median(),
            max_ns: ns.max(),
            floor_pass_ns,
            floor_tx_ns,
            hits: share(rounds.iter().map(|round| round.hits).sum(), packets),
            inserts: share(rounds.iter().map(|round| round.inserts).sum(), packets),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2⁵²")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

impl Results {
    /// For people.
    pub(crate) fn print(&self) {
        let Plan { loads, rounds_per_load, packets_per_round } = self.plan;
        println!("packet path: ns a packet, {loads} loads × {rounds_per_load} rounds × {packets_per_round} packets");
        let mut table = Table::new();
        let header = ["ROW", "MIN", "MEDIAN", "MAX", "× FLOOR-TX", "HITS", "INSERTS"];
        table.load_preset(presets::NOTHING).set_header(header);
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        for row in &self.rows {
            let ns = [row.min_ns, row.median_ns, row.max_ns].map(|ns| format!("{ns:.1}"));
            let ratio = format!("{:.2}", row.median_ns / row.floor_tx_ns);
            let shares = [row.hits, row.inserts].map(|share| format!("{:.1} %", share * 100.0));
            table.add_row([&[row.row.to_owned()], &ns[..], &[ratio], &shares[..]].concat());
        }
        println!("{table}");
        let Footprint {
            program_bytes,
            verified_instructions,
            map_bytes,
            flow_table_bytes,
            vip_table_bytes,
            ring_bytes,
        } = self.footprint;
        let verified = verified_instructions.map_or("unknown".to_owned(), |number| number.to_string());
        println!("program {program_bytes} B of machine code, {verified} instructions verified");
        println!(
            "maps {map_bytes} B before the first VIP, of which tracked flows {flow_table_bytes} B; \
             table of VIPs {vip_table_bytes} B, each ring {ring_bytes} B"
        );
    }
}
