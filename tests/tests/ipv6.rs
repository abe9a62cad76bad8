//! The main job over IPv6 tunnels: an IPv6 VIP and an IPv4 one over the same reals. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{Service, apply6, request_to};
use lbd::model::Health;
use std::{collections::BTreeSet, net::IpAddr};
use tests::lab::{VIP, VIP6, run};

const VIPS: [IpAddr; 2] = [IpAddr::V6(VIP6), IpAddr::V4(VIP)];

/// Who answers so many requests.
fn answering(service: &Service, vip: IpAddr) -> BTreeSet<usize> {
    (0..40).map(|_| request_to(service.lab.client(), vip).unwrap()).collect()
}

#[test]
fn requests_to_vips_of_both_families_are_answered_by_every_real_that_is_up() {
    let service = Service::over_ipv6("dual", 3);
    assert!(VIPS.iter().all(|&vip| answering(&service, vip) == BTreeSet::from([1, 2, 3])));

    let real2 = service.lab.real(2).unwrap();
    real2.nginx().stop().unwrap();
    let of_real2 = real2.addr6();
    let is = |state, reason: &'static str| {
        service.wait_for(reason, move |rows| {
            rows.iter().filter(|row| row.real == of_real2).all(|row| row.state == state && row.reason == reason)
        })
    };
    is(Health::Down, "PORT_CLOSED");
    assert!(VIPS.iter().all(|&vip| answering(&service, vip) == BTreeSet::from([1, 3])));
    real2.nginx().start().unwrap();
    is(Health::Up, "L4OK");

    // One of two VIPs is missing on one real: that one alone is down.
    real2.run(&format!("ip addr del {VIP6}/128 dev lo")).unwrap();
    let rows = service.wait_for("the IPv6 VIP of real2 to be down", |rows| {
        rows.iter().any(|row| row.real == of_real2 && row.vip == VIP6 && row.state == Health::Down)
    });
    assert!(rows.iter().filter(|row| row.vip != VIP6 || row.real != of_real2).all(|row| row.state == Health::Up));
    assert_eq!(answering(&service, VIPS[0]), BTreeSet::from([1, 3]));
    assert_eq!(answering(&service, VIPS[1]), BTreeSet::from([1, 2, 3]));
    run(&mut apply6(&service.lab, real2)).unwrap();
    is(Health::Up, "L4OK");
}
