//! Every step fails once, and every moment sees a crash once, on a host that is only a model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod model;

use std::{collections::BTreeSet, net::IpAddr};

use model::{Disk, Failure, Model, apply, desired, host, vip};
use realsrv_setup::{
    desired::{Decap, Desired, Request},
    family::Family,
    journal::Journal,
    observed::{Filter, Layer, Observed, Program},
    plan::{Step, plan, plan_onto},
    run::{self, remove},
};

const TUNNEL: &str = Family::Ipv4.tunnel();
const ONE: &str = "198.19.10.1";
const TWO: &str = "198.19.10.2";
const ONE6: &str = "fd00:19::1";
const TWO6: &str = "fd00:19::2";
/// What is served first, and what later: each family alone, and one after the other.
const SERVED: [(&[&str], &[&str]); 4] =
    [(&[ONE], &[ONE, TWO]), (&[ONE6], &[ONE6, TWO6]), (&[ONE], &[ONE, ONE6]), (&[ONE6], &[ONE, ONE6])];

/// Both ways to decapsulate, both families, on a fresh host and on one that serves another VIP already.
fn cases() -> Vec<(Observed, Journal, Desired)> {
    let mut cases = Vec::new();
    for (decap, (first, later)) in ways() {
        cases.push((host(), Journal::default(), desired(first, decap)));
        let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
        apply(&mut model, &mut disk, &mut journal, desired(first, decap)).unwrap();
        cases.push((model.now, journal, desired(later, decap)));
    }
    cases
}

fn ways() -> impl Iterator<Item = (Decap, (&'static [&'static str], &'static [&'static str]))> {
    [Decap::Ipip, Decap::Ebpf].into_iter().flat_map(|decap| SERVED.map(|served| (decap, served)))
}

fn steps(host: &Observed, desired: &Desired) -> usize {
    plan(desired, host).unwrap().steps().count()
}

#[test]
fn apply_makes_the_plan_empty_and_remove_restores() {
    for (decap, (first, later)) in ways() {
        let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
        for vips in [first, later] {
            let wanted = desired(vips, decap);
            assert!(!apply(&mut model, &mut disk, &mut journal, wanted.clone()).unwrap().is_empty());
            assert!(apply(&mut model, &mut disk, &mut journal, wanted).unwrap().is_empty());
        }
        remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
        assert_eq!(model.now, host());
        assert!(disk.0.is_empty());
    }
}

#[test]
fn a_failure_at_any_step_leaves_the_host_and_the_journal_as_they_were() {
    for (before, noted, wanted) in cases() {
        for at in 0..steps(&before, &wanted) {
            for failure in [Failure::Before, Failure::After] {
                let (mut model, mut disk) = (Model::new(before.clone()), Disk(noted.clone()));
                model.fail = Some((at, failure));
                let error = apply(&mut model, &mut disk, &mut noted.clone(), wanted.clone()).unwrap_err();
                assert!(error.to_string().ends_with("the host is as it was before"), "{error}");
                assert_eq!(model.now, before, "step {at}, {failure:?}");
                assert_eq!(disk.0, noted, "step {at}, {failure:?}");
            }
        }
    }
}

/// The host and the disk as a crash leaves them: the steps before `at` ran; that one is noted, and ran if `ran`.
fn crashed(before: &Observed, noted: &Journal, wanted: &Desired, at: usize, ran: bool) -> (Model, Disk) {
    let mut model = Model::new(before.clone());
    let mut journal = noted.clone();
    journal.intent = Some(wanted.clone());
    for (index, step) in plan(wanted, before).unwrap().steps().enumerate().take(at + 1) {
        journal.record(step);
        if index < at || ran {
            model.change(step);
        }
    }
    (model, Disk(journal))
}

#[test]
fn a_crash_at_any_step_is_undone_by_remove() {
    for (before, noted, wanted) in cases() {
        for at in 0..steps(&before, &wanted) {
            for ran in [false, true] {
                let (mut model, mut disk) = crashed(&before, &noted, &wanted, at, ran);
                let mut journal = disk.0.clone();
                remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
                assert_eq!(model.now, host(), "step {at}, ran {ran}");
                assert!(disk.0.is_empty());
            }
        }
    }
}

#[test]
fn a_crash_at_any_step_is_finished_by_apply() {
    for (before, noted, wanted) in cases() {
        for at in 0..steps(&before, &wanted) {
            for ran in [false, true] {
                let (mut model, mut disk) = crashed(&before, &noted, &wanted, at, ran);
                let mut journal = disk.0.clone();
                apply(&mut model, &mut disk, &mut journal, wanted.clone()).unwrap();
                assert!(plan(&wanted, &model.now).unwrap().is_empty());
                remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
                assert_eq!(model.now, host(), "step {at}, ran {ran}");
            }
        }
    }
}

#[test]
fn a_failure_at_any_step_of_remove_is_made_up_for_by_the_next() {
    for (before, noted, wanted) in cases() {
        let mut applied = (Model::new(before), Disk::default(), noted);
        apply(&mut applied.0, &mut applied.1, &mut applied.2, wanted).unwrap();
        for at in 0..applied.2.steps.len() {
            for failure in [Failure::Before, Failure::After] {
                let (mut model, mut disk, mut journal) =
                    (Model::new(applied.0.now.clone()), Disk::default(), applied.2.clone());
                model.fail_undo = Some((at, failure));
                let error = remove(&mut model, &mut disk, &mut journal, &[]).unwrap_err();
                assert!(error.to_string().contains("run it again"), "{error}");
                let mut journal = disk.0.clone();
                remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
                assert_eq!(model.now, host(), "step {at}, {failure:?}");
                assert!(disk.0.is_empty());
            }
        }
    }
}

#[test]
fn removing_one_vip_leaves_a_host_as_if_it_had_never_been() {
    for (decap, (first, later)) in ways() {
        let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
        apply(&mut model, &mut disk, &mut journal, desired(first, decap)).unwrap();
        let (one, noted) = (model.now.clone(), journal.clone());
        apply(&mut model, &mut disk, &mut journal, desired(later, decap)).unwrap();
        let added: Vec<_> = later.iter().filter(|text| !first.contains(text)).map(|text| vip(text)).collect();
        remove(&mut model, &mut disk, &mut journal, &added).unwrap();
        assert_eq!(model.now, one, "{decap:?} {later:?}");
        assert_eq!(disk.0.intent, Some(desired(first, decap)));
        assert!(plan_onto(&journal, &desired(first, decap), &model.now).unwrap().is_empty());
        let objects = |journal: &Journal| journal.steps.iter().map(Step::object).collect::<BTreeSet<_>>();
        assert_eq!(objects(&journal), objects(&noted), "{decap:?} {later:?}");
    }
}

#[test]
fn kernel_tunnel_closes_when_the_program_takes_its_place() {
    let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
    apply(&mut model, &mut disk, &mut journal, desired(&[ONE], Decap::Ipip)).unwrap();
    assert!(model.now.links[TUNNEL].up);
    let ebpf = desired(&[ONE], Decap::Ebpf);
    assert!(plan_onto(&journal, &ebpf, &model.now).unwrap().obsolete.len() >= 4);
    apply(&mut model, &mut disk, &mut journal, ebpf.clone()).unwrap();
    assert!(!model.now.links.contains_key(TUNNEL));
    assert!(disk.0.steps.iter().all(|step| step.serves_tunnel().is_none()), "{:?}", disk.0.steps);
    assert!(apply(&mut model, &mut disk, &mut journal, ebpf).unwrap().is_empty());
    remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
    assert_eq!(model.now, host());
}

#[test]
fn a_refused_plan_touches_neither_host_nor_disk() {
    let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
    let wanted = Desired { interfaces: ["eth7".to_owned()].into(), ..desired(&[ONE], Decap::Auto) };
    let error = apply(&mut model, &mut disk, &mut journal, wanted).unwrap_err();
    assert!(matches!(error, run::Error::Refused(_)));
    assert_eq!((model.executed, model.now), (0, host()));
    assert!(disk.0.is_empty());
}

#[test]
fn a_request_adds_to_what_another_run_made_of_the_journal() {
    let (mut model, mut disk) = (Model::new(host()), Disk::default());
    let other = Request { vips: [vip(ONE)].into(), ..Request::default() };
    run::apply(&mut model, &mut disk, &mut Journal::default(), other).unwrap();
    // Loaded once the other run had given the lock back.
    let mut journal = disk.0.clone();
    let ours = Request { vips: [vip(TWO)].into(), ..Request::default() };
    run::apply(&mut model, &mut disk, &mut journal, ours).unwrap();
    assert_eq!(disk.0.intent.unwrap().vips, [vip(ONE), vip(TWO)].into());
}

fn arp(model: &Model) -> Vec<&str> {
    let value = |name: &str| model.now.sysctls[&format!("net.ipv4.conf.all.{name}")].as_str();
    vec![value("arp_ignore"), value("arp_announce")]
}

#[test]
fn arp_stays_silent_while_a_vip_cannot_be_taken_away() {
    let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
    apply(&mut model, &mut disk, &mut journal, desired(&[ONE], Decap::Ebpf)).unwrap();
    model.stuck = Some(vip(ONE).into());
    let error = remove(&mut model, &mut disk, &mut journal, &[]).unwrap_err();
    assert!(error.to_string().contains("arp_ignore stays as long as the address 198.19.10.1/32"), "{error}");
    assert_eq!(arp(&model), ["1", "2"]);
    model.stuck = None;
    remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
    assert_eq!(model.now, host());
}

#[test]
fn arp_stays_silent_after_a_rollback_that_leaves_a_vip() {
    let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
    let wanted = desired(&[ONE], Decap::Ebpf);
    (model.fail, model.stuck) = (Some((steps(&host(), &wanted) - 1, Failure::Before)), Some(vip(ONE).into()));
    let error = apply(&mut model, &mut disk, &mut journal, wanted).unwrap_err();
    assert!(error.to_string().contains("rolled back except"), "{error}");
    assert_eq!(arp(&model), ["1", "2"]);
    model.stuck = None;
    remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
    assert_eq!(model.now, host());
}

/// The setting is noted after the VIP; the model fails if it is undone before it.
#[test]
fn arp_silence_that_a_later_apply_restored_goes_after_the_vip() {
    let mut silent = host();
    let names = ["net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce"];
    silent.sysctls.extend(names.map(str::to_owned).into_iter().zip(["1".to_owned(), "2".to_owned()]));
    let (mut model, mut disk, mut journal) = (Model::new(silent), Disk::default(), Journal::default());
    apply(&mut model, &mut disk, &mut journal, desired(&[ONE], Decap::Ebpf)).unwrap();
    model.now.sysctls.extend(names.map(|name| (name.to_owned(), "0".to_owned())));
    apply(&mut model, &mut disk, &mut journal, desired(&[ONE], Decap::Ebpf)).unwrap();
    remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
    assert_eq!(model.now, host());
}

/// During an incident a VIP must go, whatever became of the host: the next `apply` may refuse.
#[test]
fn a_vip_can_be_removed_from_a_host_that_drifted() {
    let drifts: [fn(&mut Observed); 4] = [
        |host| {
            // A device to put programs on, which has no qdisc yet.
            host.links.insert("eth2".to_owned(), model::link(7, true, Layer::Ethernet));
            host.addresses.push(model::address("eth2", [198, 18, 3, 2].into(), 24));
        },
        |host| host.links.get_mut("eth0").unwrap().arp_ignore = 4,
        |host| host.proxied.extend([(vip(ONE6).into(), "eth0".to_owned())]),
        |host| host.tunnels.clear(),
    ];
    for (decap, drift) in [Decap::Ipip, Decap::Ebpf].into_iter().flat_map(|decap| drifts.map(|drift| (decap, drift))) {
        let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
        apply(&mut model, &mut disk, &mut journal, desired(&[ONE, TWO, ONE6], decap)).unwrap();
        drift(&mut model.now);
        let slots = model.now.filters.keys().cloned().collect::<Vec<_>>();
        remove(&mut model, &mut disk, &mut journal, &[vip(ONE)]).unwrap();
        assert!(!model.now.addresses.iter().any(|found| found.address == IpAddr::from(vip(ONE))));
        assert_eq!(model.now.filters.keys().cloned().collect::<Vec<_>>(), slots, "the programs stay where they are");
        for filter in model.now.filters.values() {
            let Filter::Ours { program, config } = filter else { panic!("{filter:?}") };
            assert!(*program == Program::Guard || config.vips == [TWO, ONE6].map(|text| vip(text).into()).into());
        }
    }
}

/// Once the guard knows one family less, anybody may tunnel in the other.
#[test]
fn tunnel_closes_before_its_guard_opens() {
    let (mut model, mut disk, mut journal) = (Model::new(host()), Disk::default(), Journal::default());
    apply(&mut model, &mut disk, &mut journal, desired(&[ONE, ONE6], Decap::Ipip)).unwrap();
    let removed = remove(&mut model, &mut disk, &mut journal, &[vip(ONE)]).unwrap();
    let objects: Vec<_> = removed.iter().map(|(object, _)| object.as_str()).collect();
    assert_eq!(objects[..3], ["link tunl0", "tc programs", "address 198.19.10.1/32 on lo"]);
}
