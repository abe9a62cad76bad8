//! `bench scale`: lbd with many VIPs and reals: how long a start and a reload take, how soon packets follow a verdict, memory.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{ArrayOfMaps, Map, MapData, MapType},
    programs::{ProgramInfo, loaded_programs},
};
use comfy_table::{CellAlignment, Table, presets};
use etherparse::PacketBuilder;
use jiff::Timestamp;
use lb_ebpf::net::ETH_LEN;
use lbd::model::{Health, HistoryRow, Phase, RealRow, Status};
use serde::{Serialize, de::DeserializeOwned};
use tests::lab::{Lab, LabConfig, Running, wait_for};

use crate::{
    decap::{Decap, VIPS, vip},
    footprint::map_bytes,
    sample::Sample,
    test_run,
};

/// For all checks' first verdicts, on a machine with much to do.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks at what the program does with a packet: so much later than the truth it is seen at most, beside what
/// the scheduler adds.
const LOOK: Duration = Duration::from_micros(50);
/// The reals' addresses of a host begin there in its subnet.
const FIRST_REAL: u8 = 128;
const DEFAULTS: &str = "interval = \"1s\"\ntimeout = \"500ms\"\nrise = 2\nfall = 2";
/// Outer source and destination of an IPv4 header.
const DESTINATION: std::ops::Range<usize> = ETH_LEN + 16..ETH_LEN + 20;

/// So many reals lbd tells apart: an entry of its table stands for none.
#[expect(clippy::cast_possible_truncation, reason = "4,095")]
const ADDRESSES: u32 = lb_ebpf::real::MAX_REALS as u32 - 1;

/// How large it is.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    vips: u32,
    reals_per_vip: u32,
    /// Hosts of the lab that have these reals' addresses, 127 each at most.
    hosts: u32,
    /// Reloads of each kind, and reals that are cut off.
    samples: u32,
}

impl Plan {
    /// 512 VIPs with 4,096 reals in all.
    pub(crate) const FULL: Self = Self { vips: 512, reals_per_vip: 8, hosts: 33, samples: 15 };
    /// Enough to see that it works.
    pub(crate) const SMOKE: Self = Self { vips: 8, reals_per_vip: 4, hosts: 2, samples: 1 };

    fn reals(self) -> u32 {
        self.vips * self.reals_per_vip
    }

    /// Those of a VIP are on different hosts, as far as there are so many. The one beyond lbd's number of addresses is the
    /// first once more.
    fn real(self, n: u32) -> Result<Ipv4Addr> {
        let n = n % ADDRESSES;
        let host = u8::try_from(n % self.hosts)?;
        let address = FIRST_REAL.checked_add(u8::try_from(n / self.hosts)?).context("too many reals a host")?;
        Ok(Ipv4Addr::new(198, 18, 101 + host, address))
    }
}

/// What `bench scale` found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    scale_plan: Plan,
    /// From the command to packets being forwarded, with nothing to take over: after the first round of checks.
    first_start_ms: f64,
    /// The same with a data plane to take over.
    start_ms: f64,
    /// `lbctl reload` after a change of one real's weight.
    reload_ms: f64,
    /// The same after a change of every VIP.
    reload_all_ms: f64,
    /// From the verdict DOWN to a packet that avoids the real.
    verdict_to_ring_ms: f64,
    verdict_to_ring_max_ms: f64,
    /// Resident memory of lbd.
    rss_mb: f64,
    /// What the kernel charges for the maps of the load balancer's program, the rings included.
    maps_mb: f64,
}

/// Raises a lab and measures.
///
/// # Errors
/// The lab, lbd, or a verdict that does not come.
pub(crate) fn measure(plan: Plan) -> Result<Results> {
    let lab = Lab::up(&LabConfig { name: format!("scale-{}", std::process::id()), reals: plan.hosts.try_into()? })?;
    let mut site = Site { decap: lay(&lab, plan)?, lab: &lab, plan };
    let (first, first_start_ms) = site.start(&[])?;
    site.all_up()?;
    drop(first);
    let (lbd, start_ms) = site.start(&[])?;
    site.all_up()?;
    let reload = site.reloads(false)?;
    let reload_all = site.reloads(true)?;
    let verdicts = site.verdicts()?;
    Ok(Results {
        scale_plan: plan,
        first_start_ms,
        start_ms,
        reload_ms: reload.median(),
        reload_all_ms: reload_all.median(),
        verdict_to_ring_ms: verdicts.median(),
        verdict_to_ring_max_ms: verdicts.max(),
        rss_mb: rss_mb(lbd.pid())?,
        maps_mb: maps_mb(&site.program()?)?,
    })
}

/// The ways to the VIPs and to the reals' addresses, without a neighbour entry for each, and their decapsulator.
fn lay(lab: &Lab, plan: Plan) -> Result<Decap> {
    lab.router().run(&format!("ip route add {VIPS} via {}", lab.lb().addr()))?;
    for host in lab.reals() {
        let [a, b, c, _] = host.addr().octets();
        let network = format!("{a}.{b}.{c}.{FIRST_REAL}/25");
        lab.router().run(&format!("ip route add {network} via {}", host.addr()))?;
        host.run(&format!("ip route add local {network} dev lo"))?;
    }
    let reals = (0..plan.reals()).map(|n| plan.real(n)).collect::<Result<Vec<_>>>()?;
    Decap::attach(lab.reals(), reals.into_iter(), plan.vips)
}

struct Site<'a> {
    lab: &'a Lab,
    plan: Plan,
    decap: Decap,
}

impl Site<'_> {
    /// Every VIP over its reals. Of the reals that `lighter` names the weight is another.
    fn config(&self, lighter: impl Fn(u32) -> bool) -> Result<String> {
        let lb = self.lab.lb().addr();
        let mut config = format!("[node]\ninterface = \"eth0\"\nouter_source = \"{lb}\"\n\n[defaults]\n{DEFAULTS}\n");
        for n in 0..self.plan.vips {
            write!(config, "\n[[vip]]\naddress = \"{}\"\nprotocol = \"tcp\"\nport = 80\n", vip(n))?;
            writeln!(config, "check = {{ kind = \"tcp\" }}")?;
            for real in (n * self.plan.reals_per_vip..).take(self.plan.reals_per_vip.try_into()?) {
                let weight = if lighter(real) { 90 } else { 100 };
                write!(config, "\n  [[vip.real]]\n  address = \"{}\"\n  weight = {weight}\n", self.plan.real(real)?)?;
            }
        }
        Ok(config)
    }

    /// Milliseconds until packets are forwarded. Killed when dropped, so that the data plane stays.
    fn start(&self, options: &[&str]) -> Result<(Running, f64)> {
        let config = self.config(|_| false)?;
        let began = Instant::now();
        let lbd = self.lab.start_lbd(&config, options)?;
        wait_for("lbd to forward packets", PATIENCE, || {
            let status: Option<Status> = self.ask(&["status"]).ok();
            let attached =
                |status: Status| status.phase == Phase::Running && status.interfaces.iter().all(|i| i.attached);
            Ok(status.is_some_and(attached).then_some(()))
        })?;
        Ok((lbd, milliseconds(began.elapsed())))
    }

    fn all_up(&self) -> Result<()> {
        let expected = usize::try_from(self.plan.reals())?;
        let up = |rows: Vec<RealRow>| rows.iter().filter(|row| row.state == Health::Up).count();
        let all = || Ok((self.ask(&["real", "list"]).is_ok_and(|rows| up(rows) == expected)).then_some(()));
        Ok(wait_for("all reals to be up", PATIENCE, all)?)
    }

    /// Milliseconds that `lbctl reload` takes.
    fn reloads(&self, of_all: bool) -> Result<Sample> {
        let reload = |n: u32| {
            let each = self.plan.reals_per_vip;
            let lighter = |real: u32| n.is_multiple_of(2) && (real == 0 || of_all && real.is_multiple_of(each));
            fs::write(self.lab.lbd().config, self.config(lighter)?)?;
            let began = Instant::now();
            tests::lab::run(self.lab.lbctl()?.arg("reload"))?;
            anyhow::Ok(milliseconds(began.elapsed()))
        };
        (0..self.plan.samples).map(reload).collect()
    }

    /// The program that is attached.
    fn program(&self) -> Result<ProgramInfo> {
        let status: Status = self.ask(&["status"])?;
        let id = status.program.context("lbd has loaded no program")?.id;
        let found = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
        found.with_context(|| format!("no BPF program has the id {id}"))
    }

    /// Milliseconds from verdicts to packets.
    fn verdicts(&mut self) -> Result<Sample> {
        let program = self.program()?.fd()?.as_fd().try_clone_to_owned()?;
        (0..self.plan.samples).map(|n| self.verdict(&program, n * 7 % self.plan.vips)).collect()
    }

    /// Cuts off a VIP's first real and looks at what becomes of a flow that it served.
    fn verdict(&mut self, program: &OwnedFd, of: u32) -> Result<f64> {
        let real = self.plan.real(of * self.plan.reals_per_vip)?;
        let frame = (1..=u16::MAX).map(|port| frame(vip(of), port)).find_map(|frame| {
            let frame = frame.ok()?;
            (destination(program, &frame).ok()? == real).then_some(frame)
        });
        let frame = frame.with_context(|| format!("no flow of {} goes to {real}", vip(of)))?;
        self.decap.set(real, false)?;
        let gone = Instant::now();
        while destination(program, &frame)? == real {
            ensure!(gone.elapsed() < PATIENCE, "{real} is cut off, and nothing becomes of it");
            thread::sleep(LOOK);
        }
        let seen = Timestamp::now();
        self.decap.set(real, true)?;
        let history: Vec<HistoryRow> = self.ask(&["real", "history", &real.to_string()])?;
        let down = history.iter().rev().find(|row| row.after == Health::Down).context("no verdict DOWN")?;
        let took = seen.duration_since(down.at);
        Ok(took.as_secs_f64() * 1e3)
    }

    fn ask<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T> {
        let answer = tests::lab::run(self.lab.lbctl()?.args(words).args(["-o", "json"]))?;
        Ok(serde_json::from_str(&answer)?)
    }
}

/// A segment in the middle of a connection: not remembered, unless its slot is.
fn frame(vip: Ipv4Addr, port: u16) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let client = Ipv4Addr::new(198, 18, 10, 10);
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(client.octets(), vip.octets(), 64)
        .tcp(port, 80, 1, 1024)
        .ack(1)
        .write(&mut frame, &[])?;
    Ok(frame)
}

/// Where the program sends it, by the outer header.
fn destination(program: &OwnedFd, frame: &[u8]) -> Result<Ipv4Addr> {
    let out = test_run::once(program, frame)?;
    let octets: [u8; 4] = out.get(DESTINATION).context("a short frame")?.try_into()?;
    Ok(octets.into())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn rss_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(f64::from(number(&status, "VmRSS:").context("no VmRSS")?) * 1_024.0 / 1e6)
}

/// The maps that the program uses, and those in them; one that is there twice counts once.
fn maps_mb(program: &ProgramInfo) -> Result<f64> {
    let mut all = HashSet::new();
    for id in program.map_ids()?.unwrap_or_default() {
        all.insert(id);
        let map = MapData::from_id(id)?;
        if map.info()?.map_type()? == MapType::ArrayOfMaps {
            let outer: ArrayOfMaps<MapData> = Map::ArrayOfMaps(map).try_into()?;
            let inner = (0..outer.len()).filter_map(|index| outer.get(&index, 0).ok());
            all.extend(inner.map(|map: MapData| Ok(map.info()?.id())).collect::<Result<Vec<_>>>()?);
        }
    }
    let bytes: u64 = all.into_iter().map(map_bytes).sum::<Result<_>>()?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2⁵²")]
    Ok(bytes as f64 / 1e6)
}

fn number(text: &str, key: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

impl Results {
    /// For people.
    pub(crate) fn print(&self) {
        let Plan { vips, samples, .. } = self.scale_plan;
        println!("scale: lbd with {vips} VIPs and {} reals, {samples} samples", self.scale_plan.reals());
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header([
            "FIRST START ms",
            "START",
            "RELOAD ONE",
            "ALL",
            "VERDICT TO RING",
            "MAX",
            "RSS MB",
            "MAPS MB",
        ]);
        table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        table.add_row([
            format!("{:.0}", self.first_start_ms),
            format!("{:.0}", self.start_ms),
            format!("{:.1}", self.reload_ms),
            format!("{:.1}", self.reload_all_ms),
            format!("{:.2}", self.verdict_to_ring_ms),
            format!("{:.2}", self.verdict_to_ring_max_ms),
            format!("{:.1}", self.rss_mb),
            format!("{:.1}", self.maps_mb),
        ]);
        println!("{table}");
    }
}
