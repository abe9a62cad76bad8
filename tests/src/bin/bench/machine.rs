//! Where it was measured, and keeping to one CPU of it.

use std::{fmt, fs};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::utsname::uname,
    unistd::Pid,
};
use serde::Serialize;

/// The machine and its kernel.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// Release of the kernel.
    kernel: String,
    /// The processor as it calls itself.
    cpu: String,
    /// Processors that this process may use.
    cpus: usize,
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let model = info.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name");
        Ok(Self {
            kernel: uname()?.release().to_string_lossy().into_owned(),
            cpu: model.map_or("unknown", |(_, model)| model.trim()).to_owned(),
            cpus: allowed(&sched_getaffinity(Pid::from_raw(0))?).count(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}, {} ({} CPUs)", self.kernel, self.cpu, self.cpus)
    }
}

/// While it lives, this process and those it starts run on one CPU.
#[derive(Debug)]
pub(crate) struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// To the last CPU that is allowed: the first takes most interrupts.
    pub(crate) fn to_last_cpu() -> Result<Self> {
        let before = sched_getaffinity(Pid::from_raw(0)).context("asking for the CPUs")?;
        let mut one = CpuSet::new();
        one.set(allowed(&before).last().context("no CPU is allowed")?)?;
        sched_setaffinity(Pid::from_raw(0), &one).context("pinning to a CPU")?;
        Ok(Self { before })
    }

    /// The other CPUs, as a mask in hexadecimal; if there is none, this one. Of 64 CPUs at most.
    pub(crate) fn others(&self) -> String {
        let all = allowed(&self.before).filter(|cpu| *cpu < 64).fold(0_u64, |mask, cpu| mask | 1 << cpu);
        let others = all & !all.checked_ilog2().map_or(0, |last| 1 << last);
        format!("{:x}", if others == 0 { all } else { others })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(Pid::from_raw(0), &self.before) {
            eprintln!("bench: still pinned to one CPU: {error}");
        }
    }
}

/// While it lives, as many packets may wait for a CPU that they are steered to as for a network card's: steered packets
/// stand for those that other machines receive.
#[derive(Debug)]
pub(crate) struct Queue {
    before: String,
}

impl Queue {
    const LENGTH: &str = "/proc/sys/net/core/netdev_max_backlog";

    /// Of every CPU.
    pub(crate) fn lengthened() -> Result<Self> {
        let before = fs::read_to_string(Self::LENGTH).context("reading the length of the queue of steered packets")?;
        fs::write(Self::LENGTH, "16384").context("setting the length of the queue of steered packets")?;
        Ok(Self { before })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::LENGTH, &self.before) {
            eprintln!("bench: {} is not {} again: {error}", Self::LENGTH, self.before.trim());
        }
    }
}

/// Packets that found the queue of their CPU full: the second number of each line, in hexadecimal, one line a CPU.
pub(crate) fn queue_drops() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/softnet_stat").context("reading the queues' counters")?;
    let drops = |line: &str| anyhow::Ok(u64::from_str_radix(line.split_whitespace().nth(1).unwrap_or_default(), 16)?);
    text.lines().map(drops).sum()
}

fn allowed(set: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false))
}
