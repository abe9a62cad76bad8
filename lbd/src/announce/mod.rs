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

mod plan;
mod routes;
#[cfg(test)]
mod tests;
mod watch;

pub use plan::{Event, Plan, RouteState, Step, Wish};
pub use routes::{RouteError, Routes};
pub use watch::{Change, watch};

use crate::config::Announce;
use std::net::IpAddr;

/// Deletes all routes of a configuration's protocol in its table; which they were. Must be called inside a tokio runtime.
///
/// # Errors
/// The kernel refuses; some may be deleted.
pub async fn withdraw(announce: Announce) -> Result<Vec<IpAddr>, RouteError> {
    let routes = Routes::open(announce.table(), announce.protocol())?;
    let addresses: Vec<_> = routes.list().await?.into_iter().collect();
    for &address in &addresses {
        routes.delete(address).await?;
    }
    Ok(addresses)
}
