//! What the core has decided by itself and operators want to know of.

use crate::{config::VipKey, model::VipState};
use std::{net::IpAddr, time::Duration};

/// Something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Whether a VIP is able to serve has changed.
    Vip {
        /// Which.
        vip: VipKey,
        /// Until now.
        before: VipState,
        /// From now on.
        after: VipState,
        /// Reals that serve.
        serving: usize,
        /// Reals that must.
        needed: usize,
    },
    /// The checks of a real pass again, and it is held down: it fell too often.
    Held {
        /// Of which VIP.
        vip: VipKey,
        /// The real.
        real: IpAddr,
        /// How often it fell of late.
        flaps: usize,
        /// For how long.
        hold: Duration,
    },
    /// It is held down no longer.
    Released {
        /// Of which VIP.
        vip: VipKey,
        /// The real.
        real: IpAddr,
        /// Before its time, since those that serve are too few without it.
        early: bool,
    },
}

impl Notice {
    /// Writes it to the log.
    pub fn log(self) {
        match self {
            Self::Held { vip, real, flaps, hold } => {
                let hold = humantime::format_duration(hold).to_string();
                tracing::warn!(%vip, %real, flaps, hold, "its checks pass again, and UP is held down: it fell too often");
            }
            Self::Released { vip, real, early: false } => tracing::info!(%vip, %real, "UP: held down no longer"),
            Self::Released { vip, real, early: true } => {
                tracing::warn!(%vip, %real, "UP: held down no longer, since too few others serve");
            }
            Self::Vip { vip, before, after, serving, needed } => {
                let why = reason(after, serving, needed).unwrap_or_default();
                let (before, name) = (before.name(), after.name());
                match after {
                    VipState::Kept | VipState::Unable => tracing::warn!(%vip, before, after = name, why, "VIP"),
                    VipState::Starting | VipState::Serving => tracing::info!(%vip, before, after = name, why, "VIP"),
                }
            }
        }
    }
}

/// Why a VIP is in this state, for people; `None`: there is nothing to say.
#[must_use]
pub fn reason(state: VipState, serving: usize, needed: usize) -> Option<String> {
    match state {
        VipState::Starting => Some("its first round of checks runs".to_owned()),
        VipState::Serving => None,
        VipState::Kept => Some(format!("{serving} serve, {needed} must: none is taken out")),
        VipState::Unable => Some(format!("{serving} serve, {needed} must")),
    }
}
