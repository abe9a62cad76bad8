//! Every step fails once, and every moment sees a crash once, on a host that is only a model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
};

use realsrv_setup::{
    desired::{Decap, Desired, Request, Vip},
    family::Family,
    journal::Journal,
    observed::{Address, Filter, HookQdisc, Layer, Link, Observed, Slot, Support},
    plan::{Plan, Programs, Step, plan, plan_onto},
    run::{self, Host, Store, Undone, remove},
};

const TUNNEL: &str = Family::Ipv4.tunnel();
const ONE: &str = "198.19.10.1";
const TWO: &str = "198.19.10.2";
const ONE6: &str = "fd00:19::1";
const TWO6: &str = "fd00:19::2";
/// What is served first, and what later: each family alone, and one after the other.
const SERVED: [(&[&str], &[&str]); 4] =
    [(&[ONE], &[ONE, TWO]), (&[ONE6], &[ONE6, TWO6]), (&[ONE], &[ONE, ONE6]), (&[ONE6], &[ONE, ONE6])];

#[derive(Debug, thiserror::Error)]
#[error("injected at {0}")]
struct Injected(String);

/// How the step fails that fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Failure {
    /// Without effect.
    Before,
    /// After its effect.
    After,
}

/// A host as a plan sees it. Steps change the model as the kernel would.
struct Model {
    now: Observed,
    executed: usize,
    fail: Option<(usize, Failure)>,
    /// This address cannot be taken away.
    stuck: Option<IpAddr>,
}

impl Model {
    fn new(now: Observed) -> Self {
        Self { now, executed: 0, fail: None, stuck: None }
    }

    fn change(&mut self, step: &Step) {
        let now = &mut self.now;
        match step.clone() {
            Step::SetSysctl { name, to, .. } => {
                now.sysctls.insert(name, to);
            }
            Step::LoadModule { name } => {
                let family = family_of(&name);
                now.tunnels.insert(family, Support::Present);
                now.links.insert(family.tunnel().to_owned(), link(9, false, Layer::Other));
                let (setting, value) = tunnel_setting(family);
                now.sysctls.insert(setting, value);
            }
            Step::AddAddress { device, address } => {
                now.addresses.push(self::address(&device, address, Family::of(address).bits()));
            }
            Step::LinkUp { device } => self.link(&device).up = true,
            Step::AddClsact { device } => self.link(&device).hook = HookQdisc::Clsact,
            Step::InstallPrograms { to, .. } => self.install(&to),
        }
    }

    fn install(&mut self, programs: &Programs) {
        let filter = |(device, program): &(String, _)| {
            let slot = Slot { device: device.clone(), hook: realsrv_setup::observed::Program::hook(*program) };
            (slot, Filter::Ours { program: *program, config: programs.config.seen_by(*program) })
        };
        self.now.filters = programs.slots.iter().map(filter).collect();
    }

    fn link(&mut self, device: &str) -> &mut Link {
        self.now.links.get_mut(device).unwrap()
    }
}

impl Host for Model {
    type Error = Injected;

    fn observe(&mut self) -> Result<Observed, Injected> {
        Ok(self.now.clone())
    }

    fn execute(&mut self, step: &Step) -> Result<(), Injected> {
        let failure = self.fail.filter(|(at, _)| *at == self.executed).map(|(_, failure)| failure);
        self.executed += 1;
        if failure != Some(Failure::Before) {
            self.change(step);
        }
        failure.map_or(Ok(()), |_| Err(Injected(format!("{step:?}"))))
    }

    fn undo(&mut self, step: &Step) -> Result<Undone, Injected> {
        match step.clone() {
            Step::SetSysctl { name, from, to } => match self.now.sysctls.get(&name) {
                Some(now) if *now == to => drop(self.now.sysctls.insert(name, from)),
                _ => return Ok(Undone::Already),
            },
            Step::LoadModule { name } => {
                let family = family_of(&name);
                self.now.tunnels.insert(family, Support::Loadable);
                self.now.links.remove(family.tunnel());
                self.now.sysctls.remove(&tunnel_setting(family).0);
            }
            Step::AddAddress { address, .. } if self.stuck == Some(address) => {
                return Err(Injected(format!("removing {address}")));
            }
            Step::AddAddress { device, address } => {
                self.now.addresses.retain(|found| (&found.device, found.address) != (&device, address));
            }
            Step::LinkUp { device } => self.link(&device).up = false,
            Step::AddClsact { device } => {
                if self.now.filters.keys().any(|slot| slot.device == device) {
                    return Ok(Undone::Left("in use".to_owned()));
                }
                self.link(&device).hook = HookQdisc::None;
            }
            Step::InstallPrograms { from, .. } => self.install(&from.unwrap_or_default()),
        }
        Ok(Undone::Restored)
    }
}

/// Remembers what would be on the disk.
#[derive(Default)]
struct Disk(Journal);

impl Store for Disk {
    type Error = Infallible;

    fn save(&mut self, journal: &Journal) -> Result<(), Infallible> {
        // Through the format, as a file would.
        self.0 = serde_json::from_str(&serde_json::to_string(journal).unwrap()).unwrap();
        assert_eq!(self.0, *journal);
        Ok(())
    }
}

fn link(index: u32, up: bool, layer: Layer) -> Link {
    Link { index, up, mtu: 1500, layer, enslaved: false, hook: HookQdisc::None }
}

fn family_of(module: &str) -> Family {
    Family::ALL.into_iter().find(|family| family.tunnel_module() == module).unwrap()
}

/// What a tunnel's device brings along, not as a real needs it.
fn tunnel_setting(family: Family) -> (String, String) {
    let (setting, value) = match family {
        Family::Ipv4 => ("net.ipv4.conf.tunl0.rp_filter", "0"),
        Family::Ipv6 => ("net.ipv6.conf.ip6tnl0.disable_ipv6", "1"),
    };
    (setting.to_owned(), value.to_owned())
}

fn host() -> Observed {
    let sysctls = [
        ("ipv4.conf.all.arp_ignore", "0"),
        ("ipv4.conf.all.arp_announce", "0"),
        ("ipv4.conf.default.rp_filter", "0"),
        ("ipv4.icmp_ratelimit", "1000"),
        ("ipv4.ip_forward", "0"),
        ("ipv6.conf.lo.disable_ipv6", "0"),
        ("ipv6.conf.default.disable_ipv6", "1"),
        ("ipv6.icmp.ratelimit", "1000"),
    ];
    Observed {
        links: BTreeMap::from([
            ("lo".to_owned(), link(1, true, Layer::Loopback)),
            ("eth0".to_owned(), link(2, true, Layer::Ethernet)),
            ("eth1".to_owned(), link(3, true, Layer::Ethernet)),
        ]),
        addresses: vec![
            address("eth0", [198, 18, 1, 2].into(), 24),
            address("eth0", [0xfd00, 0x18, 0, 0, 0, 0, 1, 2].into(), 64),
            address("eth1", [198, 18, 2, 2].into(), 24),
        ],
        sysctls: sysctls.into_iter().map(|(name, value)| (format!("net.{name}"), value.to_owned())).collect(),
        tunnels: Family::ALL.map(|family| (family, Support::Loadable)).into(),
        ..Observed::default()
    }
}

fn address(device: &str, address: IpAddr, length: u8) -> Address {
    Address { device: device.to_owned(), address, length, host_scope: false, temporary: false }
}

fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

fn desired(vips: &[&str], decap: Decap) -> Desired {
    let lb_sources = ["198.18.9.0/24", "fd00:18:9::/64"].map(|source| source.parse().unwrap()).into();
    Desired { vips: vips.iter().map(|text| vip(text)).collect(), decap, lb_sources, ..Desired::default() }
}

fn request(desired: Desired) -> Request {
    Request {
        vips: desired.vips,
        decap: Some(desired.decap),
        lb_sources: Some(desired.lb_sources),
        mss: Some(desired.mss),
        interfaces: Some(desired.interfaces),
    }
}

fn apply(
    model: &mut Model,
    disk: &mut Disk,
    journal: &mut Journal,
    desired: Desired,
) -> Result<Plan, run::Error<Injected, Infallible>> {
    run::apply(model, disk, journal, request(desired)).map(|applied| applied.plan)
}

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
