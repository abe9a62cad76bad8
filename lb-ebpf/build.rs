//! Compiles this package's own BPF binaries for user space to embed (feature `user`).
//!
//! The toolchain is the first of these that can build for the BPF target:
//! 1. Debian's `rustc` with `libstd-rust-web-dev-bpf` (a prebuilt `core`),
//! 2. rustup's nightly with `rust-src` (`-Zbuild-std=core`).

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const OBJECTS: [&str; 8] =
    ["load_balancer", "map_reader", "probe_capture", "decap", "proof", "xdp_pass", "bench_packet", "bench_wire"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=Cargo.toml");
    println!("cargo::rerun-if-changed=build.rs");
    let for_bpf = env::var("CARGO_CFG_TARGET_ARCH")? == "bpf";
    if for_bpf || env::var_os("CARGO_FEATURE_USER").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = shared_target_dir(&out)?;
    let status = toolchain()?
        .args(["build", "--package", "lb-ebpf", "--features", "bpf", "--bins"])
        .args(["--profile", "bpf", "--target", TARGET, "--locked"])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(env::var("CARGO_MANIFEST_DIR")?)
        .status()?;
    if !status.success() {
        return Err(format!("building the BPF objects failed ({status}); its output is above").into());
    }
    for name in OBJECTS {
        let object = target_dir.join(TARGET).join("bpf").join(name);
        std::fs::copy(&object, out.join(name)).map_err(|e| format!("{}: {e}", object.display()))?;
    }
    Ok(())
}

/// One BPF target directory for all host profiles: `<target>/bpf`, beside `<target>/debug`, or that of another workspace,
/// which has the same objects.
fn shared_target_dir(out: &Path) -> Result<PathBuf, String> {
    println!("cargo::rerun-if-env-changed=LB_EBPF_TARGET_DIR");
    if let Some(other) = env::var_os("LB_EBPF_TARGET_DIR") {
        return Ok(other.into());
    }
    // <target>/<profile>/build/<package>-<hash>/out
    let target = out.ancestors().nth(4).ok_or("OUT_DIR is not inside a target directory")?;
    Ok(target.join("bpf"))
}

/// A `cargo` command whose compiler can build for the BPF target.
fn toolchain() -> Result<Command, String> {
    let flags =
        ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3", "-Ctarget-feature=+allows-misaligned-mem-access"];
    let mut cargo = if debian_has_bpf_core() {
        let mut cargo = Command::new("/usr/bin/cargo");
        cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        cargo
    } else if nightly_has_rust_src() {
        let mut cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo"]).args(["-Zbuild-std=core"]).env_remove("RUSTC");
        cargo
    } else {
        return Err(
            "no Rust compiler for the BPF target: install Debian's rustc-web, cargo-web and libstd-rust-web-dev-bpf \
                    (./run does), or rustup's nightly with the component rust-src"
                .into(),
        );
    };
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // What cargo set for the host build does not hold for this one.
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTDOC")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO_BUILD_TARGET");
    Ok(cargo)
}

fn debian_has_bpf_core() -> bool {
    sysroot(Command::new("/usr/bin/rustc"))
        .is_some_and(|root| root.join("lib/rustlib").join(TARGET).join("lib").is_dir())
}

fn nightly_has_rust_src() -> bool {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", "nightly", "rustc"]);
    sysroot(rustc).is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
