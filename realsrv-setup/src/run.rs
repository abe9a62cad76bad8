//! Leads from a plan to a changed host and back: journal, execute, verify, roll back; undo.
//!
//! Knows the host and the journal's file only as traits: tests fail every step in turn.

use crate::{
    desired::{Desired, Request, Vip},
    journal::Journal,
    observed::Observed,
    plan::{Item, Plan, Refusal, Removal, Step, is_arp, plan_onto, plan_removal},
};

/// What undoing a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undone {
    /// It is as it was before.
    Restored,
    /// It was so already: somebody undid it, or the step never ran.
    Already,
    /// It is no longer as we left it, or in use: not touched, and why.
    Left(String),
}

/// The host, in one network namespace.
pub trait Host {
    /// How it fails.
    type Error: std::error::Error + 'static;

    /// Looks, changes nothing.
    ///
    /// # Errors
    /// Something could not be read.
    fn observe(&mut self) -> Result<Observed, Self::Error>;

    /// Carries out one step.
    ///
    /// # Errors
    /// The step did not succeed; it may have had a part of its effect.
    fn execute(&mut self, step: &Step) -> Result<(), Self::Error>;

    /// Restores what was before one step, where it is still as the step left it.
    ///
    /// # Errors
    /// It should be restored and could not.
    fn undo(&mut self, step: &Step) -> Result<Undone, Self::Error>;
}

/// Where the journal is kept.
pub trait Store {
    /// How it fails.
    type Error: std::error::Error + 'static;

    /// Returns once the journal is on the disk. An empty one leaves no file.
    ///
    /// # Errors
    /// It may not be on the disk: do not act on it.
    fn save(&mut self, journal: &Journal) -> Result<(), Self::Error>;
}

/// What went wrong while the host was being changed.
#[derive(Debug, thiserror::Error)]
pub enum Cause<H: std::error::Error + 'static, S: std::error::Error + 'static> {
    /// A step failed, or looking afterwards.
    #[error(transparent)]
    Step(H),
    /// The journal could not be written.
    #[error("the journal: {0}")]
    Journal(S),
    /// All steps succeeded, and now the plan is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// All steps succeeded, and yet not all is as wanted.
    #[error("after all steps still not as wanted: {0}")]
    NotVerified(String),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error<H: std::error::Error + 'static, S: std::error::Error + 'static> {
    /// Nothing was changed.
    #[error("{0}; nothing was changed")]
    Refused(#[from] Refusal),
    /// Looking failed; nothing was changed.
    #[error("{0}; nothing was changed")]
    Observe(#[source] H),
    /// Applying failed: the cause, and what could not be undone.
    #[error("{cause}; {}", rolled_back(left))]
    RolledBack {
        /// What went wrong.
        cause: Cause<H, S>,
        /// What could not be undone, and why.
        left: Vec<String>,
    },
    /// Removing failed; what was not undone is still in the journal.
    #[error("{0}; run remove again")]
    Stopped(#[source] Cause<H, S>),
    /// Some steps could not be undone; they are still in the journal.
    #[error("not undone: {}; run it again", .0.join("; "))]
    NotUndone(Vec<String>),
}

fn rolled_back(left: &[String]) -> String {
    match left {
        [] => "rolled back: the host is as it was before".to_owned(),
        left => format!("rolled back except: {}", left.join("; ")),
    }
}

type Outcome<T, H, S> = Result<T, Error<<H as Host>::Error, <S as Store>::Error>>;

/// What `apply` has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// The plan that was carried out: empty if nothing changed.
    pub plan: Plan,
    /// What became of the steps that were no longer needed.
    pub removed: Vec<Removed>,
}

/// Makes the host as `request` wants it, or leaves it as it was; then undoes what that no longer needs. What the
/// request leaves out is as the journal intends, which must have been loaded under the store's lock: whatever another
/// run intended before is in it.
///
/// # Errors
/// See [`Error`]; the host is as before unless the error says otherwise.
pub fn apply<H: Host, S: Store>(
    host: &mut H,
    store: &mut S,
    journal: &mut Journal,
    request: Request,
) -> Outcome<Applied, H, S> {
    let desired = request.onto(journal.intent.as_ref());
    let plan = plan_onto(journal, &desired, &host.observe().map_err(Error::Observe)?)?;
    let before = journal.clone();
    journal.intent = Some(desired);
    if *journal != before || !plan.is_empty() {
        carry_out(host, store, journal, &before, plan.steps())?;
    }
    let removed = if plan.obsolete.is_empty() { Vec::new() } else { undo(host, store, journal, &plan.obsolete)? };
    Ok(Applied { plan, removed })
}

/// Runs the steps and verifies; on failure undoes those that ran, last first.
fn carry_out<'a, H: Host, S: Store>(
    host: &mut H,
    store: &mut S,
    journal: &mut Journal,
    before: &Journal,
    steps: impl Iterator<Item = &'a Step>,
) -> Outcome<(), H, S> {
    let mut ran = Vec::new();
    run_steps(host, store, journal, steps, &mut ran).map_err(|cause| {
        let (mut left, kept) = roll_back(host, &ran);
        *journal = before.clone();
        for step in kept {
            journal.record(step);
        }
        left.extend(store.save(journal).err().map(|error| format!("the journal: {error}")));
        Error::RolledBack { cause, left }
    })
}

/// Journal, execute, one after the other; then verify. `ran` holds the steps that were begun.
fn run_steps<'a, H: Host, S: Store>(
    host: &mut H,
    store: &mut S,
    journal: &mut Journal,
    steps: impl Iterator<Item = &'a Step>,
    ran: &mut Vec<&'a Step>,
) -> Result<(), Cause<H::Error, S::Error>> {
    for step in steps {
        journal.record(step);
        store.save(journal).map_err(Cause::Journal)?;
        ran.push(step);
        host.execute(step).map_err(Cause::Step)?;
    }
    store.save(journal).map_err(Cause::Journal)?;
    verify::<H, S>(host, journal)
}

/// Look again, plan again: the plan must be empty.
fn verify<H: Host, S: Store>(host: &mut H, journal: &Journal) -> Result<(), Cause<H::Error, S::Error>> {
    let Some(desired) = &journal.intent else { return Ok(()) };
    let remaining = plan_onto(journal, desired, &host.observe().map_err(Cause::Step)?)?;
    match remaining.items.iter().find(|item| item.step.is_some()) {
        None => Ok(()),
        Some(Item { what, wanted, found, .. }) => {
            Err(Cause::NotVerified(format!("{what} should be {wanted}, is {found}")))
        }
    }
}

/// What was left, for people, and the steps concerned.
fn roll_back<'a, H: Host>(host: &mut H, ran: &[&'a Step]) -> (Vec<String>, Vec<&'a Step>) {
    let mut left = Vec::new();
    let mut kept = Vec::new();
    for &step in ran.iter().rev() {
        let reason = match undo_one(host, step, &kept) {
            Ok(Undone::Restored | Undone::Already) => continue,
            Ok(Undone::Left(reason)) => reason,
            Err(error) => error,
        };
        left.push(format!("{}: {reason}", step.object()));
        kept.insert(0, step);
    }
    (left, kept)
}

/// Undoes a step, unless one of those `kept` still needs it.
fn undo_one<H: Host>(host: &mut H, step: &Step, kept: &[&Step]) -> Result<Undone, String> {
    match kept.iter().find(|kept| needs(kept, step)) {
        Some(user) => Err(format!("{} stays as long as the {}", step.object(), user.object())),
        None => host.undo(step).map_err(|error| error.to_string()),
    }
}

/// Whether `below` must not be undone before `above`: while a VIP is there, the host must not answer ARP for it. The
/// others would look as if somebody else used them by now.
fn needs(above: &Step, below: &Step) -> bool {
    match (above, below) {
        (Step::AddAddress { device, .. }, Step::SetSysctl { name, .. }) => device == "lo" && is_arp(name),
        (Step::InstallPrograms { .. }, Step::AddClsact { .. }) => true,
        (Step::LinkUp { .. }, Step::LoadModule { .. }) => above.serves_tunnel() == below.serves_tunnel(),
        _ => false,
    }
}

/// What became of one step.
pub type Removed = (String, Undone);

/// Takes `vips` away (all if empty), and with the last one everything that was shared.
///
/// # Errors
/// [`Error::NotUndone`] after trying everything else; what is left is still in the journal.
pub fn remove<H: Host, S: Store>(
    host: &mut H,
    store: &mut S,
    journal: &mut Journal,
    vips: &[Vip],
) -> Outcome<Vec<Removed>, H, S> {
    let intent = journal.intent.clone().unwrap_or_default();
    let mut remaining = intent.clone();
    remaining.vips.retain(|vip| !vips.contains(vip));
    if vips.is_empty() || remaining.vips.is_empty() && !intent.vips.is_empty() {
        return remove_all(host, store, journal);
    }
    let known: Vec<_> = vips.iter().copied().filter(|vip| intent.vips.contains(vip)).collect();
    let unknown = vips.iter().filter(|vip| !intent.vips.contains(vip));
    let mut removed: Vec<_> = unknown.map(|vip| (format!("VIP {vip}"), Undone::Already)).collect();
    if !known.is_empty() {
        removed.extend(remove_some(host, store, journal, remaining, &known)?);
    }
    Ok(removed)
}

fn remove_all<H: Host, S: Store>(host: &mut H, store: &mut S, journal: &mut Journal) -> Outcome<Vec<Removed>, H, S> {
    journal.intent = None;
    let steps = journal.backwards();
    undo(host, store, journal, &steps)
}

/// With the last VIP of its family a tunnel closes first, while its guard is there. Then the programs forget the VIPs,
/// then the addresses go: no packet is decapsulated for a VIP that is not there.
fn remove_some<H: Host, S: Store>(
    host: &mut H,
    store: &mut S,
    journal: &mut Journal,
    remaining: Desired,
    vips: &[Vip],
) -> Outcome<Vec<Removed>, H, S> {
    let steps: Vec<_> = vips.iter().filter_map(|&vip| journal.address_step(vip).cloned()).collect();
    let mut observed = host.observe().map_err(Error::Observe)?;
    let ours = |step: &Step, address| matches!(step, Step::AddAddress { address: added, .. } if *added == address);
    observed.addresses.retain(|found| !steps.iter().any(|step| ours(step, found.address)));
    let Removal { tunnels, programs, files, settings } = plan_removal(journal, &remaining, &observed);
    let mut removed = undo(host, store, journal, &tunnels)?;
    for step in programs.into_iter().chain(files) {
        journal.record(&step);
        store.save(journal).map_err(|error| Error::Stopped(Cause::Journal(error)))?;
        host.execute(&step).map_err(|error| Error::Stopped(Cause::Step(error)))?;
        removed.push((step.object(), Undone::Restored));
    }
    journal.intent = Some(remaining);
    removed.extend(undo(host, store, journal, &[steps, settings].concat())?);
    Ok(removed)
}

/// Undoes `steps` in the order given and takes them out of the journal. One that fails does not stop the others.
fn undo<H: Host, S: Store>(
    host: &mut H,
    store: &mut S,
    journal: &mut Journal,
    steps: &[Step],
) -> Outcome<Vec<Removed>, H, S> {
    let mut removed = Vec::new();
    let (mut failed, mut kept) = (Vec::new(), Vec::new());
    for step in steps {
        match undo_one(host, step, &kept) {
            Ok(undone) => {
                journal.forget(step);
                removed.push((step.object(), undone));
            }
            Err(error) => {
                failed.push(error);
                kept.push(step);
            }
        }
        store.save(journal).map_err(|error| Error::Stopped(Cause::Journal(error)))?;
    }
    store.save(journal).map_err(|error| Error::Stopped(Cause::Journal(error)))?;
    if failed.is_empty() { Ok(removed) } else { Err(Error::NotUndone(failed)) }
}
