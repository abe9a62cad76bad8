//! The journal's file: replaced as a whole, on the disk before `save` returns, and locked against a second run.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::{journal::Journal, run};

const NAME: &str = "journal.json";

/// What failed, on which file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading, writing or syncing.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Not a journal of this version.
    #[error("{} is not a journal that this version understands: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Another process holds the lock.
    #[error("another realsrv-setup is at work in {}", .0.display())]
    Busy(PathBuf),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// Reads the journal in `directory`; an empty one if there is none.
///
/// # Errors
/// It is there and cannot be read or understood.
pub fn load(directory: &Path) -> Result<Journal, Error> {
    let path = directory.join(NAME);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| Error::Format { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Journal::default()),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// A state directory, held until dropped.
pub struct Store {
    directory: PathBuf,
    lock: Flock<File>,
}

impl Store {
    /// Creates `directory` if it is missing, and locks it.
    ///
    /// # Errors
    /// It cannot be created, or another process holds it.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(at(directory))?;
        let file = File::open(directory).map_err(at(directory))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::Busy(directory.to_owned()),
            errno => at(directory)(errno.into()),
        })?;
        Ok(Self { directory: directory.to_owned(), lock })
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        self.lock.sync_all()
    }

    fn delete(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.lock.sync_all(),
        }
    }
}

impl run::Store for Store {
    type Error = Error;

    fn save(&mut self, journal: &Journal) -> Result<(), Error> {
        let path = self.directory.join(NAME);
        if journal.is_empty() {
            return self.delete(&path).map_err(at(&path));
        }
        let bytes = serde_json::to_vec_pretty(journal);
        let bytes = bytes.map_err(|source| Error::Format { path: path.clone(), source })?;
        self.write(&path, &bytes).map_err(at(&path))
    }
}
