//! What people and programs read: one line or one object for each item.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    plan::{Item, Plan},
    proof::{Finding, Proof},
    run::{Applied, Removed, Undone},
};

/// What a command was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Would do.
    Plan,
    /// Has done.
    Apply,
    /// Has looked.
    Check,
    /// Has undone.
    Remove,
}

/// How an item is, or what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As wanted, untouched.
    Ok,
    /// Not as wanted.
    Differs,
    /// Made as wanted.
    Changed,
    /// As it was before the first `apply`.
    Restored,
    /// Nothing to undo.
    Absent,
    /// Not ours any more: not touched.
    Left,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What it is.
    pub item: String,
    /// How it is.
    pub state: State,
    /// As it should be; not for `remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// As it was found; not for `remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Why it was left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The result of a command. The JSON form is stable: fields are added, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Which command.
    pub command: Command,
    /// The host was changed (`apply`, `remove`).
    pub changed: bool,
    /// Something is not as wanted (`plan`, `check`).
    pub differs: bool,
    /// The items, in the order of the steps.
    pub items: Vec<Line>,
    /// What else to know.
    pub warnings: Vec<String>,
    /// Packets through the tunnel were answered by every VIP (`apply`, `check --verify`); absent: none was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<bool>,
    /// What was not, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Packets, by what the programs did with them (`check`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Of a plan that was only made (`plan`, `check`) or carried out (`apply`).
    #[must_use]
    pub fn of_plan(command: Command, plan: Plan, counters: BTreeMap<&'static str, u64>) -> Self {
        let any = !plan.is_empty();
        let obsolete = plan.obsolete.iter().map(|step| Line {
            item: step.object(),
            state: State::Differs,
            wanted: None,
            found: None,
            reason: Some("no longer needed".to_owned()),
        });
        let obsolete: Vec<_> = obsolete.collect();
        let applied = command == Command::Apply;
        let stepped = if applied { State::Changed } else { State::Differs };
        let line = |Item { what, wanted, found, step }| Line {
            item: what,
            state: if step.is_some() { stepped } else { State::Ok },
            wanted: Some(wanted),
            found: Some(found),
            reason: None,
        };
        Self {
            command,
            changed: applied && any,
            differs: !applied && any,
            items: plan.items.into_iter().map(line).chain(obsolete).collect(),
            warnings: plan.warnings,
            verified: None,
            findings: Vec::new(),
            counters,
        }
    }

    /// Of what was done, and of what was undone because it was no longer needed.
    #[must_use]
    pub fn of_apply(Applied { mut plan, removed }: Applied) -> Self {
        plan.obsolete.clear();
        let undone = Self::of_removal(removed);
        let mut report = Self::of_plan(Command::Apply, plan, BTreeMap::new());
        report.changed |= undone.changed;
        report.items.extend(undone.items);
        report
    }

    /// Of what was undone.
    #[must_use]
    pub fn of_removal(removed: Vec<Removed>) -> Self {
        let changed = removed.iter().any(|(_, undone)| *undone == Undone::Restored);
        let line = |(item, undone)| {
            let (state, reason) = match undone {
                Undone::Restored => (State::Restored, None),
                Undone::Already => (State::Absent, None),
                Undone::Left(reason) => (State::Left, Some(reason)),
            };
            Line { item, state, wanted: None, found: None, reason }
        };
        Self {
            command: Command::Remove,
            changed,
            differs: false,
            items: removed.into_iter().map(line).collect(),
            warnings: Vec::new(),
            verified: None,
            findings: Vec::new(),
            counters: BTreeMap::new(),
        }
    }

    /// With what came of the proof by packet.
    #[must_use]
    pub fn with_proof(mut self, proof: Proof) -> Self {
        self.verified = Some(proof.findings.is_empty());
        self.findings = proof.findings;
        self.warnings.extend(proof.warnings);
        self
    }

    /// For people: a state and an item a line, then warnings, counters and the sum of it.
    #[must_use]
    pub fn text(&self) -> String {
        let lines = self.items.iter().map(Line::text);
        let warnings = self.warnings.iter().map(|warning| format!("warning   {warning}"));
        let counters = self.counters.iter().map(|(name, packets)| format!("counter   {name} {packets}"));
        let findings = self.findings.iter().flat_map(finding_lines);
        let mut all: Vec<_> = lines.chain(warnings).chain(counters).chain(findings).collect();
        all.push(self.summary());
        all.join("\n")
    }

    fn summary(&self) -> String {
        let made = match (self.command, self.changed, self.differs) {
            (Command::Plan | Command::Check, _, false) => "all as wanted",
            (Command::Plan, _, true) => "apply would change this",
            (Command::Check, _, true) => "not as wanted: run apply",
            (Command::Apply, true, _) => "applied",
            (Command::Apply, false, _) => "nothing to change",
            (Command::Remove, true, _) => "removed",
            (Command::Remove, false, _) => "nothing to remove",
        };
        match self.verified {
            None => made.to_owned(),
            Some(true) => format!("{made}; every VIP answers through the tunnel"),
            Some(false) if self.changed => format!("{made}, and left so; NOT every VIP answers through the tunnel"),
            Some(false) => format!("{made}; NOT every VIP answers through the tunnel"),
        }
    }
}

fn finding_lines(finding: &Finding) -> Vec<String> {
    let vip = finding.vip.map_or_else(String::new, |vip| format!("VIP {vip}: "));
    let evidence = finding.evidence.iter().map(|evidence| format!("evidence  {evidence}"));
    let first = format!("unproven  {vip}{}: {}", finding.code, finding.text);
    [first].into_iter().chain(evidence).chain([format!("mend      {}", finding.mend)]).collect()
}

impl Line {
    fn text(&self) -> String {
        let state = match self.state {
            State::Ok => "ok",
            State::Differs => "differs",
            State::Changed => "changed",
            State::Restored => "restored",
            State::Absent => "absent",
            State::Left => "left",
        };
        let detail = match (&self.wanted, &self.found, &self.reason) {
            (Some(wanted), Some(found), _) if wanted != found => format!(": {found} -> {wanted}"),
            (Some(wanted), _, _) => format!(": {wanted}"),
            (_, _, Some(reason)) => format!(": {reason}"),
            _ => String::new(),
        };
        format!("{state:<9} {}{detail}", self.item)
    }
}
