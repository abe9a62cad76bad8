//! What can go wrong in the lab: each error names the operation and its object.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// A `Result` of the lab.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A lab's name is part of namespace and directory names.
    #[error("`{0}` cannot name a lab: 1 to 32 lower-case letters, digits and hyphens are allowed")]
    Name(String),
    /// More reals than there are subnets for them.
    #[error("{0} reals: a lab has 1 to {max}", max = super::MAX_REALS)]
    Reals(usize),
    /// `up` found the state directory of a lab of this name.
    #[error("lab `{name}` is up already (its state is in {}); take it down first", dir.display())]
    AlreadyUp {
        /// The lab.
        name: String,
        /// Its state directory.
        dir: PathBuf,
    },
    /// `attach` found no lab of this name.
    #[error("lab `{0}` is not up")]
    NotUp(String),
    /// A host that the lab does not have.
    #[error("lab `{lab}` has no host `{host}`; it has {hosts}")]
    NoSuchHost {
        /// The lab.
        lab: String,
        /// The name asked for.
        host: String,
        /// The names there are.
        hosts: String,
    },
    /// A program of this workspace that has not been built.
    #[error("{program} is not built: {} is not there", path.display())]
    NotBuilt {
        /// The program.
        program: &'static str,
        /// Where it is expected.
        path: PathBuf,
    },
    /// A command could not be started.
    #[error("starting `{command}`: {source}")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// A command ended with an error.
    #[error("`{command}` ended with {status}: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to its standard error.
        stderr: String,
    },
    /// A process could not be signalled or waited for.
    #[error("{operation} process {pid}: {source}")]
    Process {
        /// What was tried.
        operation: &'static str,
        /// The process.
        pid: u32,
        /// Why it failed.
        source: io::Error,
    },
    /// An operation on a file failed.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A client that has no socket or port to make its requests from.
    #[error("opening a socket for a request: {0}")]
    Socket(#[source] io::Error),
    /// A capture file that is not one.
    #[error("reading the capture {object}: {source}")]
    Capture {
        /// The file, or the stream's name.
        object: String,
        /// Why.
        source: pcap_file::PcapError,
    },
    /// A capture that lost packets proves nothing.
    #[error("the capture {} is incomplete: {report}", file.display())]
    PacketsLost {
        /// The capture's file.
        file: PathBuf,
        /// What tcpdump said.
        report: String,
    },
    /// Something did not happen in time.
    #[error("waited {bound:?} in vain: {what}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        bound: Duration,
    },
}

/// An [`Error::File`] for `map_err`.
pub(super) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { operation, path, source }
}
