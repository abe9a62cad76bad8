//! `package_files DIRECTORY`: what packages hold beside the programs, made from the programs' own code: manual pages and
//! shell completions from their command lines, and a unit. `./run package` starts it before cargo-deb.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

/// System administration (man(1)).
const SECTION: &str = "8";

#[expect(dead_code, reason = "only the arguments are of interest")]
#[path = "../../../hc-prober/src/cli.rs"]
mod hc_prober_cli;

fn main() -> anyhow::Result<()> {
    let directory = env::args_os().nth(1).map(PathBuf::from).context("usage: package_files DIRECTORY")?;
    let programs = [
        realsrv_setup::cli::Cli::command(),
        lbd::commands::Cli::command(),
        lbd::cli::Cli::command(),
        hc_prober_cli::Cli::command(),
    ];
    let units = [("realsrv-setup.service", realsrv_setup::persist::packaged_unit())];
    fs::create_dir_all(&directory)
        .and_then(|()| programs.into_iter().try_for_each(|program| write_manual_and_completions(program, &directory)))
        .and_then(|()| units.into_iter().try_for_each(|(name, unit)| fs::write(directory.join(name), unit)))
        .with_context(|| format!("writing into {}", directory.display()))
}

/// A page for the program and one for each subcommand, a file for each shell.
fn write_manual_and_completions(program: Command, directory: &Path) -> io::Result<()> {
    let mut program = program.disable_help_subcommand(true);
    let name = program.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut program, &name, directory)?;
    }
    mend_bash(&name, &directory.join(format!("{name}.bash")))?;
    // Built, subcommands have the names of their pages.
    program.build();
    [&program].into_iter().chain(program.get_subcommands()).try_for_each(|command| {
        let page = Man::new(command.clone()).section(SECTION);
        page.generate_to(directory).map(drop)
    })
}

/// Of a program with a hyphen in its name, `clap_complete` 4.6 writes one label for a subcommand and looks for another
/// (clap issue 6421): after the subcommand nothing would be completed.
fn mend_bash(program: &str, file: &Path) -> io::Result<()> {
    let [wrong, right] = ["__subcmd__", "__"].map(|separator| program.replace('-', separator));
    fs::write(file, fs::read_to_string(file)?.replace(&wrong, &right))
}
