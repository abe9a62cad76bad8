//! The guest's whole file system: a cpio archive in the kernel's `newc` format.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use super::{VmError, run};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

#[derive(Debug, Clone)]
enum Entry {
    Directory,
    /// Read when the archive is written.
    HostFile(PathBuf),
    Text(String),
    Symlink(String),
    /// Major and minor number.
    CharacterDevice(u32, u32),
}

/// An archive under construction. Guest paths are absolute; the directories above an entry come by themselves.
#[derive(Debug, Clone, Default)]
pub(super) struct Initramfs {
    /// A path sorts after its own prefix, so a directory is written before what it holds.
    entries: BTreeMap<PathBuf, Entry>,
}

impl Initramfs {
    pub(super) fn directory(&mut self, guest: impl AsRef<Path>) {
        self.insert(guest.as_ref(), Entry::Directory);
    }

    pub(super) fn host_file(&mut self, host: impl Into<PathBuf>, guest: impl AsRef<Path>) {
        self.insert(guest.as_ref(), Entry::HostFile(host.into()));
    }

    pub(super) fn text(&mut self, text: impl Into<String>, guest: impl AsRef<Path>) {
        self.insert(guest.as_ref(), Entry::Text(text.into()));
    }

    pub(super) fn symlink(&mut self, target: impl Into<String>, guest: impl AsRef<Path>) {
        self.insert(guest.as_ref(), Entry::Symlink(target.into()));
    }

    pub(super) fn character_device(&mut self, major: u32, minor: u32, guest: impl AsRef<Path>) {
        self.insert(guest.as_ref(), Entry::CharacterDevice(major, minor));
    }

    /// An executable and the shared libraries `ldd` finds for it.
    pub(super) fn program(&mut self, host: impl AsRef<Path>, guest: impl AsRef<Path>) -> Result<(), VmError> {
        let host = host.as_ref();
        let output = Command::new("ldd").arg(host).output().map_err(|e| VmError::io("run ldd on", host, e))?;
        // A static executable has no list, and ldd's status says so; a file that is not there fails when it is read.
        for library in libraries(&String::from_utf8_lossy(&output.stdout))
            .map_err(|library| VmError::NoLibrary { program: host.to_owned(), library })?
        {
            self.host_file(&library, &library);
        }
        self.host_file(host, guest);
        Ok(())
    }

    /// Like [`Self::program`], without the debug information that makes a Rust debug build ten times its size. The
    /// stripped copy lives in `scratch`.
    pub(super) fn stripped_program(&mut self, host: &Path, guest: &Path, scratch: &Path) -> Result<(), VmError> {
        let copy = scratch.join(guest.to_string_lossy().replace('/', "_"));
        run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(host))?;
        self.program(copy, guest)
    }

    /// Writes the archive to `path`.
    pub(super) fn write_to(&self, path: &Path) -> Result<(), VmError> {
        let file = fs::File::create(path).map_err(|e| VmError::io("create", path, e))?;
        let mut out = io::BufWriter::new(file);
        for (number, (guest, entry)) in (1..).zip(&self.entries) {
            let (content, header) = match entry {
                Entry::Directory => (Vec::new(), Header { mode: DIRECTORY, links: 2, ..Header::default() }),
                Entry::HostFile(host) => {
                    let bytes = fs::read(host).map_err(|e| VmError::io("read", host, e))?;
                    (bytes, Header { mode: FILE, links: 1, ..Header::default() })
                }
                Entry::Text(text) => (text.clone().into(), Header { mode: FILE, links: 1, ..Header::default() }),
                Entry::Symlink(to) => (to.clone().into(), Header { mode: SYMLINK, links: 1, ..Header::default() }),
                Entry::CharacterDevice(major, minor) => (
                    Vec::new(),
                    Header { mode: CHARACTER_DEVICE, links: 1, device: (*major, *minor), ..Header::default() },
                ),
            };
            // The archive's names are relative to the root.
            let name = guest.strip_prefix("/").unwrap_or(guest).to_string_lossy();
            write_entry(&mut out, &name, &Header { inode: number, ..header }, &content)
                .map_err(|e| VmError::io("write", path, e))?;
        }
        write_entry(&mut out, "TRAILER!!!", &Header { links: 1, ..Header::default() }, &[])
            .and_then(|()| out.flush())
            .map_err(|e| VmError::io("write", path, e))
    }

    fn insert(&mut self, guest: &Path, entry: Entry) {
        for above in guest.ancestors().skip(1).filter(|above| above.parent().is_some()) {
            self.entries.entry(above.to_owned()).or_insert(Entry::Directory);
        }
        self.entries.insert(guest.to_owned(), entry);
    }
}

/// The fields of a `newc` header that are not zero for us.
#[derive(Debug, Default)]
struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    /// Major and minor number of a device node.
    device: (u32, u32),
}

/// One entry as the kernel's Documentation/driver-api/early-userspace/buffer-format.rst has it: a header of thirteen
/// numbers of eight hexadecimal digits, the name with its NUL, the content; name and content end on multiples of four.
fn write_entry(out: &mut impl Write, name: &str, header: &Header, content: &[u8]) -> io::Result<()> {
    let Header { inode, mode, links, device: (major, minor) } = *header;
    let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{name} does not fit a cpio archive"));
    let size = u32::try_from(content.len()).map_err(too_large)?;
    let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
    write!(out, "070701")?;
    for field in [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0] {
        write!(out, "{field:08x}")?;
    }
    write!(out, "{name}\0")?;
    pad(out, 110 + name.len() + 1)?;
    out.write_all(content)?;
    pad(out, content.len())
}

fn pad(out: &mut impl Write, length: usize) -> io::Result<()> {
    (length..length.next_multiple_of(4)).try_for_each(|_| out.write_all(&[0]))
}

/// The files that `ldd` names: `NAME => PATH (ADDRESS)`, or for the loader `PATH (ADDRESS)`. A library that is not
/// found is the error.
fn libraries(ldd: &str) -> Result<Vec<PathBuf>, String> {
    ldd.lines()
        .filter_map(|line| match line.trim().split_once(" => ") {
            Some((name, "not found")) => Some(Err(name.to_owned())),
            Some((_, found)) => found.split_whitespace().next().map(|path| Ok(path.into())),
            None => line.trim().strip_prefix('/').and(line.split_whitespace().next()).map(|path| Ok(path.into())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_a_dynamic_program_include_the_loader_and_not_the_vdso() {
        let ldd =
            "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x00007f)\n";
        assert_eq!(libraries(ldd), Ok(vec!["/lib/libc.so.6".into(), "/lib64/ld.so.2".into()]));
        assert_eq!(libraries("\tnot a dynamic executable\n"), Ok(vec![]));
        assert_eq!(libraries("\tlibz.so.1 => not found\n"), Err("libz.so.1".to_owned()));
    }

    #[test]
    fn archive_written_is_what_cpio_unpacks() {
        let scratch = tempfile::tempdir().unwrap();
        let mut archive = Initramfs::default();
        archive.text("#!/bin/sh\n", "/init");
        archive.text("four", "/a/b/c");
        archive.symlink("b/c", "/a/link");
        let path = scratch.path().join("initramfs");
        archive.write_to(&path).unwrap();
        let listing = run(Command::new("cpio").args(["-it", "--quiet", "-F"]).arg(&path)).unwrap();
        assert_eq!(listing.lines().collect::<Vec<_>>(), ["a", "a/b", "a/b/c", "a/link", "init"]);
        run(Command::new("cpio").args(["-id", "--quiet", "-F"]).arg(&path).current_dir(&scratch)).unwrap();
        assert_eq!(fs::read_to_string(scratch.path().join("a/link")).unwrap(), "four");
    }
}
