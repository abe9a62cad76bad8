//! `bench probe`: the prober with many checks at their pace: what one costs it, how late probes leave, what it remembers.

use std::{fs, net::Ipv4Addr, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use comfy_table::{CellAlignment, Table, presets};
use hc_prober::{Check, CheckKey, Counters, Kind, Prober, Settings, State, Timing, Transition};
use serde::Serialize;
use tests::lab::{Host, Lab, LabConfig};
use tokio::{
    runtime::Runtime,
    sync::mpsc::UnboundedReceiver,
    time::{Instant, sleep, timeout},
};

use crate::{
    decap::{Decap, vip},
    machine::{Pinned, Queue, queue_drops},
};

/// As the goal says; a verdict is never pending sooner.
const TIMING: Timing = Timing {
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(1),
    fast_interval: Duration::from_secs(1),
    rise: 2,
    fall: 3,
};

/// nginx listens there.
const PORT: u16 = 80;

/// For the first verdict of every check, if the reals can answer so many.
const SOON: Duration = Duration::from_secs(10);

/// How much is checked.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    reals: usize,
    vips: u32,
    /// Checks of each row, each of another VIP and real, and how many seconds it is measured.
    rows: &'static [(usize, u64)],
}

impl Plan {
    /// The last row goes on until the first of its probes is forgotten: then no more is remembered.
    pub(crate) const FULL: Self =
        Self { reals: 25, vips: 4_000, rows: &[(1_000, 10), (10_000, 10), (50_000, 10), (75_000, 10), (100_000, 70)] };
    /// Enough to see that it works.
    pub(crate) const SMOKE: Self = Self { reals: 2, vips: 50, rows: &[(100, 2)] };
}

/// What `bench probe` found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    probe_rows: Vec<RowResult>,
    probe_plan: Plan,
}

#[derive(Debug, Serialize)]
struct RowResult {
    checks: usize,
    /// Of them were up before the measurement.
    up: usize,
    /// Probes that were answered rightly in time.
    passed_per_second: f64,
    /// Of a thousand probes, those without such an answer.
    unanswered_per_mille: f64,
    /// Processor time of the prober's thread, microseconds a check: in user mode, in the kernel.
    user_us: f64,
    system_us: f64,
    /// Of its CPU.
    busy: f64,
    /// Of the CPUs that do the routers' and the reals' work, all that they do.
    network_busy: f64,
    lag_p50_us: u64,
    lag_p99_us: u64,
    lag_max_us: u64,
    /// Resident memory of the process more than before the first row.
    memory_mib: f64,
    /// What became of the unanswered: see [`Losses`].
    #[serde(flatten)]
    losses: Losses,
}

/// Packets that did not do what they were to, and where.
#[derive(Clone, Copy, Debug, Serialize)]
struct Losses {
    /// Genuine answers after the timeout.
    late: u64,
    /// Replies that found the capture's ring full.
    ring_full: u64,
    /// Packets that the kernel did not take from the prober.
    not_sent: u64,
    /// Packets for which a CPU's queue of arriving ones had no room: those steered there, and at each hop after that. A RST
    /// among them leaves the real half-open.
    queue_full: u64,
    /// SYNs that a real's listener did not take.
    not_accepted: u64,
}

impl Losses {
    /// Since the start of the lab and of the prober.
    fn so_far(lab: &Lab, counters: &Counters) -> Result<Self> {
        let refused = lab.reals().iter().map(|real| listen_drops(&real.run("cat /proc/net/netstat")?));
        Ok(Self {
            late: counters.late,
            ring_full: counters.ring_full,
            not_sent: counters.send_errors,
            queue_full: queue_drops()?,
            not_accepted: refused.sum::<Result<u64>>()?,
        })
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            late: self.late - earlier.late,
            ring_full: self.ring_full - earlier.ring_full,
            not_sent: self.not_sent - earlier.not_sent,
            queue_full: self.queue_full - earlier.queue_full,
            not_accepted: self.not_accepted - earlier.not_accepted,
        }
    }
}

/// `ListenDrops` of `/proc/net/netstat`: a line of names and a line of numbers.
fn listen_drops(netstat: &str) -> Result<u64> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, numbers) = (lines.next().unwrap_or("".split_whitespace()), lines.next().context("no TcpExt numbers")?);
    let (_, number) = names.zip(numbers).find(|(name, _)| *name == "ListenDrops").context("no ListenDrops")?;
    Ok(number.parse()?)
}

/// Raises a lab and measures all rows.
///
/// # Errors
/// The lab, the prober, or a check that does not come up.
pub(crate) fn measure(plan: Plan) -> Result<Results> {
    let lab = Lab::up(&LabConfig { name: format!("probe-{}", std::process::id()), reals: plan.reals })?;
    let _decap = Decap::attach(lab.reals(), lab.reals().iter().map(Host::addr), plan.vips)?;
    let pinned = Pinned::to_last_cpu()?;
    steer(lab.router(), "to-lb", &pinned.others())?;
    let _queue = Queue::lengthened()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = memory()?;
    let measure = |&(checks, seconds)| measure_row(&runtime, &lab, plan, checks, seconds, before);
    Ok(Results { probe_rows: plan.rows.iter().map(measure).collect::<Result<_>>()?, probe_plan: plan })
}

/// Everything that comes in there, and what follows from it (the way through the router, the real, and the way back), is
/// another CPU's work, as if it were other machines'. With one CPU alone there is no other.
fn steer(host: &Host, device: &str, cpus: &str) -> Result<()> {
    let namespace = host.namespace();
    let line = format!("echo {cpus} >/sys/class/net/{device}/queues/rx-0/rps_cpus");
    // With its own /sys. The program that the lab has there would run before the steering.
    host.run(&format!("ip link set dev {device} xdpdrv off"))?;
    tests::lab::run(std::process::Command::new("ip").args(["netns", "exec", namespace, "sh", "-c", &line]))?;
    Ok(())
}

/// The first checks of all reals' VIPs: those of a VIP one after the other.
fn checks(lab: &Lab, plan: Plan, number: usize) -> Vec<Check> {
    let pairs = (0..plan.vips).flat_map(|n| lab.reals().iter().map(move |real| (real.addr(), vip(n))));
    let check = |(real, vip): (Ipv4Addr, Ipv4Addr)| Check {
        key: CheckKey::new(real.into(), vip.into(), Kind::Tcp { port: PORT }),
        timing: TIMING,
    };
    pairs.map(check).take(number).collect()
}

fn measure_row(
    runtime: &Runtime,
    lab: &Lab,
    plan: Plan,
    number: usize,
    seconds: u64,
    memory_before: u64,
) -> Result<RowResult> {
    let (prober, mut transitions) = start(lab)?;
    let thread = Thread::find("prober")?;
    let checks = checks(lab, plan, number);
    ensure!(checks.len() == number, "only {} pairs of VIPs and reals", checks.len());
    prober.set_checks(checks);
    runtime.block_on(async {
        let up = come_up(&mut transitions, number).await;
        // It takes a moment: before the clock starts.
        let lost = Losses::so_far(lab, &counters(&prober).await?)?;
        let (began, network, cpu, before) = (Instant::now(), Load::so_far()?, thread.cpu()?, counters(&prober).await?);
        sleep(Duration::from_secs(seconds)).await;
        let (elapsed, used, after) = (began.elapsed(), thread.cpu()?.since(&cpu), counters(&prober).await?);
        let network_busy = Load::so_far()?.busy_since(&network);
        let losses = Losses::so_far(lab, &after)?.since(&lost);
        let grown = memory()?.saturating_sub(memory_before);
        row([number, up], elapsed, &used, network_busy, &before, &after, grown, losses)
    })
}

#[expect(clippy::too_many_arguments, reason = "what was read before and after")]
fn row(
    [checks, up]: [usize; 2],
    elapsed: Duration,
    used: &Cpu,
    network_busy: f64,
    before: &Counters,
    after: &Counters,
    grown: u64,
    losses: Losses,
) -> Result<RowResult> {
    let (sent, passed) = (after.sent - before.sent, after.passed - before.passed);
    ensure!(passed > 0, "{after:?}");
    let lag = after.lag.after(&before.lag);
    let share = |part: u64, whole: u64| float(part) / float(whole);
    Ok(RowResult {
        checks,
        up,
        passed_per_second: float(passed) / elapsed.as_secs_f64(),
        unanswered_per_mille: 1e3 * share(sent.saturating_sub(passed), sent),
        user_us: used.user.as_secs_f64() * 1e6 / float(sent),
        system_us: used.system.as_secs_f64() * 1e6 / float(sent),
        busy: (used.user + used.system).as_secs_f64() / elapsed.as_secs_f64(),
        network_busy,
        lag_p50_us: lag.percentile_us(50),
        lag_p99_us: lag.percentile_us(99),
        lag_max_us: lag.max_us(),
        memory_mib: float(grown) / 1024.0,
        losses,
    })
}

#[expect(clippy::cast_precision_loss, reason = "what is counted here is far below 2⁵²")]
fn float(number: u64) -> f64 {
    number as f64
}

/// On the LB of the lab.
fn start(lab: &Lab) -> Result<(Prober, UnboundedReceiver<Transition>)> {
    let start = || -> Result<_> {
        lab.lb().enter()?;
        Ok(Prober::start(Settings::new(vec!["eth0".into()])?)?)
    };
    thread::scope(|scope| scope.spawn(start).join()).map_err(|_| anyhow!("the prober's start has panicked"))?
}

/// How many are up, once all are or after a while.
async fn come_up(transitions: &mut UnboundedReceiver<Transition>, number: usize) -> usize {
    let mut up = 0;
    let _ = timeout(SOON, async {
        while up < number {
            let Some(Transition { from, to, .. }) = transitions.recv().await else { break };
            up += usize::from(to == State::Up);
            up -= usize::from(from == State::Up);
        }
    })
    .await;
    up
}

/// A prober with too much to do may not answer, and says 0.
async fn counters(prober: &Prober) -> Result<Counters> {
    let counters = prober.counters().await;
    ensure!(counters.sent > 0, "the prober does not answer");
    Ok(counters)
}

/// A thread of this process.
struct Thread {
    dir: std::path::PathBuf,
}

/// Processor time.
struct Cpu {
    user: Duration,
    system: Duration,
}

impl Thread {
    fn find(name: &str) -> Result<Self> {
        for task in fs::read_dir("/proc/self/task")? {
            let dir = task?.path();
            if fs::read_to_string(dir.join("comm"))?.trim() == name {
                return Ok(Self { dir });
            }
        }
        Err(anyhow!("no thread is called {name}"))
    }

    /// proc(5): `stat` has both parts in ticks, after the name in parentheses the 12th and 13th number.
    fn cpu(&self) -> Result<Cpu> {
        const TICK: Duration = Duration::from_millis(10);
        let stat = fs::read_to_string(self.dir.join("stat"))?;
        let (_, numbers) = stat.rsplit_once(')').context("reading the thread's stat")?;
        let mut ticks = numbers.split_whitespace().skip(11).map(str::parse::<u32>);
        let mut next = || anyhow::Ok(TICK * ticks.next().context("reading the thread's stat")??);
        Ok(Cpu { user: next()?, system: next()? })
    }
}

/// What all CPUs but this thread's have done, in ticks.
struct Load {
    working: u64,
    all: u64,
}

impl Load {
    /// Since the machine's start.
    fn so_far() -> Result<Self> {
        let here = format!("cpu{}", nix::sched::sched_getcpu()?);
        let text = fs::read_to_string("/proc/stat").context("reading the CPUs' times")?;
        let each = text.lines().filter(|line| line.starts_with("cpu"));
        let others = each.filter_map(|line| line.split_once(' ')).filter(|(name, _)| *name != "cpu" && *name != here);
        others.map(|(_, ticks)| Self::of(ticks)).try_fold(Self { working: 0, all: 0 }, |sum, cpu| {
            let cpu = cpu?;
            Ok(Self { working: sum.working + cpu.working, all: sum.all + cpu.all })
        })
    }

    /// proc(5): the fourth and fifth number are of idling; the guests', from the ninth on, are in the first two.
    fn of(ticks: &str) -> Result<Self> {
        let ticks = ticks.split_whitespace().take(8).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let (all, idle) = (ticks.iter().sum::<u64>(), ticks.iter().skip(3).take(2).sum::<u64>());
        Ok(Self { working: all - idle, all })
    }

    /// From 0 to 1; 0 with no other CPU.
    fn busy_since(&self, earlier: &Self) -> f64 {
        float(self.working - earlier.working) / float((self.all - earlier.all).max(1))
    }
}

impl Cpu {
    fn since(&self, earlier: &Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), system: self.system.saturating_sub(earlier.system) }
    }
}

/// Resident memory of this process, KiB.
fn memory() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no VmRSS")?.parse()?)
}

impl Results {
    /// For people.
    pub(crate) fn print(&self) {
        let Plan { reals, vips, .. } = self.probe_plan;
        println!(
            "probe: TCP checks of {vips} VIPs on {reals} reals, one a second each; prober on one CPU, network on others"
        );
        let mut table = Table::new();
        let header = [
            "CHECKS",
            "UP",
            "PASSED/s",
            "NOT ‰",
            "USER µs",
            "SYSTEM µs",
            "BUSY",
            "NETWORK BUSY",
            "LAG p50 µs",
            "p99",
            "MAX",
            "MEMORY MiB",
            "LATE",
            "RING FULL",
            "NOT SENT",
            "QUEUE FULL",
            "NOT ACCEPTED",
        ];
        table.load_preset(presets::NOTHING).set_header(header);
        table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        for row in &self.probe_rows {
            table.add_row([
                row.checks.to_string(),
                row.up.to_string(),
                format!("{:.0}", row.passed_per_second),
                format!("{:.2}", row.unanswered_per_mille),
                format!("{:.2}", row.user_us),
                format!("{:.2}", row.system_us),
                format!("{:.0} %", row.busy * 100.0),
                format!("{:.0} %", row.network_busy * 100.0),
                row.lag_p50_us.to_string(),
                row.lag_p99_us.to_string(),
                row.lag_max_us.to_string(),
                format!("{:.1}", row.memory_mib),
                row.losses.late.to_string(),
                row.losses.ring_full.to_string(),
                row.losses.not_sent.to_string(),
                row.losses.queue_full.to_string(),
                row.losses.not_accepted.to_string(),
            ]);
        }
        println!("{table}");
    }
}
