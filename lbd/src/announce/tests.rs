//! Against the real kernel, in network namespaces that end with the threads that made them. They need root.

use std::{net::IpAddr, process::Command, time::Duration};

use nix::sched::{CloneFlags, unshare};

use super::{Change, Claim, RouteError, Routes, watch, withdraw};
use crate::config::Announce;

const PROTOCOL: u8 = 201;

/// Runs `test` in a fresh namespace on a thread of its own, so that no other thread is ever inside it.
fn in_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        ip("link set lo up");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `ip` in the namespace of the calling thread.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn addresses() -> [IpAddr; 2] {
    ["198.19.10.1", "fd00:19:10::1"].map(|address| address.parse().unwrap())
}

#[test]
fn routes_of_both_families_come_and_go_in_small_and_large_tables() {
    for table in [199, 100_000] {
        in_namespace(async move || {
            let routes = Routes::open(table, PROTOCOL).unwrap();
            assert!(routes.list().await.unwrap().is_empty(), "no such table yet");
            for address in addresses() {
                routes.add(address).await.unwrap();
            }
            assert_eq!(routes.list().await.unwrap(), addresses().into());
            let shown = [ip(&format!("-4 route show table {table}")), ip(&format!("-6 route show table {table}"))];
            assert!(shown[0].starts_with("blackhole 198.19.10.1 proto 201"), "{shown:?}");
            assert!(shown[1].starts_with("blackhole fd00:19:10::1 ") && shown[1].contains("proto 201"), "{shown:?}");
            for address in addresses() {
                routes.delete(address).await.unwrap();
                routes.delete(address).await.unwrap();
            }
            assert!(routes.list().await.unwrap().is_empty());
        });
    }
}

#[test]
fn routes_of_others_are_neither_listed_nor_replaced_nor_deleted() {
    in_namespace(async || {
        for address in addresses() {
            ip(&format!("route add blackhole {address} table 199 proto static"));
            ip(&format!("route add blackhole {address} table 200 proto {PROTOCOL}"));
        }
        ip(&format!("route add blackhole 198.19.11.0/24 table 199 proto {PROTOCOL}"));
        let routes = Routes::open(199, PROTOCOL).unwrap();
        assert!(routes.list().await.unwrap().is_empty());
        for address in addresses() {
            assert!(matches!(routes.add(address).await, Err(RouteError::Foreign { table: 199, .. })));
            routes.delete(address).await.unwrap();
        }
        assert_eq!(ip("-4 route show table 199").lines().count() + ip("-6 route show table 199").lines().count(), 3);
    });
}

#[test]
fn delete_leaves_none_of_ours_whatever_its_type_and_metric() {
    in_namespace(async || {
        for address in addresses() {
            ip(&format!("route add unreachable {address} table 199 proto {PROTOCOL}"));
            ip(&format!("route add blackhole {address} table 199 proto {PROTOCOL} metric 7"));
            ip(&format!("route add blackhole {address} table 199 proto static metric 9"));
        }
        let routes = Routes::open(199, PROTOCOL).unwrap();
        for address in addresses() {
            routes.add(address).await.unwrap();
            routes.delete(address).await.unwrap();
        }
        assert_eq!(routes.list().await.unwrap(), [].into());
        for family in ["-4", "-6"] {
            let left = ip(&format!("{family} route show table 199"));
            assert!(left.lines().count() == 1 && left.contains("proto static"), "{left}");
        }
    });
}

#[test]
fn table_and_protocol_are_one_process_s_in_a_namespace() {
    in_namespace(async || {
        let claim = Claim::of(199, PROTOCOL).unwrap();
        assert!(matches!(Claim::of(199, PROTOCOL), Err(RouteError::Claimed { table: 199, protocol: PROTOCOL })));
        Claim::of(200, PROTOCOL).unwrap();
        Claim::of(199, PROTOCOL + 1).unwrap();
        drop(claim);
        Claim::of(199, PROTOCOL).unwrap();
    });
}

#[test]
fn withdrawal_deletes_all_of_ours_and_none_while_somebody_announces() {
    in_namespace(async || {
        let announce = Announce::with(199, PROTOCOL).unwrap();
        for address in addresses() {
            ip(&format!("route add unreachable {address} table 199 proto {PROTOCOL}"));
        }
        let claim = Claim::of(199, PROTOCOL).unwrap();
        assert!(matches!(withdraw(announce).await, Err(RouteError::Claimed { .. })));
        drop(claim);
        let withdrawn = withdraw(announce).await.unwrap();
        assert_eq!((withdrawn.gone, withdrawn.left.len()), (addresses().to_vec(), 0));
        assert!(Routes::open(199, PROTOCOL).unwrap().list().await.unwrap().is_empty());
    });
}

#[test]
fn watch_tells_of_host_routes_of_its_table_and_whose_they_are() {
    in_namespace(async || {
        let mut changes = watch(199, PROTOCOL).unwrap();
        for line in [
            "route add blackhole 198.19.10.9 table 200 proto 201",
            "route add blackhole 198.19.11.0/24 table 199 proto 201",
            "route add blackhole 198.19.10.1 table 199 proto 201",
            "route replace blackhole 198.19.10.1 table 199 proto static",
            "-6 route add blackhole fd00:19:10::1 table 199 proto 201",
            "-6 route del blackhole fd00:19:10::1 table 199",
        ] {
            ip(line);
        }
        let [v4, v6] = addresses();
        let change = |address, ours, added| Change::Route { address, ours, added };
        for expected in
            [change(v4, true, true), change(v4, false, true), change(v6, true, true), change(v6, true, false)]
        {
            let told = tokio::time::timeout(Duration::from_secs(2), changes.recv()).await;
            assert_eq!(told.ok().flatten(), Some(expected));
        }
    });
}

#[test]
fn watch_says_when_it_has_lost_changes() {
    in_namespace(async || {
        let mut changes = watch(199, PROTOCOL).unwrap();
        let line = |n| format!("route add blackhole 198.19.{}.{} table 199 proto 201", 20 + n / 200, n % 200);
        let flood = (0..5000).map(line).collect::<Vec<_>>().join("\n");
        let mut batch = Command::new("ip").args(["-batch", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut batch.stdin.take().unwrap(), flood.as_bytes()).unwrap();
        // Nobody reads meanwhile: this runtime has one thread, and it is here.
        assert!(batch.wait().unwrap().success());
        let mut lost = false;
        while let Ok(Some(change)) = tokio::time::timeout(Duration::from_millis(200), changes.recv()).await {
            lost |= change == Change::Lost;
        }
        assert!(lost);
    });
}
