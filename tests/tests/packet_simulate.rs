//! `lbd simulate` as its users run it: captures in, JSON and captures out. `pcap_file` writes and reads the captures,
//! `etherparse` the packets; what is tested reads with neither.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

use etherparse::{NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket};
use pcap_file::{
    DataLink, Endianness, TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter, RawPcapPacket},
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::EnhancedPacketBlock,
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tests::lab::binary;

const CLIENT: [u8; 4] = [198, 18, 10, 10];
const VIP: [u8; 4] = [198, 19, 10, 1];
const ELSEWHERE: [u8; 4] = [198, 18, 221, 11];
const REALS: [&str; 3] = ["198.18.101.10", "198.18.102.10", "198.18.103.10"];
/// A time that needs every nanosecond, and one that microseconds can say.
const NANOSECOND: Duration = Duration::new(1_700_000_000, 123_456_789);
const MICROSECOND: Duration = Duration::new(1_700_000_000, 123_456_000);

/// A directory with the configuration and captures of one test.
struct Desk {
    directory: TempDir,
}

/// What a run gave.
struct Run {
    lines: Vec<Value>,
    stderr: String,
    code: Option<i32>,
}

impl Desk {
    /// One TCP VIP on port 80 with three reals, one UDP VIP on all ports with the first of them.
    fn new() -> Self {
        let desk = Self { directory: TempDir::new().unwrap() };
        let mut config = "[node]\ninterface = \"eth0\"\n".to_owned();
        for (protocol, port, reals) in [("tcp", 80, &REALS[..]), ("udp", 0, &REALS[..1])] {
            config += &vip(&Ipv4Addr::from(VIP).to_string(), protocol, port, reals.iter());
        }
        fs::write(desk.path("lbd.toml"), config).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The command on a capture of this content, with further arguments.
    fn command(&self, capture: &[u8], arguments: &[&str]) -> Command {
        fs::write(self.path("in.pcap"), capture).unwrap();
        self.command_without_capture(&[&["--pcap", self.path("in.pcap").to_str().unwrap()], arguments].concat())
    }

    fn command_without_capture(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("lbd").unwrap());
        command.arg("simulate").arg("--config").arg(self.path("lbd.toml")).args(arguments);
        command
    }

    fn run(&self, capture: &[u8], arguments: &[&str]) -> Run {
        Run::of(&self.command(capture, arguments).output().unwrap())
    }

    /// Runs with OUT; returns what was written there too.
    fn run_and_write(&self, capture: &[u8], arguments: &[&str]) -> (Run, Vec<(Duration, Vec<u8>)>) {
        let out = self.path("out.pcap");
        let run = self.run(capture, &[&["-w", out.to_str().unwrap()], arguments].concat());
        let mut reader = PcapReader::new(File::open(out).unwrap()).unwrap();
        assert_eq!(reader.header().datalink, DataLink::ETHERNET);
        let mut packets = Vec::new();
        while let Some(packet) = reader.next_packet() {
            let packet = packet.unwrap();
            assert_eq!(packet.orig_len as usize, packet.data.len());
            packets.push((packet.timestamp, packet.data.into_owned()));
        }
        (run, packets)
    }
}

impl Run {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Self { lines, stderr: String::from_utf8(output.stderr.clone()).unwrap(), code: output.status.code() }
    }

    /// The lines of a run that must have succeeded.
    fn lines(self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.lines
    }
}

fn vip(address: &str, protocol: &str, port: u16, reals: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let mut text = format!("[[vip]]\naddress = \"{address}\"\nprotocol = \"{protocol}\"\nport = {port}\n");
    text += "check = { kind = \"icmp\" }\n";
    for real in reals {
        writeln!(text, "[[vip.real]]\naddress = \"{real}\"").unwrap();
    }
    text
}

fn builder(destination: [u8; 4]) -> PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]).ipv4(CLIENT, destination, 61)
}

fn tcp(destination: [u8; 4], source_port: u16, port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    builder(destination).tcp(source_port, port, 7, 1024).ack(9).write(&mut packet, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    packet
}

fn udp(payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    builder(VIP).udp(4000, 53).write(&mut packet, &vec![7; payload]).unwrap();
    packet
}

fn echo() -> Vec<u8> {
    let mut packet = Vec::new();
    builder(VIP).icmpv4_echo_request(1, 1).write(&mut packet, b"x").unwrap();
    packet
}

fn pcap_as(endianness: Endianness, ts_resolution: TsResolution, at: Duration, packets: &[Vec<u8>]) -> Vec<u8> {
    let header = PcapHeader { endianness, ts_resolution, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    for packet in packets {
        writer.write_packet(&PcapPacket::new(at, u32::try_from(packet.len()).unwrap(), packet)).unwrap();
    }
    writer.into_writer()
}

fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    pcap_as(Endianness::Little, TsResolution::MicroSecond, MICROSECOND, packets)
}

/// With nanoseconds, and an interface that has no packets and is not Ethernet.
fn pcapng(endianness: Endianness, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = PcapNgWriter::with_endianness(Vec::new(), endianness).unwrap();
    for linktype in [DataLink::LINUX_SLL, DataLink::ETHERNET] {
        let options = vec![InterfaceDescriptionOption::IfTsResol(9)];
        writer.write_pcapng_block(InterfaceDescriptionBlock { linktype, snaplen: 0, options }).unwrap();
    }
    for packet in packets {
        let original_len = u32::try_from(packet.len()).unwrap();
        let (data, options) = (packet.into(), Vec::new());
        let block = EnhancedPacketBlock { interface_id: 1, timestamp: NANOSECOND, original_len, data, options };
        writer.write_pcapng_block(block).unwrap();
    }
    writer.into_inner()
}

fn field<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap()
}

/// The line of a packet that was run.
fn ran(n: u64, verdict: &str, reason: &str, vip: Option<&str>, real: Option<&str>) -> Value {
    json!({ "n": n, "verdict": verdict, "reason": reason, "vip": vip, "real": real, "note": null })
}

#[test]
fn every_kind_of_capture_gives_the_same_lines_and_its_own_times() {
    let desk = Desk::new();
    let packets = [tcp(VIP, 1000, 80), tcp(ELSEWHERE, 1000, 80), udp(9), tcp(VIP, 1000, 81), echo()];
    let mut expected = None;
    for (capture, at) in [
        (pcap_as(Endianness::Little, TsResolution::MicroSecond, MICROSECOND, &packets), MICROSECOND),
        (pcap_as(Endianness::Big, TsResolution::MicroSecond, MICROSECOND, &packets), MICROSECOND),
        (pcap_as(Endianness::Little, TsResolution::NanoSecond, NANOSECOND, &packets), NANOSECOND),
        (pcap_as(Endianness::Big, TsResolution::NanoSecond, NANOSECOND, &packets), NANOSECOND),
        (pcapng(Endianness::Little, &packets), NANOSECOND),
        (pcapng(Endianness::Big, &packets), NANOSECOND),
    ] {
        let (run, left) = desk.run_and_write(&capture, &[]);
        assert_eq!(left.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [at; 3]);
        let lines = run.lines();
        assert_eq!(&lines, expected.get_or_insert_with(|| lines.clone()));
    }
    let mut lines = expected.unwrap();
    let real = lines[0]["real"].take();
    assert!(REALS.iter().any(|address| real == *address), "{real}");
    assert_eq!(
        lines,
        [
            ran(1, "TX", "forwarded", Some("198.19.10.1:80/tcp"), None),
            ran(2, "PASS", "pass_not_vip", None, None),
            ran(3, "TX", "forwarded", Some("198.19.10.1:*/udp"), Some(REALS[0])),
            ran(4, "DROP", "drop_unmatched", None, None),
            ran(5, "TX", "echo_reply", None, None),
        ]
    );
}

#[test]
fn what_leaves_is_written_as_it_leaves() {
    let desk = Desk::new();
    let packets: Vec<_> = (1..50).map(|port| tcp(VIP, port, 80)).collect();
    let (run, left) = desk.run_and_write(&pcap(&packets), &[]);
    assert_eq!(run.stderr, "packets: 49, forwarded: 49\n");
    let lines = run.lines();
    assert_eq!((lines.len(), left.len()), (49, 49));
    for ((line, packet), (_, frame)) in lines.iter().zip(&packets).zip(&left) {
        let real: Ipv4Addr = field(line, "real").parse().unwrap();
        let Some(NetSlice::Ipv4(outer)) = SlicedPacket::from_ethernet(frame).unwrap().net else { panic!("no IPv4") };
        assert_eq!((outer.header().source_addr(), outer.header().destination_addr()), ([192, 0, 2, 1].into(), real));
        assert_eq!(frame[..6], [&[2, 0][..], &real.octets()].concat());
        assert_eq!(frame[34..], packet[14..], "the inner packet is untouched");
    }
    let reals: BTreeSet<_> = lines.iter().map(|line| field(line, "real")).collect();
    assert_eq!(reals, REALS.into());
}

#[test]
fn real_that_is_down_gives_its_flows_away_and_no_other_moves() {
    let desk = Desk::new();
    let packets: Vec<_> = (1..200).map(|port| tcp(VIP, port, 80)).collect();
    let before = desk.run(&pcap(&packets), &[]).lines();
    let after = desk.run(&pcap(&packets), &["--down", REALS[1]]).lines();
    for (before, after) in before.iter().zip(&after) {
        if before["real"] == REALS[1] {
            assert_ne!(after["real"], REALS[1]);
            assert!(after["real"].is_string());
        } else {
            assert_eq!(before, after);
        }
    }
    assert!(before.iter().any(|line| line["real"] == REALS[1]));
}

#[test]
fn all_reals_down_of_a_vip_drop_or_keep_by_configuration() {
    let desk = Desk::new();
    let down = ["--down", REALS[0], "--down", REALS[1], "--down", REALS[2]];
    let kept = desk.run(&pcap(&[tcp(VIP, 1, 80)]), &down).lines();
    assert_eq!(kept[0]["reason"], "forwarded");
    let config = fs::read_to_string(desk.path("lbd.toml")).unwrap();
    let dropping = config.replace("port = 80", "port = 80\nall_down = \"withdraw\"");
    fs::write(desk.path("lbd.toml"), dropping).unwrap();
    let dropped = desk.run(&pcap(&[tcp(VIP, 1, 80)]), &down).lines();
    assert_eq!((&dropped[0]["verdict"], &dropped[0]["reason"]), (&json!("DROP"), &json!("drop_no_real")));
    assert_eq!((&dropped[0]["vip"], &dropped[0]["real"]), (&json!("198.19.10.1:80/tcp"), &Value::Null));
}

#[test]
fn mtu_decides_which_packets_are_too_big() {
    let desk = Desk::new();
    let capture = pcap(&[udp(1500 - 20 - 20 - 8), udp(1500 - 20 - 20 - 8 + 1)]);
    let reasons = |lines: Vec<Value>| lines.iter().map(|line| field(line, "reason").to_owned()).collect::<Vec<_>>();
    assert_eq!(reasons(desk.run(&capture, &[]).lines()), ["forwarded", "too_big_reply"]);
    assert_eq!(reasons(desk.run(&capture, &["--mtu", "1520"]).lines()), ["forwarded", "forwarded"]);
}

#[test]
fn packets_that_cannot_be_run_whole_are_said_so_and_the_others_run() {
    let desk = Desk::new();
    let header = PcapHeader { datalink: DataLink::ETHERNET, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    let (whole, longest, long) = (tcp(VIP, 1, 80), udp(3520 - 42), udp(3520 - 42 + 1));
    for (length, data) in [(whole.len(), &whole[..60]), (13, &whole[..13]), (3521, &long), (3520, &longest)] {
        let (incl_len, orig_len) = (u32::try_from(data.len()).unwrap(), u32::try_from(length).unwrap());
        let packet = RawPcapPacket { ts_sec: 1, ts_frac: 0, incl_len, orig_len, data: data.into() };
        writer.write_raw_packet(&packet).unwrap();
    }
    let (run, left) = desk.run_and_write(&writer.into_writer(), &["--mtu", "9000"]);
    assert_eq!(left.len(), 1);
    let lines = run.lines();
    let not_run =
        |n, reason, note| json!({ "n": n, "verdict": null, "reason": reason, "vip": null, "real": null, "note": note });
    assert_eq!(
        lines[..3],
        [
            not_run(1, "not_run_cut_short", "60 of its 72 bytes were captured (snap length)"),
            not_run(2, "not_run_too_short", "13 bytes, fewer than the 14 of an Ethernet header"),
            not_run(3, "not_run_too_long", "3521 bytes, more than the 3520 that the kernel's test run takes"),
        ]
    );
    assert_eq!(lines[3]["reason"], "forwarded");
}

#[test]
fn cut_capture_is_told_up_to_its_end_and_then_fails() {
    let desk = Desk::new();
    let capture = pcap(&[tcp(VIP, 1, 80), tcp(VIP, 2, 80)]);
    let (run, left) = desk.run_and_write(&capture[..capture.len() - 1], &[]);
    assert_eq!((run.code, run.lines.len(), left.len()), (Some(1), 1, 1));
    let expected = format!(
        "packets: 1, forwarded: 1\nlbd: {}: after packet 1, at byte 112: the capture is cut short here, or damaged\n",
        desk.path("in.pcap").display()
    );
    assert_eq!(run.stderr, expected);
}

#[test]
fn wrong_inputs_are_refused_each_with_its_reason() {
    let desk = Desk::new();
    let sll = PcapHeader { datalink: DataLink::LINUX_SLL, ..PcapHeader::default() };
    let mut sll = PcapWriter::with_header(Vec::new(), sll).unwrap();
    sll.write_packet(&PcapPacket::new(MICROSECOND, 2, &[1, 2])).unwrap();
    let good = pcap(&[tcp(VIP, 1, 80)]);
    let itself = desk.path("in.pcap");
    for (capture, arguments, expected) in [
        (&b"no capture, but longer than a header"[..], &[][..], "this is no capture"),
        (b"", &[], "the file is empty"),
        (&good[..20], &[], "at byte 0: the capture is cut short"),
        (&sll.into_writer(), &[], "link type 113: only Ethernet (link type 1) can be simulated"),
        (&good, &["--down", "198.18.109.10"], "--down 198.18.109.10: no VIP of the configuration has this real"),
        (&good, &["-w", "/nowhere/out.pcap"], "write /nowhere/out.pcap: No such file or directory"),
        (&good, &["-w", itself.to_str().unwrap()], "this is the capture itself"),
    ] {
        let run = desk.run(capture, arguments);
        assert_eq!((run.code, run.lines.len()), (Some(1), 0), "{}", run.stderr);
        assert!(run.stderr.starts_with("lbd: ") && run.stderr.contains(expected), "{}", run.stderr);
    }
    assert_eq!(fs::read(itself).unwrap(), good, "the capture is still there");
}

#[test]
fn missing_files_bad_configuration_and_usage_have_their_exit_codes() {
    let desk = Desk::new();
    let run = |arguments: &[&str]| Run::of(&desk.command_without_capture(arguments).output().unwrap());
    let missing = run(&["--pcap", "/nowhere/in.pcap"]);
    assert!(missing.stderr.contains("/nowhere/in.pcap: No such file or directory"), "{}", missing.stderr);
    assert_eq!(missing.code, Some(1));
    let usage = run(&[]);
    assert!(usage.stderr.contains("--pcap <IN>"), "{}", usage.stderr);
    assert_eq!(usage.code, Some(2));
    assert_eq!(run(&["--pcap", "x", "--mtu", "67"]).code, Some(2));
    fs::write(desk.path("lbd.toml"), "[node]\ninterfaces = \"eth0\"\n").unwrap();
    let config = desk.run(&pcap(&[]), &[]);
    assert!(config.stderr.contains("lbd.toml:2:1: unknown field `interfaces`"), "{}", config.stderr);
    assert_eq!(config.code, Some(1));
}

#[test]
fn capture_without_packets_gives_none() {
    let run = Desk::new().run(&pcap(&[]), &[]);
    assert_eq!((run.code, run.lines.len(), &run.stderr[..]), (Some(0), 0, "packets: 0\n"));
}

#[test]
fn reader_that_leaves_early_is_no_failure() {
    let desk = Desk::new();
    // More lines than a pipe holds.
    let packets: Vec<_> = (1..2_000).map(|port| tcp(VIP, port, 80)).collect();
    let mut command = desk.command(&pcap(&packets), &[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn without_privilege_it_says_what_it_takes() {
    let desk = Desk::new();
    let command = desk.command(&pcap(&[tcp(VIP, 1, 80)]), &[]);
    let mut without = Command::new("setpriv");
    without.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(command.get_program()).args(command.get_args());
    let run = Run::of(&without.output().unwrap());
    assert_eq!((run.code, run.lines.len()), (Some(1), 0));
    assert!(run.stderr.contains("Operation not permitted"), "{}", run.stderr);
    assert!(run.stderr.contains("run it as root"), "{}", run.stderr);
}

/// The bound is a debug build's on a busy machine.
#[test]
fn ten_thousand_packets_take_seconds_with_many_vips() {
    let desk = Desk::new();
    let address = |n: u16| Ipv4Addr::from_bits(0xc613_0000 + u32::from(n)).to_string();
    let vips = (0..100).map(|n| vip(&address(n), "tcp", 80, REALS[..2].iter()));
    fs::write(desk.path("lbd.toml"), "[node]\ninterface = \"eth0\"\n".to_owned() + &vips.collect::<String>()).unwrap();
    let packet = |n: u16| tcp([198, 19, 0, u8::try_from(n % 100).unwrap()], 1 + n, 80);
    let capture = pcap(&(0..10_000).map(packet).collect::<Vec<_>>());
    let begun = Instant::now();
    let lines = desk.run(&capture, &[]).lines();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    for (n, line) in (0..).zip(&lines) {
        assert_eq!(field(line, "vip"), format!("{}:80/tcp", address(n % 100)));
    }
    assert_eq!(lines.len(), 10_000);
}
