//! hc-prober: checks a real the way its clients reach it.

mod cli;
mod run;

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use cli::{CheckArgs, Cli, Command, DiagnoseArgs, Exit, ExitCodes, Output, RunArgs};
use hc_prober::{
    CheckKey, Severity, diagnose,
    diagnosis::{Code, Meaning},
    driver::wall,
    session::{Session, Summary},
    sidecar::Config,
    state::Event,
    trace,
};
use serde_json::json;

/// Exit code of a command line that cannot be understood.
const USAGE: u8 = 3;

/// So many packets are kept for `--pcap`.
const MOST_TRACED: usize = 10_000;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            if !error.use_stderr() {
                // Help and version were asked for.
                return ExitCode::SUCCESS;
            }
            // Whatever was meant by the rest of it: never a code that means a result.
            return ExitCode::from(USAGE);
        }
    };
    let (exits, result) = match &cli.command {
        Command::Check(args) => (args.exit_codes, check(args)),
        Command::Diagnose(args) => (ExitCodes::Nagios, diagnose(args)),
        Command::Run(args) => return run(args),
    };
    match result {
        Ok(exit) => exits.code(exit),
        Err(error) => {
            eprintln!("hc-prober: could not check: {}", with_causes(error.as_ref()));
            exits.code(Exit::Unknown)
        }
    }
}

/// Checks and tells until it is told to end.
fn run(args: &RunArgs) -> ExitCode {
    let result = if args.test {
        Config::load(&args.config).map(|_| eprintln!("{}: no mistakes", args.config.display())).map_err(Into::into)
    } else {
        tracing_subscriber::fmt().with_writer(io::stderr).init();
        run::run(args.config.clone())
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hc-prober: {}", with_causes(error.as_ref()));
            ExitCode::from(USAGE)
        }
    }
}

/// Asks the real what is wrong and prints code, evidence and what mends it.
fn diagnose(args: &DiagnoseArgs) -> Result<Exit, Box<dyn std::error::Error>> {
    let (check, settings) = (args.subject.check()?, args.subject.settings()?);
    let (case, code) = diagnose::diagnose(check.key, args.decap_worked, args.subject.timeout, &settings)?;
    let Meaning { text, mend } = case.meaning(code);
    let report = match args.output {
        Output::Text => {
            let evidence = case.evidence().map(|line| format!("  {line}"));
            let mend = mend.map(|mend| format!("mend: {mend}"));
            let lines: Vec<String> = [format!("{code}: {text}")].into_iter().chain(evidence).chain(mend).collect();
            lines.join("\n")
        }
        Output::Json => json!({
            "check": case.key(),
            "code": code,
            "text": text,
            "evidence": case.evidence().collect::<Vec<_>>(),
            "mend": mend,
        })
        .to_string(),
    };
    // Whoever does not read it still has the exit code.
    let _ = writeln!(io::stdout(), "{report}");
    Ok(match code {
        Code::Ok => Exit::Up,
        Code::Unknown => Exit::Unknown,
        _ => Exit::Down,
    })
}

/// Runs the check and prints one line (or object) that says what was found and why.
fn check(args: &CheckArgs) -> Result<Exit, Box<dyn std::error::Error>> {
    let check = args.subject.check()?;
    let mut session = Session::open(&check, args.subject.settings()?, args.count)?;
    // Before anything is sent: a file that cannot be written is no result of a check.
    let pcap =
        args.pcap.as_ref().map(|path| File::create(path).map_err(|error| cannot_write(path, &error))).transpose()?;
    if pcap.is_some() {
        session.trace(MOST_TRACED);
    }
    let summary = session.run(args.count, args.pace());
    if let (Some(path), Some(file)) = (&args.pcap, pcap) {
        let mut file = BufWriter::new(file);
        let written = trace::write(session.traced().map_or(&[], std::slice::from_ref), wall, &mut file);
        // The check has its result, whatever becomes of the file.
        if let Err(error) = written.and_then(|()| file.flush()) {
            eprintln!("hc-prober: {}", cannot_write(path, &error));
        }
    }
    let exit = match summary {
        Summary { failed: 1.., .. } => Exit::Down,
        Summary { unknown: 1.., .. } | Summary { passed: 0, .. } => Exit::Unknown,
        Summary { .. } => Exit::Up,
    };
    let line = match args.output {
        Output::Text => text(&check.key, &summary, exit, args.count),
        Output::Json => json(&check.key, &summary, exit).to_string(),
    };
    // Whoever does not read it still has the exit code.
    let _ = writeln!(io::stdout(), "{line}");
    Ok(exit)
}

fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("write {}: {error}", path.display())
}

fn text(key: &CheckKey, summary: &Summary, exit: Exit, count: u64) -> String {
    let telling = summary.telling;
    let rtt = telling.and_then(|finding| finding.rtt).map(|rtt| format!(" in {:.3} ms", millis(rtt)));
    let detail = telling.and_then(|finding| finding.detail).map(|detail| format!(": {detail}"));
    let evidence = rtt.into_iter().chain(detail).collect::<String>();
    let line = format!("{exit} {} {key} through {}{evidence}", summary.reason(), key.real);
    if count == 1 {
        return line;
    }
    let Summary { passed, failed, unknown, counters, .. } = summary;
    let (seconds, rate) = (summary.elapsed.as_secs_f64(), per_second(summary));
    format!(
        "{line}\n{count} checks in {seconds:.3} s, {rate:.0}/s: {passed} passed, {failed} failed, {unknown} unknown; \
         {} resets sent, {} late, {} forged",
        counters.resets, counters.late, counters.forged,
    )
}

fn json(key: &CheckKey, summary: &Summary, exit: Exit) -> serde_json::Value {
    let telling = summary.telling;
    json!({
        "check": key,
        "state": exit.to_string(),
        "severity": telling.and_then(|finding| severity(finding.event)),
        "reason": summary.reason(),
        "detail": telling.and_then(|finding| finding.detail).map(|detail| detail.to_string()),
        "rtt_us": telling.and_then(|finding| finding.rtt).map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        "passed": summary.passed,
        "failed": summary.failed,
        "unknown": summary.unknown,
        "seconds": summary.elapsed.as_secs_f64(),
        "checks_per_second": per_second(summary),
        "counters": summary.counters,
    })
}

fn severity(event: Event) -> Option<&'static str> {
    match event {
        Event::Fail(Severity::Hard) => Some("hard"),
        Event::Fail(Severity::Soft) => Some("soft"),
        Event::Pass | Event::Unknown => None,
    }
}

fn per_second(summary: &Summary) -> f64 {
    let results = u32::try_from(summary.passed + summary.failed + summary.unknown).unwrap_or(u32::MAX);
    f64::from(results) / summary.elapsed.as_secs_f64().max(1e-9)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
