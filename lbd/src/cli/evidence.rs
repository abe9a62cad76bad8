//! What is known of one real, as tables. Pure.

use std::fmt;
use std::path::PathBuf;

use comfy_table::Cell;
use pcap_file::pcapng::{Block, PcapNgParser};
use serde::Serialize;

use super::render::{Style, coloured, health, number, table};
use crate::model::{CheckRow, Finding, HistoryRow, RealDetail, RttStats, Severity};

/// `lbctl real trace`: what was written.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Traced {
    file: PathBuf,
    packets: usize,
}

impl Traced {
    /// What a file holds that is written under this name.
    pub(super) fn of(path: PathBuf, file: &[u8]) -> Self {
        let mut packets = 0;
        if let Ok((mut rest, mut parser)) = PcapNgParser::new(file) {
            while let Ok((next, block)) = parser.next_block(rest) {
                packets += usize::from(matches!(block, Block::EnhancedPacket(_)));
                rest = next;
            }
        }
        Self { file: path, packets }
    }
}

impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, packets } = self;
        write!(f, "{}: {packets} packet{}", file.display(), if *packets == 1 { "" } else { "s" })
    }
}

/// `lbctl real show`: a paragraph a VIP.
pub(super) fn show(details: &[RealDetail], style: Style) -> String {
    details.iter().map(|detail| paragraph(detail, style)).collect::<Vec<_>>().join("\n")
}

fn paragraph(detail: &RealDetail, style: Style) -> String {
    let RealDetail { row, checks, finding } = detail;
    let held_down = row.held_until.map(|until| format!("UP held down until {until:.0} ({})\n", style.until(until)));
    let ramp = row.ramp_percent.zip(row.ramp_until);
    let ramp =
        ramp.map(|(percent, until)| format!("slow start: {percent} % of its part, all in {}\n", style.until(until)));
    let flaps = match row.flaps_total {
        0 => String::new(),
        total => format!("falls from UP to DOWN: {} of late, {total} in all\n", row.flaps),
    };
    let head = format!("{} {} {} for {}\n", row.key(), row.real, health(row.state), style.age(row.since));
    let mtu = row.mtu.map_or_else(|| "not known".to_owned(), |mtu| mtu.to_string());
    let serves = format!("weight {}, {:.1} % of the ring, path MTU {mtu}\n", row.weight, row.share * 100.0);
    let why = finding.iter().map(|finding| {
        let Finding { code, text, mend, .. } = finding;
        let mend = mend.as_ref().map_or_else(String::new, |mend| format!("mend: {mend}\n"));
        format!("{code}: {text}\n{mend}")
    });
    let cells = checks.iter().map(|check| {
        let CheckRow { state, reason, since, last_check, rtts, rise, fall, .. } = check;
        let rtts = rtts.map_or_else(
            || "-".to_owned(),
            |RttStats { count, min_us, avg_us, max_us }| format!("{min_us}/{avg_us}/{max_us} us of {count}"),
        );
        vec![
            Cell::new(&check.check),
            coloured(*state),
            Cell::new(reason),
            number(style.age(*since)),
            number(last_check.map_or_else(|| "never".into(), |last| style.age(last))),
            Cell::new(rtts),
            number(rise),
            number(fall),
            Cell::new(check.detail.as_deref().unwrap_or("-")),
        ]
    });
    let names = ["CHECK", "STATE", "REASON", "SINCE", "CHECKED", "RTT MIN/AVG/MAX", "RISE", "FALL", "DETAIL"];
    [head, held_down.unwrap_or_default(), flaps, serves, ramp.unwrap_or_default()]
        .into_iter()
        .chain(why)
        .chain([table(&names, cells, style)])
        .collect()
}

/// `lbctl real history`
pub(super) fn history(rows: &[HistoryRow], style: Style) -> String {
    let cells = rows.iter().map(|row| {
        let severity = match row.severity {
            Some(Severity::Hard) => "hard",
            Some(Severity::Soft) => "soft",
            None => "-",
        };
        vec![
            Cell::new(format!("{:.3}", row.at)),
            Cell::new(row.key()),
            Cell::new(row.real),
            Cell::new(&row.check),
            Cell::new(health(row.before)),
            coloured(row.after),
            Cell::new(severity),
            Cell::new(&row.reason),
            number(row.rtt_us.map_or_else(|| "-".into(), |rtt| format!("{rtt} us"))),
            Cell::new(row.why.as_deref().unwrap_or("-")),
            Cell::new(row.detail.as_deref().unwrap_or("-")),
        ]
    });
    let names = ["TIME", "VIP", "REAL", "CHECK", "BEFORE", "AFTER", "HOW", "REASON", "RTT", "WHY", "DETAIL"];
    table(&names, cells, style)
}
