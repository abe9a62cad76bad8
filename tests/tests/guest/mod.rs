//! Runs a test of this very program once more in a VM with Debian's stock kernel, which has the tunnels that the host's
//! kernel may lack. The guest finds this program and those that it starts at the same paths.

use std::{env, path::Path, time::Duration};

use tests::vm::{Kernel, Vm};

use crate::lab::binary;

/// Set in the guest.
const IN_GUEST: &str = "REALSRV_SETUP_GUEST";
const LONG: &str = "LBD_TEST_LONG";

/// What the lab starts besides what every guest has.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("/usr/bin/bash", &["/usr/bin/bash", "/bin/bash"]),
    ("/usr/bin/nsenter", &["/usr/bin/nsenter"]),
    ("/usr/bin/find", &["/usr/bin/find"]),
    ("/usr/sbin/ethtool", &["/usr/sbin/ethtool", "/sbin/ethtool"]),
];

/// `test` is the name of the test that calls this, `limit` what the guest may take under TCG.
pub(crate) fn on_stock_kernel(test: &str, limit: Duration, work: impl FnOnce()) {
    if env::var_os(IN_GUEST).is_some() {
        return work();
    }
    let this = env::current_exe().unwrap();
    let mut guest = Vm::new(Kernel::debian().unwrap()).unwrap();
    for (path, candidates) in PROGRAMS {
        let host = candidates.iter().find(|path| Path::new(path).exists()).unwrap_or_else(|| panic!("no {path}"));
        guest = guest.program_at(host, path).unwrap();
    }
    for path in [&this, &binary("realsrv-setup"), &binary("hc-prober")] {
        guest = guest.program_at(path, path).unwrap();
    }
    let long = if env::var_os(LONG).is_some() { format!("export {LONG}=1\n") } else { String::new() };
    let script = format!("export {IN_GUEST}=1\n{long}exec '{}' --exact {test} --nocapture\n", this.display());
    let output = guest.script(&script).run(limit).unwrap();
    println!("{}", output.output);
    assert_eq!(output.status, 0, "it failed in the guest, whose console says:\n{}", output.console);
    assert!(output.output.contains("1 passed"), "the guest ran no test");
}
