//! What was done to the host, in order, and what for: written before each step, so that a crash can be undone.
//!
//! An entry may be there without its step having run (the crash came between), never the other way round. Undoing looks
//! before it touches, so both are safe.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    desired::{Desired, Vip},
    persist::Contents,
    plan::{Step, is_arp},
};

/// A network namespace: its inode means something until the next boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// The kernel's `boot_id`.
    pub boot: String,
    /// Of `/proc/…/ns/net`.
    pub inode: u64,
}

/// The journal of one network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// Where the steps ran last.
    pub namespace: Option<Namespace>,
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
    /// One entry for each object: a step that meets one again (after a crash, a reboot or drift) keeps what was there
    /// before the first and what the last made of it, at the first one's place. Programs go to the end, so that they
    /// are undone before the qdiscs under them; before the first there were none.
    pub fn record(&mut self, step: &Step) {
        match step {
            Step::InstallPrograms { to, .. } => {
                self.steps.retain(|old| !matches!(old, Step::InstallPrograms { .. }));
                self.steps.push(Step::InstallPrograms { from: None, to: to.clone() });
            }
            Step::SetSysctl { name, to, .. } => match self.setting(name) {
                Some(noted) => noted.clone_from(to),
                None => self.steps.push(step.clone()),
            },
            Step::WriteFile { path, to, .. } => match self.file(path) {
                Some(noted) => noted.clone_from(to),
                None => self.steps.push(step.clone()),
            },
            Step::LoadModule { .. } | Step::AddAddress { .. } | Step::LinkUp { .. } | Step::AddClsact { .. } => {
                if !self.steps.contains(step) {
                    self.steps.push(step.clone());
                }
            }
        }
    }

    /// What a setting was last set to.
    fn setting(&mut self, wanted: &str) -> Option<&mut String> {
        self.steps.iter_mut().find_map(|step| match step {
            Step::SetSysctl { name, to, .. } if name == wanted => Some(to),
            _ => None,
        })
    }

    /// What was last written to a file.
    fn file(&mut self, wanted: &str) -> Option<&mut Contents> {
        self.steps.iter_mut().find_map(|step| match step {
            Step::WriteFile { path, to, .. } if path == wanted => Some(to),
            _ => None,
        })
    }

    /// Every step in the order in which to undo them: a tunnel stops taking packets first, while its guard is still
    /// there; the rest last first, but ARP silence at the end: one that was restored by a later `apply` is noted after
    /// the VIPs that need it.
    #[must_use]
    pub fn backwards(&self) -> Vec<Step> {
        let mut steps: Vec<_> = self.steps.iter().rev().cloned().collect();
        steps.sort_by_key(|step| match step {
            Step::LinkUp { .. } => 0,
            Step::SetSysctl { name, .. } if is_arp(name) => 2,
            _ => 1,
        });
        steps
    }

    /// The noted step that added `vip`, if we did.
    #[must_use]
    pub fn address_step(&self, vip: Vip) -> Option<&Step> {
        let added = |step: &&Step| matches!(step, Step::AddAddress { device, address } if device == "lo" && *address == IpAddr::from(vip));
        self.steps.iter().find(added)
    }

    /// Forgets a step that was undone.
    pub fn forget(&mut self, step: &Step) {
        self.steps.retain(|noted| noted != step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(from: &str, to: &str) -> Step {
        Step::SetSysctl { name: "net.ipv4.x".to_owned(), from: from.to_owned(), to: to.to_owned() }
    }

    #[test]
    fn setting_changed_again_keeps_its_first_value_and_place() {
        let mut journal = Journal::default();
        let clsact = Step::AddClsact { device: "eth0".to_owned() };
        for step in [&set("0", "1"), &clsact, &set("4", "1"), &set("1", "2")] {
            journal.record(step);
        }
        assert_eq!(journal.steps, [set("0", "2"), clsact]);
    }

    #[test]
    fn tunnel_goes_down_before_anything_else_is_undone() {
        let mut journal = Journal::default();
        let up = Step::LinkUp { device: "tunl0".to_owned() };
        let install = |vip: u8| Step::InstallPrograms {
            from: None,
            to: crate::plan::Programs {
                config: crate::observed::Config {
                    vips: [IpAddr::from([198, 19, 0, vip])].into(),
                    ..Default::default()
                },
                ..Default::default()
            },
        };
        for step in [&set("0", "1"), &install(1), &up, &install(2)] {
            journal.record(step);
        }
        assert_eq!(journal.backwards(), [up, install(2), set("0", "1")]);
    }
}
