//! How large the load balancer's program and maps are in this kernel.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use aya::{EbpfLoader, maps::MapInfo, programs::Xdp};
use lb_ebpf::{
    flow::{Bucket, TableSize},
    objects::LOAD_BALANCER,
    ring::Ring,
    vip::VipTable,
};
use serde::Serialize;

/// Sizes of the program that is deployed, not of the one that is timed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Footprint {
    /// Machine code, bytes.
    pub(crate) program_bytes: u32,
    /// Instructions that the verifier walked through; since Linux 5.16.
    pub(crate) verified_instructions: Option<u32>,
    /// Maps before the first VIP, bytes.
    pub(crate) map_bytes: u64,
    /// The table of tracked flows, which is one of them, bytes.
    pub(crate) flow_table_bytes: usize,
    /// The table of VIPs, bytes.
    pub(crate) vip_table_bytes: usize,
    /// What a VIP adds at least, unless another one has an equal ring: bytes.
    pub(crate) ring_bytes: usize,
}

impl Footprint {
    /// Loads the program and asks the kernel.
    pub(crate) fn measure() -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(LOAD_BALANCER).context("loading the load balancer")?;
        let program: &mut Xdp = ebpf.program_mut("load_balancer").context("no program load_balancer")?.try_into()?;
        program.load().context("loading the load balancer")?;
        let info = program.info()?;
        Ok(Self {
            program_bytes: info.size_jitted(),
            verified_instructions: info.verified_instruction_count(),
            map_bytes: info.map_ids()?.unwrap_or_default().into_iter().map(map_bytes).sum::<Result<_>>()?,
            flow_table_bytes: TableSize::DEFAULT.buckets() * size_of::<Bucket>(),
            vip_table_bytes: size_of::<VipTable>(),
            ring_bytes: size_of::<Ring>(),
        })
    }
}

/// What the kernel charges for a map.
pub(crate) fn map_bytes(id: u32) -> Result<u64> {
    let fd = MapInfo::from_id(id)?.fd()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    let memory =
        info.lines().find_map(|line| line.strip_prefix("memlock:")).context("the kernel tells no map's size")?;
    Ok(memory.trim().parse()?)
}
