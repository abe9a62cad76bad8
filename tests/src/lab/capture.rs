//! Captures on a host's wire, by tcpdump.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    error::{Error, Result},
    host::Host,
    packet::{self, Packet},
    process::{Running, wait_until},
};

/// What tcpdump is given to start, and to end.
const BOUND: Duration = Duration::from_secs(5);

/// A capture in the background; it ends when it is dropped.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Running,
    /// Its standard error, line by line.
    stderr: Receiver<String>,
    file: PathBuf,
}

impl Host {
    /// Captures what `filter` (pcap-filter(7); empty: everything) matches on `interface` (`any`: on all) into `file`
    /// in the host's directory. When this returns, tcpdump listens.
    ///
    /// # Errors
    /// What tcpdump says, for example about the filter.
    pub fn pcap(&self, interface: &str, filter: &str, file: &str) -> Result<Capture> {
        let file = self.dir().join(file);
        let mut command = self.tcpdump(interface, filter, &file);
        let mut tcpdump = Running::start(command.stderr(Stdio::piped()))?;
        let (lines, stderr) = mpsc::channel();
        if let Some(pipe) = tcpdump.child().and_then(|child| child.stderr.take()) {
            // Ends with the pipe, that is, with tcpdump.
            thread::spawn(move || {
                BufReader::new(pipe).lines().map_while(std::result::Result::ok).try_for_each(|l| lines.send(l))
            });
        }
        let mut capture = Capture { tcpdump, stderr, file };
        capture.wait_listening()?;
        Ok(capture)
    }

    /// tcpdump, writing to a file or to standard output (`-`): every packet at once, nothing left in a buffer.
    #[must_use]
    pub fn tcpdump(&self, interface: &str, filter: &str, file: &Path) -> Command {
        let mut command = self.command("tcpdump");
        command.args(["-n", "-U", "--immediate-mode", "-Z", "root", "-i", interface]);
        if interface == "any" {
            // The first version of the cooked header, which the reader knows.
            command.args(["-y", "LINUX_SLL"]);
        }
        command.arg("-w").arg(file).args(filter.split_whitespace());
        command
    }
}

impl Capture {
    /// The capture file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The packets captured so far.
    ///
    /// # Errors
    /// [`Error::Capture`] if the file cannot be read.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        packet::read(&self.file)
    }

    /// Waits until the packets captured so far are `enough`, and returns them.
    ///
    /// # Errors
    /// [`Error::TimedOut`] naming `what` after `bound`.
    pub fn wait_for(&self, what: &str, bound: Duration, enough: impl Fn(&[Packet]) -> bool) -> Result<Vec<Packet>> {
        wait_until(what, bound, || {
            let packets = self.packets()?;
            Ok(enough(&packets).then_some(packets))
        })
    }

    /// Ends the capture and returns all of its packets.
    ///
    /// # Errors
    /// [`Error::PacketsLost`] if the kernel dropped some for want of buffers.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(BOUND)?;
        for line in &self.stderr {
            if line.contains("dropped by kernel") && !line.starts_with("0 ") {
                return Err(Error::PacketsLost { file: self.file.clone(), report: line });
            }
        }
        packet::read(&self.file)
    }

    fn wait_listening(&mut self) -> Result<()> {
        let mut said = Vec::new();
        loop {
            match self.stderr.recv_timeout(BOUND) {
                Ok(line) if line.contains("listening on") => return Ok(()),
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Error::TimedOut { what: "tcpdump to listen".to_owned(), bound: BOUND });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.tcpdump.wait(BOUND)?;
                    return Err(Error::Failed { command: "tcpdump".to_owned(), status, stderr: said.join("; ") });
                }
            }
        }
    }
}
