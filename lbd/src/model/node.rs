//! Whether the node is to serve: what the operator has said of it as a whole.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What the operator has said of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It announces the VIPs that can serve.
    #[default]
    Active,
    /// It announces none. Packets that come all the same are forwarded.
    Standby,
}

impl NodeState {
    /// As JSON and tables have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Standby => "standby",
        }
    }
}

/// The order of `POST /v1/node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeOrder {
    /// What it is to be.
    pub state: NodeState,
    /// Why, for whoever looks at it later: one line of at most 200 characters.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The answer of `POST /v1/node`, and a part of the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// What the operator has said.
    pub state: NodeState,
    /// Why; null where no reason was given.
    pub reason: Option<String>,
    /// Since when; null if nothing was ever said.
    pub since: Option<Timestamp>,
}
