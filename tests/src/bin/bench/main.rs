//! `bench`: what a packet costs in the load balancer, how many pass it a second on a wire, and how many checks a second
//! the prober makes.
//! How it measures is in docs/bench.md.

mod decap;
mod flows;
mod footprint;
mod harness;
mod machine;
mod packet;
mod probe;
mod prober;
mod rows;
mod sample;
mod scale;
mod test_run;
mod wire;

use std::{fs::File, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use machine::Machine;
use serde::Serialize;

/// Measures the load balancer's packet path and the prober, and fails if what ran is not what was to be measured.
#[derive(Parser)]
#[command(name = "bench", version)]
struct Arguments {
    /// Only this one
    subject: Option<Subject>,
    /// Only so much that every bench runs and is checked: the numbers mean nothing
    #[arg(long)]
    smoke: bool,
    /// Write the results to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Nanoseconds a packet
    Packet,
    /// Checks a second
    Prober,
    /// Many checks at their pace: cost, lag, memory
    Probe,
    /// Packets a second through a veth pair
    Wire,
    /// Packets that keep their real, by the number of sessions
    Flows,
    /// lbd with many VIPs: start, reload, from verdict to ring, memory
    Scale,
}

/// All that was found.
#[derive(Serialize)]
struct Results {
    machine: Machine,
    #[serde(flatten)]
    packet: Option<packet::Results>,
    #[serde(flatten)]
    prober: Option<prober::Results>,
    #[serde(flatten)]
    probe: Option<probe::Results>,
    #[serde(flatten)]
    wire: Option<wire::Results>,
    #[serde(flatten)]
    flows: Option<flows::Results>,
    #[serde(flatten)]
    scale: Option<scale::Results>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let machine = Machine::here()?;
    println!("{machine}");
    let packet = arguments.bench(
        Subject::Packet,
        [packet::Plan::FULL, packet::Plan::SMOKE],
        packet::measure,
        packet::Results::print,
    )?;
    let prober = arguments.bench(
        Subject::Prober,
        [prober::Plan::FULL, prober::Plan::SMOKE],
        prober::measure,
        prober::Results::print,
    )?;
    let probe = arguments.bench(
        Subject::Probe,
        [probe::Plan::FULL, probe::Plan::SMOKE],
        probe::measure,
        probe::Results::print,
    )?;
    let wire =
        arguments.bench(Subject::Wire, [wire::Plan::FULL, wire::Plan::SMOKE], wire::measure, wire::Results::print)?;
    let flows = arguments.bench(
        Subject::Flows,
        [flows::Plan::FULL, flows::Plan::SMOKE],
        flows::measure,
        flows::Results::print,
    )?;
    let scale = arguments.bench(
        Subject::Scale,
        [scale::Plan::FULL, scale::Plan::SMOKE],
        scale::measure,
        scale::Results::print,
    )?;
    write(arguments, &Results { machine, packet, prober, probe, wire, flows, scale })
}

impl Arguments {
    /// Measures and prints this subject, if it was asked for.
    fn bench<P, R>(
        &self,
        subject: Subject,
        [full, smoke]: [P; 2],
        measure: impl FnOnce(P) -> Result<R>,
        print: impl FnOnce(&R),
    ) -> Result<Option<R>> {
        if self.subject.is_some_and(|only| only != subject) {
            return Ok(None);
        }
        let results = measure(if self.smoke { smoke } else { full })?;
        print(&results);
        Ok(Some(results))
    }
}

fn write(arguments: &Arguments, results: &Results) -> Result<()> {
    let Some(path) = &arguments.json else { return Ok(()) };
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    serde_json::to_writer_pretty(file, results).with_context(|| format!("writing {}", path.display()))
}
