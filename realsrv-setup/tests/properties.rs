//! What holds for every wish on every host, on a host that is only a model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod model;

use std::collections::BTreeSet;

use model::{Disk, Model, address, apply, host, link, tunnel_setting};
use proptest::{collection::btree_set, prelude::*, sample::select};
use realsrv_setup::{
    desired::{Decap, Desired, Mss, Vip},
    family::Family,
    journal::Journal,
    observed::{HookQdisc, Layer, Observed, Support},
    persist::Persist,
    plan::{plan, plan_onto},
    run::{self, Undone, remove},
};

const VIPS: [&str; 4] = ["198.19.10.1", "198.19.10.2", "fd00:19::1", "fd00:19::2"];

fn some_of<T: std::str::FromStr + Ord + Clone + std::fmt::Debug + 'static>(
    texts: &'static [&'static str],
    at_least: usize,
) -> impl Strategy<Value = BTreeSet<T>>
where
    T::Err: std::fmt::Debug,
{
    btree_set(select(texts).prop_map(|text| text.parse::<T>().unwrap()), at_least..=texts.len())
}

fn persist() -> Persist {
    Persist { root: "/".into(), program: "/usr/sbin/realsrv-setup".into(), state_dir: "/var/lib/realsrv-setup".into() }
}

prop_compose! {
    fn a_wish()(
        vips in some_of::<Vip>(&VIPS, 1),
        decap in select(&[Decap::Auto, Decap::Ipip, Decap::Ebpf]),
        lb_sources in some_of(&["198.18.9.0/24", "fd00:18:9::/64"], 0),
        mss in select(&[Mss::Auto, Mss::Off, Mss::Fixed(1200)]),
        interfaces in some_of(&["eth0", "eth1"], 0),
        persist in any::<bool>().prop_map(|wanted| wanted.then(persist)),
    ) -> Desired {
        Desired { vips, decap, lb_sources, mss, interfaces, persist }
    }
}

prop_compose! {
    /// Tunnels there, to be had or not, up or down; VIPs and settings there already; qdiscs; devices.
    fn a_host()(
        tunnels in [any_tunnel(), any_tunnel()],
        there in some_of::<Vip>(&VIPS, 0),
        arp in (select(&["0", "1", "2", "3", "8"]), select(&["0", "1", "2"])),
        ratelimits in [select(&["0", "10", "1000"]), select(&["0", "10", "1000"])],
        hooks in [any_hook(), any_hook()],
        eth1_up: bool,
    ) -> Observed {
        let mut host = host();
        for (family, (support, up)) in Family::ALL.into_iter().zip(tunnels) {
            host.tunnels.insert(family, support);
            if support == Support::Present {
                host.links.insert(family.tunnel().to_owned(), link(9, up, Layer::Other));
                host.sysctls.extend([tunnel_setting(family)]);
            }
        }
        host.addresses.extend(there.into_iter().map(|vip| address("lo", vip.into(), vip.family().bits())));
        host.sysctls.insert("net.ipv4.conf.all.arp_ignore".to_owned(), arp.0.to_owned());
        host.sysctls.insert("net.ipv4.conf.all.arp_announce".to_owned(), arp.1.to_owned());
        let names = Family::ALL.map(|family| family.icmp_ratelimit().to_owned());
        host.sysctls.extend(names.into_iter().zip(ratelimits.map(str::to_owned)));
        for (device, hook) in ["eth0", "eth1"].into_iter().zip(hooks) {
            host.links.get_mut(device).unwrap().hook = hook;
        }
        host.links.get_mut("eth1").unwrap().up = eth1_up;
        host
    }
}

fn any_tunnel() -> impl Strategy<Value = (Support, bool)> {
    (select(&[Support::Absent, Support::Loadable, Support::Present]), any::<bool>())
}

fn any_hook() -> impl Strategy<Value = HookQdisc> {
    select(&[HookQdisc::None, HookQdisc::None, HookQdisc::Clsact, HookQdisc::Clsact, HookQdisc::Ingress])
}

proptest! {
    // Some wishes are refused on some hosts.
    #![proptest_config(ProptestConfig {
        cases: 1_000, max_global_rejects: 10_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// plan(d, apply(d, o)) is empty, and undo(apply(d, o)) = o. What is refused is not touched.
    #[test]
    fn apply_leaves_nothing_to_plan_and_remove_the_host_as_it_was(wanted in a_wish(), before in a_host()) {
        let (mut model, mut disk, mut journal) = (Model::new(before.clone()), Disk::default(), Journal::default());
        match apply(&mut model, &mut disk, &mut journal, wanted.clone()) {
            Err(error) => {
                prop_assert!(matches!(error, run::Error::Refused(_)), "{error}");
                prop_assert!(plan(&wanted, &before).is_err());
            }
            Ok(done) => {
                prop_assert_eq!(done, plan(&wanted, &before).unwrap());
                prop_assert!(plan_onto(&journal, &wanted, &model.now).unwrap().is_empty());
                remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
            }
        }
        prop_assert_eq!(model.now, before);
        prop_assert!(disk.0.is_empty());
    }

    /// An empty plan has an empty undo.
    #[test]
    fn a_second_apply_does_nothing_and_notes_nothing(wanted in a_wish(), before in a_host()) {
        let (mut model, mut disk, mut journal) = (Model::new(before), Disk::default(), Journal::default());
        prop_assume!(apply(&mut model, &mut disk, &mut journal, wanted.clone()).is_ok());
        let (executed, noted) = (model.executed, journal.clone());
        prop_assert!(apply(&mut model, &mut disk, &mut journal, wanted.clone()).unwrap().is_empty());
        prop_assert_eq!(model.executed, executed);
        prop_assert_eq!(&journal, &noted);

        // Where it was so before anybody came, there is nothing to undo either.
        let as_found = model.now.clone();
        let (mut model, mut journal) = (Model::new(as_found.clone()), Journal::default());
        prop_assert!(apply(&mut model, &mut Disk::default(), &mut journal, wanted).unwrap().is_empty());
        prop_assert!(journal.steps.is_empty());
        let undone = remove(&mut model, &mut Disk::default(), &mut journal, &[]).unwrap();
        prop_assert!(undone.iter().all(|(_, undone)| *undone == Undone::Already));
        prop_assert_eq!(model.now, as_found);
    }

    /// Whatever is wished one after the other: the last wish holds, and remove restores what was before the first.
    #[test]
    fn a_changed_mind_is_followed_and_undone(first in a_wish(), second in a_wish(), before in a_host()) {
        let (mut model, mut disk, mut journal) = (Model::new(before.clone()), Disk::default(), Journal::default());
        prop_assume!(apply(&mut model, &mut disk, &mut journal, first).is_ok());
        let noted = journal.clone();
        if let Err(error) = apply(&mut model, &mut disk, &mut journal, second) {
            prop_assert!(matches!(error, run::Error::Refused(_)), "{error}");
            prop_assert_eq!(&journal, &noted);
        } else {
            let intent = journal.intent.clone().unwrap();
            prop_assert!(plan_onto(&journal, &intent, &model.now).unwrap().is_empty());
        }
        remove(&mut model, &mut disk, &mut journal, &[]).unwrap();
        prop_assert_eq!(model.now, before);
    }

    /// VIPs that go one by one leave nothing behind, in whatever order.
    #[test]
    fn vips_removed_one_by_one_leave_the_host_as_it_was(
        wanted in a_wish(), before in a_host(), order in Just(VIPS.to_vec()).prop_shuffle(),
    ) {
        let (mut model, mut disk, mut journal) = (Model::new(before.clone()), Disk::default(), Journal::default());
        prop_assume!(apply(&mut model, &mut disk, &mut journal, wanted).is_ok());
        for vip in order {
            remove(&mut model, &mut disk, &mut journal, &[vip.parse().unwrap()]).unwrap();
            if let Some(intent) = &journal.intent {
                prop_assert!(plan_onto(&journal, intent, &model.now).unwrap().is_empty());
            }
        }
        prop_assert_eq!(model.now, before);
        prop_assert!(disk.0.is_empty());
    }
}
