//! Namespaces, links, addresses and routes, by the commands one would type.

use std::{fs, process::Command};

use super::{
    Host, Lab,
    error::{Result, file},
    process::run,
};

/// Makes the lab's network.
pub(super) fn raise(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        create(host)?;
    }
    let router = lab.router();
    // Replies arrive from the reals with the VIP as their source, while the VIP's route leads to the LB.
    router.run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.ip_forward=1")?;
    for host in lab.hosts().filter(|host| host.name() != router.name()) {
        connect(router, host)?;
    }
    ip(router, &format!("route add 198.19.10.0/24 via {}", lab.lb().addr()))?;
    pass_xdp(router, "to-lb")
}

/// A load balancer beside the first one.
pub(super) fn add_lb(lab: &Lab, lb: &Host) -> Result<()> {
    create(lb)?;
    connect(lab.router(), lb)?;
    pass_xdp(lab.router(), &format!("to-{}", lb.name()))
}

/// Gives every host an IPv6 address beside its IPv4 one, and the router the way to the IPv6 VIP.
pub(super) fn add_ipv6(lab: &Lab) -> Result<()> {
    let router = lab.router();
    for host in lab.hosts() {
        host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.accept_dad=0")?;
    }
    router.run("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    for host in lab.hosts().filter(|host| host.name() != router.name()) {
        let gateway = host.gateway6();
        ip(router, &format!("addr add {gateway}/64 dev to-{} nodad", host.name()))?;
        ip(host, &format!("addr add {}/64 dev eth0 nodad", host.addr6()))?;
        ip(host, &format!("route add default via {gateway}"))?;
    }
    ip(router, &format!("route add fd00:19:10::/64 via {}", lab.lb().addr6()))
}

fn create(host: &Host) -> Result<()> {
    fs::create_dir(host.dir()).map_err(file("creating", host.dir()))?;
    run(Command::new("ip").args(["netns", "add", host.namespace()]))?;
    // What systemd gives a host; a namespace would inherit whatever this machine has.
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.default.rp_filter=2 net.ipv4.ip_forward=0")?;
    // -e: a kernel without IPv6 has nothing to disable.
    host.run("sysctl -eqw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")?;
    ip(host, "link set lo up")
}

/// A veth pair: `to-HOST` on the router, `eth0` on the host, which routes everything through it.
fn connect(router: &Host, host: &Host) -> Result<()> {
    let port = format!("to-{}", host.name());
    let addr = host.addr();
    let [a, b, c, _] = addr.octets();
    ip(router, &format!("link add {port} type veth peer name eth0 netns {}", host.namespace()))?;
    ip(router, &format!("addr add {a}.{b}.{c}.1/24 dev {port}"))?;
    ip(router, &format!("link set {port} up"))?;
    ip(host, &format!("addr add {addr}/24 dev eth0"))?;
    ip(host, "link set eth0 up")?;
    ip(host, &format!("route add default via {a}.{b}.{c}.1"))?;
    // Otherwise checksums stay partial on veth, and one that is encapsulated is wrong at the real.
    host.run("ethtool -K eth0 tx off").map(drop)
}

/// `XDP_TX` on a veth device delivers only to a peer that has an XDP program too. One attached by `ip` stays with the
/// device when this process ends.
fn pass_xdp(router: &Host, device: &str) -> Result<()> {
    let object = router.dir().join("xdp_pass.o");
    fs::write(&object, lb_ebpf::objects::XDP_PASS).map_err(file("writing", &object))?;
    ip(router, &format!("link set dev {device} xdpdrv object {} section xdp", object.display()))
}

fn ip(host: &Host, arguments: &str) -> Result<()> {
    host.run(&format!("ip {arguments}")).map(drop)
}
