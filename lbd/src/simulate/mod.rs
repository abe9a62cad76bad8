//! `lbd simulate`: the packets of a capture through the real XDP program, with the maps that a configuration gives.
//!
//! ```text
//! configuration ── Core ──▶ maps
//! capture ─▶ frame ──▶ [ XDP program, BPF_PROG_TEST_RUN ] ──▶ verdict, its counters' growth ──▶ JSON
//!                                                        └──▶ the frame, if it leaves ──▶ pcap
//! ```

mod capture;
mod report;
mod subject;
mod world;

pub use capture::{Capture, CaptureError, Damage, Frame, Place};
pub use report::Summary;

use crate::config::Config;
use pcap_file::{
    PcapError, TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
};
use report::{Line, NotRun};
use std::{
    fs::{self, File},
    io::{self, BufWriter, ErrorKind, Write},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use subject::Subject;
use world::World;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The capture.
    pub pcap: PathBuf,
    /// Where the packets that leave are written.
    pub out: Option<PathBuf>,
    /// Reals that are down; all others are up.
    pub down: Vec<IpAddr>,
    /// The largest outer packet that the paths to the reals carry, in bytes.
    pub mtu: u16,
}

/// Why a simulation was not begun, or not ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// An address that was said to be a real's.
    #[error("--down {0}: no VIP of the configuration has this real")]
    NotAReal(IpAddr),
    /// The capture, or its rest.
    #[error("{path}: {source}")]
    Capture {
        /// The capture.
        path: String,
        /// What is wrong with it.
        source: CaptureError,
    },
    /// The program or its maps.
    #[error("{}{}", .0, hint(.0))]
    DataPlane(#[from] crate::data_plane::Error),
    /// OUT is IN.
    #[error("{0}: this is the capture itself; name another file for the packets that leave")]
    SameFile(String),
    /// OUT cannot be written.
    #[error("write {0}: {1}")]
    Out(String, io::Error),
    /// The lines cannot be written.
    #[error("write the packets' lines: {0}")]
    Lines(#[from] io::Error),
}

fn hint(error: &crate::data_plane::Error) -> &'static str {
    if error.is_permission_denied() { " (simulating loads a BPF program: run it as root)" } else { "" }
}

/// Runs the packets of a capture, one after another, and writes a line of JSON on each. What was written is in
/// `summary` even if this fails. A reader of `lines` that leaves early ends it without an error.
///
/// # Errors
/// What kept it from beginning or from reading the capture to its end.
pub fn run(options: &Options, lines: &mut impl Write, summary: &mut Summary) -> Result<(), Error> {
    let config = Config::load(&options.config)?;
    let world = World::new(config, &options.down, options.mtu, Instant::now()).map_err(Error::NotAReal)?;
    let unreadable = |source| Error::Capture { path: options.pcap.display().to_string(), source };
    let capture = Capture::open(&options.pcap).map_err(unreadable)?;
    let mut subject = Subject::load(world)?;
    let mut out = options.out.as_deref().map(|path| Out::create(path, &options.pcap)).transpose()?;
    let outcome = (1..).zip(capture).try_for_each(|(n, frame)| {
        let line = simulate(&mut subject, n, &frame.map_err(unreadable)?, out.as_mut())?;
        summary.add(line.reason);
        serde_json::to_writer(&mut *lines, &line).map_err(io::Error::from)?;
        Ok(lines.write_all(b"\n")?)
    });
    let ended = outcome.and_then(|()| Ok(lines.flush()?));
    let written = out.map_or(Ok(()), Out::end);
    match ended {
        Err(Error::Lines(error)) if error.kind() == ErrorKind::BrokenPipe => written,
        ended => ended.and(written),
    }
}

fn simulate(subject: &mut Subject, n: u64, frame: &Frame, out: Option<&mut Out>) -> Result<Line, Error> {
    if let Some(why) = NotRun::of(frame) {
        return Ok(Line::not_run(n, &why));
    }
    let ran = match subject.run(&frame.data) {
        Ok(ran) => ran,
        Err(error) => return Ok(Line::not_run(n, &NotRun::Refused(error.to_string()))),
    };
    let counted = subject.counted(&frame.data, &ran)?;
    if let Some(out) = out
        && ran.action.leaves()
    {
        out.write(frame.at, &ran.frame)?;
    }
    Ok(Line::ran(n, ran.action, &counted))
}

/// The capture of what leaves: Ethernet, nanoseconds.
struct Out {
    path: String,
    writer: PcapWriter<BufWriter<File>>,
}

impl Out {
    fn create(path: &Path, input: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let identity = |path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        if identity(path).is_some_and(|file| Some(file) == identity(input)) {
            return Err(Error::SameFile(name));
        }
        let header = PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
        let created = File::create(path).map_err(PcapError::IoError);
        match created.and_then(|file| PcapWriter::with_header(BufWriter::new(file), header)) {
            Ok(writer) => Ok(Self { path: name, writer }),
            Err(error) => Err(Error::Out(name, cause(error))),
        }
    }

    /// A pcap file's last second is in 2106; whatever is said to be later is written as of then.
    fn write(&mut self, at: Duration, frame: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let packet = PcapPacket::new(at.min(Duration::from_secs(u32::MAX.into())), length, frame);
        let written = self.writer.write_packet(&packet);
        written.map(drop).map_err(|error| Error::Out(self.path.clone(), cause(error)))
    }

    fn end(self) -> Result<(), Error> {
        self.writer.into_writer().flush().map_err(|error| Error::Out(self.path, error))
    }
}

fn cause(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
