# shellcheck shell=bash disable=SC2154  # test_needs, namespace_needs and bpf_target are run's
# The suites of ./run test, which sources this. Each is a function: it succeeds or fails, and its output holds the lines
# `test result: …` that are counted. A suite that ran nothing has failed.

suites=(fmt clippy clippy_bpf doc deny symbols unit packet namespace package bench vm fuzz)
declare -A about=(
    [fmt]="rustfmt has nothing to change"
    [clippy]="no lint on the host's code"
    [clippy_bpf]="no lint on the BPF programs"
    [doc]="the documentation builds without warnings"
    [deny]="licences, banned crates and sources of the dependencies"
    [symbols]="no BPF object holds a panic"
    [unit]="unit, property and documentation tests"
    [packet]="packets through the real BPF programs"
    [namespace]="end to end, in network namespaces (root)"
    [package]="the Debian packages installed, used, upgraded, removed and purged on a clean Debian 12 (root)"
    [bench]="every bench runs, briefly, and its counters agree (root)"
    [vm]="on Debian's stock kernel, in a VM"
    [fuzz]="each fuzz target for a while"
)

test_main() { # [--long|--list] [SUITE…]
    local chosen=() word
    for word; do
        case $word in
            --long) export LBD_TEST_LONG=1 ;;
            --list)
                list_suites
                return
                ;;
            *) [[ -n ${about[$word]:-} ]] || die "no suite is called \`$word\`: ${suites[*]}"
                chosen+=("$word") ;;
        esac
    done
    [[ ${#chosen[@]} != 0 ]] || chosen=("${suites[@]}")
    prepare_tests "${chosen[@]}"
    run_suites "${chosen[@]}"
}

list_suites() {
    local suite
    for suite in "${suites[@]}"; do printf '%-11s %s\n' "$suite" "${about[$suite]}"; done
}

# Only what the chosen suites need.
prepare_tests() { # SUITE…
    prepare_build
    case " $* " in *" deny "*) cargo_tool cargo-deny 0.20.2 ;; esac
    case " $* " in *" packet "* | *" namespace "* | *" package "* | *" bench "*) prepare_lab ;; esac
    case " $* " in *" namespace "*) need "${namespace_needs[@]}" && need_unpacked "${unpacked_needs[@]}" ;; esac
    case " $* " in *" package "*) prepare_package && need "${package_needs[@]}" ;; esac
    case " $* " in *" symbols "* | *" vm "* | *" fuzz "*) need "${test_needs[@]}" ;; esac
}

run_suites() { # SUITE…
    local suite log began status passed failed skipped all_passed=0 all_failed=0 all_skipped=0 failures=()
    log=$(mktemp)
    for suite; do
        printf '\n== %s: %s\n' "$suite" "${about[$suite]}"
        began=$SECONDS status=0
        "suite_$suite" 2>&1 | tee "$log" || status=1
        read -r passed failed skipped < <(tally "$log")
        if [[ $((passed + failed)) == 0 && $status == 0 ]]; then
            echo "$suite ran nothing"
            status=1
        fi
        # Something failed outside of any test: a build, or a test that took its whole program down.
        [[ $status == 0 || $failed != 0 ]] || failed=1
        [[ $failed == 0 ]] || failures+=("$suite")
        echo "-- $suite: $passed passed, $failed failed, $skipped skipped in $((SECONDS - began)) s"
        ((all_passed += passed, all_failed += failed, all_skipped += skipped)) || true
    done
    rm -f "$log"
    echo
    [[ $all_skipped == 0 ]] || echo "$all_skipped skipped"
    [[ ${#failures[@]} == 0 ]] || echo "failed: ${failures[*]}"
    echo "$all_passed passed, $all_failed failed"
    [[ $all_failed == 0 ]]
}

# Sums cargo's lines `test result: ok. 5 passed; 0 failed; 1 ignored; …` and the fuzzer's, one a target.
tally() { # LOG
    awk '/^test result: / { passed += $4; failed += $6; skipped += $8 }
         / executions in [0-9]+ s/ { passed++ }
         END { print passed + 0, failed + 0, skipped + 0 }' "$1"
}

# One command that is a test by itself.
check() { # NAME COMMAND…
    if "${@:2}"; then
        echo "test $1 ... ok"
        echo "test result: ok. 1 passed; 0 failed; 0 ignored"
    else
        echo "test $1 ... FAILED"
        echo "test result: FAILED. 0 passed; 1 failed; 0 ignored"
        return 1
    fi
}

suite_fmt() { check fmt cargo fmt --all --check; }
suite_clippy() { check clippy cargo clippy --locked --workspace --all-targets -- -D warnings; }
suite_doc() { RUSTDOCFLAGS=-Dwarnings check doc cargo doc --locked --workspace --no-deps; }
suite_deny() { check deny cargo-deny check licenses bans sources; }

# The flags and the target directory of lb-ebpf/build.rs.
suite_clippy_bpf() {
    local build_std=()
    [[ -z ${RUSTUP_TOOLCHAIN:-} ]] || build_std=(-Zbuild-std=core)
    RUSTC_BOOTSTRAP=1 \
        RUSTFLAGS="-Cdebuginfo=2 -Clink-arg=--btf -Ctarget-cpu=v3 -Ctarget-feature=+allows-misaligned-mem-access" \
        check clippy_bpf cargo clippy --locked "${build_std[@]}" --package lb-ebpf --features bpf --bins --profile bpf \
        --target "$bpf_target" --target-dir target/bpf -- -D warnings
}

# A bounds check that the compiler could not remove calls core::panicking, and the kernel refuses the object.
suite_symbols() {
    local source failed=0
    cargo build --locked --workspace || return
    for source in lb-ebpf/src/bin/*; do
        check "$source" no_panic "target/bpf/$bpf_target/bpf/$(basename "$source" .rs)" || failed=1
    done
    return $failed
}

no_panic() { # OBJECT
    local symbols
    symbols=$(readelf --symbols --wide "$1") && [[ -n $symbols ]] || return
    ! grep panicking <<<"$symbols"
}

suite_unit() {
    cargo test --locked --workspace --no-fail-fast --lib --bins && cargo test --locked --workspace --no-fail-fast --doc
}
suite_packet() { integration packet; }
suite_namespace() { integration namespace; }
# Two revisions of one build: what an upgrade is, to the package manager.
suite_package() {
    package dev target/package-test 1 && package dev target/package-test 2 && integration package
}
suite_bench() {
    local subject failed=0
    cargo build --locked --workspace --bins || return
    for subject in packet prober probe wire flows scale; do
        check "bench $subject" target/debug/bench "$subject" --smoke || failed=1
    done
    return $failed
}
suite_vm() { integration vm; }
suite_fuzz() {
    local seconds=5
    [[ -z ${LBD_TEST_LONG:-} ]] || seconds=120
    tests/fuzz/run $seconds
}

# A file in some crate's tests/ belongs to the suite whose name it begins with, otherwise to `namespace`:
# so none is forgotten. One test at a time, since they load this machine and measure times; guests are machines of their own, of
# one CPU each.
integration() { # SUITE
    local file name suite targets=() profile=() threads=1
    [[ $1 != vm ]] || threads=2
    for file in */tests/*.rs; do
        name=$(basename "$file" .rs)
        case $name in
            packet*) suite=packet ;;
            package*) suite=package ;;
            vm*) suite=vm ;;
            *) suite=namespace ;;
        esac
        [[ $suite != "$1" ]] || targets+=(--test "$name")
    done
    # Without any, cargo would run all tests.
    [[ ${#targets[@]} != 0 ]] || return 0
    # In a debug build most of the time of the longest goes to the test itself.
    [[ $1 != packet || -z ${LBD_TEST_LONG:-} ]] || profile=(--release)
    cargo build --locked --workspace --bins "${profile[@]}" &&
        cargo test --locked --workspace --no-fail-fast "${profile[@]}" "${targets[@]}" -- --test-threads=$threads
}
