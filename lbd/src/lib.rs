//! lbd: configuration, ring, reconciliation (pure); data plane, neighbours, health, API (edges).

pub mod maglev;
pub mod ring;
