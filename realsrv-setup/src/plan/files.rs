//! Items of the files that make the host a real at boot.

use std::collections::{BTreeMap, BTreeSet};

use super::{Item, Step, item};
use crate::{desired::Desired, family::Family, observed::Observed, persist::files};

/// The files, with the settings of the items so far.
pub(super) fn file_items(desired: &Desired, observed: &Observed, tunnels: &BTreeSet<Family>, items: &mut Vec<Item>) {
    let settings = items.iter().filter_map(|item| {
        let name = item.what.strip_prefix("sysctl ")?;
        Some((name.to_owned(), lasting(name, &item.wanted)))
    });
    let wanted = files(desired, tunnels, &settings.collect());
    items.extend(wanted.into_iter().map(|(path, to)| {
        let from = observed.files.get(&path).cloned();
        let found = match &from {
            None => "absent",
            Some(from) if *from == to => "as wanted",
            Some(_) => "differs",
        };
        let what = format!("file {path}");
        let step = (from.as_ref() != Some(&to)).then_some(Step::WriteFile { path, from, to });
        item(what, "as wanted", found, step)
    }));
}

/// Writes the files that are there and tell something else, so that what was removed is not back after a boot. Where
/// there is no plan, since the host drifted, the settings among them stay as they are until the next `apply`.
pub(super) fn rewritten(desired: &Desired, observed: &Observed, tunnels: &BTreeSet<Family>) -> Vec<Step> {
    let is_there = |step: &Step| matches!(step, Step::WriteFile { from: Some(_), .. });
    if let Ok(plan) = super::plan(desired, observed) {
        return plan.items.into_iter().filter_map(|item| item.step).filter(is_there).collect();
    }
    let differs = |(path, to)| {
        let from = observed.files.get(&path).filter(|from| **from != to)?.clone();
        Some(Step::WriteFile { path, from: Some(from), to })
    };
    files(desired, tunnels, &BTreeMap::new()).into_iter().filter_map(differs).collect()
}

/// What to write so that it reads as `value`. 10 ms may read as more: in ticks.
fn lasting(name: &str, value: &str) -> String {
    let in_ticks = Family::ALL.iter().any(|family| family.icmp_ratelimit() == name);
    let rounded = in_ticks && value.parse().is_ok_and(|value: u32| (10..20).contains(&value));
    if rounded { "10".to_owned() } else { value.to_owned() }
}

/// A file that was written, and that `desired` does not need.
pub(super) fn is_unwanted_file(step: &Step, desired: &Desired, tunnels: &BTreeSet<Family>) -> bool {
    let Step::WriteFile { path, .. } = step else { return false };
    // There are always settings, and their values do not matter here.
    let settings = BTreeMap::from([(String::new(), String::new())]);
    !files(desired, tunnels, &settings).contains_key(path)
}
