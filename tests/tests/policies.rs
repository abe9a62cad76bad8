//! What lbd does with what its checks and its operators say: policies in service. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a helper that fails fails its test"
)]

mod changes;
mod common;

use changes::{Maps, Operator};
use common::{Requests, SOON, Service, TIMING};
use lbd::model::{Health, RealDetail, RealRow, VipDetail, VipRow, VipState};
use nix::sys::signal::Signal;
use std::{fs, thread};
use tests::lab::wait_for;

fn is_long() -> bool {
    std::env::var_os("LBD_TEST_LONG").is_some()
}

/// A body with tables of VIPs on its stack, which in a debug build are there several times.
fn roomy(body: impl FnOnce() + Send + 'static) {
    thread::Builder::new().stack_size(64 << 20).spawn(body).unwrap().join().unwrap();
}

/// No change is under way: windows are closed, nobody starts slowly, checks have verdicts.
fn wait_until_settled(service: &Service) {
    let settled = || {
        let windows = service.lbctl(&["vip", "list", "-o", "json"])?;
        let rows = service.lbctl(&["real", "list", "-o", "json"])?;
        let vips: Vec<VipRow> = serde_json::from_str(&windows).unwrap();
        let reals: Vec<RealRow> = serde_json::from_str(&rows).unwrap();
        let rests = vips.iter().all(|vip| vip.window_open_until.is_none() && vip.state != VipState::Starting);
        let known = reals.iter().all(|real| real.state != Health::Init && real.ramp_percent.is_none());
        Ok((rests && known).then_some(()))
    };
    wait_for("everything to settle", 3 * SOON, settled).unwrap();
}

#[test]
fn random_changes_leave_the_maps_as_a_fresh_start_makes_them() {
    roomy(|| {
        let mut service = Service::with("changes", 3, 3, &[]);
        let clients = [Requests::start(&service), Requests::start(&service)];
        let number = if is_long() { 100 } else { 40 };
        let mut operator = Operator::new(&service, 7);
        (0..number).for_each(|_| operator.change());
        println!("{number} changes: {:?}", operator.done);
        assert!(operator.done.len() >= 9, "of every kind: {:?}", operator.done);
        wait_until_settled(&service);
        clients.into_iter().for_each(Requests::finish_without_failure);
        let pins = service.lab.pins();
        let (maps, digests) = (Maps::read(&pins), digests(&service));
        assert_eq!(maps.left_over(), [0; 0], "of VIPs that were removed");

        service.lbd.signal(Signal::SIGTERM).unwrap();
        service.lbd.wait(SOON).unwrap();
        service.restart();
        wait_until_settled(&service);
        assert_eq!(digests, self::digests(&service));
        // Not shown: there are 16,384 slots to each VIP.
        assert!(maps.canonical() == Maps::read(&pins).canonical(), "the digests are equal, the maps are not");
        service.requests(20);
    });
}

#[test]
fn removed_vip_leaves_no_ring_and_no_count() {
    roomy(|| {
        let service = Service::with("remove", 1, 1, &[]);
        let one = service.lab.lbd_config(TIMING);
        let (head, vip) = one.split_at(one.find("[[vip]]").unwrap());
        let two = format!("{head}{vip}\n{}", vip.replace("port = 80", "port = 8080"));
        let reload = |text: &str| {
            fs::write(service.lab.lbd().config, text).unwrap();
            service.lbctl(&["reload"]).unwrap();
        };
        let packets = || {
            let rows: Vec<VipRow> =
                serde_json::from_str(&service.lbctl(&["vip", "list", "-o", "json"]).unwrap()).unwrap();
            rows.iter().map(|row| (row.port, row.packets > 0)).collect::<Vec<_>>()
        };
        reload(&two);
        wait_until_settled(&service);
        // Nobody listens there: the real refuses.
        let url = format!("http://{}:8080/", service.lab.vip());
        service.lab.client().http_get(&url).unwrap_err();
        service.requests(1);
        assert_eq!(packets(), [(80, true), (8080, true)]);
        reload(&one);
        assert_eq!(packets(), [(80, true)]);
        let maps = Maps::read(&service.lab.pins());
        assert_eq!(maps.left_over(), [0; 0]);
        assert_eq!(maps.counts_left_over(&service.lab.pins()), [0; 0]);
        service.requests(1);
    });
}

/// Of each VIP's ring.
fn digests(service: &Service) -> Vec<(String, String)> {
    let status = service.status();
    status
        .rings
        .iter()
        .map(|ring| (format!("{} {} {}", ring.vip, ring.protocol, ring.port), ring.digest.clone()))
        .collect()
}

fn configure(service: &Service, settings: &str) {
    let text = service.lab.lbd_config(&format!("{TIMING}\n{settings}"));
    fs::write(service.lab.lbd().config, text).unwrap();
    service.lbctl(&["reload"]).unwrap();
}

fn vip(service: &Service) -> VipDetail {
    let text = service.lbctl(&["vip", "show", &service.lab.vip().to_string(), "-o", "json"]).unwrap();
    <[VipDetail; 1]>::try_from(serde_json::from_str::<Vec<_>>(&text).unwrap()).unwrap().into_iter().next().unwrap()
}

#[test]
fn vip_with_too_few_reals_keeps_them_or_is_unable_and_says_why() {
    let service = Service::up("few");
    configure(&service, "min_healthy = 2");
    for real in [2, 3] {
        service.lab.real(real).unwrap().nginx().stop().unwrap();
        service.wait_for_state(real, Health::Down);
    }
    let row = vip(&service).row;
    assert_eq!((row.state, row.reals_serving, row.min_healthy), (VipState::Kept, 1, 2));
    assert!(service.row(3).share > 0.4, "it was the last to fail");
    configure(&service, "min_healthy = 2\nall_down = \"withdraw\"");
    let detail = vip(&service);
    assert_eq!((detail.row.state, detail.reals.len()), (VipState::Unable, 3));
    assert_eq!(service.requests(20)[0], 20, "what comes is served by the one that is up");
    let text = service.lbctl(&["vip", "show", &service.lab.vip().to_string()]).unwrap();
    assert!(text.contains("unable: 1 serve, 2 must"), "{text}");
    let said = fs::read_to_string(service.lab.lbd().log).unwrap();
    assert!(said.contains("before=\"serving\" after=\"kept\"") && said.contains("after=\"unable\""), "{said}");
    service.lbctl(&["vip", "show", "198.19.10.9"]).unwrap_err();
}

#[test]
fn real_that_comes_and_goes_is_held_down_and_shows_until_when() {
    let service = Service::up("flaps");
    // Longer than the test takes: a reload ends it.
    configure(&service, "hold_down = \"5m\"\nflap_limit = 1");
    let real = service.lab.real(2).unwrap();
    let flap = || {
        real.nginx().stop().unwrap();
        service.wait_for_state(2, Health::Down);
        real.nginx().start().unwrap();
    };
    flap();
    service.wait_for_state(2, Health::Up);
    flap();
    let held = || Ok(service.find_row(2)?.filter(|row| row.held_until.is_some()));
    let row = wait_for("the real to be held down", SOON, held).unwrap();
    assert_eq!((row.state, row.reason.as_str(), row.flaps, row.share), (Health::Down, "HELD_DOWN", 2, 0.0));
    let address = real.addr().to_string();
    let text = service.lbctl(&["real", "show", &address]).unwrap();
    assert!(
        text.contains("UP held down until ") && text.contains("falls from UP to DOWN: 2 of late, 2 in all"),
        "{text}"
    );
    let details: Vec<RealDetail> =
        serde_json::from_str(&service.lbctl(&["real", "show", &address, "-o", "json"]).unwrap()).unwrap();
    assert_eq!(details[0].checks[0].state, Health::Up, "its checks pass");
    assert_eq!(service.requests(20)[1], 0);
    configure(&service, "hold_down = \"0s\"\nflap_limit = 1");
    let row = service.row(2);
    assert_eq!(row.state, Health::Up);
    assert!(row.share > 0.3 && row.held_until.is_none() && row.flaps_total == 2, "{row:?}");
    let said = fs::read_to_string(service.lab.lbd().log).unwrap();
    assert!(said.contains("UP is held down") && said.contains("held down no longer"), "{said}");
}

#[test]
fn real_that_starts_slowly_gets_a_rising_share_until_a_reload_gives_it_all() {
    let service = Service::up("slow");
    configure(&service, "slow_start = \"30s\"");
    let whole = service.row(2).share;
    let real = service.lab.real(2).unwrap();
    real.nginx().stop().unwrap();
    service.wait_for_state(2, Health::Down);
    let download = service.download(4);
    real.nginx().start().unwrap();
    let mut rows = vec![service.wait_for_state(2, Health::Up)];
    let first = rows[0].ramp_percent.unwrap();
    let grown = || {
        let row = service.row(2);
        rows.push(row.clone());
        Ok(row.ramp_percent.is_none_or(|percent| percent >= first + 20).then_some(()))
    };
    wait_for("two steps", 3 * SOON, grown).unwrap();
    for row in &rows {
        let percent = f64::from(row.ramp_percent.unwrap());
        assert!((100.0 * row.share / whole - percent).abs() < 3.0 && row.ramp_until.is_some(), "{row:?}");
    }
    let percents: Vec<_> = rows.iter().map(|row| row.ramp_percent).collect();
    assert!(percents.is_sorted(), "{percents:?}");
    configure(&service, "slow_start = \"0s\"");
    let row = service.row(2);
    assert!(row.ramp_percent.is_none() && (row.share - whole).abs() < 0.001, "{row:?}");
    assert_eq!(download.finish(), 4 << 20);
}
