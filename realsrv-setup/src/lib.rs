//! Makes a Linux host a DSR real server, and unmakes it.
//!
//! ```text
//! desired (flags + journal) ─┐
//!                            ├─▶ plan ─▶ steps ─▶ run: journal, execute, look again ─▶ plan must be empty
//! observed (netlink, sysctl, BPF) ┘                 └─ a step failed: undo those that ran
//! ```
//!
//! [`desired`], [`observed`], [`plan`](mod@plan) and [`journal`] are data and decisions; [`system`] touches the host;
//! [`run`] leads through them against a [`run::Host`], which tests replace.

pub mod cli;
pub mod desired;
pub mod family;
pub mod journal;
pub mod observed;
pub mod output;
pub mod persist;
pub mod plan;
pub mod proof;
pub mod run;
pub mod system;
