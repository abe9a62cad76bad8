//! The map of rings. Each place of the outer map names an inner map with a part of a ring, and places with equal parts
//! name the same one: VIPs with the same reals and the same history cost the memory, and the cache, of one ring.
//!
//! A place belongs to one VIP all the same, so no VIP's change touches what another one's packets read, and the kernel
//! counts how many places name an inner map and frees it with the last, once lbd has closed it too. lbd keeps the inner
//! maps in use open, to give them to further places: by its id the kernel opens one only for `CAP_SYS_ADMIN`.

use super::{Error, another};
use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError};
use lb_ebpf::ring::{MAX_RINGS, RING_PARTS, RING_SLOTS, Ring, RingRef, Slot};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hasher,
    io,
    sync::Arc,
    thread,
};

/// Threads that update places at the same time.
const SWAPPERS: usize = 256;
/// Inner maps that are written at the same time.
const WRITTEN: usize = 256;
/// Open files beside the inner maps that are kept: those being written, the swappers' descriptors of the outer map, and
/// all that is not of this file.
const OTHERS: u64 = 256 + 256 + 256;

type Inner = Array<MapData, Ring>;
pub(super) type Outer = ArrayOfMaps<MapData, Inner>;

/// The map of rings, and what it holds.
pub(super) struct Rings {
    outer: Outer,
    /// A further descriptor of it, to make others of.
    further: MapData,
    /// The content of each place that was written.
    held: BTreeMap<u32, Digest>,
    /// The inner maps in use, as far as there is room. One that is not here is made anew for a further place.
    open: HashMap<Digest, Arc<Inner>>,
    /// So many may be open.
    room: usize,
}

/// Stands for a part's content. Two contents that differ have the same one by accident once in 2^128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Digest(u64, u64);

impl Digest {
    fn of(part: &Ring) -> Self {
        let mut hasher = SipHasher13::new();
        let (pairs, _) = part.slots.as_chunks::<2>();
        for [a, b] in pairs {
            hasher.write_u64(u64::from(a.0) << 32 | u64::from(b.0));
        }
        let hash = hasher.finish128();
        Self(hash.h1, hash.h2)
    }
}

/// A content and the places that are to have it.
struct Wanted<'a> {
    content: Digest,
    part: &'a Ring,
    places: Vec<u32>,
}

/// A place, and the inner map that it is to name, with its content.
struct Update<'a> {
    place: u32,
    content: Digest,
    inner: &'a Inner,
}

impl Wanted<'_> {
    fn updates<'a>(&self, inner: &'a Inner) -> impl Iterator<Item = Update<'a>> {
        self.places.iter().map(move |&place| Update { place, content: self.content, inner })
    }
}

impl Rings {
    /// `further` is another descriptor of `outer`.
    pub(super) fn new(outer: Outer, further: MapData) -> Self {
        Self { outer, further, held: BTreeMap::new(), open: HashMap::new(), room: room() }
    }

    /// Swaps these parts, each at its place, and returns those that the kernel refused. A content that some place has
    /// already is not written again.
    pub(super) fn swap<'a>(&mut self, parts: impl IntoIterator<Item = (u32, &'a Ring)>) -> BTreeMap<u32, Error> {
        let wanted = self.wanted(parts);
        wanted.chunks(WRITTEN).flat_map(|some| self.swap_some(some)).collect()
    }

    /// Empties the places of the rings with these indexes, all together; those that the kernel refused are returned.
    #[expect(clippy::large_stack_arrays, reason = "64 KiB, boxed at once")]
    pub(super) fn vacate(&mut self, indexes: &BTreeSet<u16>) -> BTreeMap<u16, Error> {
        let parts = 0..u32::try_from(RING_PARTS).unwrap_or(0);
        let places = |&index: &u16| parts.clone().map(move |part| (RingRef::new(index, 0).place(part), index));
        let held: BTreeMap<u32, u16> =
            indexes.iter().flat_map(places).filter(|(place, _)| self.held.contains_key(place)).collect();
        let empty = Box::new(Ring { slots: [Slot::default(); RING_SLOTS] });
        let refused = self.swap(held.keys().map(|&place| (place, &*empty)));
        refused.into_iter().filter_map(|(place, error)| Some((*held.get(&place)?, error))).collect()
    }

    /// The contents of places that hold another one.
    fn wanted<'a>(&self, parts: impl IntoIterator<Item = (u32, &'a Ring)>) -> Vec<Wanted<'a>> {
        let mut wanted: BTreeMap<Digest, Wanted<'a>> = BTreeMap::new();
        for (place, part) in parts {
            let content = Digest::of(part);
            if self.held.get(&place) != Some(&content) {
                let of_it = wanted.entry(content).or_insert_with(|| Wanted { content, part, places: Vec::new() });
                of_it.places.push(place);
            }
        }
        wanted.into_values().collect()
    }

    fn swap_some(&mut self, wanted: &[Wanted<'_>]) -> BTreeMap<u32, Error> {
        let mut refused = BTreeMap::new();
        let mut inners = Vec::new();
        for wanted in wanted {
            match self.inner(wanted) {
                Ok(inner) => inners.push((inner, wanted)),
                Err(error) => refused.extend(all_refused(&wanted.places, &error)),
            }
        }
        let updates: Vec<Update<'_>> = inners.iter().flat_map(|(inner, wanted)| wanted.updates(inner)).collect();
        refused.extend(self.update(&updates));
        self.keep(inners.into_iter().map(|(inner, wanted)| (wanted.content, inner)));
        refused
    }

    /// The inner map with this content: that which is open, or else a new one.
    fn inner(&self, wanted: &Wanted<'_>) -> Result<Arc<Inner>, MapError> {
        let open = self.open.get(&wanted.content).cloned();
        open.map_or_else(|| super::filled(wanted.part).map(Arc::new), Ok)
    }

    /// Keeps these open, and no longer what no place names any more.
    fn keep(&mut self, inners: impl Iterator<Item = (Digest, Arc<Inner>)>) {
        let named: HashSet<Digest> = self.held.values().copied().collect();
        self.open.retain(|content, _| named.contains(content));
        for (content, inner) in inners.filter(|(content, _)| named.contains(content)) {
            if self.open.len() < self.room {
                self.open.insert(content, inner);
            }
        }
    }

    /// The kernel waits for a grace period in each update of an outer map. Updates at the same time wait for the same
    /// one, so each of a few threads does its part.
    fn update(&mut self, updates: &[Update<'_>]) -> BTreeMap<u32, Error> {
        let refused = match updates {
            [_] => update_each(&mut self.outer, updates),
            _ => update_together(&self.further, updates),
        };
        for update in updates {
            if refused.contains_key(&update.place) {
                // If a thread ended, nobody knows what it names.
                self.held.remove(&update.place);
            } else {
                self.held.insert(update.place, update.content);
            }
        }
        refused
    }
}

/// So many inner maps may be open: one for each place, if the limit of open files allows it, which is raised as far as it
/// may be.
fn room() -> usize {
    let places = (MAX_RINGS * RING_PARTS) as u64;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let wanted = hard.min(places + OTHERS).max(soft);
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() { wanted } else { soft };
    usize::try_from(limit.saturating_sub(OTHERS).min(places)).unwrap_or(0)
}

fn update_together(outer: &MapData, updates: &[Update<'_>]) -> BTreeMap<u32, Error> {
    let open = || -> Result<Outer, MapError> { Map::from_map_data(another(outer)?)?.try_into() };
    let places = |part: &[Update<'_>]| part.iter().map(|update| update.place).collect::<Vec<_>>();
    let body = |part: &[Update<'_>]| match open() {
        Ok(mut outer) => update_each(&mut outer, part),
        Err(error) => all_refused(&places(part), &error),
    };
    thread::scope(|scope| {
        let parts = updates.chunks(updates.len().div_ceil(SWAPPERS).max(1));
        let swappers: Vec<_> = parts.map(|part| (part, scope.spawn(move || body(part)))).collect();
        let ended = |part| all_refused(&places(part), &io::Error::other("a thread ended"));
        swappers.into_iter().flat_map(|(part, swapper)| swapper.join().unwrap_or_else(|_| ended(part))).collect()
    })
}

fn update_each(outer: &mut Outer, updates: &[Update<'_>]) -> BTreeMap<u32, Error> {
    let mut failure = |update: &Update<'_>| outer.set(update.place, update.inner, 0).err();
    let refused = updates.iter().filter_map(|update| Some((update.place, failure(update)?)));
    refused.map(|(place, error)| (place, refusal(place)(error))).collect()
}

/// One reason for several places.
fn all_refused(places: &[u32], error: &(dyn std::error::Error + 'static)) -> BTreeMap<u32, Error> {
    places.iter().map(|&place| (place, refusal(place)(super::chain(error)))).collect()
}

fn refusal<E: Into<Box<dyn std::error::Error + Send + Sync>>>(place: u32) -> impl FnOnce(E) -> Error {
    Error::new("swap", format!("ring part {place}"))
}
