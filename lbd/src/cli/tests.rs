//! What people see, and the whole way from the client to the owner task and back.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use jiff::{SignedDuration, Timestamp};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};

use super::client::{Client, ClientError};
use super::evidence;
use super::render::{self, Style};
use super::{Cli, Command, DrainArgs, RealCommand};
use crate::api::{BindError, Request, Server, Serving};
use crate::config::Protocol;
use crate::model::*;

const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 19, 10, 1));

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn plain() -> Style {
    Style { colour: false, now: now() }
}

fn real(last: u8) -> IpAddr {
    IpAddr::from([198, 18, 222, last])
}

fn some_reals() -> Vec<RealRow> {
    let up = RealRow {
        vip: VIP,
        protocol: Protocol::Tcp,
        port: 80,
        real: real(11),
        weight: 100,
        admin: Admin::Enabled,
        admin_reason: None,
        admin_since: None,
        admin_until: None,
        state: Health::Up,
        reason: "L4OK".into(),
        since: ago(187),
        last_check: Some(ago(1)),
        rtt_us: Some(210),
        rise: 2,
        fall: 0,
        share: 2.0 / 3.0,
        mtu: Some(1500),
        why: None,
        flaps: 0,
        flaps_total: 0,
        held_until: None,
        ramp_percent: None,
        ramp_until: None,
    };
    let down = RealRow {
        real: real(12),
        admin: Admin::Draining,
        admin_reason: Some("new kernel".to_owned()),
        admin_since: None,
        admin_until: None,
        state: Health::Down,
        reason: "PORT_CLOSED".into(),
        since: ago(3600 * 5),
        rtt_us: None,
        rise: 0,
        fall: 41,
        share: 0.0,
        mtu: Some(1500),
        why: Some("PORT_CLOSED".into()),
        ..up.clone()
    };
    let init = RealRow {
        real: real(113),
        state: Health::Init,
        reason: "INIT".into(),
        since: ago(0),
        last_check: None,
        rtt_us: None,
        rise: 0,
        fall: 0,
        share: 1.0 / 3.0,
        mtu: Some(1500),
        ..up.clone()
    };
    vec![up, down, init]
}

fn some_vips() -> Vec<VipRow> {
    let tcp = VipRow {
        vip: VIP,
        protocol: Protocol::Tcp,
        port: 80,
        reals_up: 1,
        reals_total: 3,
        ring_size: 16384,
        ring_size_wanted: 16384,
        digest: "9f86d081884c7d65".into(),
        packets: 1_234_567,
        bytes: 987_654_321,
        window_open_until: Some(now() + SignedDuration::from_secs(899)),
        state: VipState::Kept,
        reason: Some("1 serve, 2 must: none is taken out".to_owned()),
        reals_serving: 1,
        min_healthy: 2,
        serving: true,
        route: Some(Route::Held),
        route_held_until: Some(now() + SignedDuration::from_secs(4)),
        answers: Some(true),
    };
    let udp = VipRow {
        protocol: Protocol::Udp,
        port: 0,
        packets: 0,
        bytes: 0,
        window_open_until: None,
        state: VipState::Serving,
        reason: None,
        min_healthy: 1,
        route: None,
        route_held_until: None,
        answers: None,
        ..tcp.clone()
    };
    vec![tcp, udp]
}

fn some_status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 42,
        started: ago(86400 * 12 + 3600 * 4),
        phase: Phase::Running,
        config: ConfigStatus {
            path: "/etc/lbd/lbd.toml".into(),
            revision: 3,
            loaded_at: ago(59),
            last_reload_error: Some("lbd.toml:3:1: wrong\n3 | x".into()),
        },
        node: some_node(),
        interfaces: vec![InterfaceStatus { name: "eth0".into(), mode: XdpMode::Native, attached: true }],
        program: Some(ProgramStatus { id: 17, verified_insns: Some(4521) }),
        prober: ProberStatus {
            checks: 6,
            sent: 1234,
            forged: 0,
            late: 2,
            lag_us: 120,
            lag_p50_us: 63,
            lag_p99_us: 120,
            ..ProberStatus::default()
        },
        vips: vec![VipSummary {
            vip: VIP,
            protocol: Protocol::Tcp,
            port: 80,
            reals_up: 3,
            reals_total: 3,
            state: VipState::Serving,
        }],
        rings: vec![RingStatus {
            vip: VIP,
            protocol: Protocol::Tcp,
            port: 80,
            size: 16384,
            size_wanted: 32768,
            digest: "9f86d081884c7d65".into(),
            shares: vec![RingShare { real: real(11), share: 1.0 }],
        }],
    }
}

fn some_node() -> NodeRow {
    NodeRow { state: NodeState::Standby, reason: Some("new switch".into()), since: Some(ago(61)) }
}

fn some_stats() -> Stats {
    Stats {
        vips: vec![VipStats { vip: VIP, protocol: Protocol::Tcp, port: 80, packets: 12, bytes: 3456 }],
        reals: vec![RealStats { real: real(11), packets: 12, bytes: 3456, syns: 3, repeated_syns: 1 }],
        reasons: vec![
            ReasonStats { verdict: Verdict::Tx, reason: "forwarded".into(), packets: 12 },
            ReasonStats { verdict: Verdict::Drop, reason: "fragment".into(), packets: 1 },
        ],
        tracked: TrackedStats { hits: 5, misses: 6, evictions: 7, remembered: Some(8), room: 1_048_576 },
    }
}

/// A snapshot, written from the line below its opening quote on.
fn shown(text: &str) -> &str {
    text.trim_start_matches('\n')
}

#[test]
fn reals_plain_are_aligned_columns() {
    assert_eq!(
        render::reals(&some_reals(), plain()),
        shown(
            "
VIP                 REAL            WEIGHT  ADMIN     STATE  REASON       SINCE  CHECKED  RTT     SHARE   WHY
198.19.10.1:80/tcp  198.18.222.11      100  enabled   UP     L4OK         3m07s       1s  210 us  66.7 %  -
198.19.10.1:80/tcp  198.18.222.12      100  draining  DOWN   PORT_CLOSED  5h00m       1s       -   0.0 %  PORT_CLOSED
198.19.10.1:80/tcp  198.18.222.113     100  enabled   INIT   INIT            0s    never       -  33.3 %  -
"
        )
    );
}

#[test]
fn reals_on_a_terminal_are_coloured_by_state() {
    let style = Style { colour: true, now: now() };
    let text = render::reals(&some_reals(), style);
    for (state, code) in [("UP", 10), ("DOWN", 9), ("INIT", 11)] {
        assert!(text.contains(&format!("\u{1b}[38;5;{code}m{state}")), "{state}: {text:?}");
    }
    assert!(!render::reals(&some_reals(), plain()).contains('\u{1b}'));
}

#[test]
fn vips_plain_are_aligned_columns() {
    assert_eq!(
        render::vips(&some_vips(), plain()),
        shown(
            "
VIP                 UP   STATE    PACKETS  BYTES      SLOTS  DIGEST            WINDOW  ROUTE    ARP      WHY
198.19.10.1:80/tcp  1/3  kept     1234567  987654321  16384  9f86d081884c7d65  14m59s  held 4s  answers  1 serve, 2 must: none is taken out
198.19.10.1:*/udp   1/3  serving        0          0  16384  9f86d081884c7d65  -       -        -        -
"
        )
    );
}

#[test]
fn vip_in_detail_is_a_paragraph_with_its_reals() {
    let [tcp, udp] = <[VipRow; 2]>::try_from(some_vips()).unwrap();
    let detail = VipDetail { row: tcp, reals: some_reals() };
    let text = render::vip_details(&[detail.clone(), VipDetail { row: udp, reals: Vec::new() }], plain());
    let head = "198.19.10.1:80/tcp kept: 1 serve, 2 must: none is taken out\n1 of 3 reals serve, 2 must\nVIP  ";
    assert!(text.starts_with(head), "{text}");
    assert!(text.contains("\n\n198.19.10.1:*/udp serving\n1 of 3 reals serve, 1 must\n"), "{text}");
    let json = serde_json::to_value(&detail).unwrap();
    assert_eq!(
        (&json["state"], &json["min_healthy"], &json["reals"][1]["state"]),
        (&"kept".into(), &2.into(), &"DOWN".into())
    );
    assert_eq!(serde_json::from_value::<VipDetail>(json).unwrap(), detail);
}

#[test]
fn status_plain_shows_everything_at_a_glance() {
    assert_eq!(
        render::status(&some_status(), plain()),
        shown(
            "
lbd        0.1.0 pid 42, running for 12d04h
config     /etc/lbd/lbd.toml revision 3, loaded 59s ago
           last reload refused: lbd.toml:3:1: wrong
           3 | x
node       standby for 1m01s (new switch)
interface  eth0 native, attached
program    id 17, 4521 instructions verified
prober     6 checks, 1234 probes sent, 0 not sent, 0 forged, 2 late, lag p50 63 us, p99 120 us, max 120 us

VIP                 UP   STATE    SLOTS                DIGEST
198.19.10.1:80/tcp  3/3  serving  16384, wanted 32768  9f86d081884c7d65
"
        )
    );
}

#[test]
fn stats_plain_are_three_tables() {
    assert_eq!(
        render::stats(&some_stats(), plain()),
        shown(
            "
VIP                 PACKETS  BYTES
198.19.10.1:80/tcp       12   3456

REAL           PACKETS  BYTES  SYNS  REPEATED
198.18.222.11       12   3456     3         1

VERDICT  REASON     PACKETS
tx       forwarded       12
drop     fragment         1

tracked flows: 5 hits, 6 misses, 7 evictions; 8 remembered, room for 1048576
"
        )
    );
}

#[test]
fn reload_shows_the_changes_and_the_revision() {
    let result =
        |changes: &[&str]| ReloadResult { revision: 4, changes: changes.iter().map(ToString::to_string).collect() };
    assert_eq!(render::reload(&result(&[])), "revision 4: nothing changed\n");
    assert_eq!(render::reload(&result(&["+ a"])), "+ a\nrevision 4: 1 change in force\n");
    assert_eq!(render::reload(&result(&["+ a", "- b"])), "+ a\n- b\nrevision 4: 2 changes in force\n");
}

#[test]
fn real_row_json_is_the_documented_contract() {
    let json = serde_json::to_string(&some_reals()[0]).unwrap();
    let expected = r#"{"vip":"198.19.10.1","protocol":"tcp","port":80,"real":"198.18.222.11","weight":100,"admin":"enabled","state":"UP","reason":"L4OK","since":"2026-03-01T11:56:53Z","last_check":"2026-03-01T11:59:59Z","rtt_us":210,"rise":2,"fall":0,"share":0.6666666666666666,"mtu":1500,"why":null,"admin_reason":null,"admin_since":null,"admin_until":null,"flaps":0,"flaps_total":0,"held_until":null,"ramp_percent":null,"ramp_until":null}"#;
    assert_eq!(json, expected);
}

fn some_whys() -> Vec<WhyRow> {
    let finding = Finding {
        code: "VIP_NOT_LOCAL".into(),
        text: "198.18.222.12 decapsulates, but 198.19.10.1 is not one of its addresses".into(),
        evidence: vec!["tcp to the VIP, through the tunnel: silent".into(), "echo: answered".into()],
        mend: Some("realsrv-setup apply --vip 198.19.10.1".into()),
        at: ago(0),
    };
    let down = WhyRow { vip: VIP, protocol: Protocol::Tcp, port: 80, real: real(12), state: Health::Down, finding };
    let finding = Finding {
        code: "OK".into(),
        text: "nothing is wrong".into(),
        evidence: vec!["udp to the VIP, through the tunnel: answered".into()],
        mend: None,
        at: ago(0),
    };
    vec![down.clone(), WhyRow { protocol: Protocol::Udp, port: 0, state: Health::Up, finding, ..down }]
}

#[test]
fn why_is_a_paragraph_for_each_vip() {
    assert_eq!(
        render::why(&some_whys()),
        shown(
            "
198.19.10.1:80/tcp 198.18.222.12 DOWN
VIP_NOT_LOCAL: 198.18.222.12 decapsulates, but 198.19.10.1 is not one of its addresses
  tcp to the VIP, through the tunnel: silent
  echo: answered
mend: realsrv-setup apply --vip 198.19.10.1

198.19.10.1:*/udp 198.18.222.12 UP
OK: nothing is wrong
  udp to the VIP, through the tunnel: answered
"
        )
    );
}

#[test]
fn why_row_json_is_the_documented_contract() {
    let json = serde_json::to_string(&some_whys()[1]).unwrap();
    let expected = r#"{"vip":"198.19.10.1","protocol":"udp","port":0,"real":"198.18.222.12","state":"UP","code":"OK","text":"nothing is wrong","evidence":["udp to the VIP, through the tunnel: answered"],"mend":null,"at":"2026-03-01T12:00:00Z"}"#;
    assert_eq!(json, expected);
}

#[test]
fn why_takes_a_vip_with_or_without_its_port() {
    let question = |words: &[&str]| -> Result<RealChoice, (i32, String)> {
        let words = ["lbctl", "real", "why"].iter().chain(words);
        let cli = Cli::try_parse_from(words).map_err(|error| (error.exit_code(), error.to_string()))?;
        match cli.command {
            Command::Real(RealCommand::Why(filter)) => Ok(filter.choice()),
            other => panic!("{other:?}"),
        }
    };
    let asked = |vip, port| Ok(RealChoice { real: real(12), vip, port });
    let v6 = Some("fd00::1".parse().unwrap());
    assert_eq!(question(&["198.18.222.12"]), asked(None, None));
    assert_eq!(question(&["198.18.222.12", "--vip", "198.19.10.1"]), asked(Some(VIP), None));
    assert_eq!(question(&["198.18.222.12", "--vip", "198.19.10.1:80"]), asked(Some(VIP), Some(80)));
    assert_eq!(question(&["198.18.222.12", "--vip", "fd00::1"]), asked(v6, None));
    assert_eq!(question(&["198.18.222.12", "--vip", "[fd00::1]:0"]), asked(v6, Some(0)));
    for wrong in [&[][..], &["real2"], &["198.18.222.12", "--vip", "198.19.10.1:http"]] {
        assert_eq!(question(wrong).unwrap_err().0, 2, "{wrong:?}");
    }
    let (_, message) = question(&["198.18.222.12", "--vip", "198.19.10.1:http"]).unwrap_err();
    assert!(message.contains("expected ADDRESS, IPV4:PORT or [IPV6]:PORT"), "{message}");
}

fn some_order() -> AdminOrder {
    let of = RealChoice { real: real(12), vip: Some(VIP), port: Some(80) };
    AdminOrder { of, state: Admin::Draining, reason: Some("new kernel".to_owned()), for_s: Some(3600) }
}

#[test]
fn drain_takes_a_reason_and_an_end_and_waits_only_if_it_is_told() {
    let parsed = |words: &[&str]| Cli::try_parse_from([&["lbctl", "real", "drain"], words].concat());
    let cli = parsed(&["198.18.222.12", "--vip", "198.19.10.1:80", "--reason", "new kernel", "--for", "1h"]).unwrap();
    let Command::Real(RealCommand::Drain(DrainArgs { order, wait, quiet, timeout })) = cli.command else { panic!() };
    assert_eq!((order.which.choice(), order.span), (some_order().of, Some(Duration::from_hours(1))));
    assert_eq!((wait, quiet, timeout), (false, Duration::from_mins(1), None));
    for wrong in [
        &["198.18.222.12", "--quiet", "9s"][..],
        &["198.18.222.12", "--for", "soon"],
        &["198.18.222.12", "--wait", "--quiet", "0s"],
        &["somewhere"],
    ] {
        assert_eq!(parsed(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
    }
}

#[test]
fn administered_reals_are_told_with_reason_end_and_health() {
    let mut rows = some_reals();
    rows.truncate(1);
    let row = &mut rows[0];
    (row.admin, row.admin_reason) = (Admin::Draining, Some("new kernel".to_owned()));
    row.admin_until = Some(now() + SignedDuration::from_mins(90));
    let said = render::administered(&AdminResult { reals: rows, warnings: Vec::new() }, plain());
    let expected =
        "198.19.10.1:80/tcp 198.18.222.11: draining (new kernel), enabled again in 1h30m; UP, share 66.7 %\n";
    assert_eq!(said, expected);
}

fn some_detail() -> RealDetail {
    let check = CheckRow {
        check: "tcp 198.19.10.1:80".into(),
        state: Health::Down,
        severity: Some(Severity::Hard),
        reason: "TIMEOUT".into(),
        detail: None,
        since: ago(187),
        last_check: Some(ago(1)),
        rtt_us: None,
        rtts: Some(RttStats { count: 70, min_us: 150, avg_us: 210, max_us: 900 }),
        rise: 0,
        fall: 41,
    };
    let [_, row, _] = <[RealRow; 3]>::try_from(some_reals()).unwrap();
    RealDetail { row, checks: vec![check], finding: Some(some_whys()[0].finding.clone()) }
}

fn some_history() -> Vec<HistoryRow> {
    let up = HistoryRow {
        at: ago(190),
        vip: VIP,
        protocol: Protocol::Tcp,
        port: 80,
        real: real(12),
        check: "tcp 198.19.10.1:80".into(),
        before: Health::Init,
        after: Health::Up,
        severity: None,
        reason: "L4OK".into(),
        detail: None,
        rtt_us: Some(210),
        why: None,
    };
    let down = HistoryRow {
        at: ago(187),
        before: Health::Up,
        after: Health::Down,
        severity: Some(Severity::Hard),
        reason: "TIMEOUT".into(),
        rtt_us: None,
        why: Some("VIP_NOT_LOCAL".into()),
        ..up.clone()
    };
    vec![up, down]
}

#[test]
fn real_in_detail_is_a_paragraph_with_a_table_of_checks() {
    let text = evidence::show(&[some_detail()], plain());
    assert_eq!(
        text,
        shown(
            "
198.19.10.1:80/tcp 198.18.222.12 DOWN for 5h00m
weight 100, 0.0 % of the ring, path MTU 1500
VIP_NOT_LOCAL: 198.18.222.12 decapsulates, but 198.19.10.1 is not one of its addresses
mend: realsrv-setup apply --vip 198.19.10.1
CHECK               STATE  REASON   SINCE  CHECKED  RTT MIN/AVG/MAX       RISE  FALL  DETAIL
tcp 198.19.10.1:80  DOWN   TIMEOUT  3m07s       1s  150/210/900 us of 70     0    41  -
"
        )
    );
}

#[test]
fn real_that_is_held_down_shows_until_when() {
    let mut detail = some_detail();
    (detail.row.flaps, detail.row.flaps_total) = (4, 7);
    detail.row.held_until = Some(now() + SignedDuration::from_secs(42));
    (detail.row.ramp_percent, detail.row.ramp_until) = (Some(40), detail.row.held_until);
    let text = evidence::show(&[detail], plain());
    assert!(text.contains("path MTU 1500\nslow start: 40 % of its part, all in 42s\n"), "{text}");
    let said = "UP held down until 2026-03-01T12:00:42Z (42s)\nfalls from UP to DOWN: 4 of late, 7 in all\nweight 100";
    assert!(text.contains(said), "{text}");
}

#[test]
fn history_is_a_line_for_each_change() {
    assert_eq!(
        evidence::history(&some_history(), plain()),
        shown(
            "
TIME                      VIP                 REAL           CHECK               BEFORE  AFTER  HOW   REASON   RTT     WHY            DETAIL
2026-03-01T11:56:50.000Z  198.19.10.1:80/tcp  198.18.222.12  tcp 198.19.10.1:80  INIT    UP     -     L4OK     210 us  -              -
2026-03-01T11:56:53.000Z  198.19.10.1:80/tcp  198.18.222.12  tcp 198.19.10.1:80  UP      DOWN   hard  TIMEOUT       -  VIP_NOT_LOCAL  -
"
        )
    );
}

#[test]
fn history_and_detail_json_are_the_documented_contract() {
    let json = serde_json::to_string(&some_history()[1]).unwrap();
    let expected = r#"{"at":"2026-03-01T11:56:53Z","vip":"198.19.10.1","protocol":"tcp","port":80,"real":"198.18.222.12","check":"tcp 198.19.10.1:80","before":"UP","after":"DOWN","severity":"hard","reason":"TIMEOUT","detail":null,"rtt_us":null,"why":"VIP_NOT_LOCAL"}"#;
    assert_eq!(json, expected);
    let json = serde_json::to_value(some_detail()).unwrap();
    let row = serde_json::to_value(&some_detail().row).unwrap();
    assert!(row.as_object().unwrap().iter().all(|(key, value)| json[key] == *value), "what `real list` tells: {json}");
    let check = r#"{"check":"tcp 198.19.10.1:80","state":"DOWN","severity":"hard","reason":"TIMEOUT","detail":null,"since":"2026-03-01T11:56:53Z","last_check":"2026-03-01T11:59:59Z","rtt_us":null,"rtts":{"count":70,"min_us":150,"avg_us":210,"max_us":900},"rise":0,"fall":41}"#;
    assert_eq!(serde_json::to_string(&some_detail().checks[0]).unwrap(), check);
    assert_eq!(json["finding"]["code"], "VIP_NOT_LOCAL");
}

/// A server at `path` whose owner answers with the samples, and refuses to reload.
fn start(path: &Path) -> Serving {
    let (requests, mut inbox) = mpsc::channel(1);
    let server = Server::bind(path).unwrap();
    tokio::spawn(async move {
        while let Some(request) = inbox.recv().await {
            match request {
                Request::Status(reply) => drop(reply.send(Ok(some_status()))),
                Request::Vips(reply) => drop(reply.send(Ok(some_vips()))),
                Request::Reals(reply) => drop(reply.send(Ok(some_reals()))),
                Request::Why(question, reply) => {
                    assert_eq!(question.real, real(12));
                    let mut rows = some_whys();
                    rows.retain(|row| question.vip.is_none_or(|vip| vip == row.vip));
                    rows.retain(|row| question.port.is_none_or(|port| port == row.port));
                    drop(reply.send(if rows.is_empty() { Err("no such VIP".into()) } else { Ok(rows) }));
                }
                Request::Admin(order, reply) => {
                    assert_eq!(order, some_order());
                    drop(reply.send(Ok(AdminResult { reals: some_reals(), warnings: vec!["none left".to_owned()] })));
                }
                Request::Flows(question, reply) => {
                    let (recent, since) = (question.recent_s.into(), question.since_s.into());
                    drop(reply.send(Ok(FlowsAnswer { recent, since, is_out: true })));
                }
                Request::Show(question, reply) => {
                    assert_eq!((question.real, question.vip, question.port), (real(12), Some(VIP), Some(80)));
                    drop(reply.send(Ok(vec![some_detail()])));
                }
                Request::History(HistoryQuestion { real: asked, vip, port }, reply) => {
                    let all = (asked, vip, port) == (None, None, None);
                    drop(reply.send(if all { Ok(some_history()) } else { Err("there is no such VIP".into()) }));
                }
                Request::Trace(TraceQuestion { real: asked, vip, port, wait_ms }, reply) => {
                    assert_eq!((asked, vip, port, wait_ms), (real(12), Some(VIP), None, Some(5000)));
                    drop(reply.send(Ok(b"a file".to_vec())));
                }
                Request::Node(order, reply) => {
                    assert_eq!(order, NodeOrder { state: NodeState::Standby, reason: some_node().reason });
                    drop(reply.send(Ok(some_node())));
                }
                Request::Stats(reply) => drop(reply.send(Ok(some_stats()))),
                Request::Reload(reply) => drop(reply.send(Err("lbd.toml:1:1: wrong".into()))),
            }
        }
    });
    server.start(requests)
}

#[tokio::test]
async fn client_and_api_agree_on_every_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/lbd.sock");
    let serving = start(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);

    let client = Client::new(&path);
    assert_eq!(client.status().await.unwrap(), some_status());
    assert_eq!(client.vips().await.unwrap(), some_vips());
    assert_eq!(client.reals().await.unwrap(), some_reals());
    assert_eq!(client.stats().await.unwrap(), some_stats());
    let question = RealChoice { real: real(12), vip: None, port: None };
    assert_eq!(client.why(question).await.unwrap(), some_whys());
    let of_all_ports = RealChoice { vip: Some(VIP), port: Some(0), ..question };
    assert_eq!(client.why(of_all_ports).await.unwrap(), some_whys()[1..]);
    match client.why(RealChoice { vip: Some(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])), ..question }).await {
        Err(ClientError::Refused { status: 422, message }) => assert_eq!(message, "no such VIP"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.administer(&some_order()).await.unwrap().warnings, ["none left"]);
    let order = NodeOrder { state: NodeState::Standby, reason: some_node().reason };
    assert_eq!(client.order_node(&order).await.unwrap(), some_node());
    let flows = FlowsQuestion { real: real(12), vip: Some(VIP), port: None, recent_s: 7, since_s: 8 };
    assert_eq!(client.flows(flows).await.unwrap(), FlowsAnswer { recent: 7, since: 8, is_out: true });
    let of_one_port = RealChoice { vip: Some(VIP), port: Some(80), ..question };
    assert_eq!(client.show(of_one_port).await.unwrap(), [some_detail()]);
    assert_eq!(client.history(HistoryQuestion::default()).await.unwrap(), some_history());
    let trace = TraceQuestion { real: real(12), vip: Some(VIP), port: None, wait_ms: Some(5000) };
    assert_eq!(client.trace(trace).await.unwrap(), b"a file"[..]);
    match client.history(HistoryQuestion { vip: Some(VIP), ..HistoryQuestion::default() }).await {
        Err(ClientError::Refused { status: 422, message }) => assert_eq!(message, "there is no such VIP"),
        other => panic!("{other:?}"),
    }
    match client.reload().await {
        Err(ClientError::Refused { status: 422, message }) => assert_eq!(message, "lbd.toml:1:1: wrong"),
        other => panic!("{other:?}"),
    }

    serving.end().await;
    assert!(!path.exists(), "the socket goes with its server");
}

#[tokio::test]
async fn api_ends_although_a_request_never_becomes_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.sock");
    let serving = start(&path);
    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    client.write_all(b"GET /v1/sta").await.unwrap();
    // The API has taken the connection: it answers the next one.
    Client::new(&path).status().await.unwrap();
    serving.end().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn failure_to_answer_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.sock");
    let (requests, mut inbox) = mpsc::channel(1);
    let _serving = Server::bind(&path).unwrap().start(requests);
    tokio::spawn(async move {
        let Some(Request::Stats(reply)) = inbox.recv().await else { panic!() };
        reply.send(Err("read counter 3: no".into())).unwrap();
    });
    match Client::new(&path).stats().await {
        Err(ClientError::Refused { status: 500, message }) => assert_eq!(message, "read counter 3: no"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn client_without_daemon_names_the_socket() {
    let error = Client::new(Path::new("/nonexistent/lbd.sock")).status().await.unwrap_err();
    let expected = "cannot reach lbd at /nonexistent/lbd.sock: No such file or directory (os error 2); is lbd running?";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn client_of_stopping_daemon_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.sock");
    let (requests, inbox) = mpsc::channel(1);
    drop(inbox);
    let _serving = Server::bind(&path).unwrap().start(requests);
    match Client::new(&path).reals().await {
        Err(ClientError::Refused { status: 503, message }) => assert_eq!(message, "the daemon is stopping"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bind_replaces_the_socket_of_a_dead_daemon_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.sock");
    // A listener that is dropped without unlinking: what kill -9 leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = Server::bind(&path).unwrap();
    assert!(matches!(Server::bind(&path), Err(BindError::InUse { .. })));
    drop(server);

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::bind(&path), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
