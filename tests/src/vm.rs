//! A stock Debian kernel in a VM: what a test needs when the host's kernel lacks a module, or is too new.
//!
//! The guest is a kernel and an initramfs made for the run: busybox, iproute2, kmod, the network modules, the caller's
//! programs, and one shell script. The VM has no disk and no network card.
//!
//! ```text
//!   Vm::new(kernel) ─ program, script ─▶ initramfs ─▶ qemu ─ ttyS1 ─▶ the script's output and status
//!                                                       └─── ttyS0 ─▶ the kernel's log
//! ```

mod initramfs;
mod kernel;
mod qemu;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

pub use self::kernel::Kernel;
use self::{
    initramfs::Initramfs,
    qemu::{Accelerator, Qemu},
};

/// Modules that a real or a load balancer may ask for; what they depend on comes along.
const MODULES: [&str; 14] = [
    "ipip",
    "ip6_tunnel",
    "veth",
    "dummy",
    "8021q",
    "bonding",
    "bridge",
    "vrf",
    "cls_bpf",
    "act_bpf",
    "sch_ingress",
    "sch_netem",
    "ip_vs_rr",
    "nf_tables",
];

/// Programs of the host that every guest has, in the directory where the kernel and people expect them. Busybox is
/// Debian's `busybox-static`; its own shell would prefer its applets to iproute2's `ip`.
const PROGRAMS: [(&str, &[&str]); 5] = [
    ("/usr/bin/sh", &["/bin/dash", "/usr/bin/dash"]),
    ("/bin/busybox", &["/bin/busybox", "/usr/bin/busybox"]),
    ("/usr/sbin/ip", &["/usr/sbin/ip", "/usr/bin/ip", "/sbin/ip"]),
    ("/usr/sbin/tc", &["/usr/sbin/tc", "/sbin/tc"]),
    ("/usr/bin/kmod", &["/usr/bin/kmod", "/bin/kmod"]),
];

/// What went wrong, with the operation and the object.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A file of the host, or a program that could not be started.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// A verb phrase.
        operation: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A program of the host ended with a failure.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// As typed.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// Nowhere to keep the kernel.
    #[error("no home directory for the kernel cache: set XDG_CACHE_HOME")]
    NoHome,
    /// The package lists lack the kernel.
    #[error("apt knows no package {0}: run apt-get update, on Debian for amd64")]
    NoKernelPackage(&'static str),
    /// The kernel package is not what it should be.
    #[error("no {what} in {}", place.display())]
    Missing {
        /// What was looked for.
        what: &'static str,
        /// The directory it should be in.
        place: PathBuf,
    },
    /// The kernel was built without this module.
    #[error("kernel {release} has no module {name}")]
    UnknownModule {
        /// The module.
        name: String,
        /// The kernel.
        release: String,
    },
    /// The host lacks a program that every guest has.
    #[error("no {0} on this host: install busybox-static, dash, iproute2 and kmod")]
    NoProgram(&'static str),
    /// A program's shared library is not on the host.
    #[error("{} needs {library}, which the host does not have", program.display())]
    NoLibrary {
        /// The program.
        program: PathBuf,
        /// The library's name.
        library: String,
    },
    /// The guest outlived its limit and was killed.
    #[error("the guest was killed after {limit:?}; its output:\n{output}\nits console:\n{console}")]
    Timeout {
        /// The limit it was given.
        limit: Duration,
        /// What came over the script's line, marks included.
        output: String,
        /// The kernel's log.
        console: String,
    },
    /// The guest's kernel panicked or oopsed.
    #[error("the guest's kernel failed: {line}\nits console:\n{console}")]
    KernelFault {
        /// The first line that says so.
        line: String,
        /// The kernel's log.
        console: String,
    },
    /// The guest was gone before its script had ended.
    #[error("the guest stopped before its script ended; its output:\n{output}\nits console:\n{console}")]
    NoStatus {
        /// What came over the script's line, marks included.
        output: String,
        /// The kernel's log.
        console: String,
    },
}

impl VmError {
    fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }
}

/// What the guest's script did.
#[derive(Debug)]
pub struct Output {
    /// The script's exit status, 0 to 255.
    pub status: i32,
    /// The script's standard output and error, in the order of writing.
    pub output: String,
    /// The kernel's log.
    pub console: String,
}

/// A guest being put together.
#[derive(Debug)]
pub struct Vm {
    kernel: Kernel,
    files: Initramfs,
    scratch: tempfile::TempDir,
}

impl Vm {
    /// A guest of this kernel with the standard programs and modules; its script does nothing yet.
    ///
    /// # Errors
    /// The host lacks one of the programs, the kernel one of the modules, or there is no room for temporary files.
    pub fn new(kernel: Kernel) -> Result<Self, VmError> {
        let scratch = tempfile::tempdir().map_err(|e| VmError::io("create", &std::env::temp_dir(), e))?;
        let mut files = Initramfs::default();
        files.symlink("/run", "/var/run");
        for directory in ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc", "/root", "/var/lib"] {
            files.directory(directory);
        }
        // The kernel gives its first process this device as standard input and output.
        files.character_device(5, 1, "/dev/console");
        for (guest, candidates) in PROGRAMS {
            let host = candidates.iter().find(|path| Path::new(path).exists());
            files.program(host.ok_or(VmError::NoProgram(guest))?, guest)?;
        }
        for name in ["modprobe", "rmmod", "lsmod", "insmod"] {
            files.symlink("/usr/bin/kmod", Path::new("/sbin").join(name));
        }
        add_modules(&mut files, &kernel)?;
        files.text(include_str!("../vm/init"), "/init");
        files.text("", "/script");
        Ok(Self { kernel, files, scratch })
    }

    /// Carries a program of ours, with its libraries and without its debug information, to `/usr/bin/NAME`.
    ///
    /// # Errors
    /// The file is not an executable, or one of its libraries is missing.
    pub fn program(self, host: impl AsRef<Path>) -> Result<Self, VmError> {
        let host = host.as_ref();
        let name = host
            .file_name()
            .ok_or_else(|| VmError::Missing { what: "the name of a program", place: host.to_owned() })?;
        self.program_at(host, Path::new("/usr/bin").join(name))
    }

    /// Carries a program like [`Self::program`], to an absolute path of the guest.
    ///
    /// # Errors
    /// The file is not an executable, or one of its libraries is missing.
    pub fn program_at(mut self, host: impl AsRef<Path>, guest: impl AsRef<Path>) -> Result<Self, VmError> {
        self.files.stripped_program(host.as_ref(), guest.as_ref(), self.scratch.path())?;
        Ok(self)
    }

    /// Carries one file to an absolute path of the guest, where it is executable.
    #[must_use]
    pub fn file(mut self, host: impl Into<PathBuf>, guest: impl AsRef<Path>) -> Self {
        self.files.host_file(host, guest);
        self
    }

    /// The shell script that the guest runs as root (`sh -eu`), with `lo` up and everything mounted.
    #[must_use]
    pub fn script(mut self, text: &str) -> Self {
        self.files.text(text, "/script");
        self
    }

    /// Boots, runs the script, and ends with it.
    ///
    /// # Errors
    /// The guest outlived `limit` and was killed, its kernel panicked or oopsed, or it stopped without a status. A
    /// script that failed is not an error: its status says so.
    pub fn run(self, limit: Duration) -> Result<Output, VmError> {
        let accelerator = Accelerator::best(&self.kernel);
        self.run_with(accelerator, limit)
    }

    fn run_with(self, accelerator: Accelerator, limit: Duration) -> Result<Output, VmError> {
        let archive = self.scratch.path().join("initramfs");
        let log = self.scratch.path().join("console");
        self.files.write_to(&archive)?;
        let mut qemu = Qemu::start(accelerator, &self.kernel.image(), &archive, &log)?;
        let serial = qemu.serial_until_exit(limit);
        drop(qemu);
        let console = String::from_utf8_lossy(&fs::read(&log).map_err(|e| VmError::io("read", &log, e))?).into_owned();
        if let Some(line) = qemu::kernel_fault(&console) {
            return Err(VmError::KernelFault { line: line.to_owned(), console });
        }
        match serial {
            Err(output) => Err(VmError::Timeout { limit, output, console }),
            Ok(serial) => match qemu::framed(&serial) {
                Some((output, status)) => Ok(Output { status, output: output.to_owned(), console }),
                None => Err(VmError::NoStatus { output: serial, console }),
            },
        }
    }
}

/// Modules with `modprobe`'s indexes: the kernel's own requests and `modprobe` in the script find them.
fn add_modules(files: &mut Initramfs, kernel: &Kernel) -> Result<(), VmError> {
    let host = kernel.modules();
    let guest = Path::new("/lib/modules").join(kernel.release());
    for path in kernel.module_closure(&MODULES)? {
        files.host_file(host.join(&path), guest.join(&path));
    }
    for index in ["dep", "dep.bin", "alias.bin", "symbols.bin", "softdep", "builtin.bin", "builtin.alias.bin"] {
        let name = format!("modules.{index}");
        files.host_file(host.join(&name), guest.join(&name));
    }
    Ok(())
}

/// Runs a host command to its end and returns its output.
fn run(command: &mut Command) -> Result<String, VmError> {
    let output = command.output().map_err(|e| VmError::io("run", Path::new(command.get_program()), e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(VmError::Command { command: format!("{command:?}"), status: output.status, stderr })
}
