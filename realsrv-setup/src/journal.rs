//! What was done to the host, in order, and what for: written before each step, so that a crash can be undone.
//!
//! An entry may be there without its step having run (the crash came between), never the other way round. Undoing looks
//! before it touches, so both are safe.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{
    desired::{Desired, Vip},
    plan::Step,
};

/// The journal of one network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// What the last `apply` made true; `None`: nothing is configured.
    pub intent: Option<Desired>,
    /// What was done, oldest first.
    pub steps: Vec<Step>,
}

impl Journal {
    /// Nothing to undo and nothing intended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.intent.is_none() && self.steps.is_empty()
    }

    /// Notes that `step` is about to run.
    ///
    /// A repeated step (after a crash, a reboot or drift) is noted once. Programs replace each other, and before the
    /// first there were none: one entry, the latest, without a `from`; its place is last, so that it is undone before
    /// the qdiscs under it.
    pub fn record(&mut self, step: &Step) {
        match step {
            Step::InstallPrograms { to, .. } => {
                self.steps.retain(|old| !matches!(old, Step::InstallPrograms { .. }));
                self.steps.push(Step::InstallPrograms { from: None, to: to.clone() });
            }
            _ if self.steps.contains(step) => {}
            _ => self.steps.push(step.clone()),
        }
    }

    /// The noted step that added `vip`, if we did.
    #[must_use]
    pub fn address_step(&self, vip: Vip) -> Option<&Step> {
        let added = |step: &&Step| matches!(step, Step::AddAddress { device, address } if device == "lo" && *address == Ipv4Addr::from(vip));
        self.steps.iter().find(added)
    }

    /// Forgets a step that was undone.
    pub fn forget(&mut self, step: &Step) {
        self.steps.retain(|noted| noted != step);
    }
}
