//! The outer source is a prefix: lbd's traffic and probes from all of it, accepted by the reals' guards. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{SOON, Service};
use lbd::model::Health;
use nix::sys::signal::Signal;
use std::{collections::BTreeSet, fs, net::Ipv4Addr, process::Command};
use tests::lab::{Host, Packet, binary, run};

const PREFIX: &str = "198.18.222.0/30";

fn prefix() -> BTreeSet<Ipv4Addr> {
    (0..4).map(|last| Ipv4Addr::new(198, 18, 222, last)).collect()
}

/// Reals that let only the prefix tunnel, a router and an LB that know where it is, and lbd that sends from it.
fn up(test: &str) -> Service {
    let mut service = Service::up(test);
    let lb = service.lab.lb().addr();
    service.lab.router().run(&format!("ip route add {PREFIX} via {lb}")).unwrap();
    service.lab.lb().run(&format!("ip route add local {PREFIX} dev lo")).unwrap();
    service.lbd.signal(Signal::SIGTERM).unwrap();
    assert!(service.lbd.wait(SOON).unwrap().success());
    for real in service.lab.reals() {
        run(&mut setup(&service, real)).unwrap();
    }
    let config = service.lab.lbd().config;
    let written = fs::read_to_string(&config).unwrap();
    let address = format!("outer_source = \"{lb}\"");
    assert!(written.contains(&address), "{written}");
    fs::write(config, written.replace(&address, &format!("outer_source = \"{PREFIX}\""))).unwrap();
    service.restart();
    for real in 1..=3 {
        service.wait_for_state(real, Health::Up);
    }
    service
}

fn setup(service: &Service, real: &Host) -> Command {
    let mut command = real.command(binary("realsrv-setup").unwrap());
    command.args(["apply", "--vip", &service.lab.vip().to_string(), "--lb-source", PREFIX]);
    command.arg("--state-dir").arg(real.dir().join("realsrv-setup"));
    command
}

/// The outer sources of the packets in a tunnel that are the probes', which die at the real, or the traffic's.
fn outer_sources(packets: &[Packet], probes: bool) -> BTreeSet<Ipv4Addr> {
    let tunnelled = packets.iter().filter(|packet| packet.inner().is_some_and(|inner| (inner.ttl == 1) == probes));
    tunnelled.map(|packet| packet.ip().unwrap().source).collect()
}

#[test]
fn traffic_and_probes_come_from_every_address_of_the_prefix() {
    let service = up("prefix");
    let captures: Vec<_> =
        (1..=3).map(|n| service.lab.real(n).unwrap().pcap("eth0", "ip proto 4", "tunnel.pcap").unwrap()).collect();
    // Each is answered: what comes from any address of the prefix passes the guard.
    let answered = service.requests(150);
    assert!(answered[..3].iter().all(|&n| n > 0), "{answered:?}");
    for (capture, real) in captures.into_iter().zip(1..) {
        let probed = |packets: &[Packet]| outer_sources(packets, true).len() == prefix().len();
        capture.wait_for("a turn of the probes", SOON, probed).unwrap();
        let packets = capture.stop().unwrap();
        assert_eq!((outer_sources(&packets, true), outer_sources(&packets, false)), (prefix(), prefix()), "real{real}");
        assert_eq!(service.row(real).state, Health::Up);
    }
}

#[test]
fn one_shot_takes_turns_in_the_prefix_and_hears_of_errors_about_its_tunnel() {
    let mut service = up("one-shot");
    // Its probes would get errors about tunnels as well.
    service.lbd.signal(Signal::SIGTERM).unwrap();
    assert!(service.lbd.wait(SOON).unwrap().success());
    let real = service.lab.real(2).unwrap();
    let lb = service.lab.lb();
    let check = |count: &str| {
        let mut command = lb.command(binary("hc-prober").unwrap());
        command.args(["check", "--real", &real.addr().to_string(), "--vip", &service.lab.vip().to_string()]);
        command.args(["--tcp", "80", "--timeout", "300ms", "--rate", "20", "--source", PREFIX, "--count", count]);
        let output = command.args(["-o", "json"]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    assert_eq!((&check("8")["passed"], &check("8")["failed"]), (&8.into(), &0.into()));

    // Of eight checks, two come from each address.
    let rule = |verb| drop(service.lab.router().run(&format!("ip rule {verb} from 198.18.222.3 blackhole")).unwrap());
    rule("add");
    let found = check("8");
    rule("del");
    assert_eq!((&found["passed"], &found["failed"]), (&6.into(), &2.into()), "{found}");

    run(&mut service.lab.realsrv_setup(real, "remove").unwrap()).unwrap();
    let found = check("4");
    assert_eq!((&found["failed"], &found["counters"]["evidence"]), (&4.into(), &4.into()), "{found}");
    assert!(found["detail"].as_str().unwrap().contains("quoting the tunnel"), "{found}");
}
