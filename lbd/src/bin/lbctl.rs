//! `lbctl`: asks a running `lbd`.

use std::process::ExitCode;

use clap::Parser;
use lbd::cli::{Cli, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run(Cli::parse()).await
}
