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

/// What was said last; the node is active if nothing was.
///
/// # Errors
/// The file cannot be read or is not understood: the node may have been taken out, and must not announce on a guess.
pub fn load(directory: &Path) -> Result<NodeRow, admin::Error> {
    let path = directory.join(FILE);
    let not_understood = |why: String| Err(admin::Error::Node { path: path.clone(), why });
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(NodeRow::default()),
        Err(error) => return not_understood(error.to_string()),
    };
    match serde_json::from_str(&text) {
        Ok(Kept { version: VERSION, node, .. }) if node.state == NodeState::Standby => Ok(node),
        Ok(Kept { version: VERSION, node, boot: then }) if then == boot() => Ok(node),
        Ok(Kept { version: VERSION, .. }) => Ok(NodeRow::default()),
        Ok(Kept { version, .. }) => not_understood(format!("its version is {version}, of a later lbd")),
        Err(error) => not_understood(error.to_string()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standby_is_read_back_and_what_is_not_understood_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()).unwrap(), NodeRow::default());
        let node = NodeRow { state: NodeState::Standby, reason: Some("new kernel".into()), since: None };
        save(directory.path(), &node).unwrap();
        assert_eq!(load(directory.path()).unwrap(), node);
        let active = NodeRow { state: NodeState::Active, since: Some(jiff::Timestamp::UNIX_EPOCH), ..node };
        save(directory.path(), &active).unwrap();
        assert_eq!(load(directory.path()).unwrap(), active);
        let text = fs::read_to_string(directory.path().join(FILE)).unwrap().replace(&boot(), "another");
        fs::write(directory.path().join(FILE), text).unwrap();
        assert_eq!(load(directory.path()).unwrap(), NodeRow::default(), "said before the host started");
        for text in ["", "{}", r#"{"version": 2, "state": "standby", "reason": null, "since": null}"#] {
            fs::write(directory.path().join(FILE), text).unwrap();
            let refused = load(directory.path()).unwrap_err().to_string();
            assert!(refused.contains("whether this node was on standby is not known"), "{text}: {refused}");
        }
    }
}
