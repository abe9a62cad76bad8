//! The files of `--persist`: replaced as a whole, on the disk before a step is done.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::Error;
use crate::{
    persist::{Contents, paths},
    run::Undone,
};

/// What is there of the files that may be ours.
///
/// # Errors
/// One cannot be read, or is neither text nor a link.
pub fn observe(root: &Path) -> Result<BTreeMap<String, Contents>, Error> {
    let mut found = BTreeMap::new();
    for path in paths(root) {
        if let Some(contents) = read(&path)? {
            found.insert(path, contents);
        }
    }
    Ok(found)
}

fn read(path: &str) -> Result<Option<Contents>, Error> {
    let contents = fs::symlink_metadata(path).and_then(|metadata| {
        if metadata.is_symlink() {
            Ok(Contents::Link(fs::read_link(path)?.display().to_string()))
        } else {
            fs::read_to_string(path).map(Contents::Text)
        }
    });
    match contents {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("reading {path}"))(error)),
    }
}

/// Puts `contents` at `path`, in place of whatever is there.
///
/// # Errors
/// Its directory is missing, or the file system refuses.
pub fn write(path: &str, contents: &Contents) -> Result<(), Error> {
    replace(Path::new(path), contents).map_err(Error::io(format!("writing {path}")))
}

fn replace(path: &Path, contents: &Contents) -> io::Result<()> {
    let fresh = fresh(path);
    remove(&fresh)?;
    match contents {
        Contents::Text(text) => {
            let mut file = File::create_new(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
        }
        Contents::Link(target) => symlink(target, &fresh)?,
    }
    fs::rename(&fresh, path)?;
    sync_directory(path)
}

/// Where a file is written first. Nobody reads a name like this.
fn fresh(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Back to `from`, if it is still what we wrote; and what a killed run had begun to write goes.
///
/// # Errors
/// It cannot be read or written.
pub fn restore(path: &str, from: Option<&Contents>, to: &Contents) -> Result<Undone, Error> {
    let failed = || Error::io(format!("restoring {path}"));
    remove(&fresh(Path::new(path))).map_err(failed())?;
    match (read(path)?, from) {
        (Some(now), Some(from)) if now == *to => write(path, from).map(|()| Undone::Restored),
        (Some(now), None) if now == *to => {
            let removed = remove(Path::new(path)).and_then(|()| sync_directory(Path::new(path)));
            removed.map(|()| Undone::Restored).map_err(failed())
        }
        (None, _) => Ok(Undone::Already),
        (Some(now), Some(from)) if now == *from => Ok(Undone::Already),
        (Some(_), _) => Ok(Undone::Left("somebody changed it since".to_owned())),
    }
}
