//! The ways in which the real fails, and how each is mended.

use std::time::Duration;

use anyhow::Result;
use tests::lab::Host;

use crate::{
    say,
    stage::{FALL, INTERVAL, Stage, TIMEOUT, type_command, type_on},
};

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// nginx ends at once; the host resets connections.
    ServiceStopped,
    /// nginx closes its port and finishes what it serves.
    ServiceQuits,
    /// The VIP is gone from `lo`.
    VipRemoved,
    /// Nobody removes the outer header.
    DecapRemoved,
    /// The link to the host is down.
    HostCutOff,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] =
        [Self::ServiceStopped, Self::ServiceQuits, Self::VipRemoved, Self::DecapRemoved, Self::HostCutOff];

    /// What the summary calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ServiceStopped => "service stopped",
            Self::ServiceQuits => "nginx -s quit",
            Self::VipRemoved => "VIP removed",
            Self::DecapRemoved => "decap removed",
            Self::HostCutOff => "host cut off",
        }
    }

    /// The latest time at which it must be detected.
    pub(crate) fn bound(self) -> Duration {
        if self.is_answered() {
            Duration::from_millis(1200)
        } else {
            FALL * INTERVAL * 11 / 10 + TIMEOUT + Duration::from_millis(300)
        }
    }

    /// Whether the host still answers probes, by RST.
    fn is_answered(self) -> bool {
        match self {
            Self::ServiceStopped | Self::ServiceQuits => true,
            Self::VipRemoved | Self::DecapRemoved | Self::HostCutOff => false,
        }
    }

    /// Whether connections that are established on the failing real must be served to their end.
    pub(crate) fn keeps_established(self) -> bool {
        self == Self::ServiceQuits
    }

    /// Makes the real fail.
    pub(crate) fn strike(self, stage: &Stage, real: &Host) -> Result<()> {
        match self {
            Self::ServiceStopped => {
                say::typed(real.name(), "nginx -s stop");
                real.nginx().stop()?;
            }
            Self::ServiceQuits => {
                say::typed(real.name(), "nginx -s quit");
                real.nginx().quit()?;
            }
            Self::VipRemoved => drop(type_on(real, &format!("ip addr del {}/32 dev lo", stage.lab.vip()))?),
            Self::DecapRemoved => {
                type_command(real, &mut stage.lab.realsrv_setup(real, "remove")?)?;
                // Only the decapsulation shall be missing.
                type_on(real, &format!("ip addr add {}/32 dev lo", stage.lab.vip()))?;
            }
            Self::HostCutOff => drop(type_on(stage.lab.router(), &format!("ip link set to-{} down", real.name()))?),
        }
        Ok(())
    }

    /// Undoes it.
    pub(crate) fn mend(self, stage: &Stage, real: &Host) -> Result<()> {
        match self {
            Self::ServiceStopped | Self::ServiceQuits => {
                say::typed(real.name(), "nginx");
                real.nginx().start()?;
            }
            Self::VipRemoved => drop(type_on(real, &format!("ip addr add {}/32 dev lo", stage.lab.vip()))?),
            Self::DecapRemoved => {
                type_on(real, &format!("ip addr del {}/32 dev lo", stage.lab.vip()))?;
                type_command(real, &mut stage.lab.realsrv_setup(real, "apply")?)?;
            }
            Self::HostCutOff => drop(type_on(stage.lab.router(), &format!("ip link set to-{} up", real.name()))?),
        }
        Ok(())
    }
}
