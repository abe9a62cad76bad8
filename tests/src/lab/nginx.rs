//! The web server of a real: a real nginx with a prefix directory of its own.
//!
//! `/` answers with the host's name, `/big` is 256 MiB (`?rate=1m` limits it to that many bytes a second),
//! `/upload` accepts any POST and says how much it was. Every response carries the name in `X-Real`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    error::{Result, file},
    host::Host,
    process::{alive, run, send, wait_until},
};

/// The length of `/big`, in bytes. The file is sparse.
pub const BIG_LEN: u64 = 256 << 20;
/// What nginx is given to close its sockets or to end.
const BOUND: Duration = Duration::from_secs(5);

/// The nginx of one host, running or not.
#[derive(Debug)]
pub struct Nginx<'a> {
    host: &'a Host,
    prefix: PathBuf,
}

impl<'a> Nginx<'a> {
    pub(super) fn of(host: &'a Host) -> Self {
        Self { host, prefix: host.dir.join("nginx") }
    }

    /// Starts nginx; connections are accepted and signals obeyed when this returns.
    ///
    /// # Errors
    /// What nginx says, for example that port 80 is taken; if it does not start its worker in time.
    pub fn start(&self) -> Result<()> {
        self.write_files()?;
        // A process that still serves its last connections removes its pid file when it ends:
        // every start has a file of its own, and the highest number is the current one.
        let start = self.current().map_or(1, |(start, _)| start + 1);
        let mut nginx = self.host.command("nginx");
        nginx.arg("-p").arg(&self.prefix).args(["-c", "nginx.conf", "-e", "error.log"]);
        run(nginx.arg("-g").arg(format!("pid {start}.pid;")))?;
        // The command returns before the master waits for signals. One that comes in between only sets a flag,
        // which nobody looks at until the next one. The master blocks signals, then starts its worker.
        wait_until("nginx to start its worker", BOUND, || {
            Ok(self.current().filter(|&(now, pid)| now == start && has_child(pid)).map(drop))
        })
    }

    /// Stops nginx at once (SIGTERM): connections are reset, and it has ended when this returns.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&self) -> Result<()> {
        let Some((_, pid)) = self.current() else { return Ok(()) };
        send(pid, Signal::SIGTERM)?;
        wait_until("nginx to end", BOUND, || Ok((!alive(pid)).then_some(())))
    }

    /// Stops nginx gracefully (`nginx -s quit`): when this returns, port 80 is closed, while established connections
    /// are served to their end.
    ///
    /// # Errors
    /// If it does not close its port in time.
    pub fn quit(&self) -> Result<()> {
        let Some((_, pid)) = self.current() else { return Ok(()) };
        send(pid, Signal::SIGQUIT)?;
        let listeners = || self.host.run("ss --no-header --listening --tcp --numeric sport = :80");
        wait_until("nginx to close port 80", BOUND, || Ok(listeners()?.is_empty().then_some(())))
    }

    /// The pid of the master process that was started last, if it still runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.current().map(|(_, pid)| pid)
    }

    /// The requests served so far, one a line, each written after its answer has been sent.
    #[must_use]
    pub fn access_log(&self) -> PathBuf {
        self.prefix.join("access.log")
    }

    /// The number of the last start and its pid, if that process is there.
    fn current(&self) -> Option<(u32, u32)> {
        let entries = fs::read_dir(&self.prefix).ok()?;
        let starts = entries.flatten().filter_map(|entry| start_of(&entry.path()));
        let (start, path) = starts.max()?;
        let pid: u32 = fs::read_to_string(path).ok()?.trim().parse().ok()?;
        alive(pid).then_some((start, pid))
    }

    fn write_files(&self) -> Result<()> {
        fs::create_dir_all(&self.prefix).map_err(file("creating", &self.prefix))?;
        let big = self.prefix.join("big");
        // Not truncated: a process that is quitting may still be sending it.
        let opened = File::options().create(true).write(true).truncate(false).open(&big);
        opened.and_then(|opened| opened.set_len(BIG_LEN)).map_err(file("creating", &big))?;
        let conf = self.prefix.join("nginx.conf");
        fs::write(&conf, configuration(&self.host.name)).map_err(file("writing", &conf))
    }
}

fn has_child(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).is_ok_and(|children| !children.is_empty())
}

/// `(7, path)` for `…/7.pid`.
fn start_of(path: &Path) -> Option<(u32, PathBuf)> {
    let number = path.file_name()?.to_str()?.strip_suffix(".pid")?;
    Some((number.parse().ok()?, path.to_owned()))
}

/// Root, because the lab's directory may be readable to nobody else; all paths are relative to the prefix.
fn configuration(name: &str) -> String {
    format!(
        r#"user root;
worker_processes 1;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log access.log;
    default_type text/plain;
    client_max_body_size 0;
    client_body_temp_path body;
    proxy_temp_path proxy;
    map $arg_rate $rate {{ default $arg_rate; "" 0; }}
    server {{
        listen 80;
        listen [::]:80;
        add_header X-Real {name} always;
        location = / {{ return 200 "{name}\n"; }}
        location = /big {{ root .; limit_rate $rate; }}
        # Proxied, so that the whole body is received before the answer.
        location = /upload {{ proxy_pass http://127.0.0.1:8080; }}
    }}
    server {{
        listen 127.0.0.1:8080;
        access_log off;
        return 200 "{name} received $http_content_length bytes\n";
    }}
}}
"#
    )
}
