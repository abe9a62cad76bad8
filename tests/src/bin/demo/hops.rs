//! The way of one request, as it was captured on the wires.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::lab::{Capture, Datagram, Host, Packet, Payload, TcpFlags, run};

use crate::{say, stage::Stage};

/// The port that the request comes from; below those that the kernel gives out.
const PORT: u16 = 20_001;

/// What was seen of the request.
pub(crate) struct Hops {
    /// Whether each of the five hops was captured.
    pub(crate) complete: bool,
    /// Packets from the VIP that crossed the LB's wire: DSR means none.
    pub(crate) replies_past_lb: usize,
}

/// Sends one request and shows its first packet, and the first of the reply, on every wire.
pub(crate) fn show(stage: &Stage) -> Result<Hops> {
    say::heading("The five hops of one request");
    let lab = &stage.lab;
    let wire = |host: &Host, interface: &str| host.pcap(interface, "tcp or ip proto 4", "hops.pcap");
    let at_client = wire(lab.client(), "eth0")?;
    let at_lb = wire(lab.router(), "to-lb")?;
    let at_reals = lab.reals().iter().map(|real| wire(real, "eth0")).collect::<Result<Vec<_>, _>>()?;

    let mut curl = lab.client().command("curl");
    curl.args(["-s", "--noproxy", "*", "--local-port", &PORT.to_string(), &format!("http://{}/", lab.vip())]);
    say::typed("client", say::words(&curl));
    let answered = run(&mut curl)?;
    say::output(&answered);

    let (client, lb) = (ours(at_client)?, ours(at_lb)?);
    let real = lab.host(answered.trim())?;
    let at_real = at_reals.into_iter().nth(lab.reals().iter().position(|r| r.addr() == real.addr()).unwrap_or(0));
    let at_real = ours(at_real.context("no capture on the real")?)?;

    let is_reply = |datagram: &Datagram| datagram.source == lab.vip();
    let name = real.name();
    let hops = [
        ("client", "client → VIP", first(&client, |packet| bare_syn(packet, false))),
        ("lb's wire", "routed to the LB", first(&lb, |packet| bare_syn(packet, false))),
        ("lb's wire", "encapsulated by XDP", first(&lb, |packet| packet.inner().is_some())),
        (name, "through the tunnel", first(&at_real, |packet| packet.inner().is_some())),
        (name, "answered from the VIP", first(&at_real, |packet| bare_syn(packet, true))),
        ("client", "straight to the client", first(&client, |packet| bare_syn(packet, true))),
    ];
    for (n, (wire, what, packet)) in hops.iter().enumerate() {
        // The last line is the fifth hop's other end.
        let n = (n + 1).min(5);
        let packet = packet.map_or_else(|| "not captured".to_owned(), ToString::to_string);
        say::line(format_args!("{n}  {wire:10} {what:23} {packet}"));
    }
    let replies_past_lb = lb.iter().filter_map(Packet::ip).filter(|datagram| is_reply(datagram)).count();
    println!();
    say::line(format_args!(
        "On the LB's wire: {} packets of this request, {replies_past_lb} of them from the VIP.",
        lb.len()
    ));
    Ok(Hops { complete: hops.iter().all(|(_, _, packet)| packet.is_some()), replies_past_lb })
}

/// The packets of this request, once nothing more of it comes.
fn ours(capture: Capture) -> Result<Vec<Packet>> {
    let is_ours = |packet: &Packet| [packet.ip(), packet.inner()].into_iter().flatten().any(of_our_port);
    let last = |packets: &[Packet]| packets.iter().any(|packet| is_ours(packet) && has_fin(packet));
    // On an idle real's wire there is nothing to wait for; this is only asked of those the request passed.
    capture.wait_for("the request to end", Duration::from_secs(5), last)?;
    Ok(capture.stop()?.into_iter().filter(is_ours).collect())
}

fn of_our_port(datagram: &Datagram) -> bool {
    match datagram.payload {
        Payload::Tcp { source_port, destination_port, .. } => source_port == PORT || destination_port == PORT,
        _ => false,
    }
}

fn has_fin(packet: &Packet) -> bool {
    let flags = packet.ip().and_then(Datagram::tcp_flags).or_else(|| packet.inner().and_then(Datagram::tcp_flags));
    flags.is_some_and(|flags| flags.has(TcpFlags::FIN))
}

/// A SYN that is in no tunnel, with or without ACK.
fn bare_syn(packet: &Packet, with_ack: bool) -> bool {
    let flags = packet.ip().and_then(Datagram::tcp_flags);
    flags.is_some_and(|flags| flags.has(TcpFlags::SYN) && flags.has(TcpFlags::ACK) == with_ack)
}

fn first(packets: &[Packet], is_it: impl Fn(&Packet) -> bool) -> Option<&Packet> {
    packets.iter().find(|packet| is_it(packet))
}
