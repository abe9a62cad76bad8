//! What needs a stock kernel: Debian 12's 6.1 in a VM, whatever the host runs.

use std::time::Duration;

use tests::vm::{Kernel, Vm};

/// Under TCG on a busy machine a guest boots in 5 to 15 s.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn stock_kernel_booted_has_ipip_and_loads_every_bpf_program() {
    let kernel = Kernel::debian().unwrap();
    assert!(kernel.release().starts_with("6.1."), "Debian 12's kernel, not {}", kernel.release());
    let guest = Vm::new(kernel.clone()).unwrap().program(env!("CARGO_BIN_EXE_bpf_load_check")).unwrap();
    let output = guest.script(include_str!("../vm/boot.sh")).run(LIMIT).unwrap();
    println!("{}", output.output);
    assert_eq!(output.status, 0, "{}", output.console);
    assert!(output.output.contains(kernel.release()));
    for object in ["load_balancer/", "probe_capture/", "decap/"] {
        assert!(output.output.contains(object), "no program of {object}");
    }
}
