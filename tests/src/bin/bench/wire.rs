//! `bench wire`: packets a second through a veth pair, in the driver's mode, with lbd as it runs.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray},
    programs::{Xdp, XdpMode},
};
use comfy_table::{CellAlignment, Table, presets};
use etherparse::PacketBuilder;
use lb_ebpf::{
    bench::{WIRE_ENDED, WIRE_SOURCE},
    net::ETH_LEN,
    objects::BENCH_WIRE,
};
use lbd::model::Stats;
use nix::net::if_::if_nametoindex;
use serde::Serialize;
use tests::lab::{Host, Lab, LabConfig, wait_for};

use crate::{machine::Pinned, sample::Sample, test_run};

/// Where the packets are generated and where they end: the router's side of the LB's link.
const PORT: &str = "to-lb";
const LB_PORT: &str = "eth0";
/// For a check's first verdict and the attachment.
const SOON: Duration = Duration::from_secs(10);

/// How much is sent.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    /// Rounds a row.
    rounds: u32,
    /// Packets a round.
    packets: u32,
}

impl Plan {
    /// Enough to say something.
    pub(crate) const FULL: Self = Self { rounds: 10, packets: 2_000_000 };
    /// Enough to see that it works.
    pub(crate) const SMOKE: Self = Self { rounds: 2, packets: 10_000 };
}

/// What `bench wire` found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    wire_rows: Vec<RowResult>,
    wire_plan: Plan,
}

#[derive(Debug, Serialize)]
struct RowResult {
    row: &'static str,
    median_packets_per_second: f64,
    max_packets_per_second: f64,
    /// Sent and not come back, of all rounds.
    lost: u64,
}

/// Raises a lab with one real and sends through its LB: first past a program that only sends back, then through lbd.
///
/// # Errors
/// The lab, the programs, or packets that did not go the way that was to be measured.
pub(crate) fn measure(plan: Plan) -> Result<Results> {
    let lab = Lab::up(&LabConfig { name: format!("wire-{}", std::process::id()), reals: 1 })?;
    lab.provision()?;
    let mut wire = Wire::lay(&lab)?;
    let _pinned = Pinned::to_last_cpu()?;

    let mut mirror = EbpfLoader::new().load(BENCH_WIRE).context("loading the mirror")?;
    attach(&mut mirror, "mirror", lab.lb(), LB_PORT)?;
    let floor = wire.row("wire-mirror", plan)?;
    drop(mirror);

    let _lbd = lab.start_lbd(&lab.lbd_config("interval = \"500ms\"\ntimeout = \"500ms\""), &[])?;
    wait_for("lbd to attach", SOON, || {
        Ok(lbctl(&lab, &["status"]).is_ok_and(|s| s.contains("running for")).then_some(()))
    })?;
    let before = forwarded(&lab)?;
    let balanced = wire.row("wire-lbd", plan)?;
    let (forwarded, sent) = (forwarded(&lab)? - before, u64::from(plan.rounds) * u64::from(plan.packets));
    ensure!(
        forwarded + balanced.lost >= sent,
        "lbd forwarded {forwarded} of {sent} packets, {} were lost",
        balanced.lost
    );
    Ok(Results { wire_rows: vec![floor, balanced], wire_plan: plan })
}

/// The router's side of the link, with the generator and the sink.
struct Wire<'a> {
    router: &'a Host,
    programs: Ebpf,
    frame: Vec<u8>,
}

impl<'a> Wire<'a> {
    fn lay(lab: &'a Lab) -> Result<Self> {
        let router = lab.router();
        // The lab has a bare pass there.
        router.run(&format!("ip link set dev {PORT} xdpdrv off"))?;
        let mut programs = EbpfLoader::new().load(BENCH_WIRE).context("loading the generator and the sink")?;
        attach(&mut programs, "sink", router, PORT)?;
        xdp(&mut programs, "generate")?.load().context("loading the generator")?;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac(router, PORT)?, mac(lab.lb(), LB_PORT)?)
            .ipv4(WIRE_SOURCE.to_ne_bytes(), lab.vip().octets(), 64)
            .tcp(0, 80, 1, 1024)
            .ack(1)
            .write(&mut frame, &[])?;
        let mut header: Array<_, [u8; ETH_LEN]> = programs.map_mut("HEADER").context("no map HEADER")?.try_into()?;
        header.set(0, *frame.first_chunk().context("a short frame")?, 0)?;
        Ok(Self { router, programs, frame })
    }

    fn row(&mut self, row: &'static str, plan: Plan) -> Result<RowResult> {
        let rounds: Vec<_> = (0..plan.rounds).map(|_| self.round(plan.packets)).collect::<Result<_>>().context(row)?;
        let rate: Sample = rounds.iter().map(|(rate, _)| *rate).collect();
        Ok(RowResult {
            row,
            median_packets_per_second: rate.median(),
            max_packets_per_second: rate.max(),
            lost: rounds.iter().map(|(_, lost)| lost).sum(),
        })
    }

    /// Sends so many packets; returns how many a second came back, and how many did not.
    fn round(&mut self, packets: u32) -> Result<(f64, u64)> {
        let generator = xdp(&mut self.programs, "generate")?.fd()?.try_clone()?;
        let before = self.ended()?;
        let began = Instant::now();
        on(self.router, || test_run::send_live(&generator, if_nametoindex(PORT)?, &self.frame, packets))?;
        let took = began.elapsed();
        // What is still under way comes within moments.
        let sent = u64::from(packets);
        let mut came = self.ended()? - before;
        while came < sent {
            thread::sleep(Duration::from_millis(10));
            let now = self.ended()? - before;
            if now == came {
                break;
            }
            came = now;
        }
        ensure!(came > sent / 2 && came <= sent, "{came} of {sent} packets came back");
        #[expect(clippy::cast_precision_loss, reason = "far below 2⁵²")]
        Ok((came as f64 / took.as_secs_f64(), sent - came))
    }

    fn ended(&self) -> Result<u64> {
        let map: PerCpuArray<_, u64> = self.programs.map("SEEN").context("no map SEEN")?.try_into()?;
        Ok(map.get(&WIRE_ENDED, 0)?.iter().sum())
    }
}

impl Results {
    /// For people.
    pub(crate) fn print(&self) {
        let Plan { rounds, packets } = self.wire_plan;
        println!("wire: one CPU sends, balances and receives, over veth, {rounds} rounds × {packets} packets");
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["ROW", "PACKETS/s MEDIAN", "MAX", "LOST"]);
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        for row in &self.wire_rows {
            let rates = [row.median_packets_per_second, row.max_packets_per_second].map(|rate| format!("{rate:.0}"));
            table.add_row([&[row.row.to_owned()], &rates[..], &[row.lost.to_string()]].concat());
        }
        println!("{table}");
    }
}

/// Loads a program and attaches it in driver mode, for as long as the object lives.
fn attach(object: &mut Ebpf, name: &'static str, host: &Host, device: &str) -> Result<()> {
    let program = xdp(object, name)?;
    program.load().with_context(|| format!("loading the {name}"))?;
    on(host, || program.attach(device, XdpMode::Driver).context("attaching")).with_context(|| name).map(drop)
}

fn xdp<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// Does something on a host: on a thread of its own, since a network namespace is a thread's.
fn on<T: Send>(host: &Host, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let acted = thread::scope(|scope| {
        let actor = scope.spawn(|| {
            host.enter()?;
            act()
        });
        actor.join()
    });
    acted.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
}

fn mac(host: &Host, device: &str) -> Result<[u8; 6]> {
    let links: serde_json::Value = serde_json::from_str(&host.run(&format!("ip -j link show dev {device}"))?)?;
    let text = links.pointer("/0/address").and_then(|address| address.as_str()).context("a link without an address")?;
    let bytes: Vec<_> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().with_context(|| format!("{text} is no MAC address"))
}

fn forwarded(lab: &Lab) -> Result<u64> {
    let stats: Stats = serde_json::from_str(&lbctl(lab, &["stats", "-o", "json"])?)?;
    Ok(stats.reasons.iter().filter(|r| r.reason == "forwarded").map(|r| r.packets).sum())
}

fn lbctl(lab: &Lab, words: &[&str]) -> Result<String> {
    Ok(tests::lab::run(lab.lbctl()?.args(words))?)
}
