//! No text makes the reader panic, and each mistake is shown with its place.

use proptest::{collection::vec, prelude::*, sample};

use super::{Config, ConfigError, MAX_REALS, MAX_VIPS};

const GOOD: &str = r#"
[node]
interface = ["eth0", "eth1.100"]
outer_source = "198.18.221.0/28"
outer_source6 = "fd00:221::11"
seed = "000102030405060708090a0b0c0d0e0f"
unmatched = "pass"
tracked_flows = 8192

[defaults]
interval = "500ms"
timeout = "200ms"
fast_interval = "100ms"
rise = 2
fall = 3
flow_idle = "15m"
all_down = "withdraw"

[[vip]]
address = "198.19.10.1"
protocol = "udp"
port = 0
hash = "source"
ring_slots = 32768
check = [{ kind = "icmp", hops = 2 }, { kind = "udp", port = 53, payload = "00ff", expect_text = "ok" }]

  [[vip.real]]
  address = "fd00:222::12"
  weight = 1000
"#;

/// What stands in for a piece of the file.
fn piece() -> impl Strategy<Value = String> {
    let telling = sample::select(vec![
        "",
        "\0",
        "\u{202e}",
        "[",
        "]]",
        "{",
        "}",
        "=",
        "\"",
        "\"\"\"",
        "'",
        "\n",
        "#",
        ".",
        "-1",
        "-0",
        "0x7fffffffffffffff",
        "9223372036854775808",
        "1e999",
        "nan",
        "inf",
        "true",
        "1979-05-27T07:32:00Z",
        "0s",
        "18446744073709551616s",
        "1ns",
        "999999999999d",
        "[[vip]]",
        "[node]",
        "[[vip.real]]",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "::ffff:198.18.0.1",
        "fe80::1%eth0",
        "198.18.0.0/33",
        "[[vip]]\naddress = \"198.19.10.2\"\nprotocol = \"tcp\"\nport = 65536\n",
    ]);
    prop_oneof![telling.prop_map(str::to_owned), any::<String>(), "[ -~]{0,20}", "[0-9]{1,30}"]
}

/// Cuts a piece out of the file, at character boundaries, and puts another in its place, some times.
fn mutated() -> impl Strategy<Value = String> {
    vec((any::<sample::Index>(), 0_usize..40, piece()), 1..4).prop_map(|edits| {
        edits.into_iter().fold(GOOD.to_owned(), |text, (at, length, piece)| {
            let characters: Vec<char> = text.chars().collect();
            let at = at.index(characters.len() + 1);
            let end = (at + length).min(characters.len());
            let [before, after] = [&characters[..at], &characters[end..]].map(|part| part.iter().collect::<String>());
            before + &piece + &after
        })
    })
}

fn cases() -> u32 {
    if std::env::var_os("LBD_TEST_LONG").is_some() { 200_000 } else { 2_000 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn config_mutated_is_taken_whole_or_refused_with_a_place(text in mutated()) {
        match Config::parse("lbd.toml", &text) {
            Ok(config) => {
                prop_assert!(config.vips().len() <= MAX_VIPS);
                prop_assert!(config.vips().is_sorted_by(|a, b| a.key() < b.key()), "a VIP twice");
                prop_assert!(config.vips().iter().all(|vip| vip.reals().len() <= MAX_REALS));
                prop_assert!(!config.node().interfaces().is_empty());
            }
            Err(ConfigError::Mistakes { .. }) if text.is_empty() => {}
            Err(error) => {
                let report = error.to_string();
                let place = report.strip_prefix("lbd.toml:").and_then(|rest| rest.split(':').next());
                let line: usize = place.and_then(|line| line.parse().ok()).unwrap_or(0);
                prop_assert!((1..=text.lines().count() + 1).contains(&line), "no place in: {report}");
            }
        }
    }
}

#[test]
fn config_to_be_mutated_is_good() {
    Config::parse("lbd.toml", GOOD).unwrap();
}
