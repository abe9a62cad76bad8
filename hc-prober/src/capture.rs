//! The capture of replies: loads the tc program, tells it what to take, and reads what it took.

use std::{
    collections::{self, HashSet},
    io,
    ops::RangeInclusive,
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
    },
};
use lb_ebpf::{
    objects::PROBE_CAPTURE,
    probe::{CaptureCounters, Captured, Ports, SNAP, Watch},
};

use crate::{
    settings::{OuterSource, Settings},
    time::Monotonic,
};

const PROGRAM: &str = "probe_capture";

/// Priority of our filters where the kernel has no tcx. Unusual, so that no filter of another kind has it.
const PRIORITY: u16 = 61;

/// Why capturing is not possible.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Another prober in this network namespace has them.
    #[error("claim the source ports {first}-{last}: {source}", first = .ports.start(), last = .ports.end())]
    Claim {
        /// The ports.
        ports: RangeInclusive<u16>,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("load the capture program")]
    Load(#[from] aya::EbpfError),
    /// The kernel refused the program.
    #[error("load the capture program")]
    Program(#[source] ProgramError),
    /// The object lacks a part that this crate expects.
    #[error("the capture program has no {0}")]
    Missing(&'static str),
    /// A map operation failed.
    #[error("access the capture's map {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// The cause.
        source: aya::maps::MapError,
    },
    /// The program could not be attached.
    #[error("attach the capture program to the ingress of {interface}")]
    Attach {
        /// The interface.
        interface: String,
        /// The cause.
        source: ProgramError,
    },
}

/// A running capture. Dropping it detaches the program.
pub struct Capture {
    ring: RingBuf<MapData>,
    watch: HashMap<MapData, Watch, u32>,
    counters: PerCpuArray<MapData, CaptureCounters>,
    _program: Ebpf,
    _claim: Claim,
}

impl CaptureError {
    /// Whether others are in the way who will be gone soon: they have the ports, or every place on an interface
    /// (`BPF_MPROG_MAX`, 64 programs).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Claim { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            Self::Attach { source: ProgramError::SyscallError(error), .. } => {
                error.io_error.raw_os_error() == Some(libc::ERANGE)
            }
            Self::Attach { .. } | Self::Load(_) | Self::Program(_) | Self::Missing(_) | Self::Map { .. } => false,
        }
    }
}

impl Capture {
    /// Loads the program for these ports and outer sources and attaches it to the ingress of each interface.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn start(settings: &Settings) -> Result<Self, CaptureError> {
        let Settings { interfaces, outer_source, ports, .. } = settings;
        let claim = Claim::take(ports)?;
        let host_mask = outer_source.map_or(0, OuterSource::host_mask).to_be();
        // Without the kernel's types, which the program does not ask for: reading them takes longer than all the rest.
        let mut program = EbpfLoader::new()
            .btf(None)
            .override_global("PORTS", &Ports { first: *ports.start(), last: *ports.end() }, true)
            .override_global("HOST_MASK", &host_mask, true)
            .load(PROBE_CAPTURE)?;
        let classifier = classifier(&mut program)?;
        classifier.load().map_err(CaptureError::Program)?;
        for interface in interfaces {
            let attached = attach(classifier, interface, *ports.start());
            attached.map_err(|source| CaptureError::Attach { interface: interface.clone(), source })?;
        }
        Ok(Self {
            ring: map(&mut program, "CAPTURED")?,
            watch: map(&mut program, "WATCH")?,
            counters: map(&mut program, "COUNTERS")?,
            _program: program,
            _claim: claim,
        })
    }

    /// Takes packets of `watch` in this role from now on.
    ///
    /// # Errors
    /// The map is full.
    pub fn watch(&mut self, watch: Watch, roles: u32) -> Result<(), CaptureError> {
        self.watch.insert(watch, roles, 0).map_err(|source| CaptureError::Map { map: "WATCH", source })
    }

    /// Leaves packets of these addresses to the kernel again.
    ///
    /// # Errors
    /// They were not watched.
    pub fn unwatch(&mut self, watch: Watch) -> Result<(), CaptureError> {
        self.watch.remove(&watch).map_err(|source| CaptureError::Map { map: "WATCH", source })
    }

    /// Hands captured packets and their times of arrival to `receive`, at most `limit`. True: there may be more.
    pub fn drain(&mut self, limit: usize, mut receive: impl FnMut(&[u8], Monotonic)) -> bool {
        for _ in 0..limit {
            let Some(item) = self.ring.next() else { return false };
            if let Some((at, packet)) = read(&item) {
                receive(packet, at);
            }
        }
        true
    }

    /// The capture's counters, summed over the CPUs; zero if they cannot be read.
    #[must_use]
    pub fn counters(&self) -> CaptureCounters {
        let values = self.counters.get(&0, 0);
        values.iter().flat_map(|values| values.iter()).fold(CaptureCounters::default(), |sum, cpu| CaptureCounters {
            taken: sum.taken + cpu.taken,
            passed: sum.passed + cpu.passed,
            ring_full: sum.ring_full + cpu.ring_full,
            truncated: sum.truncated + cpu.truncated,
        })
    }
}

impl AsFd for Capture {
    /// Becomes readable when a packet was captured.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Capture")
    }
}

fn classifier(program: &mut Ebpf) -> Result<&mut SchedClassifier, CaptureError> {
    let classifier = program.program_mut(PROGRAM).ok_or(CaptureError::Missing(PROGRAM))?;
    classifier.try_into().map_err(CaptureError::Program)
}

fn map<T>(program: &mut Ebpf, name: &'static str) -> Result<T, CaptureError>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = program.take_map(name).ok_or(CaptureError::Missing(name))?;
    T::try_from(map).map_err(|source| CaptureError::Map { map: name, source })
}

/// By tcx where the kernel has it (6.6): first of all programs there, and gone with our process. Otherwise by a `cls_bpf`
/// filter, which outlives a killed process: its handle says which ports it is for, so a successor takes its place.
fn attach(classifier: &mut SchedClassifier, interface: &str, first_port: u16) -> Result<(), ProgramError> {
    let tcx = TcAttachOptions::TcxOrder(LinkOrder::first());
    match classifier.attach_with_options(interface, TcAttachType::Ingress, tcx) {
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
            attach_filter(classifier, interface, first_port)
        }
        attached => attached.map(drop),
    }
}

fn attach_filter(classifier: &mut SchedClassifier, interface: &str, first_port: u16) -> Result<(), ProgramError> {
    let handle = TcHandle::new(0, first_port);
    // It may be there already, for another program's sake. It stays when we go, for the same reason.
    let _ = qdisc_add_clsact(interface);
    let options = NlOptions { priority: PRIORITY, handle, classid: None };
    let attached =
        classifier.attach_with_options(interface, TcAttachType::Ingress, TcAttachOptions::Netlink(options)).map(drop);
    attached.or_else(|first| {
        let stale = SchedClassifierLink::attached(interface, TcAttachType::Ingress, PRIORITY, handle, None);
        let stale = stale.map_err(|error| ProgramError::TcError(TcError::IoError(error)))?;
        classifier.attach_to_link(stale).map(drop).map_err(|_| first)
    })
}

/// One item of the ring: see [`Captured`] for its layout.
fn read(item: &[u8]) -> Option<(Monotonic, &[u8])> {
    const HEAD: usize = size_of::<Captured>() - SNAP;
    let (at, rest) = item.split_first_chunk()?;
    let (len, _) = rest.split_first_chunk()?;
    let len = usize::try_from(u32::from_ne_bytes(*len)).ok()?;
    Some((Monotonic(u64::from_ne_bytes(*at)), item.get(HEAD..)?.get(..len)?))
}

/// The exclusive right to a range of ports in this network namespace: a bound abstract socket, which the kernel gives back
/// however we end.
#[derive(Debug)]
struct Claim {
    _socket: UnixListener,
}

impl Claim {
    fn take(ports: &RangeInclusive<u16>) -> Result<Self, CaptureError> {
        let name = format!("hc-prober/ports/{}", ports.start());
        SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .map(|socket| Self { _socket: socket })
            .map_err(|source| CaptureError::Claim { ports: ports.clone(), source })
    }
}

/// What an engine's checks need to have captured, brought into the map step by step.
#[derive(Debug, Default)]
pub struct Watched {
    current: collections::HashMap<Watch, u32>,
    /// No longer needed, but late answers may come until then.
    retired: Vec<(Monotonic, Watch)>,
}

impl Watched {
    /// Watches what is `wanted`, and stops watching what has not been for so long that no answer is to be expected.
    ///
    /// # Errors
    /// The map is full.
    pub fn update(
        &mut self,
        capture: &mut Capture,
        wanted: &collections::HashMap<Watch, u32>,
        now: Monotonic,
    ) -> Result<(), CaptureError> {
        for (watch, roles) in wanted {
            if self.current.get(watch) != Some(roles) {
                capture.watch(*watch, *roles)?;
                self.current.insert(*watch, *roles);
            }
        }
        self.retired.retain(|(_, watch)| !wanted.contains_key(watch));
        let known: HashSet<Watch> = self.retired.iter().map(|(_, watch)| *watch).collect();
        let gone = self.current.keys().filter(|watch| !wanted.contains_key(*watch) && !known.contains(*watch));
        self.retired.extend(gone.map(|watch| (now + crate::engine::MEMORY, *watch)));
        let (due, kept) = self.retired.iter().partition(|(at, _)| *at <= now);
        self.retired = kept;
        let due: Vec<(Monotonic, Watch)> = due;
        for (_, watch) in due {
            self.current.remove(&watch);
            capture.unwatch(watch)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use std::process::Command;

    fn output(command: &str) -> String {
        let mut words = command.split_whitespace();
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn filtering(first_port: u16) -> Ebpf {
        let mut program = Ebpf::load(PROBE_CAPTURE).unwrap();
        let classifier = classifier(&mut program).unwrap();
        classifier.load().unwrap();
        attach_filter(classifier, "d0", first_port).unwrap();
        program
    }

    /// Needs root. On a thread of its own, as every test: only this thread moves to the new namespace.
    #[test]
    fn filter_of_a_killed_predecessor_is_replaced_and_a_neighbours_is_not() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        output("ip link add d0 type veth peer name d1");
        let filters = || output("tc filter show dev d0 ingress").matches("direct-action").count();
        let _neighbour = filtering(64_512);
        // Killed: it could not detach.
        std::mem::forget(filtering(61_000));
        assert_eq!(filters(), 2);
        let successor = filtering(61_000);
        assert_eq!(filters(), 2);
        drop(successor);
        assert_eq!(filters(), 1);
    }
}
