//! The prober beside another load balancer: which reals of which services are up, and who is told.
//!
//! ```text
//! file ── config ──▶ Config ──▶ checks ──▶ Prober ── transitions ──▶ Board ── changes ──▶ JSON lines, a command each
//! ```
//!
//! The binary has the loop.

mod board;
mod command;
mod config;
mod orders;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

pub use self::{
    board::{Board, Change},
    command::Template,
    config::{Config, Real, Service},
    orders::{Order, Orders},
};

/// A service: what a load balancer knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Name {
    /// The VIP.
    pub vip: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Host byte order; 0: all.
    pub port: u16,
}

impl Name {
    /// The VIP and its port.
    #[must_use]
    pub fn service(&self) -> SocketAddr {
        (self.vip, self.port).into()
    }
}

/// The protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}
