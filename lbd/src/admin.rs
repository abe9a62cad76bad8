//! What operators say of reals, beside what checks say: drained or disabled, why, and until when. It outlives reloads and
//! restarts in a file of JSON, which is replaced whole.

use crate::{
    config::{Config, Protocol, VipKey},
    model::Admin,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

/// The longest reason, in characters: it is shown in tables.
pub const LONGEST_REASON: usize = 200;
const FILE: &str = "admin.json";
/// Of the file: one that is higher was written by a later lbd.
const VERSION: u32 = 1;

/// A real of a VIP.
pub type Place = (VipKey, IpAddr);

/// What was said of one real of one VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Draining or disabled.
    pub state: Admin,
    /// In the operator's words.
    pub reason: Option<String>,
    /// When it was said.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
}

/// Everything that was said and holds; a real of which nothing was said is enabled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders(BTreeMap<Place, Order>);

/// What is kept cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refuses.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another lbd has the directory: one would forget what the other keeps.
    #[error("{} belongs to a running lbd: stop it first, or give this one another --state-dir", .0.display())]
    InUse(PathBuf),
    /// What was said of the node is not understood: it may have been taken out.
    #[error(
        "{}: {why}: whether this node was on standby is not known. Remove the file, which makes it active, or put into it \
         {{\"version\": 1, \"state\": \"standby\", \"reason\": null, \"since\": null}}", path.display()
    )]
    Node {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A later lbd wrote the file.
    #[error("{} was written by a later lbd: start that one, or remove the file, which enables every real", .0.display())]
    Later(PathBuf),
}

impl Error {
    fn new(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// Takes the directory for this process, for as long as the lock is held.
///
/// # Errors
/// [`Error::InUse`]; or the system refuses.
pub fn lock(directory: &Path) -> Result<File, Error> {
    let lock = File::open(directory).map_err(Error::new("open", directory))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(Error::new("lock", directory)(error)),
    }
}

impl Orders {
    /// What holds of a real.
    #[must_use]
    pub fn get(&self, place: &Place) -> Option<&Order> {
        self.0.get(place)
    }

    /// Takes an order; `None` enables the real.
    pub fn set(&mut self, place: Place, order: Option<Order>) {
        match order {
            Some(order) => drop(self.0.insert(place, order)),
            None => drop(self.0.remove(&place)),
        }
    }

    /// Everything that holds.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, &Order)> {
        self.0.iter()
    }

    /// The reals whose orders have come to their end.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> Vec<Place> {
        let ended = |order: &Order| order.until.is_some_and(|until| until <= now);
        self.0.iter().filter(|(_, order)| ended(order)).map(|(&place, _)| place).collect()
    }

    /// Forgets what was said of reals that a configuration does not have; whether there were any.
    pub fn retain(&mut self, config: &Config) -> bool {
        let before = self.0.len();
        self.0.retain(|(vip, real), _| {
            config.vip(vip).is_some_and(|vip| vip.reals().iter().any(|member| member.address == *real))
        });
        self.0.len() != before
    }

    /// Reads what an earlier daemon kept in this directory; nothing if there is no file. One that is not what lbd writes is put
    /// aside, with an error in the log: a daemon that does not start serves nobody.
    ///
    /// # Errors
    /// [`Error::Later`]; or the system refuses.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let error = |operation| Error::new(operation, &path);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(other) => return Err(error("read")(other)),
        };
        if serde_json::from_str(&text).is_ok_and(|Version { version }| version > VERSION) {
            return Err(Error::Later(path));
        }
        match serde_json::from_str::<Kept>(&text) {
            Ok(kept) => Ok(Self(kept.orders.into_iter().map(Row::into_entry).collect())),
            Err(error) => put_aside(&path, &error),
        }
    }

    /// Keeps everything in this directory: when this returns it is on the disk, whole.
    ///
    /// # Errors
    /// The file system refuses; what was there before is there still.
    pub fn save(&self, directory: &Path) -> Result<(), Error> {
        let kept = Kept { version: VERSION, orders: self.0.iter().map(Row::of).collect() };
        keep(directory, FILE, &kept)
    }
}

/// Writes a file of JSON into a directory: when this returns it is on the disk, whole.
///
/// # Errors
/// The file system refuses; what was there before is there still.
pub(crate) fn keep(directory: &Path, file: &str, what: &impl Serialize) -> Result<(), Error> {
    let (path, aside) = (directory.join(file), directory.join(format!("{file}.new")));
    let error = |operation| Error::new(operation, &path);
    let text = serde_json::to_string_pretty(what).map_err(io::Error::other).map_err(error("write"))?;
    let written = File::create(&aside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    });
    written.map_err(error("write"))?;
    fs::rename(&aside, &path).map_err(error("replace"))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(error("replace"))
}

/// Where it can be looked at, beside those of earlier times.
fn put_aside(path: &Path, error: &serde_json::Error) -> Result<Orders, Error> {
    let aside = path.with_extension(format!("json.bad-{}", Timestamp::now().as_second()));
    fs::rename(path, &aside).map_err(Error::new("rename", path))?;
    tracing::error!(
        path = %path.display(), %error, aside = %aside.display(),
        "not what lbd writes: which reals were drained or disabled is not known, and all are enabled"
    );
    Ok(Orders::default())
}

/// A reason as it may be given: printable, and not too long.
///
/// # Errors
/// What is wrong with it, for people.
pub fn check_reason(reason: &str) -> Result<(), String> {
    if reason.chars().count() > LONGEST_REASON {
        return Err(format!("the reason is longer than {LONGEST_REASON} characters"));
    }
    if reason.chars().any(char::is_control) {
        return Err("the reason has control characters".to_owned());
    }
    Ok(())
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    orders: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    vip: IpAddr,
    protocol: Protocol,
    port: u16,
    real: IpAddr,
    state: Admin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

impl Row {
    fn of((&(vip, real), order): (&Place, &Order)) -> Self {
        let VipKey { address, protocol, port } = vip;
        let Order { state, reason, since, until } = order.clone();
        Self { vip: address, protocol, port, real, state, reason, since, until }
    }

    fn into_entry(self) -> (Place, Order) {
        let Self { vip, protocol, port, real, state, reason, since, until } = self;
        ((VipKey { address: vip, protocol, port }, real), Order { state, reason, since, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(real: u8) -> Place {
        (
            VipKey { address: "198.19.10.1".parse().unwrap(), protocol: Protocol::Tcp, port: 80 },
            [198, 18, 0, real].into(),
        )
    }

    fn order(until: Option<i64>) -> Order {
        let at = |second| Timestamp::from_second(second).unwrap();
        Order { state: Admin::Draining, reason: Some("new kernel".to_owned()), since: at(1000), until: until.map(at) }
    }

    #[test]
    fn orders_kept_are_read_back_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Orders::load(directory.path()).unwrap(), Orders::default());
        let mut orders = Orders::default();
        orders.set(place(1), Some(order(Some(2000))));
        orders.set(place(2), Some(Order { state: Admin::Disabled, reason: None, ..order(None) }));
        orders.save(directory.path()).unwrap();
        assert_eq!(Orders::load(directory.path()).unwrap(), orders);
        orders.set(place(1), None);
        orders.save(directory.path()).unwrap();
        assert_eq!(Orders::load(directory.path()).unwrap(), orders);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing but the file");
    }

    #[test]
    fn file_that_is_not_understood_is_put_aside_and_that_of_a_later_lbd_left() {
        let directory = tempfile::tempdir().unwrap();
        let names = || -> Vec<String> {
            let entries = fs::read_dir(directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        fs::write(directory.path().join(FILE), r#"{"version": 1, "orders": 7}"#).unwrap();
        assert_eq!(Orders::load(directory.path()).unwrap(), Orders::default());
        assert!(matches!(&names()[..], [name] if name.starts_with("admin.json.bad-")), "{:?}", names());

        fs::write(directory.path().join(FILE), r#"{"version": 2, "people": {}}"#).unwrap();
        assert!(matches!(Orders::load(directory.path()), Err(Error::Later(_))));
        assert!(names().contains(&FILE.to_owned()));
    }

    #[test]
    fn directory_belongs_to_one() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path()).unwrap();
        assert!(matches!(lock(directory.path()), Err(Error::InUse(_))));
        drop(first);
        lock(directory.path()).unwrap();
    }

    #[test]
    fn orders_end_when_they_said() {
        let mut orders = Orders::default();
        orders.set(place(1), Some(order(Some(2000))));
        orders.set(place(2), Some(order(None)));
        assert_eq!(orders.expired(Timestamp::from_second(1999).unwrap()), []);
        assert_eq!(orders.expired(Timestamp::from_second(2000).unwrap()), [place(1)]);
    }

    #[test]
    fn reason_is_one_line_of_bounded_length() {
        assert_eq!(check_reason("new kernel, ticket 12 – é"), Ok(()));
        assert!(check_reason("two\nlines").is_err() && check_reason(&"x".repeat(LONGEST_REASON + 1)).is_err());
        assert_eq!(check_reason(&"é".repeat(LONGEST_REASON)), Ok(()));
    }
}
