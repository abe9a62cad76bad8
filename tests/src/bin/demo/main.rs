//! `demo`: the main job, told as it happens, with the real outputs of the real programs.
//!
//! The lab is raised, the reals are provisioned, lbd is started. Then: the way of one request; a probe that leaves no
//! trace; one fault after another on one real while clients load the VIP; and a summary of what was measured.

mod act;
mod downloads;
mod fault;
mod hops;
mod say;
mod stage;
mod summary;
mod traces;

use std::{fs::File, io::Write as _, path::PathBuf, process::ExitCode, thread};

use anyhow::{Context as _, Result};
use clap::Parser;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tests::lab::{Lab, LabConfig};

use self::{fault::Fault, stage::Stage, summary::Summary};

/// Raise the lab, break one real in one way after another, and show what clients and operators see of it.
///
/// Exit codes: 0 everything held, 1 something promised did not hold or the demo could not run, 2 usage error.
#[derive(Parser)]
#[command(name = "demo", version, max_term_width = 100)]
struct Arguments {
    /// Leave the lab up at the end, for exploring (`./run lab --name NAME …`)
    #[arg(long)]
    keep: bool,
    /// Write the measured numbers to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many reals; the second is the one that fails
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=20))]
    reals: u8,
    /// The lab's name
    #[arg(long, default_value = "demo")]
    name: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match clean_up_on_signals(&arguments.name).and_then(|()| run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything promised held.
fn run(arguments: &Arguments) -> Result<bool> {
    // Opened first: a file that cannot be written is better known before the demo than after it.
    let json = arguments.json.as_ref().map(|path| File::create(path).with_context(|| path.display().to_string()));
    let json = json.transpose()?;
    let config = LabConfig { name: arguments.name.clone(), reals: arguments.reals.into() };
    let stage = Stage::raise(&config)?;
    let summary = story(&stage)?;
    summary.tell(&stage);
    if let Some(mut file) = json {
        serde_json::to_writer_pretty(&file, &summary)?;
        writeln!(file)?;
    }
    if arguments.keep {
        stage.leave()?;
    }
    Ok(summary.holds())
}

fn story(stage: &Stage) -> Result<Summary> {
    let hops = hops::show(stage)?;
    let traces = traces::show(stage)?;
    stage.measure_throughput()?;
    let outcomes = Fault::ALL.iter().map(|&fault| act::play(stage, fault)).collect::<Result<_>>()?;
    Ok(Summary::new(stage, &hops, traces, outcomes))
}

/// The lab goes, however the demo ends.
fn clean_up_on_signals(lab: &str) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let lab = lab.to_owned();
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        eprintln!("\ndemo: ended by a signal; taking the lab down");
        if let Err(error) = Lab::attach(&lab).and_then(Lab::down) {
            eprintln!("demo: {error}");
        }
        std::process::exit(128 + signal);
    });
    Ok(())
}
