//! Sends the packets of a proof, from a network namespace that is there for the moment.
//!
//! ```text
//! thread's namespace            this namespace
//! packet socket ─ far end ═ lbproofPID ─ ingress: lb_proof ─▶ ingress of the device ─ its filters, decap, VIP
//!                             ▲          (or the device's own lb_decap)                                  │
//!                             └──────────────── route to the client ◀────────────────────────────────────┘
//! ```
//!
//! All that is temporary hangs on the veth pair, and its far end on a namespace that nothing but the packet socket
//! holds: if this process is killed, the kernel takes away namespace, pair, routes and filter. The near end asks nobody
//! for link-layer addresses.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::Array,
    programs::{
        SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions},
    },
};
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, unshare},
    sys::socket::{LinkAddr, MsgFlags, bind, sendto},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Error, System, netlink::Netlink, programs};
use crate::{
    desired::Desired,
    family::Family,
    observed::{Hook, Link, Observed, Program, Slot},
    proof::{
        Answers, Circumstances, Entry, Proof, Way, client, judge, own_probe,
        packet::{Answer, MAX_PROBES, Probe, Reply},
        probes, silent_port, ways,
    },
    run::Host as _,
};

/// What the names of the near ends begin with; the process id follows.
const NEAR: &str = "lbproof";
const FAR: &str = "far";
/// The packets do not leave the host.
const BOUND: Duration = Duration::from_secs(1);

/// Whether a device is the near end of some proof: not a device of the host's.
#[must_use]
pub fn is_near_end(device: &str) -> bool {
    process_of(device).is_some()
}

fn process_of(device: &str) -> Option<u32> {
    device.strip_prefix(NEAR)?.parse().ok()
}

impl System {
    /// Sends an echo and a SYN (to `port`) to every VIP, on every way that a load balancer's packets may take.
    ///
    /// # Errors
    /// The packets could not be sent, or the host could not be observed.
    pub fn prove(&mut self, desired: &Desired, port: u16, port_named: bool) -> Result<Proof, Error> {
        self.sweep()?;
        let observed = self.observe()?;
        let (ways, findings) = ways(desired, &observed).map_err(|refusal| Error::Proof(refusal.to_string()))?;
        let mut proof = Proof { findings, warnings: Vec::new() };
        let mut groups: BTreeMap<(&str, Entry), Vec<&Way>> = BTreeMap::new();
        for way in &ways {
            groups.entry((&way.device, way.entry)).or_default().push(way);
        }
        for ((device, entry), ways) in groups {
            let pair = Pair::lay(self, device, entry, &observed.links)?;
            // Two probes to a way.
            for ways in ways.chunks(usize::from(MAX_PROBES / 2)) {
                prove_some(&pair, ways, (port, port_named), &observed, &mut proof)?;
            }
            pair.take_up(self)?;
        }
        Ok(proof)
    }

    /// Takes away what a killed proof left, if the kernel has not yet.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sweep(&mut self) -> Result<(), Error> {
        let links = self.runtime.block_on(self.netlink.links())?;
        let is_left = |device: &&String| {
            process_of(device).is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists())
        };
        links.keys().filter(is_left).try_for_each(|device| self.runtime.block_on(self.netlink.delete_link(device)))
    }
}

fn prove_some(
    pair: &Pair,
    ways: &[&Way],
    (port, port_named): (u16, bool),
    observed: &Observed,
    proof: &mut Proof,
) -> Result<(), Error> {
    let filtered = filtered_packets();
    let first: Vec<_> = ways.iter().flat_map(|way| probes(way, port)).collect();
    let answers = pair.exchange(&first)?;
    for (way, answers) in ways.iter().zip(answers.chunks(2)) {
        let &[echo, syn] = answers else { continue };
        let answers = Answers { echo, syn };
        let own = match (echo.or(syn), own_probe(way)) {
            (None, Some(probe)) => pair.exchange(&[probe])?.first().copied(),
            _ => None,
        };
        let known = Circumstances { own, filtered: filtered_packets().saturating_sub(filtered), port_named };
        proof.findings.extend(judge(way, port, answers, known, observed));
        proof.warnings.extend(silent_port(way, port, answers, port_named));
    }
    Ok(())
}

/// How many packets the reverse path filter has dropped in this namespace; 0 where the kernel does not tell.
fn filtered_packets() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "IPReversePathFilter");
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// What is in the other namespace.
struct Far {
    socket: Socket,
    address: LinkAddr,
    runtime: tokio::runtime::Runtime,
    netlink: Netlink,
}

/// The veth pair, with what is at its far end.
struct Pair {
    near: String,
    far: Far,
    /// The link-layer address that frames are for.
    to: [u8; 6],
    /// The filter goes with it.
    _object: Option<Ebpf>,
}

impl Pair {
    /// Lays the pair, with a way back to the client and a filter that takes frames to where they should arrive.
    fn lay(system: &mut System, device: &str, entry: Entry, links: &BTreeMap<String, Link>) -> Result<Self, Error> {
        let near = format!("{NEAR}{}", std::process::id());
        let far = far_end(&near)?;
        let netlink = &system.netlink;
        let made_ready = system.runtime.block_on(async {
            enable_ipv6(&near)?;
            netlink.set_up_silent(&near).await?;
            for family in Family::ALL.into_iter().filter(|&family| speaks(family, &near)) {
                netlink.add_route(client(family), &near).await?;
            }
            let object = match entry {
                Entry::Device => Some(hand_over(&near, links.get(device).map_or(0, |link| link.index))?),
                Entry::Program => {
                    let hooks = netlink.hooks(links).await?;
                    let slot = Slot { device: device.to_owned(), hook: Hook::Ingress };
                    programs::attach_copy(&hooks, &slot, Program::Decap, &near)?;
                    None
                }
            };
            let to = netlink.hardware_address(if entry == Entry::Device { device } else { &near }).await?;
            Ok((object, to))
        });
        let ready = made_ready.and_then(|made| far.open(system, &near).map(|()| made));
        match ready {
            Ok((object, to)) => Ok(Self { near, far, to, _object: object }),
            Err(error) => {
                // The first error tells more; what is left goes with the socket.
                let _ = system.runtime.block_on(netlink.delete_link(&near));
                Err(error)
            }
        }
    }

    fn take_up(self, system: &System) -> Result<(), Error> {
        system.runtime.block_on(system.netlink.delete_link(&self.near))
    }

    /// The answer to each probe: waits until all are there, or [`BOUND`].
    fn exchange(&self, probes: &[Probe<'_>]) -> Result<Vec<Answer>, Error> {
        let numbered = || (0..MAX_PROBES).zip(probes);
        for (number, probe) in numbered() {
            self.send(&probe.frame(number, self.to))?;
        }
        let mut answers: BTreeMap<u16, Reply> = BTreeMap::new();
        let end = Instant::now() + BOUND;
        while answers.len() < probes.len()
            && let Some(frame) = self.receive(end)?
        {
            for (number, probe) in numbered() {
                let Some(reply) = probe.reply(number, &frame) else { continue };
                answers.insert(number, reply);
                if let Reply::SynAck(acknowledged) = reply
                    && let Some(reset) = probe.reset(number, acknowledged, self.to)
                {
                    self.send(&reset)?;
                }
            }
        }
        Ok(numbered().map(|(number, _)| answers.get(&number).copied()).collect())
    }

    fn send(&self, frame: &[u8]) -> Result<(), Error> {
        let sent = sendto(self.far.socket.as_raw_fd(), frame, &self.far.address, MsgFlags::empty());
        sent.map(drop).map_err(|errno| Error::io(format!("sending on {FAR}"))(errno.into()))
    }

    /// The next frame; `None` at `end`.
    fn receive(&self, end: Instant) -> Result<Option<Vec<u8>>, Error> {
        const FRAME: usize = 2048;
        let mut buffer = [0; FRAME];
        let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
            return Ok(None);
        };
        let operation = || format!("receiving on {FAR}");
        self.far.socket.set_read_timeout(Some(left)).map_err(Error::io(operation()))?;
        match (&self.far.socket).read(&mut buffer) {
            Ok(octets) => Ok(buffer.get(..octets).map(<[u8]>::to_vec)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok((Instant::now() < end).then(Vec::new))
            }
            Err(error) => Err(Error::io(operation())(error)),
        }
    }
}

impl Far {
    /// Sets the far end up, and waits until both ends take packets: before, they drop them.
    ///
    /// The near end is up, so this one has its carrier and its queue at once; the near one gets its queue a moment later
    /// (`net/core/link_watch.c`), and says so with its operational state.
    fn open(&self, system: &System, near: &str) -> Result<(), Error> {
        const PAUSE: Duration = Duration::from_millis(1);
        let operation = || format!("setting {FAR} up");
        self.runtime.block_on(self.netlink.set_up(FAR, true))?;
        // That the device was down when the socket was bound to it.
        self.socket.take_error().map_err(Error::io(operation()))?;
        let end = Instant::now() + BOUND;
        while !system.runtime.block_on(system.netlink.is_operational(near))? {
            if Instant::now() >= end {
                return Err(Error::io(operation())(io::Error::from(io::ErrorKind::TimedOut)));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// Makes the pair in a namespace of a thread's own, gives its near end to this one, and returns the socket at the far
/// end, which keeps the other namespace.
fn far_end(near: &str) -> Result<Far, Error> {
    let here = File::open("/proc/thread-self/ns/net").map_err(Error::io("opening this network namespace"))?;
    let (here, near) = (OwnedFd::from(here), near.to_owned());
    let lay = move || {
        let failed = |errno: nix::Error| Error::io("making a network namespace")(errno.into());
        unshare(CloneFlags::CLONE_NEWNET).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("starting the runtime"))?;
        let netlink = runtime.block_on(async {
            let netlink = Netlink::open()?;
            let laid = netlink.lay_pair(FAR, &near, &here).await;
            laid.map(|()| netlink)
        })?;
        let (socket, address) = socket_on_far_end()?;
        Ok(Far { socket, address, runtime, netlink })
    };
    match thread::spawn(lay).join() {
        Ok(result) => result,
        Err(_) => Err(Error::io("making a network namespace")(io::Error::other("the thread ended early"))),
    }
}

fn socket_on_far_end() -> Result<(Socket, LinkAddr), Error> {
    let operation = || format!("opening a packet socket on {FAR}");
    let failed = |errno: nix::Error| Error::io(operation())(errno.into());
    // include/uapi/linux/if_ether.h: ETH_P_ALL, in network byte order.
    let everything = Protocol::from(i32::from(3_u16.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(everything)).map_err(Error::io(operation()))?;
    let far = getifaddrs().map_err(failed)?.find_map(|found| {
        let address = found.address.filter(|_| found.interface_name == FAR)?;
        address.as_link_addr().copied()
    });
    let far = far.ok_or_else(|| Error::NoDevice(FAR.to_owned()))?;
    bind(socket.as_raw_fd(), &far).map_err(failed)?;
    Ok((socket, far))
}

/// Hosts may disable IPv6 on new devices.
fn enable_ipv6(device: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    let written = File::options().write(true).open(&path).and_then(|mut file| file.write_all(b"0"));
    match written {
        // A kernel without IPv6 has no VIPs of it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(Error::io(format!("writing {path}"))),
    }
}

fn speaks(family: Family, device: &str) -> bool {
    let settings = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    Path::new(&format!("/proc/sys/net/{settings}/conf/{device}")).exists()
}

/// Attaches the program that hands frames over to the device of this index.
fn hand_over(near: &str, index: u32) -> Result<Ebpf, Error> {
    let mut object = Ebpf::load(lb_ebpf::objects::PROOF).map_err(Error::bpf("loading the object of the proof"))?;
    let map = object.map_mut("DEVICE").ok_or_else(|| Error::bpf("reading the object")("there is no map DEVICE"))?;
    let mut device: Array<_, u32> = map.try_into().map_err(Error::bpf("the map DEVICE"))?;
    device.set(0, index, 0).map_err(Error::bpf("writing DEVICE"))?;
    let program = object.program_mut("lb_proof");
    let program = program.ok_or_else(|| Error::bpf("reading the object")("there is no program lb_proof"))?;
    let program: &mut SchedClassifier = program.try_into().map_err(Error::bpf("lb_proof is not a tc program"))?;
    program.load().map_err(Error::bpf("loading lb_proof"))?;
    attach_to_near_end(program, near)?;
    Ok(object)
}

/// At ingress; the filter goes with the device.
pub(super) fn attach_to_near_end(program: &mut SchedClassifier, near: &str) -> Result<(), Error> {
    aya::programs::tc::qdisc_add_clsact(near).map_err(Error::bpf(format!("adding clsact to {near}")))?;
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let attached = program.attach_with_options(near, TcAttachType::Ingress, options);
    let link = attached.and_then(|id| program.take_link(id)).map_err(Error::bpf(format!("attaching to {near}")))?;
    // Dropping it would detach the filter, from a device that may be gone by then.
    std::mem::forget(link);
    Ok(())
}
