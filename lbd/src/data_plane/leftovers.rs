//! What a daemon that has ended left attached, taken away without another one.

use super::{
    Error,
    attachment::links_in,
    bpffs,
    inheritance::{NEW, OWN_MAPS},
    layout::shared_maps,
};
use std::path::Path;

/// Detaches the program that an lbd left attached by its pins in this directory, and removes its maps. Returns from how
/// many interfaces.
///
/// # Errors
/// A running lbd has the directory; a pin cannot be removed.
pub fn detach(directory: &Path) -> Result<usize, Error> {
    if !directory.exists() {
        return Ok(0);
    }
    let _lock = bpffs::lock(directory)?;
    let links = links_in(directory)?;
    links.iter().try_for_each(|pin| bpffs::remove(pin))?;
    let maps = shared_maps().chain(OWN_MAPS);
    maps.into_iter().try_for_each(|map| {
        bpffs::remove(&directory.join(map))?;
        bpffs::remove(&directory.join(format!("{NEW}{map}")))
    })?;
    Ok(links.len())
}
