//! What lbd remembers of a real: its changes, with their reasons, and its round-trip times. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{SOON, Service, TIMING};
use lbd::model::{Health, HistoryRow, RealDetail, Severity};
use pcap_file::pcapng::{Block, PcapNgReader, blocks::enhanced_packet::EnhancedPacketOption};
use std::{
    fs::{self, File},
    path::Path,
};
use tests::lab::{Error, wait_for};

fn history(service: &Service, words: &[&str]) -> Vec<HistoryRow> {
    let words = [&["real", "history", "-o", "json"], words].concat();
    serde_json::from_str(&service.lbctl(&words).unwrap()).unwrap()
}

fn show(service: &Service, real: &str) -> RealDetail {
    let details: Vec<RealDetail> =
        serde_json::from_str(&service.lbctl(&["real", "show", real, "-o", "json"]).unwrap()).unwrap();
    <[RealDetail; 1]>::try_from(details).unwrap().into_iter().next().unwrap()
}

#[test]
fn history_tells_each_change_with_its_reason_across_a_reload() {
    let service = Service::up("history");
    let real2 = service.lab.real(2).unwrap();
    let (vip, address) = (service.lab.vip().to_string(), real2.addr().to_string());
    let check = format!("tcp {vip}:80");

    real2.nginx().stop().unwrap();
    service.wait_for_state(2, Health::Down);
    let why = || Ok(service.find_row(2)?.filter(|row| row.why.is_some()));
    wait_for("the diagnosis", SOON, why).unwrap();
    let down = show(&service, &address);
    assert_eq!((down.row.state, down.checks[0].severity), (Health::Down, Some(Severity::Soft)));
    assert_eq!(down.finding.unwrap().code, "PORT_CLOSED");
    real2.nginx().start().unwrap();
    service.wait_for_state(2, Health::Up);

    // Three changes of real 2, one of the others.
    let told = |rows: &[HistoryRow]| -> Vec<_> {
        rows.iter().map(|row| (row.before, row.after, row.reason.clone(), row.why.clone())).collect()
    };
    let up = |before| (before, Health::Up, "L4OK".to_owned(), None);
    let closed = Some("PORT_CLOSED".to_owned());
    let down = (Health::Up, Health::Down, "PORT_CLOSED".to_owned(), closed);
    let expected = [up(Health::Init), down, up(Health::Down)];
    let rows = history(&service, &[&address, "--vip", &format!("{vip}:80")]);
    assert_eq!(told(&rows), expected);
    assert!(rows.is_sorted_by_key(|row| row.at) && rows.iter().all(|row| row.check == check && row.rtt_us.is_some()));
    assert_eq!(history(&service, &[]).len(), 5);

    // A reload forgets only what is no longer checked.
    fs::write(service.lab.lbd().config, service.lab.lbd_config_of(TIMING, &[(2, 7), (3, 100)])).unwrap();
    service.lbctl(&["reload"]).unwrap();
    assert_eq!(told(&history(&service, &[&address])), expected);
    assert_eq!(history(&service, &[]).len(), 4);
    let text = service.lbctl(&["real", "history", &address]).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");

    let refused = |words: &[&str]| {
        let error = service.lbctl(words).unwrap_err();
        let Error::Failed { status, stderr, .. } = &error else { panic!("{error}") };
        (status.code(), stderr.trim().to_owned())
    };
    let none = |what: &str| (Some(1), format!("lbctl: {what}"));
    assert_eq!(refused(&["real", "history", "--vip", "198.19.99.1"]), none("there is no such VIP"));
    assert_eq!(refused(&["real", "show", "198.18.0.99"]), none("no VIP has the real 198.18.0.99"));
}

#[test]
fn detail_has_the_times_of_the_last_answers() {
    let service = Service::with("rtts", 1, 1, &[]);
    let address = service.lab.real(1).unwrap().addr().to_string();
    let times = || Ok(show(&service, &address).checks[0].rtts.filter(|rtts| rtts.count >= 3));
    let rtts = wait_for("three answers", SOON, times).unwrap();
    assert!(0 < rtts.min_us && rtts.min_us <= rtts.avg_us && rtts.avg_us <= rtts.max_us, "{rtts:?}");
    let text = service.lbctl(&["real", "show", &address]).unwrap();
    assert!(text.contains(&format!("{address} UP for")) && text.contains(" us of "), "{text}");
}

/// The comments of the packets in a file.
fn comments(file: &Path) -> Vec<String> {
    let mut reader = PcapNgReader::new(File::open(file).unwrap()).unwrap();
    let mut comments = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            let EnhancedPacketOption::Comment(comment) = &packet.options[0] else { panic!("{packet:?}") };
            comments.push(comment.to_string());
        }
    }
    comments
}

#[test]
fn trace_has_the_packets_of_the_failure_and_of_now() {
    let service = Service::with("trace", 2, 2, &[]);
    let [one, two] = [1, 2].map(|real| service.lab.real(real).unwrap().addr().to_string());
    let file = service.lab.lb().dir().join("trace.pcapng");
    let trace = |real: &str, wait: &str| {
        let words = ["real", "trace", real, "--pcap", file.to_str().unwrap(), "--wait", wait];
        (service.lbctl(&words).unwrap(), comments(&file))
    };
    let (text, none) = trace(&one, "0s");
    assert_eq!((text.trim(), none.len()), (format!("{}: 0 packets", file.display()).as_str(), 0));
    let (_, now) = trace(&one, "2s");
    let passed = |comment: &String| comment.starts_with("answer to probe") && comment.contains("passed: L4OK");
    assert!(now.iter().any(passed), "{now:?}");

    let nginx = service.lab.real(2).unwrap().nginx();
    nginx.stop().unwrap();
    service.wait_for_state(2, Health::Down);
    nginx.start().unwrap();
    service.wait_for_state(2, Health::Up);
    let (_, past) = trace(&two, "0s");
    for outcome in ["failed, soft: PORT_CLOSED", "passed: L4OK"] {
        assert!(past.iter().any(|comment| comment.contains(outcome)), "{outcome}: {past:?}");
    }

    let refused = |words: &[&str]| service.lbctl(&[&["real", "trace"], words].concat()).unwrap_err().to_string();
    let error = refused(&["198.18.0.99", "--pcap", "/nosuch/file"]);
    assert!(error.contains("no VIP has the real 198.18.0.99"), "{error}");
    let error = refused(&[&one, "--pcap", "/nosuch/file", "--wait", "0s"]);
    assert!(error.contains("write /nosuch/file"), "{error}");
    let error = refused(&[&one, "--pcap", "/nosuch/file", "--wait", "1m"]);
    assert!(error.contains("allowed is 0s to 20s"), "{error}");
}
