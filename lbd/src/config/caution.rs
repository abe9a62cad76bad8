//! What a configuration may say, and what may surprise whoever says it.

use std::fmt;

use super::{Config, HashBy, OnAllDown, VipKey};

/// Something that is allowed, and that an operator should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caution {
    /// A fragment does not tell its ports, so those of one port's packets go where those of all ports go.
    FragmentsOfOnePort {
        /// The VIP of one port.
        vip: VipKey,
        /// That of all ports of the same address and protocol, which takes fragments.
        all_ports: VipKey,
    },
    /// All reals must serve, and none leaves while fewer do: checks take no real out.
    NobodyLeaves {
        /// The VIP.
        vip: VipKey,
    },
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FragmentsOfOnePort { vip, all_ports } => write!(
                f,
                "fragments of packets to VIP {vip} go to the reals of {all_ports}, which takes all fragments of the address \
                 and protocol (port 0 and `hash` \"source\"); give them different addresses if {vip} is sent fragments"
            ),
            Self::NobodyLeaves { vip } => write!(
                f,
                "checks take no real of VIP {vip} out: all of them must serve (`min_healthy`), and while fewer do, none \
                 leaves (`all_down` \"keep\"); lower `min_healthy`, or choose `all_down` \"withdraw\""
            ),
        }
    }
}

impl Config {
    /// What may surprise about it.
    pub fn cautions(&self) -> impl Iterator<Item = Caution> {
        let takes_fragments = self.vips().iter().filter(|vip| vip.key().port == 0 && vip.hash() == HashBy::Source);
        let fragments = takes_fragments.map(super::Vip::key).flat_map(|all_ports| {
            let vips = self.vips().iter().map(super::Vip::key);
            let of_one_port = vips.filter(move |vip| *vip != all_ports && VipKey { port: 0, ..*vip } == all_ports);
            of_one_port.map(move |vip| Caution::FragmentsOfOnePort { vip, all_ports })
        });
        // A VIP with one real needs all of them whatever it says.
        let needs_all = |vip: &&super::Vip| vip.reals().len() > 1 && vip.min_healthy() == vip.reals().len();
        let keeps = self.vips().iter().filter(|vip| vip.on_all_down() == OnAllDown::Keep).filter(needs_all);
        fragments.chain(keeps.map(|vip| Caution::NobodyLeaves { vip: vip.key() }))
    }
}
