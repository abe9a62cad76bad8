//! The prober as a thread of its own: one loop that owns the engine; everybody else sends it messages.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use lb_ebpf::probe::Watch;
use rtnetlink::Handle;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, sleep_until},
};

use crate::{
    Check, CheckKey, CheckStatus, Counters, Settings, Transition,
    capture::{Capture, CaptureError, Watched},
    driver::{Driver, now, wall},
    engine::{Engine, Output, Planned},
    finding::Detail,
    gateway::{self, Suspicion, Way},
    plan::{plan, watches},
    rejects,
    settings::shared_port,
    subject::Subject,
    trace::{Trace, Tracer},
    transport::Transport,
    watchdog::{Condition, Pulse, Watchdog},
};

/// How often routes that were missing are looked for again, and addresses no longer needed are given back.
const REFRESH: Duration = Duration::from_secs(1);

/// How long answers to the last probes are awaited at the end, so that no real is left half-open.
const LINGER: Duration = Duration::from_millis(100);

/// How long an answer of the prober's thread is awaited, which may hang.
const ANSWER: Duration = Duration::from_secs(1);

/// The longest sleep; nothing depends on it.
const IDLE: Duration = Duration::from_hours(1);

/// So long may it take to find the ways to all reals at first, with many of them on a busy host.
const PLANNING: Duration = Duration::from_secs(10);

/// Why a prober could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source ports are an empty range.
    #[error("source ports {first}-{last}: the first must not exceed the last")]
    Ports {
        /// The first of them.
        first: u16,
        /// The last of them.
        last: u16,
    },
    /// Replies cannot be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Probes cannot be sent.
    #[error("open a raw socket")]
    Socket(#[source] io::Error),
    /// The arrival of replies cannot be awaited.
    #[error("await captured packets")]
    Arrival(#[source] io::Error),
    /// Its thread could not be started.
    #[error("start the prober's thread")]
    Thread(#[source] io::Error),
    /// The kernel's routes cannot be asked for.
    #[error("open a route netlink socket")]
    Netlink(#[source] io::Error),
}

enum Command {
    Set(Vec<Check>),
    Status(oneshot::Sender<Vec<CheckStatus>>),
    Counters(oneshot::Sender<Counters>),
    Trace(Vec<CheckKey>, Duration, oneshot::Sender<Vec<Trace>>),
}

/// Asks a running prober for packets; does not keep it running.
#[derive(Clone, Debug)]
pub struct Tracing {
    /// `None`: the prober was about to end.
    commands: Option<mpsc::WeakUnboundedSender<Command>>,
}

impl Tracing {
    /// The last packets of these checks, as far as they are traced: each is from when it has failed until it has passed
    /// again, and all of these are for this time from now on. Empty once the prober has ended, or if it does not answer
    /// within a second.
    pub async fn trace(&self, keys: Vec<CheckKey>, from_now_on: Duration) -> Vec<Trace> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().and_then(mpsc::WeakUnboundedSender::upgrade);
        let _ = commands.map(|commands| commands.send(Command::Trace(keys, from_now_on, reply)));
        tokio::time::timeout(ANSWER, answer).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// A running prober. Dropping it stops the probes and detaches the capture.
#[derive(Debug)]
pub struct Prober {
    /// `None` only while dropping: the thread ends when nobody can command it any more.
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
    pulse: Arc<Pulse>,
    _watchdog: Watchdog,
}

impl Prober {
    /// Starts probing from the caller's network namespace, with no checks yet.
    ///
    /// # Errors
    /// Sockets, the capture program or its attachment were refused; an interface does not exist; the ports are taken by
    /// another prober.
    pub fn start(settings: Settings) -> Result<(Self, mpsc::UnboundedReceiver<Transition>), Error> {
        let driver = open(&settings)?;
        if let Some(port) = shared_port(&settings.ports) {
            let ports = format!("{}-{}", settings.ports.start(), settings.ports.end());
            tracing::warn!(
                port,
                "the kernel gives source ports of the prober to sockets, whose answers from a VIP would be lost: \
                 add {ports} to net.ipv4.ip_local_reserved_ports"
            );
        }
        let (commands, inbox) = mpsc::unbounded_channel();
        let (outbox, transitions) = mpsc::unbounded_channel();
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        // A new thread begins in its creator's network namespace.
        let pulse = Arc::new(Pulse::default());
        let beating = Arc::clone(&pulse);
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(async move {
                    match Runner::new(settings, driver, beating, inbox, outbox) {
                        Ok(runner) => {
                            let _ = started.send(Ok(()));
                            runner.run().await;
                        }
                        Err(error) => drop(started.send(Err(error))),
                    }
                }),
                Err(error) => drop(started.send(Err(Error::Thread(error)))),
            }
        };
        let thread = std::thread::Builder::new().name("prober".into()).spawn(body).map_err(Error::Thread)?;
        let ended = |_| Err(Error::Thread(io::ErrorKind::BrokenPipe.into()));
        outcome.recv().unwrap_or_else(ended)?;
        let watchdog = Watchdog::start(Arc::clone(&pulse)).map_err(Error::Thread)?;
        Ok((Self { commands: Some(commands), thread: Some(thread), pulse, _watchdog: watchdog }, transitions))
    }

    /// Replaces the checks. Those that stay keep their state.
    pub fn set_checks(&self, checks: Vec<Check>) {
        self.tell(Command::Set(checks));
    }

    /// Where each check stands; empty once the prober has ended, or if it does not answer within a second.
    pub async fn status(&self) -> Vec<CheckStatus> {
        self.ask(Command::Status).await
    }

    /// What has been sent and received since the start; zero once the prober has ended, or if it does not answer within a
    /// second.
    pub async fn counters(&self) -> Counters {
        self.ask(Command::Counters).await
    }

    /// What asks for traces.
    #[must_use]
    pub fn tracing(&self) -> Tracing {
        Tracing { commands: self.commands.as_ref().map(mpsc::UnboundedSender::downgrade) }
    }

    /// Whether it does its work. Its thread is not asked, which may hang.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.pulse.condition(now())
    }

    async fn ask<T: Default>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply));
        tokio::time::timeout(ANSWER, answer).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Stops the probes and detaches the capture; takes up to 100 ms.
    pub fn shutdown(self) {
        drop(self);
    }

    /// The thread may have ended: then nobody is left to be told.
    fn tell(&self, command: Command) {
        let _ = self.commands.as_ref().map(|commands| commands.send(command));
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.commands = None;
        // A panic of the thread has been reported where it happened.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Opens everything that needs privileges, in the caller's network namespace.
///
/// # Errors
/// See [`Error`].
pub fn open(settings: &Settings) -> Result<Driver, Error> {
    let (first, last) = (*settings.ports.start(), *settings.ports.end());
    if first > last {
        return Err(Error::Ports { first, last });
    }
    Ok(Driver {
        engine: Engine::new(settings.secret.bytes(), settings.ports.clone()),
        capture: Capture::start(settings)?,
        transport: Transport::open().map_err(Error::Socket)?,
        tracer: Tracer::default(),
        output: Output::default(),
    })
}

struct Runner {
    settings: Settings,
    driver: Driver,
    pulse: Arc<Pulse>,
    arrival: AsyncFd<OwnedFd>,
    watched: Watched,
    wanted: HashMap<Watch, u32>,
    /// Checks whose real or target had no route.
    unrouted: Vec<Check>,
    routes: Handle,
    /// What is common to the ways to all reals: if nothing is, nothing is asked.
    way: Option<Way>,
    suspicion: Suspicion,
    /// What came of asking whether it is there.
    faults: (mpsc::UnboundedSender<Option<Detail>>, mpsc::UnboundedReceiver<Option<Detail>>),
    rejects: rejects::Reporter,
    inbox: mpsc::UnboundedReceiver<Command>,
    outbox: mpsc::UnboundedSender<Transition>,
}

impl Runner {
    fn new(
        settings: Settings,
        driver: Driver,
        pulse: Arc<Pulse>,
        inbox: mpsc::UnboundedReceiver<Command>,
        outbox: mpsc::UnboundedSender<Transition>,
    ) -> Result<Self, Error> {
        let (connection, routes, _) = rtnetlink::new_connection().map_err(Error::Netlink)?;
        tokio::spawn(connection);
        let arrival = arrivals(&driver.capture).map_err(Error::Arrival)?;
        let driver = Driver { tracer: Tracer::of_failures(), ..driver };
        Ok(Self {
            settings,
            driver,
            pulse,
            arrival,
            watched: Watched::default(),
            wanted: HashMap::new(),
            unrouted: Vec::new(),
            routes,
            way: None,
            suspicion: Suspicion::default(),
            faults: mpsc::unbounded_channel(),
            rejects: rejects::Reporter::default(),
            inbox,
            outbox,
        })
    }

    async fn run(mut self) {
        let mut refresh = Instant::now() + REFRESH;
        loop {
            let more = self.driver.turn();
            self.suspect();
            self.publish();
            self.beat();
            let due = self.driver.engine.next_due().map_or(IDLE, |at| at.since(now()));
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                // Forgets the readiness first and drains afterwards: what arrives in between makes it ready again.
                ready = self.arrival.readable() => if let Ok(mut guard) = ready { guard.clear_ready() },
                // By now the route may be another.
                Some(fault) = self.faults.1.recv() => {
                    self.suspicion.asked(fault.filter(|fault| self.way.is_some_and(|way| way.has(*fault))));
                }
                // Between two turns with much to do no sleep, however short: the timer's least is a millisecond.
                () = yield_now(), if more => {}
                () = sleep_until(Instant::now() + due), if !more => {}
                () = sleep_until(refresh) => {
                    refresh = Instant::now() + REFRESH;
                    self.refresh().await;
                }
            }
        }
        self.linger().await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Set(checks) => {
                self.expect_checks(!checks.is_empty());
                self.apply(&checks).await;
            }
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Counters(reply) => drop(reply.send(self.driver.counters())),
            Command::Trace(keys, from_now_on, reply) => drop(reply.send(self.trace(&keys, from_now_on))),
        }
    }

    async fn apply(&mut self, checks: &[Check]) {
        let planned = plan(checks, &self.settings, &self.routes).await;
        self.unrouted = unrouted(&planned);
        self.wanted = watches(&planned);
        self.watch();
        self.driver.engine.set_checks(planned, now());
        let reals = checks.iter().map(|check| check.key.real).collect();
        let way = gateway::only(&self.routes, &reals).await;
        if std::mem::replace(&mut self.way, way) != way {
            self.suspicion = Suspicion::default();
        }
        let engine = &self.driver.engine;
        self.driver.tracer.retain(|number| engine.check(number).is_some());
    }

    fn trace(&mut self, keys: &[CheckKey], from_now_on: Duration) -> Vec<Trace> {
        let Driver { engine, tracer, .. } = &mut self.driver;
        let until = now() + from_now_on;
        let mut traces = Vec::new();
        for (key, number) in keys.iter().filter_map(|key| Some((key, engine.number(key)?))) {
            if !from_now_on.is_zero() {
                tracer.ask(number, key, until, 0);
            }
            traces.extend(tracer.trace(number).cloned());
        }
        traces
    }

    async fn refresh(&mut self) {
        if !self.unrouted.is_empty() {
            let planned = plan(&self.unrouted, &self.settings, &self.routes).await;
            self.unrouted = unrouted(&planned);
            for (watch, roles) in watches(&planned) {
                *self.wanted.entry(watch).or_default() |= roles;
            }
            for check in &planned {
                self.driver.engine.set_path(check);
            }
        }
        self.watch();
        self.driver.tracer.rest(now());
        if let Some(rejects) = self.rejects.news(&self.driver.counters(), now()) {
            tracing::warn!(%rejects, "answers were not believed");
        }
    }

    /// If all is silent: are the interface and the gateway there?
    fn suspect(&mut self) {
        let (engine, now) = (&mut self.driver.engine, now());
        for (probe, finding) in &self.driver.output.findings {
            if let Some(way) = self.way
                && self.suspicion.found(finding, engine.is_up(probe.check), now)
                && let Some(real) = engine.check(probe.check).map(|check| check.key.real)
            {
                let (routes, tell) = (self.routes.clone(), self.faults.0.clone());
                // Nobody wants to know when the prober has ended.
                tokio::spawn(async move {
                    let _ = tell.send(gateway::fault(&routes, way, real).await);
                });
            }
        }
        engine.set_fault(self.suspicion.fault(), now);
        self.pulse.set_cut_off(engine.is_cut_off());
    }

    fn watch(&mut self) {
        if let Err(error) = self.watched.update(&mut self.driver.capture, &self.wanted, now()) {
            tracing::error!(%error, "some replies will not be captured");
        }
    }

    /// Nothing is due before the first checks are planned: a kernel that does not answer then would look like rest.
    fn expect_checks(&self, any: bool) {
        if any && self.driver.engine.next_send().is_none() {
            self.pulse.beat(Some(now()), None, PLANNING);
        }
    }

    fn beat(&self) {
        let engine = &self.driver.engine;
        self.pulse.beat(engine.next_send(), engine.refused_since(), engine.patience());
    }

    fn publish(&mut self) {
        for (key, change) in &self.driver.output.transitions {
            let transition = Transition {
                key: key.clone(),
                from: change.from,
                to: change.to,
                reason: change.reason,
                detail: change.detail.map(|detail| detail.to_string()),
                rtt: change.rtt,
                at: wall(change.at),
            };
            // Nobody needs to listen.
            let _ = self.outbox.send(transition);
        }
        self.driver.output.clear();
    }

    fn status(&self) -> Vec<CheckStatus> {
        self.driver.engine.subjects().map(status).collect()
    }

    /// Answers the last SYN-ACKs. No new probes.
    async fn linger(&mut self) {
        let end = Instant::now() + LINGER;
        while self.driver.engine.awaited() > 0 && Instant::now() < end {
            self.driver.receive();
            self.driver.send();
            tokio::time::sleep(LINGER / 10).await;
        }
    }
}

/// Becomes ready when the capture has something.
#[expect(unsafe_code, reason = "tokio's registration of a descriptor that it did not open")]
fn arrivals(capture: &Capture) -> io::Result<AsyncFd<OwnedFd>> {
    let ring = capture.as_fd().try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` always is the same, open descriptor, and nobody takes it out of the `AsyncFd`.
    let arrivals = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    arrivals.map_err(io::Error::from)
}

fn unrouted(planned: &[Planned]) -> Vec<Check> {
    let has_no_route = |planned: &&Planned| matches!(planned.path, Err(Detail::NoRoute(_) | Detail::NoSource(_)));
    planned.iter().filter(has_no_route).map(|planned| planned.check.clone()).collect()
}

fn status(subject: &Subject) -> CheckStatus {
    CheckStatus {
        key: subject.check.key.clone(),
        state: subject.machine.state,
        reason: subject.reason,
        detail: subject.detail.map(|detail| detail.to_string()),
        since: wall(subject.since),
        last_run: subject.last_run.map(wall),
        rtt: subject.rtt,
        rtts: subject.rtts.rtts(),
        rise: subject.machine.rise,
        fall: subject.machine.fall,
    }
}
