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
    let wanted = |subject| arguments.subject.is_none_or(|only| only == subject);
    let smoke = arguments.smoke;
    let packet = wanted(Subject::Packet)
        .then(|| packet::measure(if smoke { packet::Plan::SMOKE } else { packet::Plan::FULL }))
        .transpose()?;
    packet.iter().for_each(packet::Results::print);
    let prober = wanted(Subject::Prober)
        .then(|| prober::measure(if smoke { prober::Plan::SMOKE } else { prober::Plan::FULL }))
        .transpose()?;
    prober.iter().for_each(prober::Results::print);
    let probe = wanted(Subject::Probe)
        .then(|| probe::measure(if smoke { probe::Plan::SMOKE } else { probe::Plan::FULL }))
        .transpose()?;
    probe.iter().for_each(probe::Results::print);
    let wire = wanted(Subject::Wire)
        .then(|| wire::measure(if smoke { wire::Plan::SMOKE } else { wire::Plan::FULL }))
        .transpose()?;
    wire.iter().for_each(wire::Results::print);
    let flows = wanted(Subject::Flows)
        .then(|| flows::measure(if smoke { flows::Plan::SMOKE } else { flows::Plan::FULL }))
        .transpose()?;
    flows.iter().for_each(flows::Results::print);
    let scale = wanted(Subject::Scale)
        .then(|| scale::measure(if smoke { scale::Plan::SMOKE } else { scale::Plan::FULL }))
        .transpose()?;
    scale.iter().for_each(scale::Results::print);
    write(arguments, &Results { machine, packet, prober, probe, wire, flows, scale })
}

fn write(arguments: &Arguments, results: &Results) -> Result<()> {
    let Some(path) = &arguments.json else { return Ok(()) };
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    serde_json::to_writer_pretty(file, results).with_context(|| format!("writing {}", path.display()))
}
