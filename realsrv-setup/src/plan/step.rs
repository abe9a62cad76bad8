//! One change to the host, and what it is for.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    family::Family,
    observed::{Config, Program},
    persist::Contents,
};

/// One change to the host. Carries what was there before, so that it can be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// Write a setting.
    SetSysctl {
        /// `net.ipv4.…`, `net.ipv6.…`
        name: String,
        /// Before.
        from: String,
        /// After.
        to: String,
    },
    /// Load a kernel module.
    LoadModule {
        /// Its name.
        name: String,
    },
    /// Add an address that is never chosen as a source: a /32 of scope host, or a /128 that is deprecated.
    AddAddress {
        /// The device.
        device: String,
        /// The address.
        address: IpAddr,
    },
    /// Set a device up.
    LinkUp {
        /// The device.
        device: String,
    },
    /// Add a `clsact` qdisc.
    AddClsact {
        /// The device.
        device: String,
    },
    /// Load the programs afresh, told `to`, and put them where they belong, in place of `from`.
    InstallPrograms {
        /// Before; `None` if there were none.
        from: Option<Programs>,
        /// After; without any slot: none.
        to: Programs,
    },
    /// Write a file, or a symbolic link.
    WriteFile {
        /// Where.
        path: String,
        /// Before; `None` if there was none.
        from: Option<Contents>,
        /// After.
        to: Contents,
    },
}

impl Step {
    /// What it changes, for people: as the items of a plan name it.
    #[must_use]
    pub fn object(&self) -> String {
        match self {
            Self::SetSysctl { name, .. } => format!("sysctl {name}"),
            Self::LoadModule { name } => format!("module {name}"),
            Self::AddAddress { device, address } => address_on(device, *address),
            Self::LinkUp { device } => format!("link {device}"),
            Self::AddClsact { device } => format!("qdisc clsact on {device}"),
            Self::InstallPrograms { .. } => "tc programs".to_owned(),
            Self::WriteFile { path, .. } => format!("file {path}"),
        }
    }

    /// Whether it lets a tunnel take packets.
    #[must_use]
    pub fn is_link(&self) -> bool {
        matches!(self, Self::LinkUp { .. })
    }

    /// The family whose kernel tunnel alone needs it.
    #[must_use]
    pub fn serves_tunnel(&self) -> Option<Family> {
        Family::ALL.into_iter().find(|family| match self {
            Self::SetSysctl { name, .. } => name.starts_with(&tunnel_settings(*family)),
            Self::LoadModule { name } => name == family.tunnel_module(),
            Self::AddAddress { device, .. } | Self::LinkUp { device } | Self::AddClsact { device } => {
                device == family.tunnel()
            }
            Self::InstallPrograms { .. } | Self::WriteFile { .. } => false,
        })
    }

    /// The family whose VIPs alone need it.
    pub(super) fn serves(&self) -> Option<Family> {
        match self {
            Self::SetSysctl { name, .. } => Family::ALL.into_iter().find(|family| name.starts_with(family.settings())),
            _ => self.serves_tunnel(),
        }
    }
}

/// What the names of a tunnel's own settings begin with.
pub(super) fn tunnel_settings(family: Family) -> String {
    format!("{}conf.{}.", family.settings(), family.tunnel())
}

pub(super) fn address_on(device: &str, address: IpAddr) -> String {
    format!("address {address}/{} on {device}", Family::of(address).bits())
}

/// The programs, and where they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Programs {
    /// Program by device, each at its hook.
    pub slots: BTreeSet<(String, Program)>,
    /// What they are told.
    pub config: Config,
}
