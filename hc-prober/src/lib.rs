//! Health checks that take the path of the traffic: each probe is the client's packet, encapsulated for the real as the
//! load balancer would, answered by the real from the VIP straight back to us.
//!
//! ```text
//!   Prober (handle) ── checks, questions ──▶ runner: one loop, one thread
//!        ▲                                     │ receive   capture.rs  tc program ─ ring buffer
//!        └──── transitions, status ────────────│ update    engine.rs   pure: lanes, cookies, verdicts, schedule
//!                                              │ send      transport.rs  raw socket, sendmmsg
//! ```
//!
//! The core (`codec`, `cookie`, `lane`, `state`, `schedule`, `engine`) is pure: it is given the time and packets, and
//! returns packets and effects.

pub mod batch;
pub mod capture;
pub mod check;
pub mod claim;
pub mod codec;
pub mod config;
pub mod cookie;
pub mod diagnose;
pub mod diagnosis;
pub mod driver;
pub mod ends;
pub mod engine;
pub mod finding;
pub mod gateway;
pub mod lag;
pub mod lane;
pub mod named;
pub mod plan;
pub mod ration;
pub mod rejects;
pub mod reply;
pub mod report;
pub mod roster;
pub mod route;
pub mod rtt;
pub mod runner;
pub mod schedule;
pub mod session;
pub mod settings;
pub mod sidecar;
pub mod state;
pub mod subject;
pub mod time;
pub mod trace;
pub mod transport;
pub mod watchdog;

pub use crate::{
    check::{Check, CheckKey, Kind, Timing},
    report::{CheckStatus, Counters, Reason, Severity, State, Transition},
    runner::{Error, Prober, Tracing},
    settings::{OuterSource, Secret, Settings},
    watchdog::Condition,
};
