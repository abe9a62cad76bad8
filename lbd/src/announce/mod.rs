//! Announcing VIPs: one host route each in a routing table of our own, for a routing daemon to read.
//!
//! ```text
//!   what can serve ──▶ [ Plan ] ──▶ add, delete ──▶ table 199 ──▶ BIRD, FRR ──▶ routers
//!                         ▲                            │
//!                         └──────── what changed ◀─────┘
//! ```
//!
//! No rule of the kernel's consults that table, so its routes are of type blackhole and change nothing on this host. They
//! are told by their protocol number: a route of another protocol in the table is somebody else's.

mod claim;
mod plan;
mod routes;
#[cfg(test)]
mod tests;
mod watch;

pub use claim::Claim;
pub use plan::{Event, Plan, RouteState, Step, Wish};
pub use routes::{RouteError, Routes};
pub use watch::{Change, watch};

use crate::config::Announce;
use std::net::IpAddr;

/// What became of the routes that were to be withdrawn.
#[derive(Debug, Default)]
pub struct Withdrawn {
    /// These are gone.
    pub gone: Vec<IpAddr>,
    /// These are not: why.
    pub left: Vec<RouteError>,
}

/// Deletes all routes of a configuration's protocol in its table, as far as the kernel lets it. Must be called inside a tokio
/// runtime.
///
/// # Errors
/// [`RouteError::Claimed`]: an lbd that runs would add them again; or the kernel does not say which there are.
pub async fn withdraw(announce: Announce) -> Result<Withdrawn, RouteError> {
    let _claim = Claim::of(announce.table(), announce.protocol())?;
    let routes = Routes::open(announce.table(), announce.protocol())?;
    let mut withdrawn = Withdrawn::default();
    for address in routes.list().await? {
        match routes.delete(address).await {
            Ok(()) => withdrawn.gone.push(address),
            Err(error) => withdrawn.left.push(error),
        }
    }
    Ok(withdrawn)
}
