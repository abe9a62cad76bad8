//! What keeps probes from leaving this host is no real's failure, whatever the kernel calls it. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, a panic is the message"
)]

mod common;

use std::time::Duration;

use common::{Net, V4, V6, inside};
use hc_prober::{Check, CheckKey, CheckStatus, Condition, Kind, Prober, Settings, State, Timing};
use tokio::time::{Instant, sleep};

const TIMING: Timing = Timing {
    interval: Duration::from_millis(100),
    timeout: Duration::from_millis(100),
    fast_interval: Duration::from_millis(20),
    rise: 2,
    fall: 2,
};

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A fault on the load balancer, how it is made and mended, and what the kernel then answers to a probe.
struct Fault {
    name: &'static str,
    make: &'static [&'static str],
    mend: &'static [&'static str],
    errno: [i32; 2],
}

const FAULTS: [Fault; 6] = [
    Fault {
        name: "no route",
        make: &["ip route flush table main", "ip -6 route flush table main"],
        mend: &[
            "ip route add 198.18.7.0/30 dev v0",
            "ip route add default via 198.18.7.2",
            "ip -6 route add fd00:7::/64 dev v0",
        ],
        errno: [libc::ENETUNREACH; 2],
    },
    Fault {
        name: "unreachable route",
        make: &["ip route add unreachable 198.18.7.2", "ip -6 route add unreachable fd00:7::2 metric 1"],
        mend: &["ip route del unreachable 198.18.7.2", "ip -6 route del unreachable fd00:7::2 metric 1"],
        errno: [libc::EHOSTUNREACH; 2],
    },
    Fault {
        name: "prohibited route",
        make: &["ip route add prohibit 198.18.7.2", "ip -6 route add prohibit fd00:7::2 metric 1"],
        mend: &["ip route del prohibit 198.18.7.2", "ip -6 route del prohibit fd00:7::2 metric 1"],
        errno: [libc::EACCES; 2],
    },
    Fault {
        name: "filtered on the way out",
        make: &[
            "nft add table inet fault",
            "nft add chain inet fault out { type filter hook output priority 0; policy accept; }",
            "nft add rule inet fault out meta l4proto { 4, 41 } drop",
        ],
        mend: &["nft delete table inet fault"],
        errno: [libc::EPERM; 2],
    },
    Fault {
        name: "queue full",
        // With known neighbours: no packet waits for an address instead.
        make: &[
            "ip neigh replace 198.18.7.2 lladdr 02:00:00:00:00:07 dev v0",
            "ip neigh replace fd00:7::2 lladdr 02:00:00:00:00:07 dev v0",
            "tc qdisc add dev v0 root pfifo limit 0",
        ],
        mend: &["tc qdisc del dev v0 root", "ip neigh del 198.18.7.2 dev v0", "ip neigh del fd00:7::2 dev v0"],
        errno: [libc::ENOBUFS; 2],
    },
    Fault {
        name: "device down",
        make: &["ip link set v0 down"],
        mend: &[
            "ip link set v0 up",
            "ip route replace default via 198.18.7.2",
            "ip -6 addr replace fd00:7::1/64 dev v0 nodad",
        ],
        errno: [libc::ENETUNREACH; 2],
    },
];

fn apply(net: &Net, lines: &[&str]) {
    for line in lines {
        Net::run(&net.lb, &line.split_whitespace().collect::<Vec<_>>());
    }
}

/// The answer of the prober, once it is so.
async fn until(prober: &Prober, what: &str, so: impl Fn(&[CheckStatus], Condition) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = prober.status().await;
        if so(&status, prober.condition()) {
            return;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}: {:?} {status:#?}", prober.condition());
        sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn probe_that_cannot_leave_is_a_fault_of_ours_and_never_a_verdict() {
    let net = Net::new();
    let (prober, mut transitions) =
        inside(&net.lb, || Prober::start(Settings::new(vec!["v0".into()]).unwrap()).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let check = |(real, target)| Check { key: CheckKey::new(real, target, Kind::Icmp), timing: TIMING };
        prober.set_checks(vec![check(V4), check(V6)]);
        let all_up = |status: &[CheckStatus], condition| {
            status.iter().all(|check| check.state == State::Up && check.rtt.is_some())
                && condition == Condition::Running
        };
        until(&prober, "both up", all_up).await;
        while transitions.try_recv().is_ok() {}
        for Fault { name, make, mend, errno } in FAULTS {
            let before = prober.counters().await;
            apply(&net, make);
            until(&prober, name, |status, condition| {
                let told = status.iter().zip(errno).all(|(check, errno)| {
                    let error = std::io::Error::from_raw_os_error(errno).to_string();
                    check.detail.as_ref().is_some_and(|detail| detail.contains(error.split(" (os").next().unwrap()))
                });
                told && condition == Condition::NotSending
            })
            .await;
            let (during, status) = (prober.counters().await, prober.status().await);
            assert!(during.send_errors > before.send_errors + 10, "{name}: {during:?}");
            assert_eq!(during.unknown - before.unknown, during.send_errors - before.send_errors, "{name}");
            assert!(status.iter().all(|check| check.state == State::Up && check.fall < 2), "{name}: {status:#?}");
            assert!(
                status.iter().all(|check| check.last_run.unwrap().elapsed().unwrap() > Duration::from_millis(900)),
                "{name}: `last_run` is when a probe left: {status:#?}"
            );
            apply(&net, mend);
            until(&prober, name, all_up).await;
            assert!(transitions.try_recv().is_err(), "{name}");
        }
    });
}
