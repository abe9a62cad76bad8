//! The data plane on a thread of its own: an outer map's update waits for an RCU grace period (about 12 ms),
//! which is nothing for an async task to wait for.

use super::{Attached, DataPlane, Error, Mode, ProgramInfo};
use crate::reconcile::Inheritance;
use lb_ebpf::{
    counter::{Counter, FlowEvent, Reason, real_index, vip_index},
    real::RealEntry,
    ring::{RealId, Ring},
    vip::VipTable,
};
use std::{path::PathBuf, sync::mpsc, thread};
use tokio::sync::oneshot;

/// Reading a map hands its value over on the stack, several times in a debug build: a table of VIPs has 128 KiB.
const STACK: usize = 8 << 20;

/// What the worker is asked to do.
enum Job {
    Real(RealId, RealEntry),
    Ring(u16, Box<Ring>),
    Vips(Box<VipTable>),
    Attach(Vec<String>, Mode, oneshot::Sender<Result<(), Error>>),
    Report(Vec<u16>, Vec<RealId>, oneshot::Sender<Result<Report, Error>>),
    Detach(oneshot::Sender<Result<(), Error>>),
}

/// What the data plane says of itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// The loaded program.
    pub program: ProgramInfo,
    /// Where it is attached.
    pub attached: Vec<Attached>,
    /// Every reason with its counter.
    pub reasons: Vec<(Reason, Counter)>,
    /// Every flow event with its count.
    pub flow_events: Vec<(FlowEvent, u64)>,
    /// The counters of the VIPs asked for, in their order.
    pub vips: Vec<Counter>,
    /// The counters of the reals asked for, in their order.
    pub reals: Vec<Counter>,
}

/// A handle on the data plane's thread. Jobs are done in the order given.
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

/// The worker's thread is gone; its last error was logged.
#[derive(Debug, thiserror::Error)]
#[error("the data plane's thread has ended")]
struct Gone;

impl Worker {
    /// Loads the data plane on a new thread; returns what an earlier daemon left.
    ///
    /// # Errors
    /// As [`DataPlane::load`].
    pub fn start(directory: PathBuf) -> Result<(Self, Inheritance), Error> {
        let (jobs, queue) = mpsc::channel();
        let (started, outcome) = mpsc::channel();
        let body = move || match DataPlane::load(&directory) {
            Ok(data_plane) => {
                // The starter waits for this; it is there.
                let _ = started.send(Ok(data_plane.inheritance()));
                run(data_plane, &queue);
            }
            Err(error) => drop(started.send(Err(error))),
        };
        let thread = thread::Builder::new().name("data-plane".into()).stack_size(STACK).spawn(body);
        thread.map_err(Error::new("start", "the data plane's thread"))?;
        let inheritance = outcome.recv().map_err(Error::new("start", "the data plane's thread"))??;
        Ok((Self { jobs }, inheritance))
    }

    /// Writes a real.
    pub fn set_real(&self, id: RealId, entry: RealEntry) {
        self.submit(Job::Real(id, entry));
    }

    /// Swaps a ring.
    pub fn swap_ring(&self, index: u16, ring: Box<Ring>) {
        self.submit(Job::Ring(index, ring));
    }

    /// Swaps the table of VIPs.
    pub fn swap_vips(&self, table: Box<VipTable>) {
        self.submit(Job::Vips(table));
    }

    /// Attaches to these interfaces.
    ///
    /// # Errors
    /// As [`DataPlane::attach`]; what was attached stays so until [`Worker::detach`].
    pub async fn attach(&self, interfaces: Vec<String>, mode: Mode) -> Result<(), Error> {
        self.ask(|answer| Job::Attach(interfaces, mode, answer)).await
    }

    /// Reads the counters of these VIPs and reals, and everything else.
    ///
    /// # Errors
    /// The kernel refuses a look-up.
    pub async fn report(&self, vips: Vec<u16>, reals: Vec<RealId>) -> Result<Report, Error> {
        self.ask(|answer| Job::Report(vips, reals, answer)).await
    }

    /// Detaches everywhere and removes what is pinned.
    ///
    /// # Errors
    /// As [`DataPlane::detach`].
    pub async fn detach(&self) -> Result<(), Error> {
        self.ask(Job::Detach).await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Job) -> Result<T, Error> {
        let (answer, outcome) = oneshot::channel();
        self.submit(job(answer));
        outcome.await.map_err(|_| Error::new("ask", "the data plane")(Gone))?
    }

    fn submit(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            tracing::error!("{Gone}");
        }
    }
}

fn run(mut data_plane: DataPlane, queue: &mpsc::Receiver<Job>) {
    let mut attached = Vec::new();
    for job in queue {
        let done = match job {
            Job::Real(id, entry) => data_plane.set_real(id, entry),
            Job::Ring(index, ring) => data_plane.swap_ring(index, &ring),
            Job::Vips(table) => data_plane.swap_vips(&table),
            // An answer that nobody waits for any more is dropped.
            Job::Attach(interfaces, mode, answer) => {
                let outcome = data_plane.attach(&interfaces, mode).map(|now| attached = now);
                drop(answer.send(outcome));
                Ok(())
            }
            Job::Report(vips, reals, answer) => {
                drop(answer.send(report(&mut data_plane, &attached, &vips, &reals)));
                Ok(())
            }
            Job::Detach(answer) => {
                attached.clear();
                drop(answer.send(data_plane.detach()));
                Ok(())
            }
        };
        if let Err(error) = done {
            tracing::error!(%error, "the data plane was not updated");
        }
    }
}

fn report(data_plane: &mut DataPlane, attached: &[Attached], vips: &[u16], reals: &[RealId]) -> Result<Report, Error> {
    Ok(Report {
        program: data_plane.program_info()?,
        attached: attached.to_vec(),
        reasons: Reason::ALL.iter().map(|&r| Ok((r, data_plane.reason(r)?))).collect::<Result<_, Error>>()?,
        flow_events: FlowEvent::ALL
            .iter()
            .map(|&e| Ok((e, data_plane.flow_events(e)?)))
            .collect::<Result<_, Error>>()?,
        vips: vips.iter().map(|&v| data_plane.counter(vip_index(v))).collect::<Result<_, _>>()?,
        reals: reals.iter().map(|&r| data_plane.counter(real_index(r))).collect::<Result<_, _>>()?,
    })
}
