//! The emulator's process, and what comes out of its two serial lines.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use super::{Kernel, Vm, VmError};

/// How long an empty guest may take to come and go under KVM before KVM counts as broken (it takes about a second).
const KVM_PROBE: Duration = Duration::from_secs(15);

/// `oops=panic panic=-1` and `-no-reboot`: a fault of the kernel ends the process at once instead of the time limit.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 rdinit=/init oops=panic panic=-1";

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor.
    Kvm,
    /// An interpreter: about twenty times slower, and works everywhere.
    Tcg,
}

impl Accelerator {
    /// KVM where a guest boots under it: a device node says nothing inside a VM without nested virtualisation.
    pub(super) fn best(kernel: &Kernel) -> Self {
        static KVM_WORKS: OnceLock<bool> = OnceLock::new();
        let works = *KVM_WORKS.get_or_init(|| {
            Path::new("/dev/kvm").exists()
                && Vm::new(kernel.clone())
                    .and_then(|vm| vm.run_with(Self::Kvm, KVM_PROBE))
                    .is_ok_and(|output| output.status == 0)
        });
        if works { Self::Kvm } else { Self::Tcg }
    }

    const fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg", "-cpu", "max"],
        }
    }
}

/// A running guest; dropped, it is killed.
#[derive(Debug)]
pub(super) struct Qemu(Child);

impl Qemu {
    /// Starts a guest whose kernel logs into the file `log`, and whose second serial line is the child's output.
    pub(super) fn start(
        accelerator: Accelerator,
        kernel: &Path,
        initramfs: &Path,
        log: &Path,
    ) -> Result<Self, VmError> {
        const PROGRAM: &str = "qemu-system-x86_64";
        Command::new(PROGRAM)
            .args(["-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-m", "1G"])
            .args(accelerator.arguments())
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", KERNEL_ARGUMENTS])
            .arg("-serial")
            .arg(format!("file:{}", log.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map(Self)
            .map_err(|e| VmError::io("start", Path::new(PROGRAM), e))
    }

    /// All that the second serial line carries until the guest is gone; as an error, what it carried until `limit`.
    pub(super) fn serial_until_exit(&mut self, limit: Duration) -> Result<String, String> {
        let Some(mut serial) = self.0.stdout.take() else { return Ok(String::new()) };
        let (sender, received) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // A read that fails ends the output like the guest's end does: the missing status tells.
            let _ = serial.read_to_end(&mut bytes);
            let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        received.recv_timeout(limit).map_err(|_| {
            self.stop();
            received.recv().unwrap_or_default()
        })
    }

    fn stop(&mut self) {
        // Both fail only if the child is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The script's output and exit status, from between the marks that `tests/vm/init` writes.
pub(super) fn framed(serial: &str) -> Option<(&str, i32)> {
    let (_, rest) = serial.split_once("\u{1e}begin\n")?;
    let (output, status) = rest.rsplit_once("\u{1e}exit ")?;
    Some((output, status.trim_end().parse().ok()?))
}

/// The first line of a kernel's log that no healthy kernel writes.
pub(super) fn kernel_fault(log: &str) -> Option<&str> {
    const SIGNS: [&str; 4] = ["Kernel panic", "Oops: ", "BUG: ", "kernel BUG at"];
    log.lines().find(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framed_output_without_final_newline_keeps_its_last_line() {
        assert_eq!(framed("bios\u{1e}begin\none\ntwo\u{1e}exit 3\n"), Some(("one\ntwo", 3)));
        assert_eq!(framed("\u{1e}begin\n\u{1e}exit 0\n"), Some(("", 0)));
    }

    #[test]
    fn framed_output_of_a_guest_cut_short_is_none() {
        assert_eq!(framed(""), None);
        assert_eq!(framed("\u{1e}begin\none\n"), None);
    }

    #[test]
    fn kernel_fault_in_a_log_is_the_line_that_says_so() {
        let log = "[    0.1] fine\n[    0.2] BUG: kernel NULL pointer dereference\n[    0.3] Oops: 0002 [#1]\n";
        assert_eq!(kernel_fault(log), Some("[    0.2] BUG: kernel NULL pointer dereference"));
        assert_eq!(kernel_fault("[    0.1] Booting paravirtualized kernel\n"), None);
    }
}
