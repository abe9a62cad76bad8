//! A thousand checks of one real, and what they leave behind: nothing.

use std::fs;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tests::lab::{Datagram, Host, Packet, TcpFlags, binary, run};

use crate::{say, stage::Stage};

const CHECKS: usize = 1000;

/// What was left behind.
#[derive(Debug, Serialize)]
pub(crate) struct Traces {
    /// Checks made.
    pub(crate) checks: usize,
    /// RSTs inside the tunnel that ended what the checks' SYNs began.
    pub(crate) resets_through_tunnel: usize,
    /// RSTs from the LB outside the tunnel, on any wire.
    pub(crate) bare_resets: usize,
    /// Sockets of the real in `SYN_RECV` afterwards.
    pub(crate) syn_recv: usize,
    /// New lines in nginx's access log.
    pub(crate) logged_requests: usize,
}

impl Traces {
    pub(crate) fn none_left(&self) -> bool {
        self.resets_through_tunnel >= self.checks && [self.bare_resets, self.syn_recv, self.logged_requests] == [0; 3]
    }
}

/// Makes the checks by `hc-prober check`, beside the checks that lbd makes all the time.
pub(crate) fn show(stage: &Stage) -> Result<Traces> {
    say::heading(format_args!("{CHECKS} TCP checks through the tunnel, and what they leave on the real"));
    let lab = &stage.lab;
    let real = lab.real(1)?;
    let logged_before = logged(real)?;
    let (tunnelled, bare) = ("ip proto 4 and ip[29] = 6 and ip[53] & 4 != 0", "tcp[13] & 4 != 0");
    let at_real = real.pcap("eth0", tunnelled, "checks.pcap")?;
    let everywhere = lab.router().pcap("any", bare, "resets.pcap")?;
    let at_lb = lab.lb().pcap("eth0", bare, "resets.pcap")?;

    let mut prober = lab.lb().command(binary("hc-prober")?);
    prober.args(["check", "--real", &real.addr().to_string(), "--vip", &lab.vip().to_string()]);
    prober.args(["--tcp", "80", "--count", &CHECKS.to_string(), "--rate", "500"]);
    say::typed("lb", say::words(&prober));
    say::output(&run(&mut prober)?);

    let syn_recv = real.run("ss --no-header --tcp --numeric state syn-recv")?.lines().count();
    let from_lb = |packets: &[Packet]| packets.iter().filter_map(Packet::ip).filter(|d| is_reset(d)).count();
    let resets = |packets: Vec<Packet>| packets.iter().filter_map(Packet::inner).filter(|d| is_reset(d)).count();
    let traces = Traces {
        checks: CHECKS,
        resets_through_tunnel: resets(at_real.stop()?),
        bare_resets: from_lb(&everywhere.stop()?) + from_lb(&at_lb.stop()?),
        syn_recv,
        logged_requests: logged(real)? - logged_before,
    };
    say::line(format_args!("{:6} RSTs to {} through the tunnel", traces.resets_through_tunnel, real.name()));
    say::line(format_args!("{:6} bare RSTs on the LB's and the router's wires", traces.bare_resets));
    say::line(format_args!("{:6} sockets in SYN_RECV on {}", traces.syn_recv, real.name()));
    say::line(format_args!("{:6} requests in {}'s access log", traces.logged_requests, real.name()));
    Ok(traces)
}

fn is_reset(datagram: &Datagram) -> bool {
    datagram.tcp_flags().is_some_and(|flags| flags.has(TcpFlags::RST))
}

fn logged(real: &Host) -> Result<usize> {
    let log = real.nginx().access_log();
    Ok(fs::read_to_string(&log).with_context(|| log.display().to_string())?.lines().count())
}
