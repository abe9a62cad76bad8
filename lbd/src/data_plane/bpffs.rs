//! The BPF file system, where links and maps outlive the daemon.

use super::Error;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        stat::{major, minor},
        statfs::{FsType, statfs},
    },
};
use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

const MOUNT_POINT: &str = "/sys/fs/bpf";
const BPF_FS_MAGIC: FsType = FsType(libc::BPF_FS_MAGIC);

/// Makes sure that `directory` exists and is on a bpffs; mounts one at its usual place if nobody has.
pub(super) fn ensure(directory: &Path) -> Result<(), Error> {
    let mount_point = Path::new(MOUNT_POINT);
    if directory.starts_with(mount_point) && !is_bpffs(mount_point)? {
        tracing::info!(path = MOUNT_POINT, "mounting the BPF file system");
        mount(Some("bpf"), mount_point, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(Error::new("mount the BPF file system on", MOUNT_POINT))?;
    }
    fs::create_dir_all(directory).map_err(Error::new("create", directory.display()))?;
    if is_bpffs(directory)? {
        return Ok(());
    }
    Err(Error::new("use", directory.display())(
        "it is not on a BPF file system; mount one, or choose --bpffs under one",
    ))
}

/// Takes the directory for this process, for as long as the lock is held: two daemons on the same maps would undo each
/// other's work.
pub(super) fn lock(directory: &Path) -> Result<File, Error> {
    let lock = File::open(directory).map_err(Error::new("open", directory.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let pid = holder(&lock).map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            let why = format!("a running lbd{pid} has it: stop that one first, or give this one another --bpffs");
            Err(Error::new("use", directory.display())(why))
        }
        Err(TryLockError::Error(error)) => Err(Error::new("lock", directory.display())(error)),
    }
}

/// Who has locked a file, as far as /proc tells (`proc_locks(5)`).
fn holder(file: &File) -> Option<u32> {
    let (stat, locks) = (file.metadata().ok()?, fs::read_to_string("/proc/locks").ok()?);
    let inode = format!("{:02x}:{:02x}:{}", major(stat.dev()), minor(stat.dev()), stat.ino());
    let pid = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, locked, ..] = fields[..] else { return None };
        (locked == inode).then(|| pid.parse().ok())?
    };
    locks.lines().find_map(pid)
}

/// Removes a pin; one that is not there is fine.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::new("unpin", path.display())(error)),
        _ => Ok(()),
    }
}

fn is_bpffs(path: &Path) -> Result<bool, Error> {
    match statfs(path) {
        Ok(stat) => Ok(stat.filesystem_type() == BPF_FS_MAGIC),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(Error::new("examine", path.display())(error)),
    }
}
