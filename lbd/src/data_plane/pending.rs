//! What the maps do not hold yet: of each real, ring and table only the newest.

use super::{Error, Program};
use crate::reconcile::Op;
use lb_ebpf::{
    real::RealEntry,
    ring::{MAX_RING_ORDER, RealId, Ring},
    vip::VipTable,
};
use std::collections::{BTreeMap, BTreeSet};

/// The maps that are written.
pub(super) trait Maps {
    /// Writes a real.
    fn set_real(&mut self, id: RealId, entry: RealEntry) -> Result<(), Error>;
    /// Swaps rings; those that the kernel refuses are returned.
    fn swap_rings(&mut self, rings: &BTreeMap<u32, Box<Ring>>) -> BTreeMap<u32, Error>;
    /// Swaps the table of VIPs.
    fn swap_vips(&mut self, table: &VipTable) -> Result<(), Error>;
    /// Clears the rings with these indexes; those that the kernel refuses are returned.
    fn vacate(&mut self, indexes: &BTreeSet<u16>) -> BTreeMap<u16, Error>;
    /// Clears the counter of the VIP with this index.
    fn clear_count(&mut self, index: u16) -> Result<(), Error>;
}

impl Maps for Program {
    fn set_real(&mut self, id: RealId, entry: RealEntry) -> Result<(), Error> {
        Self::set_real(self, id, entry)
    }

    fn swap_rings(&mut self, rings: &BTreeMap<u32, Box<Ring>>) -> BTreeMap<u32, Error> {
        Self::swap_rings(self, rings)
    }

    fn swap_vips(&mut self, table: &VipTable) -> Result<(), Error> {
        Self::swap_vips(self, table)
    }

    fn vacate(&mut self, indexes: &BTreeSet<u16>) -> BTreeMap<u16, Error> {
        Self::vacate(self, indexes)
    }

    fn clear_count(&mut self, index: u16) -> Result<(), Error> {
        Self::clear_count(self, index)
    }
}

impl Program {
    /// Writes what these operations say of the maps, of each place the newest; what they ask of others is left out.
    ///
    /// # Errors
    /// The kernel refuses a map or an update.
    pub fn carry_out(&mut self, ops: impl IntoIterator<Item = Op>) -> Result<(), Error> {
        let mut pending = Pending::default();
        for op in ops {
            match op {
                Op::Real(id, entry) => pending.real(id, entry),
                Op::Ring(index, ring) => pending.ring(index, ring),
                Op::Vips(table) => pending.vips(table),
                Op::Vacate(index) => pending.vacate(index),
                Op::ClearCount(index) => pending.clear_count(index),
                Op::Checks(_)
                | Op::Resolve(_)
                | Op::NoIndex(_)
                | Op::OtherRingSize(..)
                | Op::Tell(_)
                | Op::Attach
                | Op::Sweep(_) => {}
            }
        }
        pending.flush(self)
    }
}

/// What waits to be written.
#[derive(Default)]
pub(super) struct Pending {
    reals: BTreeMap<RealId, RealEntry>,
    rings: BTreeMap<u32, Box<Ring>>,
    vips: Option<Box<VipTable>>,
    /// Rings of indexes that no VIP has.
    vacated: BTreeSet<u16>,
    /// Counters of indexes that another VIP has by now, or none.
    uncounted: BTreeSet<u16>,
}

impl Pending {
    pub(super) fn real(&mut self, id: RealId, entry: RealEntry) {
        self.reals.insert(id, entry);
    }

    pub(super) fn ring(&mut self, place: u32, ring: Box<Ring>) {
        // The index is another VIP's by now.
        self.vacated.retain(|&index| u32::from(index) != place >> MAX_RING_ORDER);
        self.rings.insert(place, ring);
    }

    pub(super) fn vacate(&mut self, index: u16) {
        self.rings.retain(|place, _| u32::from(index) != place >> MAX_RING_ORDER);
        self.vacated.insert(index);
    }

    pub(super) fn clear_count(&mut self, index: u16) {
        self.uncounted.insert(index);
    }

    pub(super) fn vips(&mut self, table: Box<VipTable>) {
        self.vips = Some(table);
    }

    pub(super) fn is_empty(&self) -> bool {
        let written = self.reals.is_empty() && self.rings.is_empty() && self.vips.is_none();
        written && self.vacated.is_empty() && self.uncounted.is_empty()
    }

    /// Writes the reals, then the rings that name them, then the table that names the rings; clears what it does not name
    /// any more. What is refused stays; one of the errors is returned.
    pub(super) fn flush(&mut self, maps: &mut impl Maps) -> Result<(), Error> {
        let mut refused = None;
        self.reals.retain(|&id, entry| maps.set_real(id, *entry).map_err(|error| refused = Some(error)).is_err());
        let failed = maps.swap_rings(&self.rings);
        self.rings.retain(|index, _| failed.contains_key(index));
        refused = refused.or_else(|| failed.into_values().next());
        if let Some(error) = refused {
            return Err(error);
        }
        if let Some(table) = &self.vips {
            maps.swap_vips(table)?;
            self.vips = None;
        }
        let failed = maps.vacate(&self.vacated);
        self.vacated.retain(|index| failed.contains_key(index));
        while let Some(&index) = self.uncounted.first() {
            maps.clear_count(index)?;
            self.uncounted.remove(&index);
        }
        failed.into_values().next().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_ebpf::{
        hash::HashKey,
        ring::{RING_SLOTS, Slot},
    };
    use std::net::Ipv4Addr;

    /// Maps that refuse to swap one ring.
    #[derive(Default)]
    struct Fake {
        refused: Option<u32>,
        said: Vec<String>,
    }

    impl Maps for Fake {
        fn set_real(&mut self, id: RealId, entry: RealEntry) -> Result<(), Error> {
            self.said.push(format!("real {id} serves {}", entry.serves));
            Ok(())
        }

        fn swap_rings(&mut self, rings: &BTreeMap<u32, Box<Ring>>) -> BTreeMap<u32, Error> {
            self.said.extend(rings.iter().map(|(index, ring)| format!("ring {index} of {}", ring.slots[0].cur())));
            let error = |index| (index, Error::new("swap", format!("ring {index}"))("no memory"));
            self.refused.filter(|index| rings.contains_key(index)).map(error).into_iter().collect()
        }

        fn swap_vips(&mut self, _: &VipTable) -> Result<(), Error> {
            self.said.push("vips".to_owned());
            Ok(())
        }

        fn vacate(&mut self, indexes: &BTreeSet<u16>) -> BTreeMap<u16, Error> {
            self.said.extend((!indexes.is_empty()).then(|| format!("no VIPs {indexes:?}")));
            BTreeMap::new()
        }

        fn clear_count(&mut self, index: u16) -> Result<(), Error> {
            self.said.push(format!("no count {index}"));
            Ok(())
        }
    }

    #[expect(clippy::large_stack_arrays, reason = "64 KiB, boxed at once")]
    fn ring(real: RealId) -> Box<Ring> {
        Box::new(Ring { slots: [Slot::new(real, 0, false, false); RING_SLOTS] })
    }

    fn full() -> Pending {
        let mut pending = Pending::default();
        pending.vips(Box::new(VipTable::new(HashKey::default(), 1, 0)));
        for (index, real) in [(0, 7), (1, 7), (0, 8)] {
            pending.ring(index, ring(real));
        }
        for serves in [0, 1] {
            pending.real(7, RealEntry::ipip(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, None, serves));
        }
        pending
    }

    #[test]
    fn flush_writes_the_newest_of_each_once_and_in_the_order_of_use() {
        let (mut pending, mut maps) = (full(), Fake::default());
        pending.flush(&mut maps).unwrap();
        assert_eq!(maps.said, ["real 7 serves 1", "ring 0 of 8", "ring 1 of 7", "vips"]);
        assert!(pending.is_empty());
    }

    #[test]
    fn flush_clears_what_a_vip_had_after_the_table_without_it_and_not_if_another_has_its_place() {
        let (mut pending, mut maps) = (Pending::default(), Fake::default());
        let places = |index: u32| index << MAX_RING_ORDER;
        pending.ring(places(3), ring(7));
        for index in 3..=5 {
            pending.vacate(index);
            pending.clear_count(index);
        }
        pending.ring(places(4), ring(8));
        pending.vips(Box::new(VipTable::new(HashKey::default(), 1, 0)));
        pending.flush(&mut maps).unwrap();
        let counts = ["no count 3", "no count 4", "no count 5"];
        assert_eq!(maps.said[..3], ["ring 64 of 8", "vips", "no VIPs {3, 5}"], "all of them together");
        assert_eq!(maps.said[3..], counts, "what has the place of another begins at nought");
        assert!(pending.is_empty());
    }

    #[test]
    fn flush_refused_keeps_what_is_missing_for_the_next_time() {
        let (mut pending, mut maps) = (full(), Fake { refused: Some(1), ..Fake::default() });
        assert_eq!(pending.flush(&mut maps).unwrap_err().to_string(), "swap ring 1: no memory");
        assert!(!pending.is_empty());
        maps = Fake::default();
        pending.flush(&mut maps).unwrap();
        assert_eq!(maps.said, ["ring 1 of 7", "vips"], "a table must not name a ring that is not there");
        assert!(pending.is_empty());
    }
}
