//! Debian's stock kernel: fetched once with apt, unpacked and indexed in a cache.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use super::{VmError, run};

/// The meta package; what it depends on is the kernel. The *cloud* flavour drops drivers no VM has, and keeps every
/// network module.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package with its modules indexed for `modprobe`.
#[derive(Debug, Clone)]
pub struct Kernel {
    root: PathBuf,
    release: String,
}

impl Kernel {
    /// The kernel in `$XDG_CACHE_HOME/lbd/vm` (default `~/.cache`), fetched first if it is not there. Deleting the
    /// directory makes the next call fetch what the package lists offer then.
    ///
    /// # Errors
    /// No cache directory can be made, apt knows no such package or cannot reach its mirror, or the package does not
    /// hold what it should.
    pub fn debian() -> Result<Self, VmError> {
        let cache = cache_directory()?;
        fs::create_dir_all(&cache).map_err(|e| VmError::io("create", &cache, e))?;
        // Tests run in parallel processes: one fetches, the others wait for it.
        let lock_path = cache.join("lock");
        let lock = File::create(&lock_path).map_err(|e| VmError::io("create", &lock_path, e))?;
        lock.lock().map_err(|e| VmError::io("lock", &lock_path, e))?;
        let root = cache.join(PACKAGE);
        if !root.is_dir() {
            fetch(&cache, &root)?;
        }
        let release = release(&root)?;
        Ok(Self { root, release })
    }

    /// What `uname -r` says in the guest.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The compressed kernel image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// `lib/modules/RELEASE` on the host.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// Each of the named modules and all they depend on, as paths below [`Self::modules`], without repetition.
    ///
    /// # Errors
    /// The index cannot be read, or a name is not in it.
    pub fn module_closure(&self, names: &[&str]) -> Result<Vec<PathBuf>, VmError> {
        let index = self.modules().join("modules.dep");
        let text = fs::read_to_string(&index).map_err(|e| VmError::io("read", &index, e))?;
        closure(&text, names).map_err(|name| VmError::UnknownModule { name, release: self.release.clone() })
    }
}

fn cache_directory() -> Result<PathBuf, VmError> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => env::home_dir().ok_or(VmError::NoHome)?.join(".cache"),
    };
    Ok(base.join("lbd/vm"))
}

/// Unpacks beside `root` and renames at the end: `root` is complete or absent.
fn fetch(cache: &Path, root: &Path) -> Result<(), VmError> {
    let package = dependency()?;
    eprintln!("fetching {package} with apt-get download into {} (27 MB)", cache.display());
    let work = tempfile::tempdir_in(cache).map_err(|e| VmError::io("create a directory in", cache, e))?;
    // As root, apt would hand the download to user `_apt`, who may not write to our cache.
    run(Command::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", &package])
        .current_dir(&work))?;
    let archive = fs::read_dir(&work)
        .map_err(|e| VmError::io("list", work.path(), e))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .ok_or_else(|| VmError::Missing { what: "the downloaded package", place: work.path().to_owned() })?;
    let unpacked = work.path().join("root");
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    run(Command::new("depmod").arg("-b").arg(&unpacked).arg(release(&unpacked)?))?;
    fs::rename(&unpacked, root).map_err(|e| VmError::io("rename to", root, e))
}

/// The real package behind the meta package.
fn dependency() -> Result<String, VmError> {
    let listing = run(Command::new("apt-cache").args(["depends", "--important", PACKAGE]))?;
    listing
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .map(str::to_owned)
        .ok_or(VmError::NoKernelPackage(PACKAGE))
}

fn release(root: &Path) -> Result<String, VmError> {
    let modules = root.join("lib/modules");
    let mut entries = fs::read_dir(&modules).map_err(|e| VmError::io("list", &modules, e))?.filter_map(Result::ok);
    entries
        .next()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .ok_or(VmError::Missing { what: "a kernel release", place: modules })
}

/// The lines of `modules.dep` read `path/of/module.ko: path/of/dependency.ko …`, the dependencies already transitive.
fn closure(modules_dep: &str, names: &[&str]) -> Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    for name in names {
        let (module, dependencies) = modules_dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| Path::new(path).file_stem().is_some_and(|stem| stem == *name))
            .ok_or_else(|| (*name).to_owned())?;
        paths.extend(std::iter::once(module).chain(dependencies.split_whitespace()).map(PathBuf::from));
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "net/ipip.ko: net/tunnel4.ko net/ip_tunnel.ko\nnet/tunnel4.ko:\nnet/ip_tunnel.ko:\nnet/gre.ko: \
                         net/ip_tunnel.ko\n";

    #[test]
    fn closure_of_modules_sharing_a_dependency_lists_it_once() {
        let paths = closure(INDEX, &["ipip", "gre"]).unwrap();
        let expected: Vec<_> =
            ["net/gre.ko", "net/ip_tunnel.ko", "net/ipip.ko", "net/tunnel4.ko"].map(PathBuf::from).into();
        assert_eq!(paths, expected);
    }

    #[test]
    fn closure_of_an_unknown_module_names_it() {
        assert_eq!(closure(INDEX, &["ipip", "sit"]), Err("sit".to_owned()));
    }
}
