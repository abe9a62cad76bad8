//! `hc-prober check` as the `MISC_CHECK` of a real keepalived over the kernel's IPVS, which only a stock kernel has.

use std::time::Duration;

use tests::{
    lab::binary,
    vm::{Kernel, Vm},
};

/// Every check loads a BPF program, which an emulated CPU takes seconds for; some thirty are waited for.
const LIMIT: Duration = Duration::from_mins(8);

#[test]
fn keepalived_takes_a_real_out_and_back_in_by_our_verdict() {
    let mut guest = Vm::new(Kernel::debian().unwrap()).unwrap();
    for program in ["realsrv-setup", "hc-prober"] {
        guest = guest.program(binary(program).unwrap()).unwrap();
    }
    for program in ["/usr/sbin/keepalived", "/usr/sbin/ipvsadm", "/usr/bin/curl"] {
        guest = guest.program(program).unwrap();
    }
    let output = guest.script(include_str!("../vm/keepalived.sh")).run(LIMIT).unwrap();
    println!("{}", output.output);
    assert_eq!(output.status, 0, "the script failed; the guest's console:\n{}", output.console);
}
