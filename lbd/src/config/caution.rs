//! What a configuration may say, and what may surprise whoever says it.

use std::fmt;

use super::{Config, HashBy, VipKey};

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
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::FragmentsOfOnePort { vip, all_ports } = self;
        write!(
            f,
            "fragments of packets to VIP {vip} go to the reals of {all_ports}, which takes all fragments of the address and \
             protocol (port 0 and `hash` \"source\"); give them different addresses if {vip} is sent fragments"
        )
    }
}

impl Config {
    /// What may surprise about it.
    pub fn cautions(&self) -> impl Iterator<Item = Caution> {
        let takes_fragments = self.vips().iter().filter(|vip| vip.key().port == 0 && vip.hash() == HashBy::Source);
        takes_fragments.map(super::Vip::key).flat_map(|all_ports| {
            let vips = self.vips().iter().map(super::Vip::key);
            let of_one_port = vips.filter(move |vip| *vip != all_ports && VipKey { port: 0, ..*vip } == all_ports);
            of_one_port.map(move |vip| Caution::FragmentsOfOnePort { vip, all_ports })
        })
    }
}
