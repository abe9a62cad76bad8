//! Commands that must succeed, processes that end with their guard, and bounded waiting.

use std::{
    fs, io,
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::error::{Error, Result};

/// How often a condition is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(5);
/// What a process is given to end after SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(5);

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// [`Error::Start`], or [`Error::Failed`] with the command line and its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(start_error(command))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Failed { command: line(command), status: output.status, stderr })
}

/// Waits until `condition` returns something.
///
/// # Errors
/// [`Error::TimedOut`] naming `what` after `bound`; the condition's own errors at once.
pub fn wait_until<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(Error::TimedOut { what: what.to_owned(), bound });
        }
        thread::sleep(POLL);
    }
}

/// A process that is killed, by its pid, when its guard is dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    /// `None` once the process has been left to itself.
    child: Option<Child>,
}

impl Running {
    /// Starts a command in the background.
    ///
    /// # Errors
    /// [`Error::Start`].
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn().map_err(start_error(command))?;
        Ok(Self { command: line(command), child: Some(child) })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    /// [`Error::Process`] if it cannot be waited for.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        let pid = self.pid();
        let Some(child) = &mut self.child else { return Ok(None) };
        child.try_wait().map_err(|source| Error::Process { operation: "waiting for", pid, source })
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// [`Error::TimedOut`] after `bound`; the process runs on.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus> {
        let what = format!("`{}` to end", self.command);
        wait_until(&what, bound, || self.exited())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`Error::Process`].
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the process does not heed it (it is killed then).
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(TERM_GRACE)
    }

    /// Leaves the process to itself and returns its pid.
    #[must_use = "nobody else knows this pid"]
    pub fn detach(mut self) -> u32 {
        self.child.take().map_or(0, |child| child.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // `Child` remembers that it has been waited for, so this never hits a stranger's pid.
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            eprintln!("killing `{}`: {error}", self.command);
        }
    }
}

/// Sends `signal` to one process.
pub(super) fn send(pid: u32, signal: Signal) -> Result<()> {
    let number = i32::try_from(pid).map_err(io::Error::other);
    // 0 and negative numbers would mean whole process groups.
    let sent = number.and_then(|n| match n {
        1.. => signal::kill(Pid::from_raw(n), signal).map_err(io::Error::from),
        _ => Err(io::ErrorKind::NotFound.into()),
    });
    sent.map_err(|source| Error::Process { operation: "signalling", pid, source })
}

/// Whether a process exists and has not ended. One that ended and that nobody waited for does not count.
pub(super) fn alive(pid: u32) -> bool {
    // proc_pid_stat(5): the state follows the command name, whose parentheses may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn start_error(command: &Command) -> impl FnOnce(io::Error) -> Error {
    let command = line(command);
    move |source| Error::Start { command, source }
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_of_a_failing_command_names_it_and_its_stderr() {
        let error = run(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("broken") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn running_guard_dropped_ends_its_process() {
        let running = Running::start(Command::new("sleep").arg("60")).unwrap();
        let pid = running.pid();
        assert!(alive(pid));
        drop(running);
        assert!(!alive(pid));
    }

    #[test]
    fn wait_until_unmet_names_what_was_waited_for() {
        let error = wait_until::<()>("the sun", Duration::from_millis(10), || Ok(None)).unwrap_err();
        assert!(error.to_string().contains("the sun"));
    }
}
