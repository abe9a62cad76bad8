use super::*;
use crate::{CheckKey, Kind, Reason, Severity, State, Transition, config::ConfigError};
use std::time::{Duration, SystemTime};

const GOOD: &str = r#"
[on_change]
command = ["ipvsadm", "-e", "{ipvs_protocol}", "{service}", "-r", "{server}", "-i", "-w", "{weight}"]

[[vip]]
address  = "198.19.10.1"
protocol = "tcp"
port     = 80
check    = [{ kind = "tcp" }, { kind = "icmp", interval = "500ms" }]

  [[vip.real]]
  address = "198.18.101.10"

  [[vip.real]]
  address = "198.18.102.10"
  weight  = 7
"#;

fn config() -> Config {
    Config::parse("f", GOOD).unwrap()
}

fn refused(text: &str) -> String {
    match Config::parse("f", text) {
        Err(error @ ConfigError::Mistakes { .. }) => error.to_string(),
        other => panic!("not refused for its content: {other:?}"),
    }
}

fn transition(kind: Kind, to: State, reason: Reason) -> Transition {
    let key = CheckKey::new("198.18.102.10".parse().unwrap(), "198.19.10.1".parse().unwrap(), kind);
    Transition { key, from: State::Init, to, reason, detail: None, rtt: None, at: SystemTime::UNIX_EPOCH }
}

const TCP: Kind = Kind::Tcp { port: 80 };
const SOFT: State = State::Down(Severity::Soft);
const HARD: State = State::Down(Severity::Hard);

#[test]
fn each_check_of_each_real_is_asked_once() {
    let twice = format!("{GOOD}{}", GOOD.split_once("[[vip]]").map(|(_, vip)| format!("[[vip]]{vip}")).unwrap());
    let config = Config::parse("f", &twice.replacen("port     = 80", "port     = 81", 1)).unwrap();
    assert_eq!(config.checks().len(), 6, "of the icmp checks each serves both VIPs");
    let second = &config.services[0].checks[1];
    assert_eq!((second.0.kind.clone(), second.1.interval.as_millis()), (Kind::Icmp, 500));
}

#[test]
fn mistakes_are_shown_with_their_lines() {
    for (from, to, said) in [
        ("{weight}", "{wait}", "f:3:91: `{wait}` is not known: allowed is {vip} {port} "),
        ("[\"ipvsadm\"", "[], x = [\"ipvsadm\"", "f:3:"),
        (
            "protocol = \"tcp\"",
            "protocol = \"tcp\"\nport = 81\ncheck = { kind = \"tcp\" }\n[[vip.real]]\naddress = \"198.18.101.10\"\n[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"tcp\"\nport = 81\ncheck = { kind = \"tcp\" }\n[[vip.real]]\naddress = \"198.18.101.10\"\n[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"tcp\"",
            "is listed twice",
        ),
        ("weight  = 7", "weight  = 70000", "f:16:13: `weight` 70000 is out of range: allowed is 0..=65535"),
        ("198.18.102.10", "198.18.101.10", "f:15:13: real 198.18.101.10 is listed twice for VIP 198.19.10.1"),
        ("198.19.10.1", "fd00::1", "f:12:13: real 198.18.101.10 is IPv4, and its VIP fd00::1 IPv6"),
        (
            "check    = [{ kind = \"tcp\" }, { kind = \"icmp\", interval = \"500ms\" }]",
            "check = []",
            "`check` is empty",
        ),
        ("kind = \"tcp\"", "kind = \"http\"", "is not a kind of check"),
        ("[on_change]", "[on_chance]", "unknown field `on_chance`"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let report = refused(&GOOD.replace(from, to));
        assert!(report.contains(said), "{report}");
    }
    assert!(refused("vip = []").contains("there is nothing to check"));
}

#[test]
fn real_is_up_when_all_its_checks_pass_and_as_bad_as_the_worst() {
    let mut board = Board::default();
    assert!(board.configure(&config(), SystemTime::UNIX_EPOCH).is_empty());
    let mut step = |kind, to, reason| {
        let changes = board.apply(&transition(kind, to, reason));
        changes.iter().map(|c| (c.before, c.state, c.reason, c.weight)).collect::<Vec<_>>()
    };
    assert_eq!(step(TCP, State::Up, Reason::L4Ok), [], "the other has not run yet");
    assert_eq!(step(Kind::Icmp, State::Up, Reason::L3Ok), [(State::Init, State::Up, Reason::L4Ok, 7)][..].to_vec());
    assert_eq!(step(TCP, SOFT, Reason::PortClosed), [(State::Up, SOFT, Reason::PortClosed, 0)]);
    assert_eq!(step(Kind::Icmp, HARD, Reason::Timeout), [(SOFT, HARD, Reason::Timeout, 0)]);
    assert_eq!(step(TCP, State::Up, Reason::L4Ok), []);
    assert_eq!(step(Kind::Icmp, State::Up, Reason::L3Ok).len(), 1);
}

#[test]
fn reload_keeps_what_stays_and_reviews_what_has_other_checks() {
    let mut board = Board::default();
    board.configure(&config(), SystemTime::UNIX_EPOCH);
    board.apply(&transition(TCP, State::Up, Reason::L4Ok));
    let tcp_only = GOOD.replace(", { kind = \"icmp\", interval = \"500ms\" }", "");
    let changes = board.configure(&Config::parse("f", &tcp_only).unwrap(), SystemTime::UNIX_EPOCH);
    assert_eq!(
        changes.iter().map(|c| (c.real.to_string(), c.state)).collect::<Vec<_>>(),
        [("198.18.102.10".into(), State::Up)]
    );
    let mut reload = |text: &str| board.configure(&Config::parse("f", text).unwrap(), SystemTime::UNIX_EPOCH);
    assert!(reload(&tcp_only).is_empty());
    assert!(reload(GOOD).is_empty(), "a check that is new takes nothing out");
    let told: Vec<_> =
        reload(&GOOD.replace("weight  = 7", "weight  = 0")).iter().map(|c| (c.before, c.state, c.weight)).collect();
    assert_eq!(told, [(State::Up, State::Up, 0)]);
    assert_eq!(reload(&GOOD.replace("weight  = 7", "weight  = 9"))[0].weight, 9);
    assert_eq!(board.up_of_all(), (1, 2));
    assert_eq!(board.apply(&transition(Kind::Tcp { port: 99 }, HARD, Reason::Timeout)), [], "nobody asked");
}

#[test]
fn command_has_the_changes_words_and_json_its_fields() {
    let mut board = Board::default();
    board.configure(&config(), SystemTime::UNIX_EPOCH);
    let mut closed = transition(TCP, SOFT, Reason::PortClosed);
    closed.detail = Some("{weight}".to_owned());
    let change = board.apply(&closed).remove(0);
    let words = config().command.unwrap().words(&change);
    assert_eq!(words, ["ipvsadm", "-e", "-t", "198.19.10.1:80", "-r", "198.18.102.10:80", "-i", "-w", "0"]);
    let six = Change { real: "fd00::10".parse().unwrap(), ..change.clone() };
    let all = Template::new(vec!["{real}={server} {before}{state} {protocol} {reason} {x}".to_owned()]);
    assert_eq!(all.words(&six), ["fd00::10=[fd00::10]:80 INITDOWN tcp PORT_CLOSED {x}"]);
    let json = r#"{"at":"1970-01-01T00:00:00.000Z","vip":"198.19.10.1","protocol":"tcp","port":80,"real":"198.18.102.10","before":"INIT","state":"DOWN","severity":"soft","reason":"PORT_CLOSED","detail":"{weight}","weight":0}"#;
    assert_eq!(serde_json::to_string(&change).unwrap(), json);
}

#[test]
fn superseded_order_is_not_carried_out() {
    let mut board = Board::default();
    board.configure(&config(), SystemTime::UNIX_EPOCH);
    let (orders, template) = (Orders::default(), config().command.unwrap());
    let mut tell = |state, reason| {
        for change in board.apply(&transition(TCP, state, reason)) {
            orders.put(change, &template, Duration::from_secs(1));
        }
    };
    tell(SOFT, Reason::PortClosed);
    tell(HARD, Reason::Timeout);
    orders.close();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let next = || runtime.block_on(orders.next()).map(|(change, ..)| (change.before, change.state));
    assert_eq!((next(), next()), (Some((SOFT, HARD)), None));
}
