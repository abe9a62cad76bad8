//! The prober beside the kernel's IPVS, which only a stock kernel has: the examples of docs/sidecar.md.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{path::PathBuf, time::Duration};

use tests::{
    lab::binary,
    vm::{Kernel, Vm},
};

/// Each check is a process that loads a BPF program, on an emulated CPU; some thirty are waited for.
const LIMIT: Duration = Duration::from_mins(6);

/// Runs the script in a guest with the network of ipvs.sh.
fn passed(script: &str) {
    let ours = ["realsrv-setup", "hc-prober"].map(|program| binary(program).unwrap());
    let others = ["/usr/sbin/keepalived", "/usr/sbin/ipvsadm", "/usr/bin/curl"].map(PathBuf::from);
    let mut guest = Vm::new(Kernel::debian().unwrap()).unwrap();
    for program in ours.into_iter().chain(others) {
        guest = guest.program(program).unwrap();
    }
    let output = guest.script(&[include_str!("../vm/ipvs.sh"), script].concat()).run(LIMIT).unwrap();
    println!("{}", output.output);
    assert_eq!(output.status, 0, "the script failed; the guest's console:\n{}", output.console);
}

#[test]
fn keepalived_takes_a_real_out_and_back_in_by_our_verdict() {
    passed(include_str!("../vm/keepalived.sh"));
}

#[test]
fn weights_of_ipvs_follow_hc_prober_run() {
    passed(include_str!("../vm/sidecar.sh"));
}
