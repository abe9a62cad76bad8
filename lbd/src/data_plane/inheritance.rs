//! What a daemon leaves to the next one, beside the pinned maps that both use: the VIPs and rings that the attached
//! program goes by. The next daemon reads them; the program it loads gets maps of its own, and until the two programs
//! change places nothing disturbs the one that packets meet.

use super::{DataPlane, Error, bpffs, layout::FLOWS, past::Past};
use crate::{reconcile::Inheritance, vip_table};
use lb_ebpf::real::MAX_REALS;

/// The maps of the attached program that are its own.
pub(super) const OWN_MAPS: [&str; 2] = ["VIPS", "RINGS"];
/// Precedes their names while the program is not attached yet.
pub(super) const NEW: &str = "new_";

impl DataPlane {
    /// What an earlier daemon left in this directory; what cannot be read counts as nothing, with a warning.
    #[must_use]
    pub fn inheritance(&self) -> Inheritance {
        let indexes = 1..u16::try_from(MAX_REALS).unwrap_or(u16::MAX);
        let entry = |id: u16| self.reals.get(&u32::from(id), 0).ok().filter(|entry| entry.address().is_some());
        let mut inheritance =
            Inheritance { reals: indexes.filter_map(|id| Some((id, entry(id)?))).collect(), ..Inheritance::default() };
        inheritance.attached = self.is_attached().unwrap_or_else(|error| {
            tracing::warn!(%error, "it is not known whether packets meet the rings of an earlier lbd");
            false
        });
        match self.read_own_maps(&mut inheritance) {
            Ok(()) => tracing::info!(vips = inheritance.vips.len(), "taking over from an earlier lbd"),
            Err(error) if inheritance.reals.is_empty() => tracing::debug!(%error, "nothing to take over"),
            Err(error) => tracing::warn!(%error, "the rings of an earlier lbd cannot be read; flows may change reals"),
        }
        inheritance
    }

    fn read_own_maps(&self, inheritance: &mut Inheritance) -> Result<(), Error> {
        let mut past = Past::open(&self.directory)?;
        let table = past.table()?;
        inheritance.hash_key = table.hash_key;
        let vips = vip_table::read(&table);
        inheritance.vips = vips.iter().map(|(&key, entry)| (key, entry.vip)).collect();
        for entry in vips.values() {
            let parts = (0..1 << entry.ring.order()).map(|number| past.part(entry.ring.place(number)));
            inheritance.rings.insert(entry.vip, parts.collect::<Result<_, _>>()?);
        }
        Ok(())
    }

    /// The names of the maps that this program does not share with the one that is attached.
    fn own_maps(&self) -> impl Iterator<Item = &'static str> {
        OWN_MAPS.into_iter().chain(self.predecessor.is_some().then_some(FLOWS))
    }

    /// Pins this program's own maps beside those of the one that is attached.
    pub(super) fn pin_own_maps(&self) -> Result<(), Error> {
        // A daemon that was killed at this moment may have left some.
        self.unpin_new_maps()?;
        let maps = self.own_maps.iter().chain([self.flows.kernel_map()]);
        for (name, map) in self.own_maps().zip(maps) {
            let pin = self.directory.join(format!("{NEW}{name}"));
            map.pin(&pin).map_err(Error::new("pin", pin.display()))?;
        }
        Ok(())
    }

    /// The program is attached: what its predecessor had is nobody's any more.
    pub(super) fn replace_own_maps(&self) -> Result<(), Error> {
        self.own_maps().try_for_each(|name| {
            let pin = self.directory.join(format!("{NEW}{name}"));
            std::fs::rename(&pin, self.directory.join(name)).map_err(Error::new("rename", pin.display()))
        })
    }

    /// The program is not attached after all.
    pub(super) fn unpin_new_maps(&self) -> Result<(), Error> {
        let names = OWN_MAPS.into_iter().chain([FLOWS]);
        names.into_iter().try_for_each(|name| bpffs::remove(&self.directory.join(format!("{NEW}{name}"))))
    }

    /// Leaves nothing to the next daemon.
    pub(super) fn unpin_own_maps(&self) -> Result<(), Error> {
        OWN_MAPS.iter().try_for_each(|name| bpffs::remove(&self.directory.join(name)))?;
        self.unpin_new_maps()
    }
}
