//! The edge to the kernel: the XDP program, its maps and its attachment. Carries out what `reconcile` returns.

mod attachment;
mod bpffs;
mod flows;
mod inheritance;
mod layout;
mod leftovers;
mod past;
mod pending;
mod rings;
mod test_run;
mod worker;

pub use attachment::{Attached, Mode};
pub use flows::{FlowTable, tick_now};
pub use leftovers::detach;
pub use test_run::{Ran, TEST_RUN_FRAME, XdpAction};
pub use worker::{Outcome, Report, Worker};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    programs::Xdp,
    util::nr_cpus,
};
use flows::Predecessor;
use inheritance::OWN_MAPS;
use layout::FLOWS;
use lb_ebpf::{
    answer::{Answer, Asked},
    counter::{self, Counter, FlowEvent, Reason},
    flow::TableSize,
    objects::LOAD_BALANCER,
    real::RealEntry,
    ring::{RealId, Ring},
    syn::SynCounter,
    vip::VipTable,
};
use rings::Rings;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    ops::{Deref, DerefMut},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

const PROGRAM: &str = "load_balancer";

/// An operation on the data plane that failed: what, on which object, and why, down to what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {}", chain(&**cause))]
pub struct Error {
    operation: &'static str,
    object: String,
    cause: Box<dyn std::error::Error + Send + Sync>,
}

impl Error {
    fn new<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        operation: &'static str,
        object: impl std::fmt::Display,
    ) -> impl FnOnce(E) -> Self {
        let object = object.to_string();
        move |cause| Self { operation, object, cause: cause.into() }
    }

    /// Whether the kernel refused it for want of a privilege.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        let mut causes = causes(&*self.cause).filter_map(|cause| cause.downcast_ref::<io::Error>());
        causes.any(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
    }
}

type Cause = dyn std::error::Error + 'static;

/// An error and all that it came from.
fn causes(error: &Cause) -> impl Iterator<Item = &Cause> {
    std::iter::successors(Some(error), |error| error.source())
}

/// An error and all that it came from, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<_> = causes(error).map(ToString::to_string).collect();
    // Some tell their source themselves.
    texts.dedup_by(|source, text| text.ends_with(source.as_str()));
    texts.join(": ")
}

/// Identity and size of the loaded program.
#[derive(Clone, Copy, Debug)]
pub struct ProgramInfo {
    /// The kernel's id of it.
    pub id: u32,
    /// Instructions that the verifier walked through.
    pub verified_instructions: Option<u32>,
}

/// The loaded program and its maps. They go when this does, unless something else holds them.
pub struct Program {
    ebpf: Ebpf,
    vips: ArrayOfMaps<MapData, Array<MapData, VipTable>>,
    rings: Rings,
    reals: Array<MapData, RealEntry>,
    counts: PerCpuArray<MapData, Counter>,
    syns: PerCpuArray<MapData, SynCounter>,
    flows: FlowTable,
    answers: HashMap<MapData, Asked, Answer>,
    /// Further descriptors of [`OWN_MAPS`], to pin them by.
    own_maps: [MapData; 2],
}

/// The program with a place on a bpffs, where its maps and links outlive it.
pub struct DataPlane {
    program: Program,
    /// The earlier daemon's tracked flows, until this program takes its place; `None` where both share one table.
    predecessor: Option<Predecessor>,
    directory: PathBuf,
    _lock: File,
}

impl Deref for DataPlane {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for DataPlane {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

impl DataPlane {
    /// Loads the program. Its reals, tracked flows and counters are pinned in `directory` (on a bpffs, which is
    /// mounted if need be); those that an earlier daemon left there are shared with its program until this one
    /// takes its place. A table of tracked flows that has not the size `flows` is not shared: what it holds is copied
    /// when this program takes over.
    ///
    /// # Errors
    /// No privilege, no bpffs, another process has the directory, another version of lbd left maps there, or the kernel
    /// refuses the program; the verifier's last words are included.
    pub fn load(directory: &Path, flows: TableSize) -> Result<Self, Error> {
        bpffs::ensure(directory)?;
        let lock = bpffs::lock(directory)?;
        let resized = layout::check(directory)?.is_some_and(|found| found != flows);
        let mut loader = EbpfLoader::new();
        for map in layout::shared_maps().filter(|&map| map != FLOWS || !resized) {
            loader.map_pin_path(map, directory.join(map));
        }
        let program = Program::load_with(&mut loader, &flows)?;
        let predecessor = if resized {
            tracing::info!(entries = flows.entries(), "the table of tracked flows gets another size");
            Some(Predecessor::new(FlowTable::pinned(&directory.join(FLOWS))?))
        } else {
            None
        };
        Ok(Self { program, predecessor, directory: directory.to_owned(), _lock: lock })
    }

    /// Takes away the pinned maps: the next daemon starts afresh.
    fn unpin_maps(&self) -> Result<(), Error> {
        layout::shared_maps().try_for_each(|map| bpffs::remove(&self.directory.join(map)))?;
        self.unpin_own_maps()
    }
}

impl Program {
    /// Loads the program with maps of its own. Nothing is pinned or attached.
    ///
    /// # Errors
    /// No privilege, or the kernel refuses the program; the verifier's last words are included.
    pub fn load() -> Result<Self, Error> {
        Self::load_with(&mut EbpfLoader::new(), &TableSize::DEFAULT)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the loader keeps the reference")]
    fn load_with<'a>(loader: &mut EbpfLoader<'a>, flows: &'a TableSize) -> Result<Self, Error> {
        let buckets = u32::try_from(flows.buckets()).map_err(Error::new("load", "the XDP object"))?;
        let loader = loader.map_max_entries(FLOWS, buckets).override_global("FLOWS_SIZE", flows, true);
        let mut ebpf = loader.load(LOAD_BALANCER).map_err(Error::new("load", "the XDP object"))?;
        xdp(&mut ebpf)?.load().map_err(Error::new("load", "the XDP program"))?;
        let another = |name| another_of(&ebpf, name).map_err(Error::new("find map", name));
        let [vips, rings] = OWN_MAPS;
        let (own_maps, further) = ([another(vips)?, another(rings)?], another(rings)?);
        Ok(Self {
            own_maps,
            vips: take(&mut ebpf, "VIPS")?,
            rings: Rings::new(take(&mut ebpf, "RINGS")?, further),
            reals: take(&mut ebpf, "REALS")?,
            counts: take(&mut ebpf, "COUNTS")?,
            syns: take(&mut ebpf, "SYNS")?,
            flows: FlowTable::of(&ebpf)?,
            answers: take(&mut ebpf, "ANSWERS")?,
            ebpf,
        })
    }

    /// Writes a real.
    ///
    /// # Errors
    /// The kernel refuses the update.
    pub fn set_real(&mut self, id: RealId, entry: RealEntry) -> Result<(), Error> {
        self.reals.set(u32::from(id), entry, 0).map_err(Error::new("write", format!("real {id}")))?;
        // Another real that has this index later begins at nought.
        if entry.address().is_none() { self.clear_counters_of(id) } else { Ok(()) }
    }

    fn clear_counters_of(&mut self, id: RealId) -> Result<(), Error> {
        self.clear_counter(counter::real_index(id))?;
        let noughts = per_cpu(SynCounter::default()).map_err(Error::new("clear", "SYNs"))?;
        self.syns.set(u32::from(id), noughts, 0).map_err(Error::new("clear", format!("SYNs of real {id}")))
    }

    /// Clears the rings of the VIPs that had these indexes, which no table names; those that the kernel refused are returned.
    pub fn vacate(&mut self, indexes: &BTreeSet<u16>) -> BTreeMap<u16, Error> {
        self.rings.vacate(indexes)
    }

    /// Clears the counter of the VIP that had this index.
    ///
    /// # Errors
    /// The kernel refuses the update.
    pub fn clear_count(&mut self, index: u16) -> Result<(), Error> {
        self.clear_counter(counter::vip_index(index))
    }

    fn clear_counter(&mut self, index: u32) -> Result<(), Error> {
        let noughts = per_cpu(Counter::default()).map_err(Error::new("clear", "counters"))?;
        self.counts.set(index, noughts, 0).map_err(Error::new("clear", format!("counter {index}")))
    }

    /// Fills a part of a ring aside and swaps it in ([`lb_ebpf::ring::RingRef::place`]); packets see the old one or the new
    /// one, whole.
    ///
    /// # Errors
    /// The kernel refuses a map or an update.
    pub fn swap_ring(&mut self, place: u32, ring: &Ring) -> Result<(), Error> {
        self.rings.swap([(place, ring)]).into_values().next().map_or(Ok(()), Err)
    }

    /// Swaps many parts of rings, and returns those that the kernel refused. Places with equal parts share one map.
    pub fn swap_rings(&mut self, rings: &BTreeMap<u32, Box<Ring>>) -> BTreeMap<u32, Error> {
        self.rings.swap(rings.iter().map(|(&place, ring)| (place, &**ring)))
    }

    /// Fills a table of VIPs aside and swaps it in.
    ///
    /// # Errors
    /// The kernel refuses a map or an update.
    pub fn swap_vips(&mut self, table: &VipTable) -> Result<(), Error> {
        filled(table).and_then(|inner| self.vips.set(0, &inner, 0)).map_err(Error::new("swap", "the table of VIPs"))
    }

    /// Answers for these addresses on their links.
    ///
    /// # Errors
    /// The kernel refuses an update.
    pub fn answer(&mut self, wanted: &BTreeMap<Asked, Answer>) -> Result<(), Error> {
        wanted.iter().try_for_each(|(asked, answer)| {
            self.answers.insert(asked, answer, 0).map_err(Error::new("answer for", format!("{asked:?}")))
        })
    }

    /// Answers for no address but these.
    ///
    /// # Errors
    /// The kernel refuses a look-up or an update.
    pub fn silence(&mut self, all_but: &BTreeMap<Asked, Answer>) -> Result<(), Error> {
        let keys: Vec<_> = self.answers.keys().collect::<Result<_, _>>().map_err(Error::new("read", "the answers"))?;
        keys.iter().filter(|asked| !all_but.contains_key(asked)).try_for_each(|asked| {
            self.answers.remove(asked).map_err(Error::new("answer no more for", format!("{asked:?}")))
        })
    }

    /// The value of a counter, all CPUs together.
    ///
    /// # Errors
    /// The kernel refuses the look-up.
    pub fn counter(&self, index: u32) -> Result<Counter, Error> {
        let values = self.counts.get(&index, 0).map_err(Error::new("read", format!("counter {index}")))?;
        Ok(values.iter().fold(Counter::default(), |sum, cpu| Counter {
            packets: sum.packets + cpu.packets,
            bytes: sum.bytes + cpu.bytes,
        }))
    }

    /// What a real was sent of new connections, all CPUs together.
    ///
    /// # Errors
    /// The kernel refuses the look-up.
    pub fn syns(&self, real: RealId) -> Result<SynCounter, Error> {
        let values = self.syns.get(&u32::from(real), 0).map_err(Error::new("read", format!("SYNs of real {real}")))?;
        Ok(values.iter().fold(SynCounter::default(), |sum, cpu| SynCounter {
            syns: sum.syns + cpu.syns,
            repeated: sum.repeated + cpu.repeated,
        }))
    }

    /// The value of a reason's counter.
    ///
    /// # Errors
    /// The kernel refuses the look-up.
    pub fn reason(&self, reason: Reason) -> Result<Counter, Error> {
        self.counter(counter::reason_index(reason))
    }

    /// How often something happened to a tracked flow.
    ///
    /// # Errors
    /// The kernel refuses the look-up.
    pub fn flow_events(&self, event: FlowEvent) -> Result<u64, Error> {
        Ok(self.counter(counter::flow_event_index(event))?.packets)
    }

    /// The tracked flows, as the program reads and writes them.
    #[must_use]
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// The program's identity.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn program_info(&mut self) -> Result<ProgramInfo, Error> {
        let info = self.xdp()?.info().map_err(Error::new("query", "the XDP program"))?;
        Ok(ProgramInfo { id: info.id(), verified_instructions: info.verified_instruction_count() })
    }

    /// The XDP program, for attaching and test runs.
    ///
    /// # Errors
    /// Never for the object that is embedded.
    pub fn xdp(&mut self) -> Result<&mut Xdp, Error> {
        xdp(&mut self.ebpf)
    }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, Error> {
    let program = ebpf.program_mut(PROGRAM).ok_or("not in the object");
    let program = program.map_err(Error::new("find", PROGRAM))?;
    program.try_into().map_err(Error::new("use", PROGRAM))
}

fn another_of(ebpf: &Ebpf, name: &str) -> Result<MapData, Box<dyn std::error::Error + Send + Sync>> {
    match ebpf.map(name) {
        Some(Map::ArrayOfMaps(map)) => Ok(another(map)?),
        _ => Err("not in the object".into()),
    }
}

/// The same map by another descriptor. By its id the kernel opens it only for `CAP_SYS_ADMIN`.
fn another(map: &MapData) -> Result<MapData, MapError> {
    MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, Error> {
    let map = ebpf.take_map(name).ok_or("not in the object").map_err(Error::new("find map", name))?;
    map.try_into().map_err(Error::new("use map", name))
}

/// The same value on every CPU.
fn per_cpu<T: aya::Pod>(value: T) -> Result<PerCpuValues<T>, io::Error> {
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    PerCpuValues::try_from(vec![value; cpus])
}

/// An inner map with its one value. The kernel keeps it for as long as the outer map names it.
fn filled<T: aya::Pod>(value: &T) -> Result<Array<MapData, T>, MapError> {
    let mut inner = Array::create(1, 0)?;
    inner.set(0, value, 0)?;
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("`bpf_link_create` failed")]
    struct Refused(#[source] io::Error);

    #[test]
    fn error_names_operation_object_and_every_cause() {
        let error = Error::new("attach XDP to", "eth1")(Refused(io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        let said = "attach XDP to eth1: `bpf_link_create` failed: Operation not supported (os error 95)";
        assert_eq!(error.to_string(), said);
    }

    #[test]
    fn chain_does_not_repeat_what_an_error_tells_of_its_source() {
        let inner = Error::new("open", "x")(io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(chain(&inner), "open x: No such file or directory (os error 2)");
    }
}
