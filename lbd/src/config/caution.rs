//! What a configuration may say, and what may surprise whoever says it.

use std::{fmt, time::Duration};

use super::{Config, HashBy, OnAllDown, Vip, VipKey};

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
    /// Fewer reals have a weight than must serve.
    NeverServes {
        /// The VIP.
        vip: VipKey,
        /// Reals with a weight.
        reals: usize,
        /// Reals that must serve.
        needed: usize,
    },
    /// Whichever real is left out, the others are not enough: none is held down or starts slowly.
    NothingToSpare {
        /// The VIP.
        vip: VipKey,
        /// The policy that is set.
        key: &'static str,
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
            Self::NeverServes { vip, reals, needed } => write!(
                f,
                "VIP {vip} can never serve: {needed} reals must (`min_healthy`), and {reals} have a weight; lower \
                 `min_healthy`, or give more of them a `weight`"
            ),
            Self::NothingToSpare { vip, key } => write!(
                f,
                "`{key}` of VIP {vip} does nothing: it takes other reals that are as many as must serve (`min_healthy`) and \
                 have half of the weight, and no real of this VIP has them"
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
        fragments.chain(self.vips().iter().flat_map(|vip| of_policy(vip).into_iter().flatten()))
    }
}

/// What may surprise about a VIP's policy.
fn of_policy(config: &Vip) -> [Option<Caution>; 3] {
    let (vip, needed, policy) = (config.key(), config.min_healthy(), config.policy());
    let weights = || config.reals().iter().map(|real| u64::from(real.weight)).filter(|weight| *weight > 0);
    let reals = weights().count();
    if reals < needed {
        return [Some(Caution::NeverServes { vip, reals, needed }), None, None];
    }
    // A VIP with one real needs it whatever it says.
    let nobody_leaves = config.on_all_down() == OnAllDown::Keep && reals > 1 && reals == needed;
    // Most is left without the lightest.
    let spares_one = reals > needed && 2 * weights().min().unwrap_or(0) <= weights().sum::<u64>();
    let nothing_to_spare = |key, span: Duration| {
        (config.reals().len() > 1 && !spares_one && !span.is_zero()).then_some(Caution::NothingToSpare { vip, key })
    };
    [
        nobody_leaves.then_some(Caution::NobodyLeaves { vip }),
        nothing_to_spare("hold_down", policy.flap.hold),
        nothing_to_spare("slow_start", policy.slow_start),
    ]
}
