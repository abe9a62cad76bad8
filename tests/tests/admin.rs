//! What the operator says of reals, in service: drained, disabled, enabled; over reloads, crashes and their end. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod common;

use common::{Requests, SOON, Service};
use lbd::model::{Admin, AdminResult, Health};
use nix::sys::signal::Signal;
use tests::lab::{Error, wait_for};

/// How many requests make sure that a real gets none, or some.
const SOME: usize = 40;

fn real(service: &Service, number: usize) -> String {
    service.lab.real(number).unwrap().addr().to_string()
}

/// What lbctl says when it fails.
fn refused(service: &Service, words: &[&str]) -> String {
    let Error::Failed { stderr, status, .. } = service.lbctl(words).unwrap_err() else { panic!("{words:?}") };
    assert_eq!(status.code(), Some(1));
    stderr
}

#[test]
fn drained_real_finishes_its_downloads_and_gets_no_new_connection_whatever_becomes_of_lbd() {
    let mut service = Service::with("drain", 3, 3, &["--leave-attached"]);
    let clients = [Requests::start(&service), Requests::start(&service)];
    let download = service.download_from(2, 20);
    let two = real(&service, 2);
    let said = service.lbctl(&["real", "drain", &two, "--reason", "new kernel", "-o", "json"]).unwrap();
    let result: AdminResult = serde_json::from_str(&said).unwrap();
    assert_eq!((result.reals.len(), result.warnings.len()), (1, 0));
    let drained = |service: &Service| {
        let row = service.row(2);
        assert_eq!(
            (row.admin, row.state, row.admin_reason.as_deref()),
            (Admin::Draining, Health::Up, Some("new kernel"))
        );
        assert!(row.share == 0.0 && row.admin_since.is_some(), "{row:?}");
        let [_, to_it, _, _] = service.requests(SOME);
        assert_eq!(to_it, 0);
    };
    drained(&service);

    service.configure(&[(1, 100), (2, 100), (3, 300)]);
    service.lbctl(&["reload"]).unwrap();
    drained(&service);

    service.lbd.signal(Signal::SIGKILL).unwrap();
    service.lbd.wait(SOON).unwrap();
    service.restart();
    drained(&service);

    assert_eq!(download.finish(), 20 << 20);
    service.lbctl(&["real", "enable", &two]).unwrap();
    let row = service.row(2);
    assert!(row.admin == Admin::Enabled && row.share > 0.1 && row.admin_reason.is_none(), "{row:?}");
    assert!(service.requests(SOME)[1] > 0);
    clients.into_iter().for_each(Requests::finish_without_failure);
}

#[test]
fn drain_waits_until_the_last_download_has_ended() {
    let service = Service::with("wait", 2, 2, &[]);
    let mut download = service.download_from(2, 6);
    let two = real(&service, 2);
    let impatient = &["real", "drain", &two, "--wait", "--timeout", "3s"];
    let said = refused(&service, impatient);
    assert!(said.contains("still has flows; it goes on draining"), "{said}");
    assert!(said.contains("flows seen since: 1, in the last 60 s: 1"), "{said}");
    assert!(download.runs());

    // A flow is told to be silent for a second after at most three ticks of 17 s.
    service.lbctl(&["real", "drain", &two, "--wait", "--quiet", "1s", "--timeout", "3m"]).unwrap();
    assert!(!download.runs());

    // Nobody must take a real for drained that is back.
    let said = refused(&service, &["real", "drain", &two, "--for", "3s", "--wait", "--timeout", "1m"]);
    assert!(said.contains("is in service again"), "{said}");
    assert_eq!(download.finish(), 6 << 20);
}

#[test]
fn disabled_real_is_cut_off_and_enabled_when_its_time_is_over() {
    let service = Service::with("disable", 2, 2, &[]);
    let mut download = service.download_from(2, 60);
    let (one, two) = (real(&service, 1), real(&service, 2));
    let said = service.lbctl(&["real", "disable", &two, "--for", "6s"]).unwrap();
    assert!(said.contains(": disabled, enabled again in ") && said.contains("; UP, share 0.0 %"), "{said}");
    wait_for("the download to be cut", SOON, || Ok((!download.runs()).then_some(()))).unwrap();
    assert_eq!(service.requests(SOME)[1], 0);
    let enabled = || Ok((service.row(2).admin == Admin::Enabled).then_some(()));
    wait_for("its time to be over", SOON, enabled).unwrap();
    assert!(service.requests(SOME)[1] > 0);

    for number in [&one, &two] {
        service.lbctl(&["real", "drain", number]).unwrap();
    }
    let said = service.lbctl(&["real", "drain", &two, "-o", "json"]).unwrap();
    let result: AdminResult = serde_json::from_str(&said).unwrap();
    assert!(result.warnings[0].ends_with("takes new flows: they are dropped"), "{result:?}");
    let client = service.lab.client();
    assert!(client.http_get(&format!("http://{}/", service.lab.vip())).is_err(), "nobody is left");
}

#[test]
fn orders_that_make_no_sense_change_nothing_and_say_why() {
    let service = Service::with("wrong", 2, 1, &[]);
    let (one, two) = (real(&service, 1), real(&service, 2));
    let long = "x".repeat(201);
    for (words, said) in [
        (&["drain", &two][..], "no VIP has the real"),
        (&["drain", &one, "--vip", "198.19.10.9"], "that VIP does not have the real"),
        (&["drain", &one, "--reason", &long], "the reason is longer than 200 characters"),
        (&["disable", &one, "--reason", "two\nlines"], "the reason has control characters"),
        (&["disable", &one, "--for", "0s"], "0 s is out of range: allowed is 1 s to a year"),
    ] {
        let error = refused(&service, &[&["real"], words].concat());
        assert!(error.contains(said), "{error}");
        assert_eq!(service.row(1).admin, Admin::Enabled);
    }
    let said = service.lbctl(&["real", "drain", &one]).unwrap();
    assert!(said.contains(": draining; UP, share 0.0 %"), "{said}");
}
