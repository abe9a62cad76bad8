//! The program on its interfaces. Links are pinned, so that packets flow on when the daemon dies, and a new
//! daemon replaces the program in place.

use super::{DataPlane, Error, bpffs};
use aya::programs::{
    XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use std::path::{Path, PathBuf};

/// Where the kernel runs the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// In the driver, before the kernel allocates anything.
    #[default]
    Native,
    /// In the kernel's stack, for drivers without XDP: much slower.
    Generic,
}

/// An interface that the program is attached to.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Its name.
    pub interface: String,
    /// How.
    pub mode: Mode,
    /// The device's index.
    pub index: u32,
}

/// What an attachment has done so far.
#[derive(Default)]
struct Done {
    /// Pins of links that were not there.
    created: Vec<PathBuf>,
    /// An earlier daemon's program has given way.
    replaced: bool,
}

const LINK_PREFIX: &str = "link_";

impl DataPlane {
    /// Attaches the program to these interfaces and to no other: where an earlier daemon's is, it is replaced
    /// in place without losing a packet, or removed if the interface is not among these.
    ///
    /// # Errors
    /// No such interface; somebody else's program is on it; its driver has no XDP and `mode` is native. Then what this
    /// call attached is detached again.
    pub fn attach(&mut self, interfaces: &[String], mode: Mode) -> Result<Vec<Attached>, Error> {
        let mut done = Done::default();
        let outcome = self.attach_all(interfaces, mode, &mut done);
        if outcome.is_err() {
            // The first error is the one to be told.
            let _ = self.undo(&done).inspect_err(|error| tracing::error!(%error, "something stays attached"));
        }
        outcome
    }

    fn attach_all(&mut self, interfaces: &[String], mode: Mode, done: &mut Done) -> Result<Vec<Attached>, Error> {
        let pins = interfaces.iter().map(|interface| self.pin_of(interface)).collect::<Result<Vec<_>, Error>>()?;
        self.pin_own_maps()?;
        self.copy_flows()?;
        // First where no link is: that is what may fail, and can be undone without a packet noticing.
        let mut links: Vec<_> = interfaces.iter().zip(&pins).collect();
        links.sort_by_key(|(_, pin)| pin.exists());
        for (interface, pin) in links {
            if pin.exists() {
                match self.replace(pin) {
                    Ok(()) => {
                        done.replaced = true;
                        continue;
                    }
                    // The interface it was on is gone, and another has its index.
                    Err(error) => {
                        tracing::warn!(%error, "the earlier link is stale");
                        bpffs::remove(pin)?;
                    }
                }
            }
            self.create(interface, pin, mode)?;
            done.created.push(pin.clone());
        }
        self.replace_own_maps()?;
        // Those that came while the programs changed places.
        self.copy_flows()?;
        self.predecessor = None;
        self.links()?.iter().filter(|pin| !pins.contains(pin)).try_for_each(|pin| bpffs::remove(pin))?;
        interfaces
            .iter()
            .map(|interface| Ok(Attached { interface: interface.clone(), mode, index: index_of(interface)? }))
            .collect()
    }

    fn copy_flows(&mut self) -> Result<(), Error> {
        self.predecessor.as_mut().map_or(Ok(()), |predecessor| predecessor.copy_to(&self.program.flows))
    }

    /// Takes back what was attached anew. Where an earlier daemon's program was replaced this one stays, and so do its
    /// maps: packets go on meeting whole rings.
    fn undo(&self, done: &Done) -> Result<(), Error> {
        done.created.iter().try_for_each(|pin| bpffs::remove(pin))?;
        if self.links()?.is_empty() {
            self.unpin_maps()
        } else if done.replaced {
            self.replace_own_maps()
        } else {
            self.unpin_new_maps()
        }
    }

    /// Where the link of an interface is pinned: not under its name, for a bpffs refuses dots.
    fn pin_of(&self, interface: &str) -> Result<PathBuf, Error> {
        Ok(self.directory.join(format!("{LINK_PREFIX}{}", index_of(interface)?)))
    }

    fn create(&mut self, interface: &str, pin: &Path, mode: Mode) -> Result<(), Error> {
        let flags = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let xdp = self.xdp()?;
        let id = xdp.attach(interface, flags).map_err(Error::new("attach XDP to", interface))?;
        let link = xdp.take_link(id).map_err(Error::new("attach XDP to", interface))?;
        // A link by netlink cannot be pinned; it means that the kernel refused a real one.
        let link = FdLink::try_from(link).map_err(Error::new("attach XDP by a link to", interface))?;
        link.pin(pin).map_err(Error::new("pin", pin.display()))?;
        Ok(())
    }

    fn replace(&mut self, pin: &Path) -> Result<(), Error> {
        let link = PinnedLink::from_pin(pin).map_err(Error::new("open", pin.display()))?;
        let link = XdpLink::try_from(FdLink::from(link)).map_err(Error::new("use", pin.display()))?;
        let xdp = self.xdp()?;
        let id = xdp.attach_to_link(link).map_err(Error::new("replace the program of", pin.display()))?;
        // The pin holds the link; our descriptor of it may go.
        drop(xdp.take_link(id).map_err(Error::new("use", pin.display()))?);
        Ok(())
    }

    /// Detaches the program everywhere and leaves nothing pinned.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn detach(&mut self) -> Result<(), Error> {
        self.links()?.iter().try_for_each(|pin| bpffs::remove(pin))?;
        self.unpin_maps()
    }

    /// Whether packets of any device meet a program of ours, an earlier daemon's included.
    ///
    /// # Errors
    /// A pin or what the kernel says of it cannot be read.
    pub fn is_attached(&self) -> Result<bool, Error> {
        for pin in self.links()? {
            if is_alive(&pin)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The pins of links, an earlier daemon's included.
    fn links(&self) -> Result<Vec<PathBuf>, Error> {
        links_in(&self.directory)
    }
}

impl Attached {
    /// Whether the device is there still: a link whose device has gone stays pinned, and another device of that name has
    /// no program.
    #[must_use]
    pub fn is_there(&self) -> bool {
        nix::net::if_::if_nametoindex(self.interface.as_str()) == Ok(self.index)
    }
}

fn index_of(interface: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(interface).map_err(Error::new("attach XDP to", interface))
}

/// Whether the link pinned here has its device still.
fn is_alive(pin: &Path) -> Result<bool, Error> {
    let link = PinnedLink::from_pin(pin).map_err(Error::new("open", pin.display()))?;
    let link = FdLink::from(link);
    let id = link.info().map_err(Error::new("ask after", pin.display()))?.id();
    let alive = || -> std::io::Result<bool> {
        for entry in std::fs::read_dir("/proc/self/fdinfo")? {
            // Another thread may have closed it meanwhile.
            let Ok(info) = std::fs::read_to_string(entry?.path()) else { continue };
            if field(&info, "link_id:") == Some(id) {
                return Ok(field(&info, "ifindex:").is_some_and(|index| index != 0));
            }
        }
        Err(std::io::ErrorKind::NotFound.into())
    };
    alive().map_err(Error::new("ask after", pin.display()))
}

/// A number that the kernel says of a descriptor (`bpf_link_show_fdinfo`, `bpf_xdp_link_show_fdinfo`).
fn field(info: &str, name: &str) -> Option<u32> {
    info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// The pins of links in a directory.
pub(super) fn links_in(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(directory)?;
        entries.map(|entry| entry.map(|e| e.path())).collect()
    };
    let mut pins = list().map_err(Error::new("list", directory.display()))?;
    pins.retain(|p| p.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LINK_PREFIX)));
    Ok(pins)
}
