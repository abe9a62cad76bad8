//! Every step fails once, and sees a SIGKILL once, on real namespaces: the model in `transaction.rs` cannot be wrong
//! about what the kernel does.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use realsrv_setup::{
    desired::Request,
    observed::Observed,
    persist::Persist,
    plan::{Step, plan},
    run::{self, Host, Undone},
    system::{self, System, load_journal, store::Store},
};

use crate::lab::{Lab, binary, command, within};

pub(crate) const BOTH: &str = "198.19.10.1,fd00:19:10::1";

/// What is applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    /// `ipip` or `ebpf`.
    pub(crate) decap: &'static str,
    pub(crate) vips: &'static str,
    /// Every fourth step, and of two alternatives one, in turn: where everything takes its time.
    thin: bool,
}

impl Round {
    fn of<T: Copy>(self, both: [T; 2], at: usize) -> Vec<T> {
        match (self.thin, at % 4) {
            (false, _) => both.into(),
            (true, 0) => vec![both[at / 4 % 2]],
            (true, _) => Vec::new(),
        }
    }
}

/// Both families, and in a long run each alone, whose steps are some of the same.
pub(crate) fn rounds(decap: &'static str) -> Vec<Round> {
    let long = std::env::var_os("LBD_TEST_LONG").is_some();
    let vips = [BOTH, "198.19.10.1", "fd00:19:10::1"];
    let round = |vips| Round { decap, vips, thin: decap == "ipip" && !long };
    vips.into_iter().take(if long { 3 } else { 1 }).map(round).collect()
}

/// What goes wrong at one step, be it done or undone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// It fails without effect.
    FailBefore,
    /// It fails after its effect.
    FailAfter,
    /// SIGKILL once it is noted.
    KillBefore,
    /// SIGKILL once it is done.
    KillAfter,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("injected")]
    Injected,
    #[error(transparent)]
    System(#[from] system::Error),
}

/// The host itself, with a fault at the `at`th step from now.
struct Faulty {
    system: System,
    at: Option<(usize, Fault)>,
}

impl Faulty {
    fn new(state: &Path, at: Option<(usize, Fault)>) -> Self {
        Self { system: System::new().unwrap().with_root(&persist(state).root), at }
    }

    fn with_fault<T>(&mut self, step: impl FnOnce(&mut System) -> Result<T, system::Error>) -> Result<T, Error> {
        let due = self.at.filter(|(left, _)| *left == 0).map(|(_, fault)| fault);
        self.at = self.at.and_then(|(left, fault)| Some((left.checked_sub(1)?, fault)));
        match due {
            Some(Fault::FailBefore) => return Err(Error::Injected),
            Some(Fault::KillBefore) => die(),
            _ => {}
        }
        let done = step(&mut self.system)?;
        match due {
            Some(Fault::FailAfter) => Err(Error::Injected),
            Some(Fault::KillAfter) => die(),
            _ => Ok(done),
        }
    }
}

fn die() -> ! {
    kill(Pid::this(), Signal::SIGKILL).unwrap();
    unreachable!("nobody survives it")
}

impl Host for Faulty {
    type Error = Error;

    fn observe(&mut self) -> Result<Observed, Error> {
        Ok(self.system.observe()?)
    }

    fn execute(&mut self, step: &Step) -> Result<(), Error> {
        self.with_fault(|system| system.execute(step))
    }

    fn undo(&mut self, step: &Step) -> Result<Undone, Error> {
        self.with_fault(|system| system.undo(step))
    }
}

fn request(Round { decap, vips, .. }: Round, state: &Path) -> Request {
    let vips = vips.split(',').map(|vip| vip.parse().unwrap()).collect();
    Request { vips, decap: Some(decap.parse().unwrap()), persist: Some(persist(state)), ..Request::default() }
}

/// As the program has it, with the lab's root beside the state directory.
fn persist(state: &Path) -> Persist {
    let root = state.parent().unwrap().join("root");
    Persist { root, program: binary("realsrv-setup"), state_dir: state.to_owned() }
}

/// The same on the command line.
fn apply(lab: &Lab, Round { decap, vips, .. }: Round) -> String {
    format!("apply --no-verify --decap {decap} --vip {vips} --persist --root {}", lab.root().display())
}

/// `apply` or `remove` as the program does them, with a fault. In the network namespace of this thread.
fn run_here(act: &str, round: Round, state: &Path, at: Option<(usize, Fault)>) -> Result<(), String> {
    let mut store = Store::open(state).unwrap();
    let mut journal = load_journal(state).unwrap();
    let mut host = Faulty::new(state, at);
    match act {
        "apply" => run::apply(&mut host, &mut store, &mut journal, request(round, state)).map(drop),
        _ => run::remove(&mut host, &mut store, &mut journal, &[]).map(drop),
    }
    .map_err(|error| error.to_string())
}

fn steps(lab: &Lab, round: Round) -> usize {
    let state = lab.state_dir();
    within(&lab.real, move || {
        let observed = System::new().unwrap().with_root(&persist(&state).root).observe().unwrap();
        plan(&request(round, &state).onto(None), &observed).unwrap().steps().count()
    })
}

/// A failure at any step of `apply` leaves host and journal as they were.
pub(crate) fn failures_of_apply(rounds: Vec<Round>) {
    for round in rounds {
        let lab = Lab::new();
        let before = lab.snapshot();
        for at in 0..steps(&lab, round) {
            for fault in round.of([Fault::FailBefore, Fault::FailAfter], at) {
                let state = lab.state_dir();
                let error = within(&lab.real, move || run_here("apply", round, &state, Some((at, fault)))).unwrap_err();
                assert!(error.ends_with("the host is as it was before"), "{round:?}, step {at}, {fault:?}: {error}");
                lab.assert_as(&before);
                assert!(!lab.state_dir().join("journal.json").exists());
            }
        }
        // One more is no step, and nothing fails.
        let (state, at) = (lab.state_dir(), steps(&lab, round));
        within(&lab.real, move || run_here("apply", round, &state, Some((at, Fault::FailBefore)))).unwrap();
        lab.setup_exits("remove", 0);
        lab.assert_as(&before);
    }
}

/// A failure at any step of `remove` is made up for by the next.
pub(crate) fn failures_of_remove(rounds: Vec<Round>) {
    for round in rounds {
        let lab = Lab::new();
        let before = lab.snapshot();
        for at in 0..steps(&lab, round) {
            for fault in round.of([Fault::FailBefore, Fault::FailAfter], at) {
                lab.setup_exits(&apply(&lab, round), 0);
                let state = lab.state_dir();
                let error =
                    within(&lab.real, move || run_here("remove", round, &state, Some((at, fault)))).unwrap_err();
                assert!(error.contains("run it again"), "{error}");
                lab.setup_exits("remove", 0);
                lab.assert_as(&before);
            }
        }
    }
}

/// A SIGKILL at any step of `apply` is undone by `remove`, or finished by `apply`.
pub(crate) fn kills_of_apply(rounds: Vec<Round>) {
    for round in rounds {
        let lab = Lab::new();
        let before = lab.snapshot();
        for at in 0..steps(&lab, round) {
            for fault in round.of([Fault::KillBefore, Fault::KillAfter], at) {
                for then in round.of(["remove", "apply"], at / 2) {
                    assert_killed(start_killed(&lab, "apply", round, at, fault));
                    if then == "apply" {
                        lab.setup_exits(&apply(&lab, round), 0);
                        lab.setup_exits("check", 0);
                    }
                    lab.setup_exits("remove", 0);
                    lab.assert_as(&before);
                }
            }
        }
    }
}

/// A SIGKILL at any step of `remove` is finished by the next, or made good by `apply`.
pub(crate) fn kills_of_remove(rounds: Vec<Round>) {
    for round in rounds {
        let lab = Lab::new();
        let before = lab.snapshot();
        for at in 0..steps(&lab, round) {
            for fault in round.of([Fault::KillBefore, Fault::KillAfter], at) {
                for then in round.of(["remove", "apply"], at / 2) {
                    lab.setup_exits(&apply(&lab, round), 0);
                    assert_killed(start_killed(&lab, "remove", round, at, fault));
                    if then == "apply" {
                        lab.setup_exits(&apply(&lab, round), 0);
                        lab.setup_exits("check", 0);
                    }
                    lab.setup_exits("remove", 0);
                    lab.assert_as(&before);
                }
            }
        }
    }
}

#[track_caller]
fn assert_killed(status: ExitStatus) {
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status:?}");
}

const ROLE: &str = "REALSRV_SETUP_FAULT";
/// The test of each test program that calls [`run_without_a_fault`].
const WAY_IN: &str = "a_run_without_a_fault_succeeds";

/// Starts this very program again, in the real's namespace, to be killed there.
fn start_killed(lab: &Lab, act: &str, round: Round, at: usize, fault: Fault) -> ExitStatus {
    let this = std::env::current_exe().unwrap();
    let role = format!("{act} {} {} {at} {fault:?} {}", round.decap, round.vips, lab.state_dir().display());
    let mut child = command(&lab.real, this.to_str().unwrap());
    child.args(["--exact", WAY_IN, "--nocapture"]).env(ROLE, role);
    child.output().unwrap().status
}

/// A run without a fault succeeds: in [`start_killed`]'s child the one with the fault, which does not come back.
pub(crate) fn run_without_a_fault(decap: &'static str) {
    if let Ok(role) = std::env::var(ROLE) {
        let role = role.leak();
        let [act, decap, vips, at, fault, state] = role.split(' ').collect::<Vec<_>>()[..] else { panic!("{role}") };
        let fault = if fault == "KillBefore" { Fault::KillBefore } else { Fault::KillAfter };
        let at = Some((at.parse().unwrap(), fault));
        return run_here(act, Round { decap, vips, thin: false }, &PathBuf::from(state), at).unwrap();
    }
    let lab = Lab::new();
    let before = lab.snapshot();
    for act in ["apply", "remove"] {
        let state = lab.state_dir();
        within(&lab.real, move || run_here(act, Round { decap, vips: BOTH, thin: false }, &state, None)).unwrap();
    }
    lab.assert_as(&before);
}
