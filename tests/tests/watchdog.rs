//! A prober that hangs does not go unnoticed. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{SOON, Service, thread};
use lbd::model::{Health, ProberState};
use nix::sys::{
    ptrace,
    wait::{WaitPidFlag, waitpid},
};
use std::fs;
use tests::lab::wait_for;

fn log(service: &Service) -> String {
    fs::read_to_string(service.lab.lbd().log).unwrap()
}

#[test]
fn prober_that_hangs_is_stalled_in_status_and_log_until_it_goes_on() {
    let service = Service::up("watchdog");
    assert_eq!(service.status().prober.state, ProberState::Running);
    let state_is = |state| {
        wait_for("the prober's state", SOON, || Ok((service.status().prober.state == state).then_some(()))).unwrap();
    };

    // Stops this one thread; should the test fail, it goes on when ours ends.
    let prober = thread(service.lbd.pid(), "prober");
    ptrace::attach(prober).unwrap();
    waitpid(prober, Some(WaitPidFlag::__WALL)).unwrap();
    state_is(ProberState::Stalled);
    wait_for("a line in the log", SOON, || Ok(log(&service).contains("the prober is stalled").then_some(()))).unwrap();

    ptrace::detach(prober, None).unwrap();
    state_is(ProberState::Running);
    wait_for("a line in the log", SOON, || Ok(log(&service).contains("sends probes again").then_some(()))).unwrap();
    assert_eq!(log(&service).matches("the prober is stalled").count(), 1);
    let status = service.status().prober;
    assert!(status.lag_us > 1_000_000, "the stall shows in the lag: {status:?}");
    assert_eq!((1..=3).map(|real| service.row(real).state).collect::<Vec<_>>(), [Health::Up; 3]);
}
