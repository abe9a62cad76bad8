//! Active or standby: what the operator says of the whole node. It outlives restarts of lbd, in a file beside the orders for
//! reals. That it is active is nobody's word any more when the host has started anew: another node may be by now.

use crate::{
    admin,
    model::{NodeRow, NodeState},
};
use serde::{Deserialize, Serialize};
use std::{fs, io::ErrorKind, path::Path};

const FILE: &str = "node.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    /// Of the kernel when it was said.
    #[serde(default)]
    boot: String,
    #[serde(flatten)]
    node: NodeRow,
}

/// What was said last. Nothing was, or what is there is not understood: the node is active, and the log says so.
#[must_use]
pub fn load(directory: &Path) -> NodeRow {
    let path = directory.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return NodeRow::default(),
        Err(error) => return not_understood(&path, &error),
    };
    match serde_json::from_str(&text) {
        Ok(Kept { version: VERSION, node, .. }) if node.state == NodeState::Standby => node,
        Ok(Kept { version: VERSION, node, boot: then }) if then == boot() => node,
        Ok(Kept { version: VERSION, .. }) => NodeRow::default(),
        Ok(Kept { version, .. }) => not_understood(&path, &format!("version {version}")),
        Err(error) => not_understood(&path, &error),
    }
}

/// Keeps it: when this returns it is on the disk, whole.
///
/// # Errors
/// The file system refuses; what was there before is there still.
pub fn save(directory: &Path, node: &NodeRow) -> Result<(), admin::Error> {
    admin::keep(directory, FILE, &Kept { version: VERSION, boot: boot(), node: node.clone() })
}

/// random(4): another one after each start of the kernel.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

fn not_understood(path: &Path, error: &dyn std::fmt::Display) -> NodeRow {
    tracing::error!(path = %path.display(), %error, "it is not known whether this node was on standby: it is active");
    NodeRow::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standby_is_read_back_and_what_is_not_understood_is_active() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()), NodeRow::default());
        let node = NodeRow { state: NodeState::Standby, reason: Some("new kernel".into()), since: None };
        save(directory.path(), &node).unwrap();
        assert_eq!(load(directory.path()), node);
        let active = NodeRow { state: NodeState::Active, since: Some(jiff::Timestamp::UNIX_EPOCH), ..node };
        save(directory.path(), &active).unwrap();
        assert_eq!(load(directory.path()), active);
        let text = fs::read_to_string(directory.path().join(FILE)).unwrap().replace(&boot(), "another");
        fs::write(directory.path().join(FILE), text).unwrap();
        assert_eq!(load(directory.path()), NodeRow::default(), "said before the host started");
        for text in ["", "{}", r#"{"version": 2, "state": "standby", "reason": null, "since": null}"#] {
            fs::write(directory.path().join(FILE), text).unwrap();
            assert_eq!(load(directory.path()), NodeRow::default(), "{text}");
        }
    }
}
