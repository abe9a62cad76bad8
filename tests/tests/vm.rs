//! What needs a stock kernel: Debian 12's 6.1 in a VM, whatever the host runs.

use std::time::Duration;

use tests::{
    lab::binary,
    vm::{Kernel, Output, Vm, VmError},
};

/// A guest boots in 5 to 15 s under TCG; an unoptimised loader reads the kernel's types in as long again, each time.
const LIMIT: Duration = Duration::from_mins(5);

#[test]
fn stock_kernel_booted_has_ipip_and_loads_every_bpf_program() {
    let kernel = Kernel::debian().unwrap();
    assert!(kernel.release().starts_with("6.1."), "Debian 12's kernel, not {}", kernel.release());
    let guest = Vm::new(kernel.clone()).unwrap().program(env!("CARGO_BIN_EXE_bpf_load_check")).unwrap();
    let output = passed(guest.script(include_str!("../vm/boot.sh"))).unwrap();
    assert!(output.output.contains(kernel.release()));
    for object in ["load_balancer/", "map_reader/", "probe_capture/", "decap/", "proof/", "xdp_pass/"] {
        assert!(output.output.contains(object), "no program of {object}");
    }
}

#[test]
fn real_with_stock_ipip_is_provisioned_checked_and_left_as_found() {
    let mut guest = Vm::new(Kernel::debian().unwrap()).unwrap().program(env!("CARGO_BIN_EXE_udp_echo")).unwrap();
    for program in ["realsrv-setup", "hc-prober"] {
        guest = guest.program(binary(program).unwrap()).unwrap();
    }
    passed(guest.script(include_str!("../vm/real_ipip.sh"))).unwrap();
}

#[test]
fn real_with_stock_ip6_tunnel_is_provisioned_checked_and_left_as_found() {
    let guest = Vm::new(Kernel::debian().unwrap()).unwrap().program(binary("realsrv-setup").unwrap()).unwrap();
    passed(guest.script(include_str!("../vm/real_ip6_tunnel.sh"))).unwrap();
}

#[test]
fn real_with_stock_tunnels_broken_in_each_way_is_diagnosed() {
    let mut guest = Vm::new(Kernel::debian().unwrap()).unwrap().program("/usr/sbin/nft").unwrap();
    for program in ["hc-prober", "udp_echo"] {
        guest = guest.program(binary(program).unwrap()).unwrap();
    }
    let long = std::env::var_os("LBD_TEST_LONG").is_some();
    let (kinds, pairs) = if long { ("icmp tcp udp", "all") } else { ("tcp", "alike") };
    let asked = format!("kinds_asked='{kinds}' pairs_asked='{pairs}'");
    passed(guest.script(&format!("{asked}\n{}", include_str!("../vm/diagnose.sh")))).unwrap();
}

/// Two guests, since there is no disk: the second is given what the first would have had on it.
#[test]
fn real_with_persist_serves_after_a_reboot() {
    const SCRIPT: &str = include_str!("../vm/real_reboot.sh");
    let guest = || {
        let guest = Vm::new(Kernel::debian().unwrap()).unwrap().script(SCRIPT);
        guest.program(binary("realsrv-setup").unwrap()).unwrap().program(binary("hc-prober").unwrap()).unwrap()
    };
    let first = passed(guest()).unwrap();
    let (_, disk) = first.output.split_once("== disk\n").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), disk).unwrap();
    let second = passed(guest().file(file.path(), "/disk")).unwrap();
    assert!(second.output.contains("every VIP answers through the tunnel"));
}

#[test]
fn uploads_of_large_segments_through_every_tunnel_are_decapsulated_by_the_program() {
    let guest = Vm::new(Kernel::debian().unwrap()).unwrap().program(binary("realsrv-setup").unwrap()).unwrap();
    passed(guest.script(include_str!("../vm/real_ebpf_tunnel.sh"))).unwrap();
}

#[test]
fn guest_whose_kernel_crashes_is_a_fault_without_waiting_for_the_limit() {
    let guest = Vm::new(Kernel::debian().unwrap()).unwrap().script("echo c >/proc/sysrq-trigger");
    let error = guest.run(LIMIT).unwrap_err();
    assert!(matches!(&error, VmError::KernelFault { line, .. } if line.contains("sysrq triggered crash")), "{error}");
}

#[test]
fn guest_past_its_limit_is_killed() {
    let limit = Duration::from_millis(500);
    let error = Vm::new(Kernel::debian().unwrap()).unwrap().script("sleep 1000").run(limit).unwrap_err();
    assert!(matches!(error, VmError::Timeout { .. }), "{error}");
}

/// Runs the guest, shows what it wrote, and requires its script's success.
fn passed(guest: Vm) -> Result<Output, VmError> {
    let limit = if std::env::var_os("LBD_TEST_LONG").is_some() { LIMIT * 4 } else { LIMIT };
    let output = guest.run(limit)?;
    println!("{}", output.output);
    assert_eq!(output.status, 0, "the script failed; the guest's console:\n{}", output.console);
    Ok(output)
}
