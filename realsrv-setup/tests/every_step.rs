//! Every step fails once, and sees a SIGKILL once, on real namespaces: the model in `transaction.rs` cannot be wrong
//! about what the kernel does. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod lab;

use std::{
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use lab::{Lab, command, within};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use realsrv_setup::{
    desired::{Decap, Request},
    observed::Observed,
    persist::Persist,
    plan::{Step, plan},
    run::{self, Host, Undone},
    system::{self, System, load_journal, store::Store},
};

const BOTH: &str = "198.19.10.1,fd00:19:10::1";

/// The VIPs of each round: both families, and in a long run each alone, whose steps are some of the same.
fn rounds() -> &'static [&'static str] {
    let all = &[BOTH, "198.19.10.1", "fd00:19:10::1"];
    if std::env::var_os("LBD_TEST_LONG").is_some() { all } else { &all[..1] }
}

/// What goes wrong at one step, be it done or undone.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
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

fn request(vips: &str, state: &Path) -> Request {
    let vips = vips.split(',').map(|vip| vip.parse().unwrap()).collect();
    Request { vips, decap: Some(Decap::Ebpf), persist: Some(persist(state)), ..Request::default() }
}

/// As the program has it, with the lab's root beside the state directory.
fn persist(state: &Path) -> Persist {
    let root = state.parent().unwrap().join("root");
    Persist { root, program: env!("CARGO_BIN_EXE_realsrv-setup").into(), state_dir: state.to_owned() }
}

/// The same on the command line.
fn apply(lab: &Lab, vips: &str) -> String {
    format!("apply --no-verify --decap ebpf --vip {vips} --persist --root {}", lab.root().display())
}

/// `apply` or `remove` as the program does them, with a fault. In the network namespace of this thread.
fn run_here(act: &str, vips: &str, state: &Path, at: Option<(usize, Fault)>) -> Result<(), String> {
    let mut store = Store::open(state).unwrap();
    let mut journal = load_journal(state).unwrap();
    let mut host = Faulty::new(state, at);
    match act {
        "apply" => run::apply(&mut host, &mut store, &mut journal, request(vips, state)).map(drop),
        _ => run::remove(&mut host, &mut store, &mut journal, &[]).map(drop),
    }
    .map_err(|error| error.to_string())
}

fn steps(lab: &Lab, vips: &'static str) -> usize {
    let state = lab.state_dir();
    within(&lab.real, move || {
        let observed = System::new().unwrap().with_root(&persist(&state).root).observe().unwrap();
        plan(&request(vips, &state).onto(None), &observed).unwrap().steps().count()
    })
}

#[test]
fn a_failure_at_any_step_leaves_host_and_journal_as_they_were() {
    for &vips in rounds() {
        let lab = Lab::new();
        let before = lab.snapshot();
        for at in 0..steps(&lab, vips) {
            for fault in [Fault::FailBefore, Fault::FailAfter] {
                let state = lab.state_dir();
                let error = within(&lab.real, move || run_here("apply", vips, &state, Some((at, fault)))).unwrap_err();
                assert!(error.ends_with("the host is as it was before"), "{vips}, step {at}, {fault:?}: {error}");
                lab.assert_as(&before);
                assert!(!lab.state_dir().join("journal.json").exists());
            }
        }
        // One more is no step, and nothing fails.
        let (state, at) = (lab.state_dir(), steps(&lab, vips));
        within(&lab.real, move || run_here("apply", vips, &state, Some((at, Fault::FailBefore)))).unwrap();
    }
}

#[test]
fn a_failure_at_any_step_of_remove_is_made_up_for_by_the_next() {
    for &vips in rounds() {
        let lab = Lab::new();
        let before = lab.snapshot();
        for at in 0..steps(&lab, vips) {
            for fault in [Fault::FailBefore, Fault::FailAfter] {
                lab.setup_exits(&apply(&lab, vips), 0);
                let state = lab.state_dir();
                let error = within(&lab.real, move || run_here("remove", vips, &state, Some((at, fault)))).unwrap_err();
                assert!(error.contains("run it again"), "{error}");
                lab.setup_exits("remove", 0);
                lab.assert_as(&before);
            }
        }
    }
}

#[test]
fn a_kill_at_any_step_is_undone_by_remove_or_finished_by_apply() {
    for &vips in rounds() {
        let lab = Lab::new();
        let before = lab.snapshot();
        for at in 0..steps(&lab, vips) {
            for fault in [Fault::KillBefore, Fault::KillAfter] {
                assert_killed(start_killed(&lab, "apply", vips, at, fault));
                lab.setup_exits("remove", 0);
                lab.assert_as(&before);

                assert_killed(start_killed(&lab, "apply", vips, at, fault));
                lab.setup_exits(&apply(&lab, vips), 0);
                lab.setup_exits("check", 0);
                lab.setup_exits("remove", 0);
                lab.assert_as(&before);
            }
        }
    }
}

#[test]
fn a_kill_at_any_step_of_remove_is_finished_by_the_next_or_made_good_by_apply() {
    for &vips in rounds() {
        let lab = Lab::new();
        let before = lab.snapshot();
        for at in 0..steps(&lab, vips) {
            for fault in [Fault::KillBefore, Fault::KillAfter] {
                for then in ["remove", "apply"] {
                    lab.setup_exits(&apply(&lab, vips), 0);
                    assert_killed(start_killed(&lab, "remove", vips, at, fault));
                    if then == "apply" {
                        lab.setup_exits(&apply(&lab, vips), 0);
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

/// Starts this very program again, in the real's namespace, to be killed there.
fn start_killed(lab: &Lab, act: &str, vips: &str, at: usize, fault: Fault) -> ExitStatus {
    let this = std::env::current_exe().unwrap();
    let role = format!("{act} {vips} {at} {fault:?} {}", lab.state_dir().display());
    let mut child = command(&lab.real, this.to_str().unwrap());
    child.args(["--exact", "a_run_without_a_fault_succeeds", "--nocapture"]).env(ROLE, role);
    child.output().unwrap().status
}

/// Also the way in for those that are to be killed.
#[test]
fn a_run_without_a_fault_succeeds() {
    if let Ok(role) = std::env::var(ROLE) {
        let [act, vips, at, fault, state] = role.split(' ').collect::<Vec<_>>()[..] else { panic!("{role}") };
        let fault = if fault == "KillBefore" { Fault::KillBefore } else { Fault::KillAfter };
        return run_here(act, vips, &PathBuf::from(state), Some((at.parse().unwrap(), fault))).unwrap();
    }
    let lab = Lab::new();
    let before = lab.snapshot();
    for act in ["apply", "remove"] {
        let state = lab.state_dir();
        within(&lab.real, move || run_here(act, BOTH, &state, None)).unwrap();
    }
    lab.assert_as(&before);
}
