use std::time::Duration;

use super::*;

const GOOD: &str = r#"
[node]
interface = "eth0"
outer_source = "198.18.221.11"

[defaults]
interval = "500ms"
fall     = 2

[[vip]]
address  = "198.19.10.1"
protocol = "tcp"
port     = 80
check    = { kind = "tcp", timeout = "2s" }

  [[vip.real]]
  address = "198.18.222.12"

  [[vip.real]]
  address = "198.18.222.11"
  weight  = 7
"#;

/// The report of `text`, which must be refused.
fn refused(text: &str) -> String {
    match Config::parse("lbd.toml", text) {
        Err(error @ ConfigError::Mistakes { .. }) => error.to_string(),
        other => panic!("not refused for its content: {other:?}"),
    }
}

/// The report of the good file with one piece of it replaced.
fn refused_with(good: &str, bad: &str) -> String {
    assert_eq!(GOOD.matches(good).count(), 1, "{good:?} must name one place of the good file");
    refused(&GOOD.replace(good, bad))
}

fn good() -> Config {
    Config::parse("lbd.toml", GOOD).unwrap()
}

fn good_with(good: &str, other: &str) -> Config {
    Config::parse("lbd.toml", &GOOD.replace(good, other)).unwrap()
}

#[test]
fn parse_good_file_gives_sorted_domain_with_defaults_applied() {
    let config = good();
    assert_eq!(config.node().interfaces(), ["eth0"]);
    assert_eq!(config.node().outer_source(), Some(Ipv4Addr::new(198, 18, 221, 11)));
    assert_eq!(config.node().seed(), DEFAULT_SEED);
    assert_eq!(config.node().vip_miss(), VipMiss::Drop);
    let [vip] = config.vips() else { panic!("one VIP expected") };
    assert_eq!(vip.key().to_string(), "198.19.10.1:80/tcp");
    assert_eq!(config.vip(&vip.key()), Some(vip));
    let reals: Vec<_> = vip.reals().iter().map(|real| (real.address.to_string(), real.weight)).collect();
    assert_eq!(reals, [("198.18.222.11".to_owned(), 7), ("198.18.222.12".to_owned(), 100)]);
    assert_eq!(vip.check(), &Check { kind: CheckKind::Tcp { port: 80 }, target: None });
    let timing = Timing {
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(2),
        fast_interval: Duration::from_millis(200),
        rise: 2,
        fall: 2,
    };
    assert_eq!(vip.timing(), timing);
    assert_eq!(vip.flow_idle(), Duration::from_secs(900));
    assert_eq!(vip.on_all_down(), OnAllDown::Keep);
}

#[test]
fn parse_udp_check_takes_hex_port_and_target() {
    let udp =
        r#"{ kind = "udp", port = 53, target = "198.19.10.9", payload = "00fF", expect = "01", require_reply = true }"#;
    let config = good_with(r#"{ kind = "tcp", timeout = "2s" }"#, udp);
    let kind = CheckKind::Udp { port: 53, payload: Some(vec![0, 255]), expect: Some(vec![1]), require_reply: true };
    assert_eq!(config.vips()[0].check(), &Check { kind, target: Some("198.19.10.9".parse().unwrap()) });
}

#[test]
fn parse_order_of_vips_reals_and_interfaces_means_nothing() {
    let vip = |address: &str, reals: [&str; 2]| {
        let reals = reals.map(|real| format!("[[vip.real]]\naddress = \"{real}\"\n")).concat();
        format!("[[vip]]\naddress = \"{address}\"\nprotocol = \"udp\"\nport = 0\ncheck.kind = \"icmp\"\n{reals}")
    };
    let (a, b) = ("198.18.0.1", "198.18.0.2");
    let one = format!("node.interface = [\"b\", \"a\"]\n{}{}", vip("198.19.0.1", [a, b]), vip("198.19.0.2", [a, b]));
    let two = format!("node.interface = [\"a\", \"b\"]\n{}{}", vip("198.19.0.2", [b, a]), vip("198.19.0.1", [b, a]));
    assert_eq!(Config::parse("one", &one).unwrap(), Config::parse("two", &two).unwrap());
}

#[test]
fn parse_inherited_fast_interval_is_cut_to_the_interval() {
    let config = good_with(r#"timeout = "2s" }"#, r#"interval = "50ms" }"#);
    assert_eq!(config.vips()[0].timing().fast_interval, Duration::from_millis(50));
}

#[test]
fn load_missing_file_names_the_file() {
    let error = Config::load(Path::new("/nonexistent/lbd.toml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration /nonexistent/lbd.toml");
}

macro_rules! refuses {
    ($($name:ident: $good:literal => $bad:literal, $report:literal;)+) => { $(
        #[test]
        fn $name() {
            assert_eq!(refused_with($good, $bad), $report.trim_matches('\n'));
        }
    )+ };
}

refuses! {
    parse_syntax_error_is_shown_with_its_line: "port     = 80" => "port     = ", r"
X
";
    parse_unknown_key_lists_the_allowed_ones: "weight  = 7" => "wieght  = 7", r"
X
";
    parse_wrong_type_says_what_is_allowed: "port     = 80" => "port     = \"80\"", r"
X
";
    parse_duration_as_number_says_what_is_allowed: r#""500ms""# => "2", r"
X
";
    parse_missing_key_is_named: "protocol = \"tcp\"\n" => "", r"
X
";
    parse_bad_address_is_shown: "198.18.222.12" => "198.18.222.256", r"
X
";
    parse_unusable_address_is_shown: "198.19.10.1" => "127.0.0.1", r"
X
";
    parse_real_of_another_family_is_refused: "198.18.222.12" => "2001:db8::12", r"
X
";
    parse_ipv6_vip_is_refused: "198.19.10.1" => "2001:db8::1", r"
X
";
    parse_outer_source_prefix_is_refused: "198.18.221.11" => "198.18.221.0/24", r"
X
";
    parse_duplicate_real_is_refused: "198.18.222.12" => "198.18.222.11", r"
X
";
    parse_real_that_is_a_vip_is_refused: "198.18.222.12" => "198.19.10.1", r"
X
";
    parse_weight_out_of_range_says_the_range: "weight  = 7" => "weight  = 65536", r"
X
";
    parse_negative_weight_says_the_range: "weight  = 7" => "weight  = -1", r"
X
";
    parse_port_out_of_range_says_the_range: "port     = 80" => "port     = 65536", r"
X
";
    parse_unknown_protocol_says_the_choice: "protocol = \"tcp\"" => "protocol = \"sctp\"", r"
X
";
    parse_unknown_check_says_the_choice: "kind = \"tcp\"" => "kind = \"http\"", r"
X
";
    parse_port_0_with_tcp_check_wants_a_port: "port     = 80" => "port     = 0", r"
X
";
    parse_check_port_0_says_the_range: "timeout = \"2s\"" => "port = 0", r"
X
";
    parse_icmp_check_with_port_is_refused: "kind = \"tcp\", timeout = \"2s\"" => "kind = \"icmp\", port = 80", r"
X
";
    parse_payload_of_tcp_check_is_refused: "timeout = \"2s\"" => "payload = \"00\"", r"
X
";
    parse_payload_not_hex_is_refused: "kind = \"tcp\", timeout = \"2s\"" => "kind = \"udp\", payload = \"xyz\"", r"
X
";
    parse_bad_duration_shows_examples: r#""500ms""# => r#""5 parsecs""#, r"
X
";
    parse_interval_out_of_range_says_the_range: r#""500ms""# => r#""9ms""#, r"
X
";
    parse_timeout_out_of_range_says_the_range: r#"timeout = "2s""# => r#"timeout = "2m""#, r"
X
";
    parse_fast_interval_over_interval_says_the_range: r#"timeout = "2s""# => r#"fast_interval = "501ms""#, r"
X
";
    parse_fall_0_says_the_range: "fall     = 2" => "fall     = 0", r"
X
";
    parse_bad_seed_says_the_form: "[defaults]" => "seed = \"abc\"\n[defaults]", r"
X
";
    parse_bad_unmatched_says_the_choice: "[defaults]" => "unmatched = \"reject\"\n[defaults]", r"
X
";
    parse_bad_all_down_says_the_choice: "fall     = 2" => "all_down = \"panic\"", r"
X
";
    parse_bad_flow_idle_says_the_range: "fall     = 2" => "flow_idle = \"25h\"", r"
X
";
    parse_bad_interface_name_says_the_form: "\"eth0\"" => "\"a-name-far-too-long\"", r"
X
";
    parse_interface_named_twice_is_refused: "\"eth0\"" => "[\"eth0\", \"eth0\"]", r"
X
";
    parse_no_interface_is_refused: "\"eth0\"" => "[]", r"
X
";
}

#[test]
fn parse_duplicate_vip_is_shown_at_the_second() {
    let second = &GOOD[GOOD.find("[[vip]]").unwrap()..];
    assert_eq!(refused(&format!("{GOOD}{second}")), "X");
}

#[test]
fn parse_vip_without_reals_is_refused() {
    assert_eq!(refused(&GOOD[..GOOD.find("  [[vip.real]]").unwrap()]), "X");
}

#[test]
fn parse_several_mistakes_reports_all_in_file_order() {
    let text = GOOD.replace("weight  = 7", "weight  = 70000").replace("\"500ms\"", "\"1ms\"");
    assert_eq!(refused(&text), "X");
}

#[test]
fn parse_vips_over_the_limit_are_refused() {
    let mut text = "node.interface = \"eth0\"\n".to_owned();
    for port in 1..=513 {
        text +=
            &format!("[[vip]]\naddress = \"198.19.0.1\"\nprotocol = \"tcp\"\nport = {port}\ncheck.kind = \"tcp\"\n");
        text += "[[vip.real]]\naddress = \"198.18.0.1\"\n";
    }
    assert_eq!(refused(&text), "X");
}

#[test]
fn parse_reals_over_the_limit_are_refused() {
    let mut text = GOOD.to_owned();
    for n in 0..4094 {
        text += &format!("[[vip.real]]\naddress = \"198.18.{}.{}\"\n", n / 200, n % 200);
    }
    assert_eq!(refused(&text), "X");
}

#[test]
fn diff_of_same_meaning_is_empty() {
    let spelled_out = good_with("weight  = 7", "weight  = 7\n# a remark");
    assert_eq!(Config::diff(&good(), &spelled_out), []);
}

#[test]
fn diff_names_every_change() {
    let text = GOOD
        .replace("\"eth0\"", "\"eth1\"")
        .replace("timeout = \"2s\"", "rise = 4, target = \"198.19.10.2\"")
        .replace("weight  = 7", "weight  = 9")
        .replace("198.18.222.12", "198.18.222.13");
    let other = "[[vip]]\naddress = \"198.19.10.3\"\nprotocol = \"udp\"\nport = 0\ncheck.kind = \"icmp\"\n\
                 [[vip.real]]\naddress = \"198.18.0.1\"\n";
    let new = Config::parse("new", &format!("{text}{other}")).unwrap();
    let lines = |changes: Vec<Change>| changes.iter().map(Change::to_string).collect::<Vec<_>>();
    let forth = [
        "~ node: interface changed",
        "~ vip 198.19.10.1:80/tcp: check changed",
        "~ vip 198.19.10.1:80/tcp: check timing changed",
        "~ vip 198.19.10.1:80/tcp real 198.18.222.11: weight 7 -> 9",
        "- vip 198.19.10.1:80/tcp real 198.18.222.12",
        "+ vip 198.19.10.1:80/tcp real 198.18.222.13 weight 100",
        "+ vip 198.19.10.3:*/udp with 1 real",
    ];
    assert_eq!(lines(Config::diff(&good(), &new)), forth);
    assert!(lines(Config::diff(&new, &good())).contains(&"- vip 198.19.10.3:*/udp".to_owned()));
}
