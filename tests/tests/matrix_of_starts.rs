//! The table of starting states in network namespaces, with the eBPF decapsulator. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../../realsrv-setup/tests/lab/mod.rs"]
mod lab;
mod matrix;
mod traffic;

#[test]
fn every_start_is_provisioned_serves_is_mended_and_comes_back() {
    matrix::run(false, |_| true, &["ebpf"]);
}
