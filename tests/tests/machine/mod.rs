//! The LB of a lab as a machine of its own: a clean Debian 12 whose process 1 is systemd, in the LB's network namespace.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};
use tests::lab::{Lab, Running, wait_for};

const BOOT: Duration = Duration::from_secs(30);

pub(crate) struct Machine {
    root: tempfile::TempDir,
    cgroup: PathBuf,
    /// The parent of process 1; when it ends, the machine does.
    unshare: Option<Running>,
    systemd: u32,
}

impl Machine {
    /// Prepared, not yet running: its files may be written.
    pub(crate) fn new(name: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let tar = Command::new("tar").arg("-xf").arg(debian()).arg("-C").arg(root.path()).status().unwrap();
        assert!(tar.success());
        let cgroup = cgroups().join(format!("lbd-machine-{name}-{}", std::process::id()));
        Self { root, cgroup, unshare: None, systemd: 0 }
    }

    /// A file of the machine.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    /// Boots on the lab's LB.
    pub(crate) fn boot(&mut self, lab: &Lab) {
        fs::create_dir(&self.cgroup).unwrap();
        let script = self.path("boot.sh");
        fs::write(&script, include_str!("boot.sh")).unwrap();
        let namespaces = "--cgroup --mount --pid --fork --uts --ipc --kill-child";
        let enter = format!(
            "echo $$ >{}/cgroup.procs && exec unshare {namespaces} sh {} {}",
            self.cgroup.display(),
            script.display(),
            self.root.path().display()
        );
        let mut command = lab.lb().command("sh");
        command.args(["-ec", &enter]).stdin(Stdio::null());
        let unshare = Running::start(&mut command).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
        self.unshare = Some(unshare);
        let child = || Ok(fs::read_to_string(&children).unwrap_or_default().trim().parse().ok());
        self.systemd = wait_for("process 1", BOOT, child).unwrap();
        // Nobody is asked before systemd is there to answer.
        let running = || Ok((self.run("systemctl is-system-running").stdout == b"running\n").then_some(()));
        wait_for("the machine to boot", BOOT, running).unwrap();
    }

    /// Runs a script on the machine.
    pub(crate) fn run(&self, script: &str) -> Output {
        let pid = self.systemd.to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-m", "-p", "-u", "-i", "-C", "-n", "-r", "-w", "sh", "-c", script]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("SYSTEMD_PAGER", "");
        command.output().unwrap()
    }

    /// What a script says that must succeed.
    #[track_caller]
    pub(crate) fn succeeds(&self, script: &str) -> String {
        let Output { status, stdout, stderr } = self.run(script);
        let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        assert!(status.success(), "{script}: {text}\n{}", self.journal());
        text
    }

    pub(crate) fn journal(&self) -> String {
        String::from_utf8_lossy(&self.run("journalctl --no-pager --output=cat --unit=lbd").stdout).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.unshare.is_some() {
            eprintln!("journal:\n{}", self.journal());
        }
        self.unshare = None;
        // The kernel takes the last process out of a cgroup a moment after its end.
        let removed = || Ok(remove_cgroups(&self.cgroup).is_ok().then_some(()));
        if self.cgroup.exists()
            && let Err(error) = wait_for("the machine's cgroups to go", BOOT, removed)
        {
            eprintln!("{error}");
        }
    }
}

fn remove_cgroups(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_cgroups(&path)?;
        }
    }
    fs::remove_dir(directory)
}

/// Where cgroups of version 2 are.
fn cgroups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let cgroup2 = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|mount| mount[2] == "cgroup2");
    PathBuf::from(cgroup2.unwrap_or_else(|| panic!("no cgroup2 is mounted"))[1])
}

/// A minimal Debian 12 with systemd's files, made once, beside the VM's kernel.
pub(crate) fn debian() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| env::home_dir().unwrap().join(".cache"), PathBuf::from);
    let directory = cache.join("lbd/debian");
    fs::create_dir_all(&directory).unwrap();
    let archive = directory.join("bookworm.tar");
    if !archive.is_file() {
        eprintln!("making a clean Debian 12 with mmdebstrap in {} (a minute or two)", directory.display());
        let fresh = directory.join(format!("new-{}.tar", std::process::id()));
        let options = ["--quiet", "--variant=minbase", "--include=systemd", "bookworm"];
        assert!(Command::new("mmdebstrap").args(options).arg(&fresh).status().unwrap().success());
        fs::rename(fresh, &archive).unwrap();
    }
    archive
}
