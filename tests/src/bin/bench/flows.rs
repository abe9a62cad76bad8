//! `bench flows`: by the number of sessions, the share of packets that went to their session's real, and what the table of
//! tracked flows knew. The numbers of sessions are those of the reference's published test, and a million.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use etherparse::PacketBuilder;
use lb_ebpf::{
    counter::FlowEvent,
    net::{ETH_LEN, IPV4_LEN},
    real::{NextHop, RealEntry, SERVES_TCP, SERVES_UDP},
    ring::{RealId, Ring as Words, RingRef, Slot},
    vip::HashBy,
};
use lbd::{
    config::{Protocol, VipKey, VipMiss},
    data_plane::{Program, XdpAction},
    maglev::{Candidate, Maglev},
    ring::{Member, NewFlows, Ring, WHOLE},
    vip_table,
};
use serde::Serialize;

use crate::rows::{REALS, SEED, real_address, vip_address};

const FLOW_IDLE: Duration = Duration::from_mins(15);
/// Reals that are added while the sessions last.
const ADDED: RealId = 10;
/// The ingress interface of a test run, loopback: the reals are reached by it, so packets are transmitted.
const INGRESS: u32 = 1;
/// Packets of each session after its SYN; after the first of them the reals are added.
const PACKETS: u8 = 3;

/// How many sessions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan(&'static [u32]);

impl Plan {
    /// The reference's, and a million.
    pub(crate) const FULL: Self = Self(&[1, 100, 1000, 2000, 6000, 8000, 1_000_000]);
    /// Enough to see that it works.
    pub(crate) const SMOKE: Self = Self(&[1, 1000]);
}

/// What `bench flows` found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    flows_rows: Vec<RowResult>,
}

/// Which slots are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Tracking {
    /// As lbd's ring says: none, until the reals are added; then those that a window is open on.
    Ring,
    /// Every slot from the start, and no window: only the table knows where a session goes.
    All,
}

#[derive(Debug, Serialize)]
struct RowResult {
    sessions: u32,
    tracking: Tracking,
    /// Without the SYNs.
    packets: u64,
    /// Of these, how many went to the real that their session's SYN went to.
    kept: u64,
    hits: u64,
    /// Without the SYNs.
    misses: u64,
    inserts: u64,
    evictions: u64,
}

/// Runs all sessions through the real program.
///
/// # Errors
/// The kernel refuses, or a packet is not forwarded.
pub(crate) fn measure(plan: Plan) -> Result<Results> {
    let rows = plan.0.iter().flat_map(|&sessions| [Tracking::Ring, Tracking::All].map(|tracking| (sessions, tracking)));
    Ok(Results { flows_rows: rows.map(|(sessions, tracking)| row(sessions, tracking)).collect::<Result<_>>()? })
}

fn row(sessions: u32, tracking: Tracking) -> Result<RowResult> {
    let mut world = World::new(tracking)?;
    world.admit(REALS)?;
    let reals: Vec<_> = (0..sessions).map(|session| world.send(session, true)).collect::<Result<_>>()?;
    let mut kept = 0;
    for round in 0..PACKETS {
        if round == 1 {
            world.admit(REALS + ADDED)?;
        }
        for (session, real) in (0..sessions).zip(&reals) {
            kept += u64::from(world.send(session, false)? == *real);
        }
    }
    let event = |event| world.program.flow_events(event);
    let row = RowResult {
        sessions,
        tracking,
        packets: u64::from(sessions) * u64::from(PACKETS),
        kept,
        hits: event(FlowEvent::Hit)?,
        misses: event(FlowEvent::MissTcp)?,
        inserts: event(FlowEvent::Insert)?,
        evictions: event(FlowEvent::Evict)?,
    };
    row.check().with_context(|| format!("{sessions} sessions, {tracking:?}: this is not what was to be measured"))?;
    Ok(row)
}

/// The program with one VIP.
struct World {
    program: Program,
    ring: Ring,
    tracking: Tracking,
    frames: [Vec<u8>; 2],
}

impl World {
    fn new(tracking: Tracking) -> Result<Self> {
        let mut program = Program::load().context("loading the load balancer")?;
        let key = VipKey { address: vip_address(0).into(), protocol: Protocol::Tcp, port: 80 };
        let row = vip_table::Row { key, index: 0, ring_order: 0, flow_idle: FLOW_IDLE, hash: HashBy::FiveTuple };
        program.swap_vips(&vip_table::build(&[row], SEED, VipMiss::Drop))?;
        let hop =
            NextHop { ifindex: INGRESS, device_mtu: 1500, mtu: 1500, source_mac: [2; 6], destination_mac: [4; 6] };
        for id in 1..=REALS + ADDED {
            let entry = RealEntry::ipip(real_address(0), real_address(id), Some(&hop), SERVES_TCP | SERVES_UDP);
            program.set_real(id, entry)?;
        }
        Ok(Self {
            program,
            ring: Ring::new(&Maglev::new(SEED), 0, FLOW_IDLE, true, false),
            tracking,
            frames: [frame(false)?, frame(true)?],
        })
    }

    /// From now on so many reals are in the ring. The first time no packet has met it.
    fn admit(&mut self, reals: RealId) -> Result<()> {
        let candidate = |id| Candidate { id, address: real_address(id).into(), weight: 100 };
        let new_flows = NewFlows::Take;
        let member = |id| Member { candidate: candidate(id), admitted: true, new_flows, serves: true, portion: WHOLE };
        let is_first = self.ring.current().is_empty();
        self.ring.update(&(1..=reals).map(member).collect::<Vec<_>>(), is_first, Instant::now());
        for (place, mut words) in (RingRef::new(0, 0).place(0)..).zip(self.ring.words()) {
            if self.tracking == Tracking::All {
                track_all(&mut words);
            }
            self.program.swap_ring(place, &words)?;
        }
        Ok(())
    }

    /// Sends a packet of a session; returns the last two octets of the real that it is sent to.
    fn send(&mut self, session: u32, syn: bool) -> Result<[u8; 2]> {
        let [_, clients, ports @ ..] = session.to_be_bytes();
        let frame = self.frames.get_mut(usize::from(syn)).context("two kinds of frames")?;
        let mut put = |at: usize, bytes: &[u8]| {
            frame.get_mut(at..at + bytes.len()).map(|place| place.copy_from_slice(bytes)).context("a short frame")
        };
        // The last octet of the client, and the source port. The path verifies no checksum.
        put(ETH_LEN + 15, &[clients])?;
        put(ETH_LEN + IPV4_LEN, &ports)?;
        let ran = self.program.test_run(frame)?;
        ensure!(ran.action == XdpAction::Transmit, "a packet was not forwarded but {}", ran.action.code());
        ran.frame.get(ETH_LEN + 18..).and_then(|octets| octets.first_chunk()).copied().context("a short packet")
    }
}

fn track_all(words: &mut Words) {
    for slot in &mut words.slots {
        *slot = Slot::new(slot.cur(), 0, true, true);
    }
}

fn frame(syn: bool) -> Result<Vec<u8>> {
    let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let tcp = ip.ipv4([198, 18, 10, 0], vip_address(0).octets(), 64).tcp(0, 80, 1, 1024);
    let mut frame = Vec::new();
    if syn { tcp.syn() } else { tcp.ack(1) }.write(&mut frame, &[])?;
    Ok(frame)
}

impl RowResult {
    /// Every session keeps its real, except where the table, asked for every packet, had to forget some.
    fn check(&self) -> Result<()> {
        let asked = self.hits + self.misses;
        match self.tracking {
            Tracking::Ring => {
                ensure!(self.kept == self.packets, "only {} of {} packets kept their real", self.kept, self.packets);
                ensure!(self.inserts == self.misses, "{} of {} misses were remembered", self.inserts, self.misses);
            }
            Tracking::All => {
                ensure!(asked == self.packets, "{asked} of {} packets were looked up", self.packets);
                ensure!(self.kept >= self.hits, "{} hits, but {} packets kept their real", self.hits, self.kept);
                ensure!(self.evictions > 0 || self.misses == 0, "{} misses without an eviction", self.misses);
            }
        }
        Ok(())
    }
}

impl Results {
    /// For people.
    pub(crate) fn print(&self) {
        println!("flows: each session a SYN and {PACKETS} packets, {ADDED} reals added to {REALS} after the first");
        let mut table = Table::new();
        let header = ["SESSIONS", "TRACKED", "PACKETS", "KEPT", "HITS", "MISSES", "HIT SHARE", "INSERTS", "EVICTIONS"];
        table.load_preset(presets::NOTHING).set_header(header);
        table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        for row in &self.flows_rows {
            let tracking = match row.tracking {
                Tracking::Ring => "window",
                Tracking::All => "all",
            };
            table.add_row([
                row.sessions.to_string(),
                tracking.to_owned(),
                row.packets.to_string(),
                percent(row.kept, row.packets),
                row.hits.to_string(),
                row.misses.to_string(),
                percent(row.hits, row.hits + row.misses),
                row.inserts.to_string(),
                row.evictions.to_string(),
            ]);
        }
        println!("{table}");
    }
}

fn percent(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "far below 2⁵²")]
    let share = part as f64 * 100.0 / whole as f64;
    if whole == 0 { "-".to_owned() } else { format!("{share:.2} %") }
}
