//! The daemon: one task owns the state, takes events one at a time and carries out what `reconcile` returns.
//!
//! ```text
//!   prober ── transitions ──┐                      ┌─▶ data plane (its own thread)
//!   kernel ── neighbours ───┼─▶ [ owner: Core ] ───┼─▶ prober: checks
//!   lbctl  ── requests ─────┤                      └─▶ next hops to resolve
//!   reals  ── diagnoses ────┤
//!   signals, time ──────────┘
//! ```

mod admin;
mod announce;
mod answers;
mod evidence;
mod supervision;
mod views;
mod why;

use crate::{
    admin::Orders,
    api::{Reply, Request, Server},
    capabilities::{self, Effective},
    config::Config,
    data_plane::{Attached, Mode, Outcome, Worker, chain},
    history::{History, file::HistoryFile},
    manager,
    model::{NodeRow, ReloadResult},
    nexthop::{self, Resolver},
    path_mtu::{self, TooBig},
    reconcile::{Core, Event, Op},
    why::Diagnoses,
};
use hc_prober::{CheckKey, Prober, Settings, Transition};
use jiff::Timestamp;
use std::{
    collections::HashSet,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};
use supervision::Supervision;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::MissedTickBehavior,
};

/// How often windows and the end of the start are looked at.
const TICK: Duration = Duration::from_millis(100);
const REQUESTS: usize = 64;
/// How long lbd waits at its end for the data plane, which goes on without it, to take what it was told.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// How long after that what the kernel refused is tried again.
const SETTLE_RETRY: Duration = Duration::from_millis(500);
/// All of the end but the time for which packets are still forwarded, at most.
const END_TAKES: Duration = Duration::from_secs(15);

/// How the daemon is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Where `lbctl` finds it.
    pub socket: PathBuf,
    /// Where links and maps are pinned.
    pub bpffs: PathBuf,
    /// Where what is to outlive the host is kept; it exists.
    pub state_dir: PathBuf,
    /// Where the kernel runs the program.
    pub mode: Mode,
    /// On SIGTERM and SIGINT the data plane stays attached and goes on with the last rings.
    pub leave_attached: bool,
}

/// Why the daemon did not start, or could not end cleanly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel will not let it work.
    #[error(transparent)]
    Capabilities(#[from] capabilities::Missing),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The XDP program, its maps or its attachment.
    #[error(transparent)]
    DataPlane(#[from] crate::data_plane::Error),
    /// The prober.
    #[error("start the prober: {}", chain(.0))]
    Prober(#[from] hc_prober::Error),
    /// What outlives the daemon.
    #[error(transparent)]
    State(#[from] crate::admin::Error),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] crate::api::BindError),
    /// A part that the daemon cannot do without is gone; it has said why.
    #[error("{0} has ended")]
    Ended(&'static str),
    /// The table of announced routes.
    #[error(transparent)]
    Announce(#[from] crate::announce::RouteError),
    /// What is announced although nothing is forwarded any more.
    #[error("ended, but {0}")]
    Left(String),
    /// Signals, netlink, randomness.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
}

fn io(operation: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::Io(operation, error)
}

struct Daemon {
    options: Options,
    core: Core,
    worker: Worker,
    /// What the worker has attached.
    attached: Vec<Attached>,
    prober: Prober,
    diagnoses: Diagnoses,
    /// What operators say of reals.
    orders: Orders,
    /// And of the node.
    node: NodeRow,
    history: History,
    history_file: HistoryFile,
    resolver: Resolver,
    announcer: announce::Announcer,
    answerer: answers::Answerer,
    wanted: Vec<IpAddr>,
    unresolved: Vec<IpAddr>,
    /// Flows remembered at the last sweep.
    remembered: Option<usize>,
    started: Timestamp,
    revision: u64,
    loaded_at: Timestamp,
    last_reload_error: Option<String>,
    supervision: Supervision,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting; what keeps it from detaching.
pub async fn run(options: Options) -> Result<(), Error> {
    Effective::of_this_thread().map_err(io("find out the capabilities"))?.check()?;
    let config = Config::load(&options.config)?;
    warn(&config);
    let server = Server::bind(&options.socket)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(io("listen for SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("listen for SIGINT"))?;
    let mut changes = nexthop::watch().map_err(io("watch the neighbour table"))?;
    let mut too_big = path_mtu::watch().map_err(io("listen for ICMP errors"))?;
    let resolver = Resolver::new().map_err(io("open netlink"))?;
    let (worker, inheritance, mut outcomes) = Worker::start(options.bpffs.clone(), config.node().tracked_flows())?;
    let _state = crate::admin::lock(&options.state_dir)?;
    let orders = Orders::load(&options.state_dir)?;
    let node = crate::node::load(&options.state_dir)?;
    let mut settings = Settings::new(config.node().interfaces().to_vec()).map_err(io("draw the prober's secret"))?;
    settings.outer_source = config.node().outer_source();
    settings.outer_source6 = config.node().outer_source6();
    let diagnoses = Diagnoses::new(settings.clone());
    let (prober, mut transitions) = Prober::start(settings)?;
    let (requests, mut asked) = mpsc::channel(REQUESTS);
    let api = server.start(requests);

    let (history_file, history) = HistoryFile::open(&options.state_dir, evidence::check_keys(&config));
    let (announcer, mut routes) = announce::Announcer::start(config.announce(), &inheritance).await?;
    let (core, ops) = Core::start(config, inheritance, Instant::now());
    let now = Timestamp::now();
    let (wanted, unresolved) = (Vec::new(), Vec::new());
    let (revision, last_reload_error) = (1, None);
    let mut daemon = Daemon {
        orders,
        node,
        options,
        core,
        worker,
        attached: Vec::new(),
        prober,
        diagnoses,
        history,
        history_file,
        resolver,
        announcer,
        answerer: answers::Answerer::default(),
        wanted,
        unresolved,
        remembered: None,
        started: now,
        revision,
        loaded_at: now,
        last_reload_error,
        supervision: Supervision::new(),
    };
    let mut end = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    daemon.carry_out(ops).await;
    daemon.announce().await;
    daemon.resume_orders().await;
    loop {
        tokio::select! {
            transition = transitions.recv() => daemon.verdict(transition.ok_or(Error::Ended("the prober"))?).await,
            change = changes.recv() => {
                change.ok_or(Error::Ended("watching the kernel's network tables"))?;
                daemon.look_at_links().await?;
                daemon.resolve().await;
            }
            Some((key, finding)) = daemon.diagnoses.next() => {
                why::log(&key, &finding);
                daemon.explain(&key, &finding.code);
            }
            word = routes.recv() => daemon.hear(word.ok_or(Error::Ended("watching the announced routes"))?).await?,
            Some(told) = too_big.recv() => daemon.too_big(told).await,
            outcome = outcomes.recv() => daemon.outcome(outcome.ok_or(Error::Ended("the data plane's thread"))?).await?,
            Some(request) = asked.recv() => daemon.answer(request).await,
            _ = tick.tick() => daemon.tick().await,
            _ = hangup.recv() => drop(daemon.reload().await),
            () = async { tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} } } => {
                // A second signal ends the wait that the first has begun.
                if end.is_some() {
                    break;
                }
                end = Some(daemon.begin_to_end().await);
            }
            () = reached(end) => break,
        }
    }
    // The data plane first: nobody who asks is worth waiting for.
    let ended = daemon.end().await;
    drop(asked);
    api.end().await;
    ended
}

impl Daemon {
    async fn tick(&mut self) {
        self.end_orders().await;
        self.event(Event::Tick).await;
        self.supervise();
        self.keep_history();
        self.mend_routes().await;
    }

    async fn event(&mut self, event: Event) {
        let ops = self.core.apply(event, Instant::now());
        self.carry_out(ops).await;
        self.announce().await;
    }

    async fn carry_out(&mut self, ops: Vec<Op>) {
        let mut resolve = false;
        for op in ops {
            match op {
                Op::Real(id, entry) => self.worker.set_real(id, entry),
                Op::Ring(index, ring) => self.worker.swap_ring(index, ring),
                Op::Vips(table) => self.worker.swap_vips(table),
                Op::Vacate(index) => self.worker.vacate(index),
                Op::ClearCount(index) => self.worker.clear_count(index),
                Op::Checks(checks) => {
                    let keys: HashSet<&CheckKey> = checks.iter().map(|check| &check.key).collect();
                    self.diagnoses.retain(|key| keys.contains(key));
                    if self.history.retain(|key| keys.contains(key)) {
                        self.history_file.rewrite(&self.history);
                    }
                    self.prober.set_checks(checks);
                }
                Op::Resolve(reals) => {
                    self.wanted = reals;
                    resolve = true;
                }
                Op::NoIndex(reals) => {
                    for real in reals {
                        tracing::error!(%real, "every index of the map of reals is taken: this real gets no traffic");
                    }
                }
                Op::OtherRingSize(vip, slots, wanted) => tracing::warn!(
                    %vip, slots, wanted,
                    "this VIP's ring has another size than a node would choose that starts afresh: their answers differ; \
                     to keep it, name these slots as its `ring_slots` on every node; to change it, stop lbd and start it \
                     without `--leave-attached` before"
                ),
                Op::Tell(notice) => notice.log(),
                Op::Attach => {
                    let interfaces = self.core.config().node().interfaces().to_vec();
                    tracing::info!(?interfaces, mode = ?self.options.mode, "attaching");
                    self.worker.attach(interfaces, self.options.mode);
                }
                Op::Sweep(longest_idle_s) => self.worker.sweep(longest_idle_s),
            }
        }
        if resolve {
            Box::pin(self.resolve()).await;
        }
    }

    /// Failing to attach ends the daemon: it is what it is for. All else is logged where it happens.
    async fn outcome(&mut self, outcome: Outcome) -> Result<(), Error> {
        match outcome {
            Outcome::Attached(attached) => {
                self.attached = match attached {
                    Ok(attached) => attached,
                    Err(error) => {
                        self.withdraw_unless_attached().await;
                        return Err(error.into());
                    }
                };
                tracing::info!("attached");
                self.tell_ready();
                self.announce().await;
            }
            Outcome::Swept(Ok(sweep)) => {
                tracing::debug!(living = sweep.living, cleared = sweep.cleared, "swept the tracked flows");
                self.remembered = Some(sweep.living);
                self.event(Event::Swept(sweep)).await;
            }
            Outcome::Swept(Err(error)) => {
                tracing::error!(%error, "the tracked flows were not swept");
                self.event(Event::NotSwept).await;
            }
        }
        Ok(())
    }

    async fn verdict(&mut self, t: Transition) {
        let (real, target) = (t.key.real, t.key.target);
        let detail = t.detail.as_deref().unwrap_or_default();
        tracing::info!(%real, vip = %target, before = %t.from, after = %t.to, reason = %t.reason, detail, "transition");
        self.event(Event::Verdict(t.key.clone(), t.to)).await;
        self.diagnose(&t.key, t.to);
        // A check that was removed a moment ago has none.
        if self.core.check(&t.key).is_some() {
            self.record(t);
        }
    }

    async fn too_big(&mut self, told: TooBig) {
        let before = self.core.mtu(told.real);
        self.event(Event::TooBig(told)).await;
        let after = self.core.mtu(told.real);
        if after != before {
            // Forgers may tell many; `lbctl real list -o json` has the last one.
            tracing::debug!(real = %told.real, ?before, ?after, "a router told the MTU of the path");
        }
    }

    /// Asks for the next hops of all reals; says once which have none.
    async fn resolve(&mut self) {
        let mut hops = Vec::new();
        let mut unresolved = Vec::new();
        for (&real, hop) in self.wanted.iter().zip(self.resolver.resolve_all(&self.wanted).await) {
            match hop {
                Ok(hop) => hops.push((real, hop)),
                Err(error) => {
                    if !self.unresolved.contains(&real) {
                        tracing::info!(%real, %error, "next hop not known yet");
                    }
                    unresolved.push(real);
                }
            }
        }
        self.unresolved = unresolved;
        Box::pin(self.event(Event::NextHops(hops))).await;
    }

    /// Takes the configuration file anew, if it is good.
    async fn take_configuration(&mut self) -> Result<ReloadResult, String> {
        let loaded = Config::load(&self.options.config).map_err(|e| e.to_string());
        let config = match loaded.and_then(|new| self.reloadable(new)) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, "reload refused; the running configuration stays in force");
                self.last_reload_error = Some(error.clone());
                return Err(error);
            }
        };
        warn(&config);
        let changes: Vec<_> = Config::diff(self.core.config(), &config).iter().map(ToString::to_string).collect();
        self.announcer.configure(config.announce());
        self.event(Event::Configured(config)).await;
        self.resume_orders().await;
        self.revision += 1;
        self.loaded_at = Timestamp::now();
        self.last_reload_error = None;
        tracing::info!(revision = self.revision, changes = changes.len(), "reloaded");
        Ok(ReloadResult { revision: self.revision, changes })
    }

    /// What the attachment and the prober were started with cannot change under them.
    fn reloadable(&self, new: Config) -> Result<Config, String> {
        let (old, node) = (self.core.config().node(), new.node());
        if old.interfaces() != node.interfaces()
            || old.outer_source() != node.outer_source()
            || old.outer_source6() != node.outer_source6()
            || old.seed() != node.seed()
            || old.tracked_flows() != node.tracked_flows()
        {
            return Err(
                "[node]: interface, outer_source, outer_source6, seed and tracked_flows cannot change on reload; \
                        restart lbd"
                    .to_owned(),
            );
        }
        let (old, announce) = (self.core.config().announce(), new.announce());
        if (old.table(), old.protocol()) != (announce.table(), announce.protocol()) {
            return Err(
                "[announce]: table and protocol cannot change on reload; stop lbd, withdraw what it may leave (`lbd \
                        withdraw --table OLD --protocol OLD`), and start it again"
                    .to_owned(),
            );
        }
        Ok(new)
    }

    /// Answers at once what the daemon knows itself. What the data plane must be asked for is put together when it
    /// answers: it may be attaching.
    async fn answer(&mut self, request: Request) {
        match request {
            // An asker that is gone wants no answer.
            Request::Reload(reply) => drop(reply.send(self.reload().await)),
            Request::Reals(reply) => drop(reply.send(Ok(self.all_real_rows().await))),
            Request::Show(question, reply) => drop(reply.send(self.real_details(question).await)),
            Request::History(question, reply) => drop(reply.send(self.history_rows(question))),
            Request::Why(question, reply) => self.answer_why(question, reply),
            Request::Admin(order, reply) => self.answer_admin(order, reply).await,
            // An asker that is gone wants no answer.
            Request::Node(order, reply) => drop(reply.send(self.order_node(order).await)),
            Request::Flows(question, reply) => self.answer_flows(question, reply),
            Request::Status(reply) => send(reply, self.status().await),
            Request::Vips(reply) => send(reply, self.vip_rows()),
            Request::Trace(question, reply) => self.answer_trace(question, reply),
            Request::Stats(reply) => send(reply, self.stats()),
        }
    }

    /// How long the end takes at most.
    fn end_takes(&self) -> Duration {
        if self.options.leave_attached { END_TAKES } else { END_TAKES + self.announcer.linger() }
    }

    /// When the data plane is to be detached: until then everything goes on, but nothing is announced any more.
    async fn begin_to_end(&mut self) -> tokio::time::Instant {
        manager::stopping(self.end_takes());
        let linger = if self.options.leave_attached { Duration::ZERO } else { self.withdraw_all().await };
        tokio::time::Instant::now() + linger
    }

    async fn end(mut self) -> Result<(), Error> {
        if self.options.leave_attached {
            tracing::info!("ending; the data plane stays attached");
            self.settle_for_good().await;
            self.prober.shutdown();
            return Ok(());
        }
        let gone = self.all_gone().await;
        self.prober.shutdown();
        tracing::info!("ending; detaching");
        self.worker.detach().await?;
        gone.map_err(Error::Left)
    }

    /// Waits until packets meet all that the data plane was told: from now on nobody tries again.
    async fn settle_for_good(&self) {
        let settle = async {
            while let Err(error) = self.worker.settled().await {
                tracing::warn!(%error, "the data plane was not updated");
                tokio::time::sleep(SETTLE_RETRY).await;
            }
        };
        if tokio::time::timeout(SETTLES_WITHIN, settle).await.is_err() {
            tracing::error!(within = ?SETTLES_WITHIN, "the data plane goes on without some of what it was told last");
        }
    }
}

/// Waits for a time that may not be known yet.
async fn reached(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Logs what may surprise about a configuration.
fn warn(config: &Config) {
    for caution in config.cautions() {
        tracing::warn!("{caution}");
    }
}

/// Sends an answer that the data plane has a part in, once it is there.
fn send<T: Send + 'static>(
    reply: Reply<T>,
    answer: impl Future<Output = Result<T, crate::data_plane::Error>> + Send + 'static,
) {
    tokio::spawn(async move {
        // An asker that is gone wants no answer.
        drop(reply.send(answer.await.map_err(|error| error.to_string())));
    });
}
