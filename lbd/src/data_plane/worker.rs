//! The data plane on a thread of its own: an outer map's update waits for an RCU grace period (12 to 20 ms), which is
//! nothing for an async task to wait for, and a driver may take seconds to attach.

use super::{Attached, DataPlane, Error, Mode, ProgramInfo, pending::Pending, tick_now};
use crate::{reconcile::Inheritance, sweep::Sweep};
use lb_ebpf::{
    answer::{Answer, Asked},
    counter::{Counter, FlowEvent, Reason, real_index, vip_index},
    flow::TableSize,
    real::RealEntry,
    ring::{RealId, Ring},
    syn::SynCounter,
    vip::VipTable,
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::mpsc::{self, RecvError, RecvTimeoutError},
    thread,
    time::Duration,
};
use tokio::sync::{mpsc::UnboundedReceiver, oneshot};

/// Reading a map hands its value over on the stack, several times in a debug build: a table of VIPs has 128 KiB.
const STACK: usize = 8 << 20;
/// When what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the worker is told.
enum Job {
    Real(RealId, RealEntry),
    Ring(u32, Box<Ring>),
    Vips(Box<VipTable>),
    Vacate(u16),
    ClearCount(u16),
    Ask(Question),
}

/// What is answered once everything before it is done.
enum Question {
    Attach(Vec<String>, Mode),
    Sweep(u16),
    Answer(BTreeMap<Asked, Answer>, oneshot::Sender<Result<(), Error>>),
    Settled(oneshot::Sender<Result<(), Error>>),
    Flows(RealId, [u16; 2], oneshot::Sender<Result<[u64; 2], Error>>),
    Report(Vec<u16>, Vec<RealId>, oneshot::Sender<Result<Report, Error>>),
    IsAttached(oneshot::Sender<Result<bool, Error>>),
    Detach(oneshot::Sender<Result<(), Error>>),
}

/// What became of something that takes its time.
#[derive(Debug)]
pub enum Outcome {
    /// The attachment.
    Attached(Result<Vec<Attached>, Error>),
    /// The sweep over the tracked flows.
    Swept(Result<Sweep, Error>),
}

/// What the data plane says of itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// The loaded program.
    pub program: ProgramInfo,
    /// Every reason with its counter.
    pub reasons: Vec<(Reason, Counter)>,
    /// Every flow event with its count.
    pub flow_events: Vec<(FlowEvent, u64)>,
    /// The counters of the VIPs asked for, in their order.
    pub vips: Vec<Counter>,
    /// The counters of the reals asked for, in their order.
    pub reals: Vec<(Counter, SynCounter)>,
}

/// A handle on the data plane's thread. It takes what it is told in the order given, and of what waits for the same place
/// it writes only the newest. What the kernel refuses is logged and tried again.
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

/// The worker's thread is gone; its last error was logged.
#[derive(Debug, thiserror::Error)]
#[error("the data plane's thread has ended")]
struct Gone;

impl Worker {
    /// Loads the data plane on a new thread; returns what an earlier daemon left, and where the outcome of each
    /// [`Worker::attach`] and [`Worker::sweep`] comes. That ends when the thread does.
    ///
    /// # Errors
    /// As [`DataPlane::load`].
    pub fn start(
        directory: PathBuf,
        flows: TableSize,
    ) -> Result<(Self, Inheritance, UnboundedReceiver<Outcome>), Error> {
        let (jobs, queue) = mpsc::channel();
        let (outcomes, outcome_queue) = tokio::sync::mpsc::unbounded_channel();
        let (started, outcome) = mpsc::channel();
        let body = move || match DataPlane::load(&directory, flows) {
            Ok(data_plane) => {
                // The starter waits for this; it is there.
                let _ = started.send(Ok(data_plane.inheritance()));
                run(data_plane, &queue, &outcomes);
            }
            Err(error) => drop(started.send(Err(error))),
        };
        let thread = thread::Builder::new().name("data-plane".into()).stack_size(STACK).spawn(body);
        thread.map_err(Error::new("start", "the data plane's thread"))?;
        let inheritance = outcome.recv().map_err(Error::new("start", "the data plane's thread"))??;
        Ok((Self { jobs }, inheritance, outcome_queue))
    }

    /// Writes a real.
    pub fn set_real(&self, id: RealId, entry: RealEntry) {
        self.submit(Job::Real(id, entry));
    }

    /// Swaps a ring.
    pub fn swap_ring(&self, place: u32, ring: Box<Ring>) {
        self.submit(Job::Ring(place, ring));
    }

    /// Swaps the table of VIPs.
    pub fn swap_vips(&self, table: Box<VipTable>) {
        self.submit(Job::Vips(table));
    }

    /// Clears the ring of the VIP that had this index, when the table of VIPs that was told before is in use.
    pub fn vacate(&self, index: u16) {
        self.submit(Job::Vacate(index));
    }

    /// Clears the counter of the VIP that had this index, when the table of VIPs that was told before is in use.
    pub fn clear_count(&self, index: u16) {
        self.submit(Job::ClearCount(index));
    }

    /// Attaches to these interfaces; the outcome comes where [`Worker::start`] said.
    pub fn attach(&self, interfaces: Vec<String>, mode: Mode) {
        self.submit(Job::Ask(Question::Attach(interfaces, mode)));
    }

    /// Sweeps the tracked flows, which may be silent for so many seconds, when all that was told before is done; the
    /// outcome comes where [`Worker::start`] said.
    pub fn sweep(&self, longest_idle_s: u16) {
        self.submit(Job::Ask(Question::Sweep(longest_idle_s)));
    }

    /// Reads the counters of these VIPs and reals, and everything else. Asked at once, wherever it is awaited.
    ///
    /// # Errors
    /// The kernel refuses a look-up.
    pub fn report(
        &self,
        vips: Vec<u16>,
        reals: Vec<RealId>,
    ) -> impl Future<Output = Result<Report, Error>> + Send + use<> {
        answered(self.ask(|answer| Question::Report(vips, reals, answer)))
    }

    /// Waits until packets meet all that was told before. Asked at once, wherever it is awaited.
    ///
    /// # Errors
    /// The kernel refused some of it; that is tried again.
    pub fn settled(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        answered(self.ask(Question::Settled))
    }

    /// Answers for exactly these addresses on their links, once packets meet all that was told before. Asked at once,
    /// wherever it is awaited.
    ///
    /// # Errors
    /// The kernel refused some of it.
    pub fn answer(&self, wanted: BTreeMap<Asked, Answer>) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        answered(self.ask(|answer| Question::Answer(wanted, answer)))
    }

    /// How many remembered flows of a real have sent within each of these numbers of seconds. Asked at once, wherever it is
    /// awaited.
    ///
    /// # Errors
    /// What was told before is not in the data plane yet.
    pub fn flows(
        &self,
        real: RealId,
        within_s: [u16; 2],
    ) -> impl Future<Output = Result<[u64; 2], Error>> + Send + use<> {
        answered(self.ask(|answer| Question::Flows(real, within_s, answer)))
    }

    /// Whether packets of any device meet the program, or that of an earlier daemon.
    ///
    /// # Errors
    /// As [`DataPlane::is_attached`].
    pub async fn is_attached(&self) -> Result<bool, Error> {
        answered(self.ask(Question::IsAttached)).await
    }

    /// Detaches everywhere and removes what is pinned.
    ///
    /// # Errors
    /// As [`DataPlane::detach`].
    pub async fn detach(&self) -> Result<(), Error> {
        answered(self.ask(Question::Detach)).await
    }

    fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Question,
    ) -> oneshot::Receiver<Result<T, Error>> {
        let (answer, outcome) = oneshot::channel();
        self.submit(Job::Ask(question(answer)));
        outcome
    }

    fn submit(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            tracing::error!("{Gone}");
        }
    }
}

async fn answered<T>(outcome: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
    outcome.await.map_err(|_| Error::new("ask", "the data plane")(Gone))?
}

fn run(mut data_plane: DataPlane, queue: &mpsc::Receiver<Job>, outcomes: &tokio::sync::mpsc::UnboundedSender<Outcome>) {
    let mut pending = Pending::default();
    while let Ok(question) = take(queue, &mut pending) {
        let written = pending.flush(&mut *data_plane);
        if let Err(error) = &written {
            tracing::error!(%error, again = ?RETRY, "the data plane was not updated");
        }
        // An answer that nobody waits for any more is dropped.
        match question {
            Some(Question::Attach(interfaces, mode)) => {
                let attached = written.and_then(|()| data_plane.attach(&interfaces, mode));
                drop(outcomes.send(Outcome::Attached(attached)));
            }
            // While packets meet an earlier ring, they may insert where the newest says that none do.
            Some(Question::Sweep(idle_s)) => {
                let swept = written.and_then(|()| Ok(Sweep::over(data_plane.flows().buckets(), tick_now()?, idle_s)));
                drop(outcomes.send(Outcome::Swept(swept)));
            }
            // Who asks for an address may send to it at once.
            Some(Question::Answer(wanted, answer)) => {
                let silenced = data_plane.silence(&wanted);
                drop(answer.send(silenced.and(written).and_then(|()| data_plane.answer(&wanted))));
            }
            Some(Question::Settled(answer)) => drop(answer.send(written)),
            // While packets meet an earlier ring, flows may go where the newest sends none.
            Some(Question::Flows(real, within_s, answer)) => {
                let counted = || Ok(data_plane.flows().of_real(real, tick_now()?, within_s));
                drop(answer.send(written.and_then(|()| counted())));
            }
            Some(Question::Report(vips, reals, answer)) => drop(answer.send(report(&mut data_plane, &vips, &reals))),
            Some(Question::IsAttached(answer)) => drop(answer.send(data_plane.is_attached())),
            Some(Question::Detach(answer)) => drop(answer.send(data_plane.detach())),
            None => {}
        }
    }
}

/// Waits for jobs, and takes all that are there, up to a question; nothing when it is time to try again.
fn take(queue: &mpsc::Receiver<Job>, pending: &mut Pending) -> Result<Option<Question>, RecvError> {
    let first = if pending.is_empty() {
        Some(queue.recv()?)
    } else {
        match queue.recv_timeout(RETRY) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
        }
    };
    for job in first.into_iter().chain(queue.try_iter()) {
        match job {
            Job::Real(id, entry) => pending.real(id, entry),
            Job::Ring(place, ring) => pending.ring(place, ring),
            Job::Vips(table) => pending.vips(table),
            Job::Vacate(index) => pending.vacate(index),
            Job::ClearCount(index) => pending.clear_count(index),
            Job::Ask(question) => return Ok(Some(question)),
        }
    }
    Ok(None)
}

fn report(data_plane: &mut DataPlane, vips: &[u16], reals: &[RealId]) -> Result<Report, Error> {
    Ok(Report {
        program: data_plane.program_info()?,
        reasons: Reason::ALL.iter().map(|&r| Ok((r, data_plane.reason(r)?))).collect::<Result<_, Error>>()?,
        flow_events: FlowEvent::ALL
            .iter()
            .map(|&e| Ok((e, data_plane.flow_events(e)?)))
            .collect::<Result<_, Error>>()?,
        vips: vips.iter().map(|&v| data_plane.counter(vip_index(v))).collect::<Result<_, _>>()?,
        reals: reals
            .iter()
            .map(|&r| Ok((data_plane.counter(real_index(r))?, data_plane.syns(r)?)))
            .collect::<Result<_, Error>>()?,
    })
}
