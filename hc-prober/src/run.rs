//! `hc-prober run`: the loop around the sidecar's board. Nothing that a reader of the lines or a command does, or fails to
//! do, holds up the checks.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use hc_prober::{
    Prober, Settings, route,
    sidecar::{Board, Change, Config, Orders},
};
use nix::{sys::signal, unistd::Pid};
use tokio::{
    process::Command,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

type Error = Box<dyn std::error::Error>;

/// Runs until SIGTERM or SIGINT; SIGHUP reads the file again.
///
/// # Errors
/// What keeps it from starting; without a command also that nobody reads the lines any more.
pub(crate) fn run(path: PathBuf) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(sidecar(path))
}

async fn sidecar(path: PathBuf) -> Result<(), Error> {
    let config = Config::load(&path)?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let devices = devices(&config).await?;
    let mut settings = Settings::new(devices.iter().cloned().collect())?;
    (settings.outer_source, settings.outer_source6) = (config.outer_source, config.outer_source6);
    let (prober, mut transitions) = Prober::start(settings)?;
    let (lines, mut unread) = printer();
    let orders = Arc::new(Orders::default());
    let commands = tokio::spawn(carry_out(orders.clone()));
    let mut sidecar = Sidecar { path, config, devices, board: Board::default(), prober, lines, orders };
    sidecar.configured();
    loop {
        tokio::select! {
            transition = transitions.recv() => {
                let changes = sidecar.board.apply(&transition.ok_or("the prober has ended")?);
                sidecar.tell(changes);
            }
            Ok(error) = &mut unread => sidecar.unread(&error)?,
            _ = hangup.recv() => sidecar.reload().await,
            () = ended(&mut ends) => break,
        }
    }
    sidecar.prober.shutdown();
    // What was told is also done, unless the impatient say otherwise.
    sidecar.orders.close();
    tokio::select! {
        done = commands => done?,
        () = ended(&mut ends) => say("ended before all commands were run"),
    }
    Ok(())
}

async fn ended(signals: &mut [Signal; 2]) {
    let [terminate, interrupt] = signals;
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
}

/// Where replies are captured: on the devices that the file names, or on those that lead to its reals. A real that no way
/// leads to yet is for the prober to wait for.
async fn devices(config: &Config) -> Result<BTreeSet<String>, Error> {
    if !config.interfaces.is_empty() {
        return Ok(config.interfaces.iter().cloned().collect());
    }
    let (connection, routes, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let mut devices = BTreeSet::new();
    for real in config.services.iter().flat_map(|service| &service.reals) {
        match route::interface_to(&routes, real.address).await {
            Ok(device) => drop(devices.insert(device)),
            Err(error) => say(&format!("no way to {} yet: {error}", real.address)),
        }
    }
    if devices.is_empty() {
        return Err("no route leads to any real: name the device that will as `interface` of [node]".into());
    }
    Ok(devices)
}

struct Sidecar {
    path: PathBuf,
    config: Config,
    devices: BTreeSet<String>,
    board: Board,
    prober: Prober,
    lines: mpsc::UnboundedSender<String>,
    orders: Arc<Orders>,
}

impl Sidecar {
    fn configured(&mut self) {
        self.prober.set_checks(self.config.checks());
        let changes = self.board.configure(&self.config, SystemTime::now());
        self.tell(changes);
    }

    /// A bad file leaves the running configuration in force; so does one that the prober would have to be started anew for.
    async fn reload(&mut self) {
        if let Err(error) = self.reconfigure().await {
            say(&format!("reload refused; what runs stays in force:\n{error}"));
        }
    }

    async fn reconfigure(&mut self) -> Result<(), Error> {
        let config = Config::load(&self.path)?;
        self.fits(&config).await?;
        self.config = config;
        self.configured();
        let (up, all) = self.board.up_of_all();
        say(&format!("reloaded {}: {up} of {all} reals are up", self.path.display()));
        Ok(())
    }

    /// Whether the prober can go on with it: it captures where it was started to, and sends from there.
    async fn fits(&self, new: &Config) -> Result<(), Error> {
        let sources = |config: &Config| (config.outer_source, config.outer_source6);
        if sources(new) != sources(&self.config) || new.interfaces != self.config.interfaces {
            return Err("[node]: nothing there can change on reload; restart hc-prober".into());
        }
        match devices(new).await?.difference(&self.devices).next() {
            Some(device) => {
                Err(format!("{device} leads to a real, and replies are not captured there; restart hc-prober").into())
            }
            None => Ok(()),
        }
    }

    /// One line for each change, and the command.
    fn tell(&self, changes: Vec<Change>) {
        for change in changes {
            // The printer is gone if nobody reads: that was dealt with.
            let _ = serde_json::to_string(&change).map(|line| self.lines.send(line));
            if let Some(command) = &self.config.command {
                self.orders.put(change, command, self.config.command_timeout);
            }
        }
    }

    fn unread(&self, error: &io::Error) -> Result<(), Error> {
        let text = format!("nobody reads the changes any more: {error}");
        if self.config.command.is_none() {
            return Err(text.into());
        }
        say(&text);
        Ok(())
    }
}

/// To people. Nobody listening is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "hc-prober: {text}");
}

/// A thread that prints lines, so that a reader who is slow holds up nothing else; and word of the error that ended it.
fn printer() -> (mpsc::UnboundedSender<String>, oneshot::Receiver<io::Error>) {
    let (lines, mut printed) = mpsc::unbounded_channel::<String>();
    let (failed, failure) = oneshot::channel();
    thread::spawn(move || {
        while let Some(line) = printed.blocking_recv() {
            // Whole lines at once: whoever reads them may do so at any time.
            let mut stdout = io::stdout().lock();
            if let Err(error) = stdout.write_all(format!("{line}\n").as_bytes()).and_then(|()| stdout.flush()) {
                let _ = failed.send(error);
                return;
            }
        }
    });
    (lines, failure)
}

/// One command after the other, in the order of the changes.
async fn carry_out(orders: Arc<Orders>) {
    while let Some((change, template, timeout)) = orders.next().await {
        let words = template.words(&change);
        if let Err(error) = execute(&words, timeout).await {
            say(&format!("{}: {error}", words.join(" ")));
        }
    }
}

/// Its output goes where our messages go: standard output is for the changes. It has a process group of its own, so that
/// Ctrl-C is not meant for it, and so that what it has started ends with it.
async fn execute(words: &[String], timeout: Duration) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(io::stderr()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let Ok(status) = tokio::time::timeout(timeout, child.wait()).await else {
        // Gone already: then there is nothing to kill.
        let _ = group.map(|group| signal::killpg(group, signal::Signal::SIGKILL));
        return Err(format!("killed after {timeout:?}"));
    };
    let status = status.map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}
