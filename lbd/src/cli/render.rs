//! Answers as tables. Pure: the time and whether to colour are given.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use jiff::Timestamp;

use crate::config::VipKey;
use crate::model::{
    AdminResult, Finding, Health, NodeRow, Phase, ProberState, RealRow, ReloadResult, Route, Stats, Status,
    TrackedStats, Verdict, VipDetail, VipRow, VipState, WhyRow, XdpMode,
};

/// How to draw.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether a terminal is looking.
    pub colour: bool,
    /// The time ages are counted from.
    pub now: Timestamp,
}

/// `lbctl status`
#[must_use]
pub fn status(status: &Status, style: Style) -> String {
    let mut text = head(status, style);
    let rows = status.vips.iter().map(|vip| {
        let key = VipKey { address: vip.vip, protocol: vip.protocol, port: vip.port };
        let ring = status.rings.iter().find(|r| (r.vip, r.protocol, r.port) == (vip.vip, vip.protocol, vip.port));
        vec![
            Cell::new(key),
            up_of(vip.reals_up, vip.reals_total),
            vip_state(vip.state),
            number(ring.map_or_else(|| "-".into(), |ring| slots(ring.size, ring.size_wanted))),
            Cell::new(ring.map_or("-", |ring| ring.digest.as_str())),
        ]
    });
    text.push('\n');
    text.push_str(&table(&["VIP", "UP", "STATE", "SLOTS", "DIGEST"], rows, style));
    text
}

fn head(status: &Status, style: Style) -> String {
    let config = &status.config;
    let mut lines = vec![
        (
            "lbd",
            format!("{} pid {}, {} for {}", status.version, status.pid, phase(status.phase), style.age(status.started)),
        ),
        (
            "config",
            format!(
                "{} revision {}, loaded {} ago",
                config.path.display(),
                config.revision,
                style.age(config.loaded_at)
            ),
        ),
    ];
    if let Some(error) = &config.last_reload_error {
        let below = format!("\n{:11}", "");
        lines.push(("", format!("last reload refused: {}", error.replace('\n', &below))));
    }
    lines.push(("node", node(&status.node, style)));
    for interface in &status.interfaces {
        let mode = match interface.mode {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        };
        let attached = if interface.attached { "attached" } else { "NOT ATTACHED" };
        lines.push(("interface", format!("{} {mode}, {attached}", interface.name)));
    }
    lines.push((
        "program",
        match &status.program {
            Some(program) => match program.verified_insns {
                Some(insns) => format!("id {}, {insns} instructions verified", program.id),
                None => format!("id {}", program.id),
            },
            None => "NOT LOADED".into(),
        },
    ));
    let prober = &status.prober;
    let fault = prober.fault.as_ref().map_or_else(String::new, |fault| format!("{fault}; "));
    lines.push((
        "prober",
        format!(
            "{}{fault}{} checks, {} probes sent, {} not sent, {} forged, {} late, lag p50 {} us, p99 {} us, max {} us",
            prober_state(prober.state),
            prober.checks,
            prober.sent,
            prober.send_errors,
            prober.forged,
            prober.late,
            prober.lag_p50_us,
            prober.lag_p99_us,
            prober.lag_us
        ),
    ));
    lines.into_iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:11}{value}");
        text
    })
}

/// `lbctl node active|standby`
#[must_use]
pub fn node(node: &NodeRow, style: Style) -> String {
    let since = node.since.map(|since| format!(" for {}", style.age(since)));
    let reason = node.reason.as_ref().map(|reason| format!(" ({reason})"));
    [node.state.name(), &since.unwrap_or_default(), &reason.unwrap_or_default()].concat()
}

/// Only what is wrong.
fn prober_state(state: ProberState) -> &'static str {
    match state {
        ProberState::Running => "",
        ProberState::Stalled => "STALLED: ",
        ProberState::NotSending => "NOT SENDING: ",
        ProberState::CutOff => "CUT OFF: ",
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
    }
}

/// `lbctl vip list`
#[must_use]
pub fn vips(rows: &[VipRow], style: Style) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            Cell::new(row.key()),
            up_of(row.reals_up, row.reals_total),
            vip_state(row.state),
            number(row.packets),
            number(row.bytes),
            number(slots(row.ring_size, row.ring_size_wanted)),
            Cell::new(&row.digest),
            Cell::new(row.window_open_until.map_or_else(|| "-".into(), |end| seconds(style.now, end))),
            route(row, style),
            Cell::new(row.answers.map_or("-", |answers| if answers { "answers" } else { "silent" })),
            Cell::new(row.reason.as_deref().unwrap_or("-")),
        ]
    });
    let header = ["VIP", "UP", "STATE", "PACKETS", "BYTES", "SLOTS", "DIGEST", "WINDOW", "ROUTE", "ARP", "WHY"];
    table(&header, cells, style)
}

fn route(row: &VipRow, style: Style) -> Cell {
    let Some(route) = row.route else { return Cell::new("-") };
    let held = row.route_held_until.map(|until| format!(" {}", seconds(style.now, until)));
    Cell::new(format!("{}{}", route.name(), held.unwrap_or_default())).fg(match route {
        Route::Announced => Color::Green,
        Route::Pending | Route::Held => Color::Yellow,
        Route::Refused | Route::Withdrawn | Route::Stays => Color::Red,
    })
}

/// `lbctl vip show`: a paragraph a VIP.
#[must_use]
pub fn vip_details(details: &[VipDetail], style: Style) -> String {
    let paragraph = |VipDetail { row, reals: members }: &VipDetail| {
        let why = row.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let state = row.state.name();
        let count = format!("{} of {} reals serve, {} must", row.reals_serving, row.reals_total, row.min_healthy);
        format!("{} {state}{why}\n{count}\n{}", row.key(), reals(members, style))
    };
    details.iter().map(paragraph).collect::<Vec<_>>().join("\n")
}

fn vip_state(state: VipState) -> Cell {
    Cell::new(state.name()).fg(match state {
        VipState::Starting => Color::Yellow,
        VipState::Serving => Color::Green,
        VipState::Kept | VipState::Unable => Color::Red,
    })
}

/// A ring's slots, and how many it would have if it were created now, if that is another number.
fn slots(size: u32, wanted: u32) -> String {
    if size == wanted { size.to_string() } else { format!("{size}, wanted {wanted}") }
}

/// `lbctl real list`
#[must_use]
pub fn reals(rows: &[RealRow], style: Style) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            Cell::new(row.key()),
            Cell::new(row.real),
            number(row.weight),
            Cell::new(row.admin.name()),
            coloured(row.state),
            Cell::new(&row.reason),
            number(style.age(row.since)),
            number(row.last_check.map_or_else(|| "never".into(), |last| style.age(last))),
            number(row.rtt_us.map_or_else(|| "-".into(), |rtt| format!("{rtt} us"))),
            number(format!("{:.1} %", row.share * 100.0)),
            Cell::new(row.why.as_deref().unwrap_or("-")),
        ]
    });
    let names = ["VIP", "REAL", "WEIGHT", "ADMIN", "STATE", "REASON", "SINCE", "CHECKED", "RTT", "SHARE", "WHY"];
    table(&names, cells, style)
}

/// `lbctl real drain|disable|enable`: a line a VIP.
#[must_use]
pub fn administered(result: &AdminResult, style: Style) -> String {
    let line = |row: &RealRow| {
        let until = row.admin_until.map(|until| format!(", enabled again in {}", seconds(style.now, until)));
        let reason = row.admin_reason.as_ref().map(|reason| format!(" ({reason})"));
        let (admin, state) = (row.admin.name(), health(row.state));
        let (until, reason) = (until.unwrap_or_default(), reason.unwrap_or_default());
        format!("{} {}: {admin}{reason}{until}; {state}, share {:.1} %\n", row.key(), row.real, row.share * 100.0)
    };
    result.reals.iter().map(line).collect()
}

/// `lbctl real why`: a paragraph a VIP.
#[must_use]
pub fn why(rows: &[WhyRow]) -> String {
    let paragraph = |row: &WhyRow| {
        let Finding { code, text, evidence, mend, at: _ } = &row.finding;
        let head = format!("{} {} {}\n{code}: {text}\n", row.key(), row.real, health(row.state));
        let evidence = evidence.iter().map(|line| format!("  {line}\n"));
        let mend = mend.iter().map(|mend| format!("mend: {mend}\n"));
        [head].into_iter().chain(evidence).chain(mend).collect::<String>()
    };
    rows.iter().map(paragraph).collect::<Vec<_>>().join("\n")
}

pub(super) fn health(health: Health) -> &'static str {
    match health {
        Health::Init => "INIT",
        Health::Up => "UP",
        Health::Down => "DOWN",
    }
}

/// `lbctl stats`
#[must_use]
pub fn stats(stats: &Stats, style: Style) -> String {
    let vips = stats.vips.iter().map(|vip| {
        let key = VipKey { address: vip.vip, protocol: vip.protocol, port: vip.port };
        vec![Cell::new(key), number(vip.packets), number(vip.bytes)]
    });
    let reals = stats.reals.iter().map(|real| {
        let numbers = [real.packets, real.bytes, real.syns, real.repeated_syns].map(number);
        [Cell::new(real.real)].into_iter().chain(numbers).collect()
    });
    let reasons = stats.reasons.iter().map(|reason| {
        let verdict = match reason.verdict {
            Verdict::Tx => "tx",
            Verdict::Pass => "pass",
            Verdict::Drop => "drop",
        };
        vec![Cell::new(verdict), Cell::new(&reason.reason), number(reason.packets)]
    });
    let tables = [
        table(&["VIP", "PACKETS", "BYTES"], vips, style),
        table(&["REAL", "PACKETS", "BYTES", "SYNS", "REPEATED"], reals, style),
        table(&["VERDICT", "REASON", "PACKETS"], reasons, style),
    ];
    let TrackedStats { hits, misses, evictions, remembered, room } = stats.tracked;
    let remembered = remembered.map_or_else(|| "none looked for yet".to_owned(), |flows| format!("{flows} remembered"));
    format!(
        "{}\ntracked flows: {hits} hits, {misses} misses, {evictions} evictions; {remembered}, room for {room}\n",
        tables.join("\n")
    )
}

/// `lbctl reload`
#[must_use]
pub fn reload(result: &ReloadResult) -> String {
    let mut text: String = result.changes.iter().flat_map(|change| [change, "\n"]).collect();
    let summary = match result.changes.len() {
        0 => "nothing changed",
        1 => "1 change in force",
        _ => "changes in force",
    };
    let _ = match result.changes.len() {
        0 | 1 => writeln!(text, "revision {}: {summary}", result.revision),
        count => writeln!(text, "revision {}: {count} {summary}", result.revision),
    };
    text
}

impl Style {
    /// How long until `then`.
    pub(super) fn until(self, then: Timestamp) -> String {
        seconds(self.now, then)
    }

    /// How long ago `then` was.
    pub(super) fn age(self, then: Timestamp) -> String {
        seconds(then, self.now)
    }
}

/// The time between the two in at most two units: `42s`, `3m07s`, `5h03m`, `12d04h`. Clocks step: never negative.
fn seconds(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.as_second().saturating_sub(from.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

pub(super) fn coloured(state: Health) -> Cell {
    Cell::new(health(state)).fg(match state {
        Health::Init => Color::Yellow,
        Health::Up => Color::Green,
        Health::Down => Color::Red,
    })
}

pub(super) fn number(value: impl ToString) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// `2/3`: green when all are up, red when none is.
fn up_of(up: u32, total: u32) -> Cell {
    let colour = match up {
        0 => Color::Red,
        _ if up == total => Color::Green,
        _ => Color::Yellow,
    };
    number(format!("{up}/{total}")).fg(colour)
}

/// Aligned columns and nothing else; a heading stands over its column as its first cell does.
pub(super) fn table(names: &[&str], rows: impl Iterator<Item = Vec<Cell>>, style: Style) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if style.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(names);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}
