//! The tc programs: what is installed, installing, detaching.
//!
//! Attached by netlink (`cls_bpf`, direct action) at a fixed priority and handle: it outlives this tool, needs no
//! bpffs, and works before tcx (6.6). Each installation loads a fresh object with its maps filled and swaps it in: a
//! packet meets the old configuration or the new one.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, Map, MapData, MapInfo, PerCpuArray, lpm_trie::Key},
    programs::{
        ProgramInfo, SchedClassifier, TcAttachType,
        links::Link as _,
        loaded_programs,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use lb_ebpf::decap::{Address, Counter, MssLimits, ROLE_HOST, ROLE_VIP};

use super::{Error, netlink::HookFilter};
use crate::{
    desired::Prefix,
    family::Family,
    observed::{Config, Filter, Hook, Link, Program, Slot},
    plan::Programs,
};

/// `tc`'s `pref`: "LB".
const PRIORITY: u16 = 0x4c42;
const HANDLE: TcHandle = TcHandle::new(0, 1);

// The maps: see `lb_ebpf::decap`.
const ADDRESSES: &str = "ADDRESSES";
const SOURCES: &str = "SOURCES";
const MSS: &str = "MSS";
const COUNTERS: &str = "COUNTERS";

type Counters = BTreeMap<&'static str, u64>;
/// Id and map, by name.
type Maps = BTreeMap<String, (u32, Map)>;

/// The filters at our priority, and the sums of the counters of those that are ours.
///
/// # Errors
/// A program or map of ours cannot be read.
pub fn observe(
    hooks: &[HookFilter],
    links: &BTreeMap<String, Link>,
) -> Result<(BTreeMap<Slot, Filter>, Counters), Error> {
    let mut counters = Counters::new();
    let mut counted = BTreeSet::new();
    let mut filters = BTreeMap::new();
    for hook in hooks.iter().filter(|hook| hook.priority == PRIORITY) {
        let filter = match (program(hook), hook.program_id) {
            (Some(program), Some(id)) => {
                let maps = open(&map_ids(id)?)?;
                // The programs of one installation share their maps.
                if maps.get(COUNTERS).is_some_and(|(id, _)| counted.insert(*id)) {
                    add_counters(&maps, &mut counters)?;
                }
                Filter::Ours { program, config: read(&maps, links)? }
            }
            _ => Filter::Foreign(hook.name.clone().unwrap_or_else(|| "(no BPF program)".to_owned())),
        };
        filters.insert(hook.slot.clone(), filter);
    }
    Ok((filters, counters))
}

/// Those that are ours, without reading their maps.
#[must_use]
pub fn ours(hooks: &[HookFilter]) -> BTreeMap<Slot, Program> {
    let at_priority = hooks.iter().filter(|hook| hook.priority == PRIORITY);
    at_priority.filter_map(|hook| Some((hook.slot.clone(), program(hook)?))).collect()
}

fn program(hook: &HookFilter) -> Option<Program> {
    Program::ALL
        .into_iter()
        .find(|program| hook.name.as_deref() == Some(program.name()) && hook.slot.hook == program.hook())
}

/// Loads the programs, puts each in its slot (in place of one of ours), and empties the other slots.
///
/// # Errors
/// Loading or attaching failed; some slots may have changed.
pub fn install(
    programs: &Programs,
    links: &BTreeMap<String, Link>,
    occupied: &BTreeMap<Slot, Program>,
) -> Result<(), Error> {
    let mut object = Ebpf::load(lb_ebpf::objects::DECAP).map_err(Error::bpf("loading the object"))?;
    fill(&mut object, &programs.config, links)?;
    let mut unwanted = occupied.clone();
    for program in Program::ALL {
        let devices: Vec<_> = programs.slots.iter().filter(|(_, wanted)| *wanted == program).collect();
        if devices.is_empty() {
            continue;
        }
        let classifier = classifier(&mut object, program)?;
        classifier.load().map_err(Error::bpf(format!("loading {program}")))?;
        for (device, _) in devices {
            let slot = Slot { device: device.clone(), hook: program.hook() };
            attach(classifier, &slot, unwanted.remove(&slot).is_some())?;
        }
    }
    unwanted.keys().try_for_each(detach)
}

fn classifier(object: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, Error> {
    let found = object.program_mut(program.name());
    let found = found.ok_or_else(|| Error::bpf("reading the object")(format!("there is no program {program}")))?;
    found.try_into().map_err(Error::bpf(format!("{program} is not a tc program")))
}

fn attach(classifier: &mut SchedClassifier, slot: &Slot, replace: bool) -> Result<(), Error> {
    let operation = || format!("attaching to {} ({:?})", slot.device, slot.hook);
    let link = if replace {
        classifier.attach_to_link(handle_of(slot)?)
    } else {
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        classifier.attach_with_options(&slot.device, attach_type(slot.hook), TcAttachOptions::Netlink(options))
    };
    let link = link.and_then(|id| classifier.take_link(id)).map_err(Error::bpf(operation()))?;
    // Dropping the handle would detach the filter; it is to stay.
    std::mem::forget(link);
    Ok(())
}

/// Attaches the program of ours that is in a slot to the ingress of `near` as well, with the same maps.
///
/// # Errors
/// It is not there, or the kernel refuses.
pub(super) fn attach_copy(hooks: &[HookFilter], slot: &Slot, wanted: Program, near: &str) -> Result<(), Error> {
    let mut at_slot = hooks.iter().filter(|hook| hook.priority == PRIORITY && hook.slot == *slot);
    let id = at_slot.find(|hook| program(hook) == Some(wanted)).and_then(|hook| hook.program_id);
    let operation = format!("finding {wanted} on {}", slot.device);
    let id = id.ok_or_else(|| Error::bpf(operation.clone())("it is not there"))?;
    let mut copy =
        SchedClassifier::from_program_info(info(id)?, wanted.name().into()).map_err(Error::bpf(operation))?;
    super::proof::attach_to_near_end(&mut copy, near)
}

/// Takes our filter out of its slot.
///
/// # Errors
/// The kernel refuses.
pub fn detach(slot: &Slot) -> Result<(), Error> {
    handle_of(slot)?.detach().map_err(Error::bpf(format!("detaching from {} ({:?})", slot.device, slot.hook)))
}

/// aya's handle of a filter that is there.
fn handle_of(slot: &Slot) -> Result<SchedClassifierLink, Error> {
    SchedClassifierLink::attached(&slot.device, attach_type(slot.hook), PRIORITY, HANDLE, None)
        .map_err(Error::io(format!("finding {}", slot.device)))
}

const fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    }
}

/// Writes the configuration into the maps.
fn fill(object: &mut Ebpf, config: &Config, links: &BTreeMap<String, Link>) -> Result<(), Error> {
    let mut addresses: HashMap<_, Address, u32> = map(object, ADDRESSES)?;
    let roles = [(&config.hosts, ROLE_HOST), (&config.vips, ROLE_VIP)];
    for (address, role) in roles.iter().flat_map(|(set, role)| set.iter().map(move |address| (address, role))) {
        addresses.insert(Address::from(*address), role, 0).map_err(Error::bpf(format!("adding {address}")))?;
    }
    let mut sources: LpmTrie<_, Address, u32> = map(object, SOURCES)?;
    for prefix in &config.sources {
        let key = Key::new(Address::FAMILY_BITS + u32::from(prefix.length()), prefix.address().into());
        sources.insert(&key, 1, 0).map_err(Error::bpf(format!("adding the source {prefix}")))?;
    }
    let mut mss: HashMap<_, u32, MssLimits> = map(object, MSS)?;
    for (device, by_family) in &config.mss {
        let link = links.get(device).ok_or_else(|| Error::NoDevice(device.clone()))?;
        let limit = |family| by_family.get(&family).copied().unwrap_or(0);
        let limits = MssLimits { ipv4: limit(Family::Ipv4), ipv6: limit(Family::Ipv6) };
        mss.insert(link.index, limits, 0).map_err(Error::bpf(format!("setting the MSS of {device}")))?;
    }
    Ok(())
}

fn map<'a, T>(object: &'a mut Ebpf, name: &str) -> Result<T, Error>
where
    T: TryFrom<&'a mut Map>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let found = object.map_mut(name);
    let found = found.ok_or_else(|| Error::bpf("reading the object")(format!("there is no map {name}")))?;
    T::try_from(found).map_err(Error::bpf(format!("the map {name}")))
}

/// The maps that a program in the kernel uses.
fn map_ids(program_id: u32) -> Result<Vec<u32>, Error> {
    let ids = info(program_id)?.map_ids();
    Ok(ids.map_err(Error::bpf(format!("reading program {program_id}")))?.unwrap_or_default())
}

fn info(program_id: u32) -> Result<ProgramInfo, Error> {
    // Programs of others may end while they are listed.
    let found = loaded_programs().filter_map(Result::ok).find(|info| info.id() == program_id);
    found.ok_or_else(|| Error::bpf(format!("finding program {program_id}"))("there is no such program"))
}

fn open(ids: &[u32]) -> Result<Maps, Error> {
    let open = |&id: &u32| -> Result<_, aya::maps::MapError> {
        let name = MapInfo::from_id(id)?.name_as_str().unwrap_or_default().to_owned();
        Ok((name, (id, Map::from_map_data(MapData::from_id(id)?)?)))
    };
    ids.iter().map(open).collect::<Result<_, _>>().map_err(Error::bpf("opening the maps"))
}

/// Reads the configuration back. A map that a program does not use is not in `maps` and reads as empty.
fn read(maps: &Maps, links: &BTreeMap<String, Link>) -> Result<Config, Error> {
    let mut config = Config::default();
    if let Some(addresses) = typed::<HashMap<_, Address, u32>>(maps, ADDRESSES)? {
        for entry in &addresses {
            let (address, role) = entry.map_err(Error::bpf("reading ADDRESSES"))?;
            let set = if role == ROLE_VIP { &mut config.vips } else { &mut config.hosts };
            set.extend(address.to_ip());
        }
    }
    if let Some(sources) = typed::<LpmTrie<_, Address, u32>>(maps, SOURCES)? {
        for entry in &sources {
            let (key, _) = entry.map_err(Error::bpf("reading SOURCES"))?;
            config.sources.extend(prefix(&key));
        }
    }
    if let Some(mss) = typed::<HashMap<_, u32, MssLimits>>(maps, MSS)? {
        for entry in &mss {
            let (index, limits) = entry.map_err(Error::bpf("reading MSS"))?;
            let by_family = [(Family::Ipv4, limits.ipv4), (Family::Ipv6, limits.ipv6)];
            let by_family = by_family.into_iter().filter(|(_, octets)| *octets > 0).collect();
            let device = links.iter().find(|(_, link)| link.index == index).map(|(name, _)| name.clone());
            config.mss.extend(device.map(|device| (device, by_family)));
        }
    }
    Ok(config)
}

/// As [`fill`] wrote it.
fn prefix(key: &Key<Address>) -> Option<Prefix> {
    let length = key.prefix_len().checked_sub(Address::FAMILY_BITS)?;
    Prefix::new(key.data().to_ip()?, u8::try_from(length).ok()?)
}

fn typed<'a, T>(maps: &'a Maps, name: &str) -> Result<Option<T>, Error>
where
    T: TryFrom<&'a Map>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    maps.get(name).map(|(_, map)| T::try_from(map)).transpose().map_err(Error::bpf(format!("the map {name}")))
}

fn add_counters(maps: &Maps, counters: &mut Counters) -> Result<(), Error> {
    let Some(array) = typed::<PerCpuArray<_, u64>>(maps, COUNTERS)? else { return Ok(()) };
    for counter in Counter::ALL {
        let values = array.get(&(counter as u32), 0).map_err(Error::bpf("reading COUNTERS"))?;
        *counters.entry(counter.name()).or_default() += values.iter().sum::<u64>();
    }
    Ok(())
}
