//! Desired and observed in, steps out: the decisions, one by one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::{collections::BTreeMap, net::IpAddr};

use realsrv_setup::{
    desired::{Decap, Desired, Mss, Prefix},
    family::Family,
    journal::Journal,
    observed::{Address, Config, Filter, Hook, HookQdisc, Layer, Link, Observed, Program, Slot, Support},
    plan::{Programs, Refusal, Step, plan, plan_onto},
};

const TUNNEL: &str = Family::Ipv4.tunnel();

fn link(index: u32, layer: Layer) -> Link {
    Link {
        index,
        up: true,
        mtu: 1500,
        layer,
        enslaved: false,
        routed: false,
        hook: HookQdisc::None,
        arp_ignore: 0,
        arp_announce: 0,
        rp_filter: 0,
    }
}

fn host() -> Observed {
    let sysctls = ["conf.all.arp_ignore", "conf.all.arp_announce", "conf.default.rp_filter", "ip_forward"];
    let mut host = Observed {
        links: BTreeMap::from([
            ("lo".to_owned(), link(1, Layer::Loopback)),
            ("eth0".to_owned(), link(2, Layer::Ethernet)),
        ]),
        addresses: vec![address("lo", "127.0.0.1", 8), address("eth0", "198.18.1.2", 24)],
        sysctls: sysctls.map(|name| (format!("net.ipv4.{name}"), "0".to_owned())).into(),
        ..Observed::default()
    };
    host.sysctls.insert("net.ipv4.icmp_ratelimit".to_owned(), "1000".to_owned());
    host
}

fn address(device: &str, address: &str, length: u8) -> Address {
    Address {
        device: device.to_owned(),
        address: address.parse().unwrap(),
        length,
        host_scope: false,
        temporary: false,
    }
}

fn loadable() -> BTreeMap<Family, Support> {
    Family::ALL.map(|family| (family, Support::Loadable)).into()
}

fn desired() -> Desired {
    Desired { vips: ["198.19.10.1".parse().unwrap()].into(), ..Desired::default() }
}

fn steps(desired: &Desired, host: &Observed) -> Vec<Step> {
    plan(desired, host).unwrap().steps().cloned().collect()
}

fn installed(desired: &Desired, host: &Observed) -> Programs {
    let install = |step| match step {
        Step::InstallPrograms { to, .. } => Some(to),
        _ => None,
    };
    steps(desired, host).into_iter().find_map(install).expect("programs to install")
}

fn position(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
    steps.iter().position(wanted).expect("the step")
}

#[test]
fn arp_is_silenced_before_the_vip_appears_and_decap_comes_last() {
    let steps = steps(&desired(), &host());
    let announce =
        position(&steps, |step| matches!(step, Step::SetSysctl { name, .. } if name.contains("arp_announce")));
    let ignore = position(&steps, |step| matches!(step, Step::SetSysctl { name, .. } if name.contains("arp_ignore")));
    let vip = position(&steps, |step| matches!(step, Step::AddAddress { device, .. } if device == "lo"));
    assert!(ignore < vip && announce < vip);
    assert!(matches!(steps.last(), Some(Step::InstallPrograms { from: None, .. })));
}

#[test]
fn settings_that_are_as_silent_are_left() {
    for (ignore, announce, changes) in
        [("1", "2", 0), ("2", "2", 0), ("8", "2", 0), ("1", "3", 1), ("4", "2", 1), ("0", "1", 2)]
    {
        let mut host = host();
        host.sysctls.insert("net.ipv4.conf.all.arp_ignore".to_owned(), ignore.to_owned());
        host.sysctls.insert("net.ipv4.conf.all.arp_announce".to_owned(), announce.to_owned());
        let arp = |step: &&Step| matches!(step, Step::SetSysctl { name, .. } if name.contains("arp_"));
        assert_eq!(steps(&desired(), &host).iter().filter(arp).count(), changes, "{ignore} {announce}");
    }
}

/// With 3 the host answers for what is not of scope host, as a VIP that somebody added is.
#[test]
fn arp_ignore_3_is_kept_only_while_every_vip_is_of_scope_host() {
    let changes = |host: &Observed| {
        steps(&desired(), host)
            .iter()
            .any(|step| matches!(step, Step::SetSysctl { name, .. } if name.contains("arp_ignore")))
    };
    let mut host = host();
    host.sysctls.insert("net.ipv4.conf.all.arp_ignore".to_owned(), "3".to_owned());
    assert!(!changes(&host), "not there yet");
    host.addresses.push(Address { host_scope: true, ..address("lo", "198.19.10.1", 32) });
    assert!(!changes(&host));
    host.addresses.pop();
    host.addresses.push(address("lo", "198.19.10.1", 32));
    assert!(changes(&host));
}

#[test]
fn device_that_answers_arp_by_its_own_setting_is_refused() {
    for (own, refused) in [(0, false), (1, false), (3, false), (8, false), (4, true), (7, true)] {
        let mut host = host();
        host.links.get_mut("eth0").unwrap().arp_ignore = own;
        let refusal = Refusal::AnswersArp { device: "eth0".to_owned(), value: own };
        assert_eq!(plan(&desired(), &host) == Err(refusal), refused, "{own}");
    }
    let mut host = host();
    host.links.get_mut("eth0").unwrap().arp_ignore = 3;
    host.addresses.push(address("lo", "198.19.10.1", 32));
    assert!(plan(&desired(), &host).is_err());
}

#[test]
fn device_that_asks_for_vips_by_its_own_setting_is_refused() {
    for (own, refused) in [(0, false), (2, false), (3, true)] {
        let mut host = host();
        host.links.get_mut("eth0").unwrap().arp_announce = own;
        let refusal = Refusal::AsksForVips { device: "eth0".to_owned(), value: own };
        assert_eq!(plan(&desired(), &host) == Err(refusal), refused, "{own}");
    }
}

/// No tunnel of the kernel takes IPv4 in IPv6.
#[test]
fn ipv4_vip_behind_ipv6_sources_only_needs_the_program() {
    let host = Observed { tunnels: loadable(), ..host() };
    let ipv6 = Desired { lb_sources: ["fd00:18:9::/64".parse().unwrap()].into(), ..desired() };
    assert!(slots(&installed(&ipv6, &host)).contains(&("eth0", Program::Decap)));
    let ipip = Desired { decap: Decap::Ipip, ..ipv6 };
    assert_eq!(plan(&ipip, &host), Err(Refusal::NoTunnelAcross));
    let both = ["198.18.9.0/24", "fd00:18:9::/64"].map(|source| source.parse().unwrap()).into();
    let both = Desired { lb_sources: both, ..desired() };
    let warnings = |decap| warnings(&Desired { decap, ..both.clone() }, &host);
    assert!(warnings(Decap::Ipip).contains("drop IPv4 packets that arrive in IPv6"));
    assert_eq!(warnings(Decap::Ebpf), "");
}

fn warnings(desired: &Desired, host: &Observed) -> String {
    plan(desired, host).unwrap().warnings.join("; ")
}

#[test]
fn open_decapsulator_is_warned_about() {
    assert!(warnings(&desired(), &host()).contains("no --lb-source: anybody may tunnel"));
    assert_eq!(warnings(&restricted(Decap::Ebpf), &host()), "");
}

/// One device is the way back to everybody.
#[test]
fn strict_reverse_path_filter_is_warned_about_where_a_route_may_lead_elsewhere() {
    let mut host = host_of_many_devices();
    host.links.get_mut("eth0").unwrap().rp_filter = 1;
    assert_eq!(warnings(&restricted(Decap::Ebpf), &host), "");
    host.addresses.push(address("eth1", "198.18.2.2", 24));
    assert!(warnings(&restricted(Decap::Ebpf), &host).contains("eth0 has rp_filter=1"));
    host.sysctls.insert("net.ipv4.conf.all.rp_filter".to_owned(), "2".to_owned());
    assert_eq!(warnings(&restricted(Decap::Ebpf), &host), "", "loose is larger");
}

#[test]
fn tunnels_of_others_are_warned_about_where_sources_are_restricted() {
    let mut host = host();
    host.links.insert("ipip7".to_owned(), link(7, Layer::Tunnel(Family::Ipv4)));
    host.links.insert(TUNNEL.to_owned(), link(8, Layer::Tunnel(Family::Ipv4)));
    let before = warnings(&restricted(Decap::Ebpf), &host);
    assert!(["ipip7", TUNNEL].iter().all(|name| before.contains(&format!("the tunnel {name} was up"))), "{before}");
    let up = Step::LinkUp { device: TUNNEL.to_owned() };
    let noted = Journal { steps: vec![up], ..Journal::default() };
    host.tunnels.insert(Family::Ipv4, Support::Present);
    host.sysctls.insert(format!("net.ipv4.conf.{TUNNEL}.rp_filter"), "2".to_owned());
    let ours = plan_onto(&noted, &restricted(Decap::Ipip), &host).unwrap().warnings.join("; ");
    assert!(ours.contains("ipip7") && !ours.contains(TUNNEL), "{ours}");
}

#[test]
fn auto_uses_the_kernel_tunnel_where_it_could_be_loaded() {
    let host = Observed { tunnels: loadable(), ..host() };
    let steps = steps(&desired(), &host);
    let module = position(&steps, |step| matches!(step, Step::LoadModule { .. }));
    let filter = position(&steps, |step| matches!(step, Step::SetSysctl { name, .. } if name.contains(TUNNEL)));
    let address = position(&steps, |step| matches!(step, Step::AddAddress { device, .. } if device == TUNNEL));
    let up = position(&steps, |step| matches!(step, Step::LinkUp { .. }));
    assert!(module < filter && filter < address && address < up, "configured before packets flow");
    let programs = installed(&desired(), &host);
    assert!(programs.slots.iter().all(|(_, program)| *program == Program::Clamp));
}

#[test]
fn kernel_tunnel_opens_last() {
    let desired = Desired { lb_sources: ["198.18.9.0/24".parse().unwrap()].into(), ..desired() };
    let steps = steps(&desired, &Observed { tunnels: loadable(), ..host() });
    assert_eq!(steps.last(), Some(&Step::LinkUp { device: TUNNEL.to_owned() }), "behind its guard");
}

#[test]
fn auto_keeps_the_program_where_it_decapsulates_already() {
    let filter = Filter::Ours { program: Program::Decap, config: Config::default() };
    let slot = Slot { device: "eth0".to_owned(), hook: Hook::Ingress };
    let host = Observed { tunnels: loadable(), filters: [(slot, filter)].into(), ..host() };
    assert!(!steps(&desired(), &host).iter().any(|step| matches!(step, Step::LoadModule { .. })));
}

#[test]
fn tunnel_with_an_address_of_its_own_gets_no_other() {
    let mut host = Observed { tunnels: [(Family::Ipv4, Support::Present)].into(), ..host() };
    host.links.insert(TUNNEL.to_owned(), link(3, Layer::Other));
    host.sysctls.insert(format!("net.ipv4.conf.{TUNNEL}.rp_filter"), "2".to_owned());
    host.addresses.push(address(TUNNEL, "198.18.7.1", 32));
    let touches =
        |step: &Step| matches!(step, Step::AddAddress { device, .. } | Step::LinkUp { device } if device == TUNNEL);
    assert!(!steps(&desired(), &host).iter().any(touches));
}

#[test]
fn kernel_tunnel_with_lb_sources_is_guarded() {
    let desired = Desired { lb_sources: ["198.18.9.0/24".parse().unwrap()].into(), ..desired() };
    let programs = installed(&desired, &Observed { tunnels: loadable(), ..host() });
    assert!(programs.slots.contains(&("eth0".to_owned(), Program::Guard)));
    let ipv6_is_of_others = Prefix::EVERYBODY[1];
    assert_eq!(programs.config.sources, &desired.lb_sources | &[ipv6_is_of_others].into());
}

/// Devices that are up, beside eth0 which was chosen: each could deliver to an open tunnel.
fn host_of_many_devices() -> Observed {
    let mut host = host();
    let devices = [
        ("eth1", link(3, Layer::Ethernet)),
        ("wg0", link(4, Layer::Other)),
        ("port0", Link { enslaved: true, ..link(5, Layer::Ethernet) }),
        ("down0", Link { up: false, ..link(6, Layer::Ethernet) }),
    ];
    host.links.extend(devices.map(|(name, link)| (name.to_owned(), link)));
    host
}

fn restricted(decap: Decap) -> Desired {
    let lb_sources = ["198.18.9.0/24".parse().unwrap()].into();
    Desired { lb_sources, decap, mss: Mss::Off, interfaces: ["eth0".to_owned()].into(), ..desired() }
}

fn slots(programs: &Programs) -> Vec<(&str, Program)> {
    programs.slots.iter().map(|(device, program)| (device.as_str(), *program)).collect()
}

#[test]
fn kernel_tunnel_is_guarded_on_every_device_that_can_deliver() {
    let programs = installed(&restricted(Decap::Ipip), &Observed { tunnels: loadable(), ..host_of_many_devices() });
    let everywhere = [("eth0", Program::Guard), ("eth1", Program::Guard), ("wg0", Program::Guard)];
    assert_eq!(slots(&programs), everywhere);
}

#[test]
fn program_beside_an_open_kernel_tunnel_is_guarded_elsewhere() {
    let mut host = host_of_many_devices();
    assert_eq!(slots(&installed(&restricted(Decap::Ebpf), &host)), [("eth0", Program::Decap)]);
    host.tunnels.insert(Family::Ipv4, Support::Present);
    host.links.insert(TUNNEL.to_owned(), link(9, Layer::Other));
    let programs = installed(&restricted(Decap::Ebpf), &host);
    assert_eq!(slots(&programs), [("eth0", Program::Decap), ("eth1", Program::Guard), ("wg0", Program::Guard)]);
}

#[test]
fn kernel_tunnel_that_cannot_be_guarded_is_refused() {
    let mut host = Observed { tunnels: loadable(), ..host_of_many_devices() };
    host.links.get_mut("eth1").unwrap().hook = HookQdisc::Ingress;
    assert_eq!(plan(&restricted(Decap::Ipip), &host), Err(Refusal::Unguardable("eth1".to_owned())));
    assert!(plan(&restricted(Decap::Ebpf), &host).is_ok());
}

#[test]
fn programs_are_told_the_vips_the_host_and_the_mss() {
    let config = installed(&desired(), &host()).config;
    assert_eq!(config.vips, ["198.19.10.1".parse().unwrap()].into());
    assert_eq!(config.hosts, [IpAddr::from([198, 18, 1, 2])].into(), "no loopback address");
    assert_eq!(config.sources, Prefix::EVERYBODY.into());
    assert_eq!(config.mss["eth0"], [(Family::Ipv4, 1440)].into());
}

#[test]
fn vip_on_lo_is_no_host_address() {
    let mut host = host();
    host.addresses.push(address("lo", "198.19.10.1", 32));
    assert_eq!(installed(&desired(), &host).config.hosts, [IpAddr::from([198, 18, 1, 2])].into());
}

#[test]
fn mss_off_with_an_open_kernel_tunnel_needs_no_program() {
    let desired = Desired { mss: Mss::Off, ..desired() };
    let host = Observed { tunnels: loadable(), ..host() };
    let program = |step: &Step| matches!(step, Step::InstallPrograms { .. } | Step::AddClsact { .. });
    assert!(!steps(&desired, &host).iter().any(program));
}

#[test]
fn devices_by_default_are_up_ethernet_with_an_address_and_their_own() {
    let mut host = host();
    let tap = Link { up: false, ..link(3, Layer::Ethernet) };
    let port = Link { enslaved: true, ..link(4, Layer::Ethernet) };
    for (name, link) in
        [("down0", tap), ("port0", port), ("ppp0", link(5, Layer::Other)), ("bare0", link(6, Layer::Ethernet))]
    {
        host.links.insert(name.to_owned(), link);
        if name != "bare0" {
            host.addresses.push(address(name, "198.18.3.1", 24));
        }
    }
    let programs = installed(&desired(), &host);
    assert!(programs.slots.iter().all(|(device, _)| device == "eth0"), "{programs:?}");
}

#[test]
fn ipip_without_a_tunnel_is_refused() {
    let desired = Desired { decap: Decap::Ipip, ..desired() };
    assert_eq!(plan(&desired, &host()), Err(Refusal::NoTunnel("ipip")));
}

#[test]
fn a_device_too_small_for_the_headers_is_refused() {
    let mut host = host();
    host.links.insert("eth0".to_owned(), Link { mtu: 60, ..link(2, Layer::Ethernet) });
    assert!(matches!(plan(&desired(), &host), Err(Refusal::MtuTooSmall { .. })));
}
