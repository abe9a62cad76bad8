//! `hc-prober run`: the loop around the sidecar's board.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::Stdio,
    time::{Duration, SystemTime},
};

use hc_prober::{
    Prober, Settings,
    config::ConfigError,
    route,
    sidecar::{Board, Change, Config},
};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// Changes that wait for the command of an earlier one. More are kept in the prober until there is room.
const WAITING: usize = 1024;

type Error = Box<dyn std::error::Error>;

/// A run of the command: its words, and how long it may take.
type Order = (Vec<String>, Duration);

/// Runs until SIGTERM or SIGINT; SIGHUP reads the file again.
///
/// # Errors
/// What keeps it from starting, or from writing to its standard output.
pub(crate) fn run(path: PathBuf) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(sidecar(path))
}

async fn sidecar(path: PathBuf) -> Result<(), Error> {
    let config = Config::load(&path)?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (prober, mut transitions) = Prober::start(settings(&config).await?)?;
    let (orders, waiting) = mpsc::channel(WAITING);
    let commands = tokio::spawn(carry_out(waiting));
    let mut sidecar = Sidecar { path, config, board: Board::default(), prober, orders };
    sidecar.configured().await?;
    loop {
        tokio::select! {
            transition = transitions.recv() => {
                let changes = sidecar.board.apply(&transition.ok_or("the prober has ended")?);
                sidecar.tell(changes).await?;
            }
            _ = hangup.recv() => sidecar.reload().await?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    sidecar.prober.shutdown();
    // What was told is also done.
    drop(sidecar.orders);
    Ok(commands.await?)
}

/// Captures on the devices that the file names, or on those that lead to its reals.
async fn settings(config: &Config) -> Result<Settings, Error> {
    let mut interfaces = config.interfaces.clone();
    if interfaces.is_empty() {
        let (connection, routes, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        for real in config.services.iter().flat_map(|service| &service.reals) {
            let name = route::interface_to(&routes, real.address).await;
            let name = name.map_err(|error| format!("find the way to {}: {error}", real.address))?;
            if !interfaces.contains(&name) {
                interfaces.push(name);
            }
        }
    }
    let mut settings = Settings::new(interfaces)?;
    settings.outer_source = config.outer_source;
    settings.outer_source6 = config.outer_source6;
    Ok(settings)
}

struct Sidecar {
    path: PathBuf,
    config: Config,
    board: Board,
    prober: Prober,
    orders: mpsc::Sender<Order>,
}

impl Sidecar {
    async fn configured(&mut self) -> Result<(), Error> {
        self.prober.set_checks(self.config.checks());
        let changes = self.board.configure(&self.config, SystemTime::now());
        self.tell(changes).await
    }

    /// A bad file leaves the running configuration in force; so does one that the prober would have to be started anew for.
    async fn reload(&mut self) -> Result<(), Error> {
        match Config::load(&self.path).and_then(|new| self.reloadable(new)) {
            Ok(config) => {
                self.config = config;
                self.configured().await?;
                let (up, all) = self.board.up_of_all();
                eprintln!("hc-prober: reloaded {}: {up} of {all} reals are up", self.path.display());
            }
            Err(error) => eprintln!("hc-prober: reload refused; what runs stays in force:\n{error}"),
        }
        Ok(())
    }

    fn reloadable(&self, new: Config) -> Result<Config, ConfigError> {
        let node = |config: &Config| (config.interfaces.clone(), config.outer_source, config.outer_source6);
        if node(&new) == node(&self.config) {
            return Ok(new);
        }
        let report = "[node]: nothing there can change on reload; restart hc-prober".to_owned();
        Err(ConfigError::Mistakes { mistakes: Vec::new(), report })
    }

    /// One line for each change, and the command.
    async fn tell(&self, changes: Vec<Change>) -> Result<(), Error> {
        for change in changes {
            let mut line = serde_json::to_string(&change)?;
            line.push('\n');
            // Whole lines at once: whoever reads them may do so at any time.
            let mut stdout = io::stdout().lock();
            stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush())?;
            drop(stdout);
            if let Some(command) = &self.config.command {
                // The task goes on for as long as there are senders.
                let _ = self.orders.send((command.words(&change), self.config.command_timeout)).await;
            }
        }
        Ok(())
    }
}

/// One command after the other, in the order of the changes: the last one said is the last one done.
async fn carry_out(mut orders: mpsc::Receiver<Order>) {
    while let Some((words, timeout)) = orders.recv().await {
        if let Err(error) = execute(&words, timeout).await {
            eprintln!("hc-prober: {}: {error}", words.join(" "));
        }
    }
}

/// Its output goes where our messages go: standard output is for the changes.
async fn execute(words: &[String], timeout: Duration) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(io::stderr()).kill_on_drop(true);
    let status = tokio::time::timeout(timeout, command.status()).await;
    let status = status.map_err(|_| format!("killed after {timeout:?}"))?.map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}
