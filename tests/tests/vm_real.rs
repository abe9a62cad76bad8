//! What needs the tunnels of a stock kernel: Debian 12's 6.1 in a VM, whatever the host runs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../../realsrv-setup/tests/faults/mod.rs"]
mod faults;
mod guest;
#[path = "../../realsrv-setup/tests/lab/mod.rs"]
mod lab;
mod matrix;
mod traffic;

use std::time::Duration;

use faults::rounds;
use guest::on_stock_kernel;
use lab::Lab;

/// Minutes, under TCG on a quiet machine; hours in a long run.
fn limit() -> Duration {
    if is_long() { Duration::from_hours(4) } else { Duration::from_mins(20) }
}

fn is_long() -> bool {
    std::env::var_os("LBD_TEST_LONG").is_some()
}

#[test]
fn every_start_on_a_stock_kernel_is_provisioned_serves_is_mended_and_comes_back() {
    const NAME: &str = "every_start_on_a_stock_kernel_is_provisioned_serves_is_mended_and_comes_back";
    on_stock_kernel(NAME, limit(), || matrix::run(true, |start| start.telling, &["ipip", "ebpf"]));
}

/// Kernel tunnels: more steps, and modules that come and go. `remove` goes the same way in namespaces, so here only in a long
/// run.
#[test]
fn a_failure_at_any_step_with_kernel_tunnels_leaves_or_restores_the_host() {
    const NAME: &str = "a_failure_at_any_step_with_kernel_tunnels_leaves_or_restores_the_host";
    on_stock_kernel(NAME, limit(), || {
        faults::failures_of_apply(rounds("ipip"));
        if is_long() {
            faults::failures_of_remove(rounds("ipip"));
        }
    });
}

#[test]
fn a_kill_at_any_step_with_kernel_tunnels_is_undone_or_finished() {
    const NAME: &str = "a_kill_at_any_step_with_kernel_tunnels_is_undone_or_finished";
    on_stock_kernel(NAME, limit(), || {
        faults::kills_of_apply(rounds("ipip"));
        if is_long() {
            faults::kills_of_remove(rounds("ipip"));
        }
    });
}

/// What arrives at a port of a VRF reaches the kernel's tunnels, too; what arrives at a port of a bridge is the bridge's.
#[test]
fn guard_is_on_the_ports_of_a_vrf_and_not_on_those_of_a_bridge() {
    const NAME: &str = "guard_is_on_the_ports_of_a_vrf_and_not_on_those_of_a_bridge";
    on_stock_kernel(NAME, Duration::from_mins(5), || {
        let lab = Lab::new();
        lab.in_real("ip link add owner1 type vrf table 77; ip link add owner2 type bridge");
        lab.in_real(
            "for n in 1 2; do ip link add port$n type veth peer name far$n; ip link set port$n master owner$n; \
             ip link set owner$n up; ip link set port$n up; ip link set far$n up; done",
        );
        let before = lab.snapshot();
        lab.setup_exits("apply --decap ipip --vip 198.19.10.1 --lb-source 198.18.1.1", 0);
        for (device, guarded) in [("port1", true), ("port2", false), ("owner2", true), ("far1", true)] {
            let filters = lab.in_real(&format!("tc filter show dev {device} ingress"));
            assert_eq!(filters.contains("lb_guard"), guarded, "{device}: {filters}");
        }
        lab.setup_exits("remove", 0);
        lab.assert_as(&before);
    });
}

/// Strict on the tunnel; and loose, where the tunnel has no address.
#[test]
fn reverse_path_filter_of_the_tunnel_is_suspected_by_the_proof() {
    const NAME: &str = "reverse_path_filter_of_the_tunnel_is_suspected_by_the_proof";
    on_stock_kernel(NAME, Duration::from_mins(5), || {
        let lab = Lab::new();
        for broken in ["echo 1 > /proc/sys/net/ipv4/conf/tunl0/rp_filter", "ip addr del 127.0.0.42/32 dev tunl0"] {
            lab.setup_exits("apply --decap ipip --vip 198.19.10.1", 0);
            lab.in_real(broken);
            let text = lab.setup_exits("check --verify", 1);
            assert!(text.contains("RPF_SUSPECT"), "{broken}: {text}");
        }
    });
}

/// Also the way in for those that are to be killed.
#[test]
fn a_run_without_a_fault_succeeds() {
    const NAME: &str = "a_run_without_a_fault_succeeds";
    on_stock_kernel(NAME, Duration::from_mins(5), || faults::run_without_a_fault("ipip"));
}
