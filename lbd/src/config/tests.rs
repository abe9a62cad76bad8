use std::fmt::Write;
use std::net::Ipv4Addr;
use std::num::NonZeroU8;
use std::time::Duration;

use super::*;
use hc_prober::{
    Kind,
    named::{Named, Query, QueryType},
};

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

#[test]
fn parse_takes_both_families_and_their_mixture() {
    let text = GOOD.replace("198.18.222.12", "fd00:222::12");
    let mixed = Config::parse("", &text).unwrap();
    let reals: Vec<_> = mixed.vips()[0].reals().iter().map(|real| real.address.to_string()).collect();
    assert_eq!(reals, ["198.18.222.11", "fd00:222::12"]);
    let text = text.replace("198.18.222.11", "fd00:222:0::11").replace("198.19.10.1", "fd00:19::1");
    let text = text.replace("interface = ", "outer_source6 = \"fd00:221::11\"\ninterface = ");
    let config = Config::parse("", &text).unwrap();
    assert_eq!(config.vips()[0].key().to_string(), "[fd00:19::1]:80/tcp");
    assert_eq!(config.node().outer_source6(), Some("fd00:221::11".parse().unwrap()));
}

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
    assert_eq!(config.node().outer_source(), Some(Ipv4Addr::new(198, 18, 221, 11).into()));
    assert_eq!(config.node().seed(), DEFAULT_SEED);
    assert_eq!(config.node().vip_miss(), VipMiss::Drop);
    let [vip] = config.vips() else { panic!("one VIP expected") };
    assert_eq!(vip.key().to_string(), "198.19.10.1:80/tcp");
    assert_eq!(config.vip(&vip.key()), Some(vip));
    let reals: Vec<_> = vip.reals().iter().map(|real| (real.address.to_string(), real.weight)).collect();
    assert_eq!(reals, [("198.18.222.11".to_owned(), 7), ("198.18.222.12".to_owned(), 100)]);
    let timing = Timing {
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(2),
        fast_interval: Duration::from_millis(200),
        rise: 2,
        fall: 2,
    };
    assert_eq!(vip.checks(), [(Check { kind: Kind::Tcp { port: 80 }, target: None, hops: NonZeroU8::MIN }, timing)]);
    assert_eq!(vip.flow_idle(), Duration::from_mins(15));
    assert_eq!(vip.on_all_down(), OnAllDown::Keep);
}

#[test]
fn parse_outer_source_prefix_is_taken_whole() {
    for (prefix, last) in [("198.18.221.0/28", [198, 18, 221, 15]), ("100.64.0.0/16", [100, 64, 255, 255])] {
        let source = good_with("198.18.221.11", prefix).node().outer_source().unwrap();
        assert_eq!((source.to_string().as_str(), source.only()), (prefix, None));
        assert_eq!(source.turn(u32::MAX), Ipv4Addr::from(last));
    }
    let one = good_with("198.18.221.11", "198.18.221.11/32");
    assert!(Config::diff(&one, &good()).is_empty(), "an address is a prefix of one");
}

#[test]
fn parse_udp_check_takes_hex_port_and_target() {
    let udp =
        r#"{ kind = "udp", port = 53, target = "198.19.10.9", payload = "00fF", expect = "01", require_reply = true }"#;
    let config = good_with(r#"{ kind = "tcp", timeout = "2s" }"#, udp);
    let kind = Kind::Udp { port: 53, payload: vec![0, 255], expect: Some(vec![1]), require_reply: true };
    assert_eq!(
        config.vips()[0].checks()[0].0,
        Check { kind, target: Some("198.19.10.9".parse().unwrap()), hops: NonZeroU8::MIN }
    );
}

fn check_of(text: &str) -> Check {
    good_with(r#"{ kind = "tcp", timeout = "2s" }"#, text).vips()[0].checks()[0].0.clone()
}

#[test]
fn parse_udp_check_takes_text_or_a_named_probe() {
    let kind = check_of(r#"{ kind = "udp", payload_text = "a\r\n", expect_text = "b", require_reply = true }"#).kind;
    let (payload, expect) = (b"a\r\n".to_vec(), Some(b"b".to_vec()));
    assert_eq!(kind, Kind::Udp { port: 80, payload, expect, require_reply: true });
    for (word, kind) in [("", QueryType::A), (r#", query_type = "SOA""#, QueryType::Soa)] {
        let text = format!(r#"{{ kind = "udp", port = 53, probe = "dns", query = "example.org"{word} }}"#);
        let probe = Named::Dns(Query::new("example.org", kind).unwrap());
        assert_eq!(check_of(&text).kind, Kind::Named { port: 53, probe });
    }
    let ntp = check_of(r#"{ kind = "udp", port = 123, probe = "ntp" }"#).kind;
    assert_eq!(ntp, Kind::Named { port: 123, probe: Named::Ntp });
}

#[test]
fn parse_check_takes_hops() {
    assert_eq!(check_of(r#"{ kind = "tcp", hops = 2 }"#).hops.get(), 2);
}

#[test]
fn parse_named_probe_and_hops_that_cannot_be_are_refused_with_what_is_allowed() {
    for (check, message) in [
        (r#"{ kind = "udp", probe = "dns" }"#, "needs a `query`"),
        (r#"{ kind = "udp", probe = "dns", query = "a..b" }"#, "`query` \"a..b\" is not a domain name"),
        (r#"{ kind = "udp", probe = "dns", query = "a", query_type = "soa" }"#, "allowed is \"A\" or"),
        (r#"{ kind = "udp", probe = "dns", query = "a", expect = "00" }"#, "`expect` is dns's own affair"),
        (r#"{ kind = "udp", probe = "ntp", query = "a" }"#, "`query` belongs to a check with `probe` \"dns\""),
        (r#"{ kind = "udp", probe = "http" }"#, "allowed is \"dns\" or \"ntp\""),
        (r#"{ kind = "udp", query = "a" }"#, "`query` belongs to a check with `probe` \"dns\""),
        (r#"{ kind = "tcp", probe = "dns" }"#, "`probe` belongs to a udp check"),
        (r#"{ kind = "udp", payload = "00", payload_text = "a" }"#, "only one of them"),
        (r#"{ kind = "udp", expect_text = "" }"#, "`expect_text` is a text of 0 bytes: allowed is 1 to 512"),
        (r#"{ kind = "tcp", hops = 0 }"#, "`hops` 0 is out of range: allowed is 1..=255"),
        (r#"{ kind = "tcp", hops = 256 }"#, "`hops` 256 is out of range: allowed is 1..=255"),
    ] {
        let text = GOOD.replace(r#"{ kind = "tcp", timeout = "2s" }"#, check);
        let error = Config::parse("lbd.toml", &text).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("lbd.toml:14:"), "{check}: {error}");
    }
}

#[test]
fn parse_hash_takes_each_of_its_words() {
    assert_eq!(good().vips()[0].hash(), HashBy::FiveTuple);
    for (word, hash) in
        [("5tuple", HashBy::FiveTuple), ("source", HashBy::Source), ("source+dport", HashBy::SourcePort)]
    {
        let config = good_with("port     = 80", &format!("port = 80\nhash = \"{word}\""));
        assert_eq!(config.vips()[0].hash(), hash);
    }
}

#[test]
fn parse_tracked_flows_is_rounded_up_to_a_power_of_two() {
    for (asked, entries) in [("", 1 << 20), ("tracked_flows = 8192", 8192), ("tracked_flows = 5000000", 1 << 23)] {
        let config = good_with("[defaults]", &format!("{asked}\n[defaults]"));
        assert_eq!(config.node().tracked_flows().entries(), entries);
    }
}

#[test]
fn parse_ring_slots_fixes_the_order_that_reals_and_weights_would_choose() {
    assert_eq!(good().vips()[0].ring_order(), 0);
    assert_eq!(good_with("weight  = 7", "weight  = 1").vips()[0].ring_order(), 0);
    assert_eq!(
        good_with("weight  = 7", "weight  = 1\n[[vip.real]]\naddress = \"198.18.222.13\"\n").vips()[0].ring_order(),
        1
    );
    for (order, slots) in [(0, 16_384), (1, 32_768), (2, 65_536), (3, 131_072), (4, 262_144)] {
        let config = good_with("port     = 80", &format!("port = 80\nring_slots = {slots}"));
        assert_eq!(config.vips()[0].ring_order(), order);
        assert_eq!(Config::diff(&good(), &config).len(), 1, "named or not is a change");
    }
}

#[test]
fn port_beside_all_ports_that_take_fragments_is_warned_of() {
    let vip = |address: &str, protocol: &str, port: u16, hash: &str| {
        format!(
            "[[vip]]\naddress = \"{address}\"\nprotocol = \"{protocol}\"\nport = {port}\nhash = \"{hash}\"\n\
             check.kind = \"icmp\"\n[[vip.real]]\naddress = \"198.18.222.11\"\n"
        )
    };
    let warned = |hash: &str| -> Vec<String> {
        let vips = [
            vip("198.19.10.1", "udp", 0, hash),
            vip("198.19.10.1", "udp", 53, "5tuple"),
            vip("198.19.10.1", "tcp", 53, "5tuple"),
            vip("198.19.10.2", "udp", 53, "5tuple"),
        ];
        let text = format!("[node]\ninterface = \"eth0\"\n{}", vips.concat());
        Config::parse("lbd.toml", &text).unwrap().cautions().map(|caution| caution.to_string()).collect()
    };
    assert_eq!(
        warned("source"),
        [
            "fragments of packets to VIP 198.19.10.1:53/udp go to the reals of 198.19.10.1:*/udp, which takes all fragments \
          of the address and protocol (port 0 and `hash` \"source\"); give them different addresses if \
          198.19.10.1:53/udp is sent fragments"
        ]
    );
    assert!(warned("source+dport").is_empty() && warned("5tuple").is_empty());
}

#[test]
fn parse_min_healthy_is_a_number_or_a_percentage_of_the_vip_over_that_of_all() {
    let needed = |config: Config| config.vips()[0].min_healthy();
    assert_eq!(needed(good()), 1);
    assert_eq!(needed(good_with("fall     = 2", "min_healthy = 2")), 2);
    let text = GOOD
        .replace("fall     = 2", "min_healthy = 2")
        .replace("port     = 80", "port     = 80\nmin_healthy = \"50%\"");
    assert_eq!(needed(Config::parse("", &text).unwrap()), 1);
    let changes = Config::diff(&good(), &good_with("fall     = 2", "fall = 2\nmin_healthy = \"100%\""));
    let [change] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!(change.to_string(), "~ vip 198.19.10.1:80/tcp: min_healthy changed");
}

#[test]
fn parse_hold_down_of_the_vip_is_over_that_of_all() {
    let flap = |config: &Config| config.vips()[0].policy().flap;
    assert_eq!((flap(&good()).hold, flap(&good()).limit), (Duration::ZERO, 3));
    let all = "hold_down = \"30s\"\nhold_down_max = \"5m\"\nflap_window = \"20m\"\nflap_limit = 5";
    let text = GOOD.replace("fall     = 2", all).replace("port     = 80", "port     = 80\nflap_limit = 0");
    let config = Config::parse("", &text).unwrap();
    let [hold, longest, window] = [30, 300, 1200].map(Duration::from_secs);
    assert_eq!(flap(&config), crate::flap::Policy { hold, longest, limit: 0, window });
    let changes: Vec<_> =
        Config::diff(&good_with("fall     = 2", "fall = 2"), &config).iter().map(ToString::to_string).collect();
    assert!(changes.contains(&"~ vip 198.19.10.1:80/tcp: flap_limit changed".to_owned()), "{changes:?}");
}

#[test]
fn parse_slow_start_of_the_vip_is_over_that_of_all() {
    let span = |config: Config| config.vips()[0].policy().slow_start.as_secs();
    assert_eq!(span(good()), 0);
    assert_eq!(span(good_with("fall     = 2", "slow_start = \"30s\"")), 30);
    let text = GOOD
        .replace("fall     = 2", "slow_start = \"30s\"")
        .replace("port     = 80", "port     = 80\nslow_start = \"0s\"");
    assert_eq!(span(Config::parse("", &text).unwrap()), 0);
}

#[test]
fn vip_that_checks_take_no_real_out_of_is_warned_of() {
    let all = "port     = 80\nmin_healthy = 2";
    let cautions = |text: &str| good_with("port     = 80", text).cautions().map(|c| c.to_string()).collect::<Vec<_>>();
    let warned = cautions(all);
    assert!(matches!(&warned[..], [one] if one.starts_with("checks take no real of VIP 198.19.10.1:80/tcp out")));
    assert_eq!(cautions(&format!("{all}\nall_down = \"withdraw\"")), [""; 0]);
    assert_eq!(cautions("port     = 80"), [""; 0]);
}

#[test]
fn vip_that_can_never_serve_or_a_policy_that_does_nothing_is_warned_of() {
    let cautions = |settings: &str, weights: &[u16]| -> Vec<String> {
        let mut reals = String::new();
        for (weight, last) in weights.iter().zip(11..) {
            writeln!(reals, "[[vip.real]]\naddress = \"198.18.222.{last}\"\nweight = {weight}").unwrap();
        }
        let text = format!(
            "[node]\ninterface = \"eth0\"\n[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"tcp\"\nport = 80\n\
             all_down = \"withdraw\"\ncheck.kind = \"tcp\"\n{settings}\n{reals}"
        );
        Config::parse("lbd.toml", &text).unwrap().cautions().map(|caution| caution.to_string()).collect()
    };
    let never = cautions("min_healthy = 2", &[100, 0, 0]);
    assert!(matches!(&never[..], [one] if one.starts_with("VIP 198.19.10.1:80/tcp can never serve: ")), "{never:?}");
    assert_eq!(cautions("", &[0]).len(), 1, "nobody gets traffic");
    assert_eq!(cautions("min_healthy = 2", &[100, 1, 0]), [""; 0]);

    let policies = "hold_down = \"30s\"\nslow_start = \"30s\"";
    let dead = cautions(&format!("min_healthy = 3\n{policies}"), &[100, 100, 100]);
    let of = |key| format!("`{key}` of VIP 198.19.10.1:80/tcp does nothing: ");
    assert!(
        matches!(&dead[..], [a, b] if a.starts_with(&of("hold_down")) && b.starts_with(&of("slow_start"))),
        "{dead:?}"
    );
    assert_eq!(cautions("slow_start = \"30s\"", &[100, 0]).len(), 1, "one without weight is no other");
    for weights in [&[100, 100][..], &[300, 100], &[100]] {
        assert_eq!(cautions(policies, weights), [""; 0], "{weights:?}");
    }
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
    assert_eq!(config.vips()[0].checks()[0].1.fast_interval, Duration::from_millis(50));
}

#[test]
fn load_missing_file_names_the_file() {
    let error = Config::load(Path::new("/nonexistent/lbd.toml")).unwrap_err();
    let said = "cannot read the configuration /nonexistent/lbd.toml: No such file or directory (os error 2)";
    assert_eq!(error.to_string(), said);
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
lbd.toml:13:12: string values must be quoted, expected literal string
13 | port     = 
   |            ^
";
    parse_unknown_key_lists_the_allowed_ones: "weight  = 7" => "wieght  = 7", r"
lbd.toml:21:3: unknown field `wieght`, expected `address` or `weight`
21 |   wieght  = 7
   |   ^^^^^^
";
    parse_wrong_type_says_what_is_allowed: "port     = 80" => "port     = \"80\"", r#"
lbd.toml:13:12: invalid type: string "80", expected a whole number
13 | port     = "80"
   |            ^^^^
"#;
    parse_duration_as_number_says_what_is_allowed: r#""500ms""# => "2", r#"
lbd.toml:7:12: invalid type: integer `2`, expected a duration such as "500ms", "2s" or "15m"
7 | interval = 2
  |            ^
"#;
    parse_missing_key_is_named: "protocol = \"tcp\"\n" => "", r"
lbd.toml:10:1: missing field `protocol`
10 | [[vip]]
   | ^^^^^^^
";
    parse_bad_address_is_shown: "198.18.222.12" => "198.18.222.256", r#"
lbd.toml:17:13: `address` "198.18.222.256" is not an address: allowed is one such as "198.18.222.11" or "fd00:222::11"
17 |   address = "198.18.222.256"
   |             ^^^^^^^^^^^^^^^^
"#;
    parse_unusable_address_is_shown: "198.19.10.1" => "127.0.0.1", r#"
lbd.toml:11:12: `address` "127.0.0.1" cannot be used here: allowed is a unicast address that is neither loopback, link-local nor mapped
11 | address  = "127.0.0.1"
   |            ^^^^^^^^^^^
"#;
    parse_ipv6_vip_with_ipv4_reals_is_refused: "198.19.10.1" => "2001:db8::1", r#"
lbd.toml:17:13: real 198.18.222.12 is IPv4, and its VIP 2001:db8::1 IPv6: IPv6 travels inside IPv6 only, so its reals have IPv6 addresses
17 |   address = "198.18.222.12"
   |             ^^^^^^^^^^^^^^^

lbd.toml:20:13: real 198.18.222.11 is IPv4, and its VIP 2001:db8::1 IPv6: IPv6 travels inside IPv6 only, so its reals have IPv6 addresses
20 |   address = "198.18.222.11"
   |             ^^^^^^^^^^^^^^^
"#;
    parse_link_local_real_is_refused: "198.18.222.12" => "fe80::12", r#"
lbd.toml:17:13: `address` "fe80::12" cannot be used here: allowed is a unicast address that is neither loopback, link-local nor mapped
17 |   address = "fe80::12"
   |             ^^^^^^^^^^
"#;
    parse_target_of_another_family_is_refused: "kind = \"tcp\"," => "kind = \"tcp\", target = \"fd00::1\",", r#"
lbd.toml:14:37: `target` fd00::1 is not of the family of its VIP 198.19.10.1
14 | check    = { kind = "tcp", target = "fd00::1", timeout = "2s" }
   |                                     ^^^^^^^^^
"#;
    parse_outer_source6_of_another_family_is_refused: "outer_source = " => "outer_source6 = ", r#"
lbd.toml:4:17: `outer_source6` "198.18.221.11" is not a unicast IPv6 address such as "fd00:221::11"
4 | outer_source6 = "198.18.221.11"
  |                 ^^^^^^^^^^^^^^^
"#;
    parse_outer_source_of_a_vip_is_refused: "198.18.221.11" => "198.19.10.0/28", r#"
lbd.toml:11:12: 198.19.10.1 is an `outer_source` (198.19.10.0/28): what comes from there would be discarded
11 | address  = "198.19.10.1"
   |            ^^^^^^^^^^^^^
"#;
    parse_outer_source_of_a_real_is_refused: "198.18.221.11" => "198.18.222.11", r#"
lbd.toml:20:13: 198.18.222.11 is an `outer_source` (198.18.222.11): what comes from there would be discarded
20 |   address = "198.18.222.11"
   |             ^^^^^^^^^^^^^^^
"#;
    parse_outer_source_with_host_bits_is_refused: "198.18.221.11" => "198.18.221.11/28", r#"
lbd.toml:4:16: `outer_source` "198.18.221.11/28" has host bits set: allowed is a unicast IPv4 address such as "198.18.221.11", or a prefix /16 to /32 with host bits zero such as "198.18.221.0/28", which must be routed to this node: every address in it is used, the first (network) and the last (broadcast) too
4 | outer_source = "198.18.221.11/28"
  |                ^^^^^^^^^^^^^^^^^^
"#;
    parse_outer_source_larger_than_16_bits_is_refused: "198.18.221.11" => "198.18.0.0/15", r#"
lbd.toml:4:16: `outer_source` "198.18.0.0/15" is too large, or has a length that there is not: allowed is a unicast IPv4 address such as "198.18.221.11", or a prefix /16 to /32 with host bits zero such as "198.18.221.0/28", which must be routed to this node: every address in it is used, the first (network) and the last (broadcast) too
4 | outer_source = "198.18.0.0/15"
  |                ^^^^^^^^^^^^^^^
"#;
    parse_outer_source_of_another_family_is_refused: "198.18.221.11" => "2001:db8::/64", r#"
lbd.toml:4:16: `outer_source` "2001:db8::/64" is not an IPv4 address or prefix: allowed is a unicast IPv4 address such as "198.18.221.11", or a prefix /16 to /32 with host bits zero such as "198.18.221.0/28", which must be routed to this node: every address in it is used, the first (network) and the last (broadcast) too
4 | outer_source = "2001:db8::/64"
  |                ^^^^^^^^^^^^^^^
"#;
    parse_outer_source_nobody_sends_from_is_refused: "198.18.221.11" => "127.0.0.0/28", r#"
lbd.toml:4:16: `outer_source` "127.0.0.0/28" cannot be used here: allowed is a unicast IPv4 address such as "198.18.221.11", or a prefix /16 to /32 with host bits zero such as "198.18.221.0/28", which must be routed to this node: every address in it is used, the first (network) and the last (broadcast) too
4 | outer_source = "127.0.0.0/28"
  |                ^^^^^^^^^^^^^^
"#;
    parse_duplicate_real_is_refused: "198.18.222.12" => "198.18.222.11", r#"
lbd.toml:20:13: real 198.18.222.11 is listed twice for VIP 198.19.10.1
20 |   address = "198.18.222.11"
   |             ^^^^^^^^^^^^^^^
"#;
    parse_real_that_is_a_vip_is_refused: "198.18.222.12" => "198.19.10.1", r#"
lbd.toml:17:13: real 198.19.10.1 is also a VIP: its packets would come straight back
17 |   address = "198.19.10.1"
   |             ^^^^^^^^^^^^^
"#;
    parse_weight_out_of_range_says_the_range: "weight  = 7" => "weight  = 65536", r"
lbd.toml:21:13: `weight` 65536 is out of range: allowed is 0..=65535
21 |   weight  = 65536
   |             ^^^^^
";
    parse_negative_weight_says_the_range: "weight  = 7" => "weight  = -1", r"
lbd.toml:21:13: `weight` -1 is out of range: allowed is 0..=65535
21 |   weight  = -1
   |             ^^
";
    parse_port_out_of_range_says_the_range: "port     = 80" => "port     = 65536", r"
lbd.toml:13:12: `port` 65536 is out of range: allowed is 0..=65535
13 | port     = 65536
   |            ^^^^^
";
    parse_unknown_protocol_says_the_choice: "protocol = \"tcp\"" => "protocol = \"sctp\"", r#"
lbd.toml:12:12: `protocol` "sctp" is not known: allowed is "tcp" or "udp"
12 | protocol = "sctp"
   |            ^^^^^^
"#;
    parse_unknown_check_says_the_choice: "kind = \"tcp\"" => "kind = \"http\"", r#"
lbd.toml:14:21: `kind` "http" is not a kind of check: allowed are "icmp", "tcp" and "udp"
14 | check    = { kind = "http", timeout = "2s" }
   |                     ^^^^^^
"#;
    parse_port_0_with_tcp_check_wants_a_port: "port     = 80" => "port     = 0", r#"
lbd.toml:14:21: a tcp check of a VIP with port 0 (all ports) needs a `port` of its own (1..=65535), or `kind` "icmp"
14 | check    = { kind = "tcp", timeout = "2s" }
   |                     ^^^^^
"#;
    parse_check_port_0_says_the_range: "timeout = \"2s\"" => "port = 0", r#"
lbd.toml:14:35: `port` 0 is out of range: allowed is 1..=65535
14 | check    = { kind = "tcp", port = 0 }
   |                                   ^
"#;
    parse_icmp_check_with_port_is_refused: "kind = \"tcp\", timeout = \"2s\"" => "kind = \"icmp\", port = 80", r#"
lbd.toml:14:36: an icmp check has no port: remove `port`, or use `kind` "tcp" or "udp"
14 | check    = { kind = "icmp", port = 80 }
   |                                    ^^
"#;
    parse_payload_of_tcp_check_is_refused: "timeout = \"2s\"" => "payload = \"00\"", r#"
lbd.toml:14:38: `payload` belongs to a udp check; this one is tcp
14 | check    = { kind = "tcp", payload = "00" }
   |                                      ^^^^
"#;
    parse_payload_not_hex_is_refused: "kind = \"tcp\", timeout = \"2s\"" => "kind = \"udp\", payload = \"xyz\"", r#"
lbd.toml:14:38: `payload` "xyz" is not 1 to 512 bytes in hexadecimal digits
14 | check    = { kind = "udp", payload = "xyz" }
   |                                      ^^^^^
"#;
    parse_bad_duration_shows_examples: r#""500ms""# => r#""5 parsecs""#, r#"
lbd.toml:7:12: `interval` "5 parsecs" is not a duration such as "500ms", "2s" or "15m"
7 | interval = "5 parsecs"
  |            ^^^^^^^^^^^
"#;
    parse_interval_out_of_range_says_the_range: r#""500ms""# => r#""9ms""#, r#"
lbd.toml:7:12: `interval` "9ms" is out of range: allowed is 10ms to 1h
7 | interval = "9ms"
  |            ^^^^^
"#;
    parse_timeout_out_of_range_says_the_range: r#"timeout = "2s""# => r#"timeout = "2m""#, r#"
lbd.toml:14:38: `timeout` "2m" is out of range: allowed is 1ms to 1m
14 | check    = { kind = "tcp", timeout = "2m" }
   |                                      ^^^^
"#;
    parse_fast_interval_over_interval_says_the_range: r#"timeout = "2s""# => r#"fast_interval = "501ms""#, r#"
lbd.toml:14:44: `fast_interval` "501ms" is out of range: allowed is 10ms to 500ms
14 | check    = { kind = "tcp", fast_interval = "501ms" }
   |                                            ^^^^^^^
"#;
    parse_fall_0_says_the_range: "fall     = 2" => "fall     = 0", r"
lbd.toml:8:12: `fall` 0 is out of range: allowed is 1..=255
8 | fall     = 0
  |            ^
";
    parse_bad_seed_says_the_form: "[defaults]" => "seed = \"abc\"\n[defaults]", r#"
lbd.toml:6:8: `seed` "abc" is not 32 hexadecimal digits
6 | seed = "abc"
  |        ^^^^^
"#;
    parse_tracked_flows_above_the_largest_table_says_the_range: "[defaults]" => "tracked_flows = 33554433\n[defaults]", r"
lbd.toml:6:17: `tracked_flows` 33554433 is out of range: allowed is 8192..=33554432
6 | tracked_flows = 33554433
  |                 ^^^^^^^^
";
    parse_bad_unmatched_says_the_choice: "[defaults]" => "unmatched = \"reject\"\n[defaults]", r#"
lbd.toml:6:13: `unmatched` "reject" is not known: allowed is "drop" or "pass"
6 | unmatched = "reject"
  |             ^^^^^^^^
"#;
    parse_bad_all_down_says_the_choice: "fall     = 2" => "all_down = \"panic\"", r#"
lbd.toml:8:12: `all_down` "panic" is not known: allowed is "keep" or "withdraw"
8 | all_down = "panic"
  |            ^^^^^^^
"#;
    parse_min_healthy_of_none_says_what_is_allowed: "fall     = 2" => "min_healthy = 0", r#"
lbd.toml:8:15: `min_healthy` 0 is not known: allowed is a number of reals, 1 to 65535, or "1%" to "100%" of them
8 | min_healthy = 0
  |               ^
"#;
    parse_min_healthy_in_words_says_what_is_allowed: "port     = 80" => "port     = 80\nmin_healthy = \"half\"", r#"
lbd.toml:14:15: `min_healthy` "half" is not known: allowed is a number of reals, 1 to 65535, or "1%" to "100%" of them
14 | min_healthy = "half"
   |               ^^^^^^
"#;
    parse_min_healthy_of_another_type_says_what_is_expected: "port     = 80" => "port     = 80\nmin_healthy = true", r#"
lbd.toml:14:15: invalid type: boolean `true`, expected a number of reals or a percentage such as "50%"
14 | min_healthy = true
   |               ^^^^
"#;
    parse_min_healthy_beyond_the_reals_is_shown_there: "port     = 80" => "port     = 80\nmin_healthy = 3", r"
lbd.toml:14:15: `min_healthy` 3 is more than VIP 198.19.10.1 has reals, which is 2
14 | min_healthy = 3
   |               ^
";
    parse_min_healthy_by_default_beyond_the_reals_is_shown_at_the_vip: "fall     = 2" => "min_healthy = 3", r#"
lbd.toml:11:12: `min_healthy` 3 is more than VIP 198.19.10.1 has reals, which is 2
11 | address  = "198.19.10.1"
   |            ^^^^^^^^^^^^^
"#;
    parse_hold_down_out_of_range_says_the_range: "fall     = 2" => "hold_down = \"2h\"", r#"
lbd.toml:8:13: `hold_down` "2h" is out of range: allowed is 0s to 1h
8 | hold_down = "2h"
  |             ^^^^
"#;
    parse_hold_down_beyond_that_of_all_says_the_range: "port     = 80" => "port     = 80\nhold_down = \"20m\"", r#"
lbd.toml:14:13: `hold_down` "20m" is out of range: allowed is 0s to 10m, which is `hold_down_max`
14 | hold_down = "20m"
   |             ^^^^^
"#;
    parse_hold_down_max_below_hold_down_of_all_says_the_range: "fall     = 2\n\n[[vip]]" => "hold_down = \"30s\"\n\n[[vip]]\nhold_down_max = \"5s\"", r#"
lbd.toml:11:17: `hold_down_max` "5s" is out of range: allowed is 30s, which is `hold_down`, to 1day
11 | hold_down_max = "5s"
   |                 ^^^^
"#;
    parse_flap_limit_out_of_range_says_the_range: "port     = 80" => "port     = 80\nflap_limit = 101", r"
lbd.toml:14:14: `flap_limit` 101 is out of range: allowed is 0..=100
14 | flap_limit = 101
   |              ^^^
";
    parse_slow_start_that_is_no_time_says_what_one_looks_like: "port     = 80" => "port     = 80\nslow_start = \"soon\"", r#"
lbd.toml:14:14: `slow_start` "soon" is not a duration such as "500ms", "2s" or "15m"
14 | slow_start = "soon"
   |              ^^^^^^
"#;
    parse_bad_hash_says_the_choice: "port     = 80" => "port     = 80\nhash     = \"client\"", r#"
lbd.toml:14:12: `hash` "client" is not known: allowed is "5tuple" or "source" or "source+dport"
14 | hash     = "client"
   |            ^^^^^^^^
"#;
    parse_bad_ring_slots_says_the_sizes: "port     = 80" => "port     = 80\nring_slots = 65537", r"
lbd.toml:14:14: `ring_slots` 65537 is not a size of a ring: allowed is 16384 or 32768 or 65536 or 131072 or 262144
14 | ring_slots = 65537
   |              ^^^^^
";
    parse_bad_flow_idle_says_the_range: "fall     = 2" => "flow_idle = \"25h\"", r#"
lbd.toml:8:13: `flow_idle` "25h" is out of range: allowed is 1s to 18h
8 | flow_idle = "25h"
  |             ^^^^^
"#;
    parse_bad_interface_name_says_the_form: "\"eth0\"" => "\"a-name-far-too-long\"", r#"
lbd.toml:3:13: `interface` "a-name-far-too-long" is not a device name: 1 to 15 bytes, no '/', ':' or blank
3 | interface = "a-name-far-too-long"
  |             ^^^^^^^^^^^^^^^^^^^^^
"#;
    parse_interface_named_twice_is_refused: "\"eth0\"" => "[\"eth0\", \"eth0\"]", r#"
lbd.toml:3:13: `interface` names "eth0" twice
3 | interface = ["eth0", "eth0"]
  |             ^^^^^^^^^^^^^^^^
"#;
    parse_no_interface_is_refused: "\"eth0\"" => "[]", r"
lbd.toml:3:13: `interface` is empty: name at least one device
3 | interface = []
  |             ^^
";
}

#[test]
fn parse_duplicate_vip_is_shown_at_the_second() {
    let second = &GOOD[GOOD.find("[[vip]]").unwrap()..];
    assert_eq!(
        refused(&format!("{GOOD}{second}")),
        r#"
lbd.toml:23:12: VIP 198.19.10.1 tcp port 80 is listed twice: address, protocol and port must differ
23 | address  = "198.19.10.1"
   |            ^^^^^^^^^^^^^
"#
        .trim_matches('\n')
    );
}

#[test]
fn parse_vip_without_reals_is_refused() {
    assert_eq!(
        refused(&GOOD[..GOOD.find("  [[vip.real]]").unwrap()]),
        r#"
lbd.toml:11:12: VIP 198.19.10.1 has no reals: give it at least one [[vip.real]]
11 | address  = "198.19.10.1"
   |            ^^^^^^^^^^^^^
"#
        .trim_matches('\n')
    );
}

#[test]
fn parse_several_mistakes_reports_all_in_file_order() {
    let text = GOOD.replace("weight  = 7", "weight  = 70000").replace("\"500ms\"", "\"1ms\"");
    assert_eq!(
        refused(&text),
        r#"
lbd.toml:7:12: `interval` "1ms" is out of range: allowed is 10ms to 1h
7 | interval = "1ms"
  |            ^^^^^

lbd.toml:21:13: `weight` 70000 is out of range: allowed is 0..=65535
21 |   weight  = 70000
   |             ^^^^^
"#
        .trim_matches('\n')
    );
}

#[test]
fn parse_vips_over_the_limit_are_refused() {
    let mut text = "node.interface = \"eth0\"\n".to_owned();
    for port in 1..=513 {
        let _ = write!(
            text,
            "[[vip]]\naddress = \"198.19.0.1\"\nprotocol = \"tcp\"\nport = {port}\ncheck.kind = \"tcp\"\n"
        );
        text += "[[vip.real]]\naddress = \"198.18.0.1\"\n";
    }
    assert_eq!(
        refused(&text),
        r#"
lbd.toml:3587:11: 513 VIPs are too many: at most 512 are allowed, this is the first beyond
3587 | address = "198.19.0.1"
     |           ^^^^^^^^^^^^
"#
        .trim_matches('\n')
    );
}

#[test]
fn parse_reals_over_the_limit_are_refused() {
    let mut text = GOOD.to_owned();
    for n in 0..4094 {
        let _ = write!(text, "[[vip.real]]\naddress = \"198.18.{}.{}\"\n", n / 200, n % 200);
    }
    assert_eq!(
        refused(&text),
        r#"
lbd.toml:8209:11: too many reals: at most 4095 different addresses are allowed, this is the first beyond
8209 | address = "198.18.20.93"
     |           ^^^^^^^^^^^^^^
"#
        .trim_matches('\n')
    );
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
        .replace("port     = 80", "port     = 80\nhash = \"source\"")
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
        "~ vip 198.19.10.1:80/tcp: hash changed",
        "~ vip 198.19.10.1:80/tcp real 198.18.222.11: weight 7 -> 9",
        "- vip 198.19.10.1:80/tcp real 198.18.222.12",
        "+ vip 198.19.10.1:80/tcp real 198.18.222.13 weight 100",
        "+ vip 198.19.10.3:*/udp with 1 real",
    ];
    assert_eq!(lines(Config::diff(&good(), &new)), forth);
    assert!(lines(Config::diff(&new, &good())).contains(&"- vip 198.19.10.3:*/udp".to_owned()));
}
