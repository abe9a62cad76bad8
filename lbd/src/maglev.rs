//! Maglev hashing with weights: which real each slot of a ring belongs to.
//!
//! After Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016, §3.4).
//! Each candidate walks its own permutation of the slots and takes the next free one on its turn; turns
//! are dealt in proportion to weight. The result depends on addresses, weights, seed and size only, not on the
//! order of configuration nor on history, so equal nodes build equal rings.

use lb_ebpf::ring::{MAX_RING_ORDER, RING_SLOTS, RealId};
use siphasher::sip128::{Hasher128, SipHasher24};
use std::{
    collections::VecDeque,
    hash::Hasher,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// A real that may own slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its index, written into the slots it owns.
    pub id: RealId,
    /// Its address: identity and order.
    pub address: IpAddr,
    /// Its share relative to the others; with 0 it owns none.
    pub weight: u16,
}

/// Slots that the lightest real is to have: what is rounded is then below a percent of its share.
const SLOTS_A_REAL: u32 = 160;

/// The order of a ring in which each real has slots enough to get its share, unless that is more than there are.
#[must_use]
pub fn order_for(weights: impl Iterator<Item = u16> + Clone) -> u8 {
    let total: u32 = weights.clone().map(u32::from).sum();
    let lightest = weights.filter(|&weight| weight > 0).min().map_or(1, u32::from);
    let wanted = (u64::from(total) * u64::from(SLOTS_A_REAL)).div_ceil(u64::from(lightest));
    (0..MAX_RING_ORDER).find(|&order| (RING_SLOTS as u64) << order >= wanted).unwrap_or(MAX_RING_ORDER)
}

/// Rings that are remembered: those over all reals and over those that are up, before and after a change, of two pools.
const REMEMBERED: usize = 8;

/// Builds rings with one seed. It remembers the last few, since VIPs with the same reals ask for the same ones, one after
/// another; its clones share what they remember.
#[derive(Clone, Debug)]
pub struct Maglev {
    seed: [u8; 16],
    recent: Arc<Mutex<VecDeque<Built>>>,
}

#[derive(Debug)]
struct Built {
    candidates: Vec<Candidate>,
    order: u8,
    owners: Arc<[RealId]>,
}

impl Maglev {
    /// With this seed, and nothing remembered.
    #[must_use]
    pub fn new(seed: [u8; 16]) -> Self {
        Self { seed, recent: Arc::default() }
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> [u8; 16] {
        self.seed
    }

    /// As [`build`].
    #[must_use]
    pub fn build(&self, candidates: &[Candidate], order: u8) -> Arc<[RealId]> {
        // Whoever panicked while it held the lock left a queue all the same.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(built) = recent.iter().find(|built| built.order == order && built.candidates == candidates) {
            return Arc::clone(&built.owners);
        }
        let owners: Arc<[RealId]> = build(candidates, self.seed, order).into();
        recent.truncate(REMEMBERED - 1);
        recent.push_front(Built { candidates: candidates.to_vec(), order, owners: Arc::clone(&owners) });
        owners
    }
}

/// The owner of every slot of a ring of this order; all 0 ("no real") if no candidate has weight.
#[must_use]
pub fn build(candidates: &[Candidate], seed: [u8; 16], order: u8) -> Vec<RealId> {
    let slots = RING_SLOTS << order;
    let weighty = candidates.iter().filter(|c| c.weight > 0);
    let mut walkers: Vec<Walker> = weighty.map(|c| Walker::new(c, seed, slots)).collect();
    walkers.sort_unstable_by_key(|w| w.address);
    let turn = walkers.iter().map(|w| u32::from(w.weight)).max().unwrap_or(0);
    let mut owners = vec![0; slots];
    let mut free = if walkers.is_empty() { 0 } else { slots };
    while free > 0 {
        for walker in &mut walkers {
            walker.credit += u32::from(walker.weight);
            if walker.credit < turn || free == 0 {
                continue;
            }
            walker.credit -= turn;
            walker.take_next_free(&mut owners);
            free -= 1;
        }
    }
    owners
}

struct Walker {
    id: RealId,
    address: IpAddr,
    weight: u16,
    /// Weight saved up; a turn costs the largest weight.
    credit: u32,
    position: usize,
    /// Odd, hence coprime to the power of two that the ring's size is: the walk visits every slot once.
    skip: usize,
}

impl Walker {
    fn new(candidate: &Candidate, seed: [u8; 16], slots: usize) -> Self {
        let mut hasher = SipHasher24::new_with_key(&seed);
        match candidate.address {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()),
        }
        let hash = hasher.finish128();
        #[expect(clippy::cast_possible_truncation, reason = "reduced to the ring's size at once")]
        let (position, skip) = (hash.h1 as usize % slots, (hash.h2 as usize % slots) | 1);
        Self { id: candidate.id, address: candidate.address, weight: candidate.weight, credit: 0, position, skip }
    }

    /// Takes the next slot of the walk that nobody has. There must be one.
    fn take_next_free(&mut self, owners: &mut [RealId]) {
        loop {
            let at = self.position;
            self.position = (self.position + self.skip) % owners.len();
            if let Some(owner @ 0) = owners.get_mut(at) {
                *owner = self.id;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const SEED: [u8; 16] = *b"a seed for tests";

    fn candidates(weights: &[u16]) -> Vec<Candidate> {
        let real = |(n, &weight): (usize, &u16)| {
            let n = u16::try_from(n).unwrap() + 1;
            Candidate { id: n, address: Ipv4Addr::from_bits(0xc612_0000 + u32::from(n)).into(), weight }
        };
        weights.iter().enumerate().map(real).collect()
    }

    fn slots_of(ring: &[RealId], id: RealId) -> usize {
        ring.iter().filter(|&&owner| owner == id).count()
    }

    #[test]
    fn build_without_weight_leaves_every_slot_empty() {
        assert!(build(&candidates(&[0, 0]), SEED, 0).iter().all(|&owner| owner == 0));
        assert!(build(&[], SEED, 0).iter().all(|&owner| owner == 0));
    }

    #[test]
    fn build_of_equal_weights_shares_equally() {
        let ring = build(&candidates(&[100; 100]), SEED, 0);
        for id in 1..=100 {
            assert!((163..=164).contains(&slots_of(&ring, id)), "real {id}: {} slots", slots_of(&ring, id));
        }
    }

    #[test]
    fn build_in_any_order_gives_the_same_ring() {
        let mut reals = candidates(&[1, 2, 3, 400, 5]);
        let ring = build(&reals, SEED, 0);
        reals.reverse();
        assert_eq!(build(&reals, SEED, 0), ring);
    }

    #[test]
    fn build_with_another_seed_gives_another_ring() {
        let reals = candidates(&[1; 3]);
        assert_ne!(build(&reals, SEED, 0), build(&reals, [7; 16], 0));
    }

    #[test]
    fn build_remembered_is_the_same_and_only_the_last_few_are() {
        let maglev = Maglev::new(SEED);
        let first = maglev.build(&candidates(&[1; 3]), 0);
        assert!(Arc::ptr_eq(&first, &maglev.clone().build(&candidates(&[1; 3]), 0)));
        for (weights, order) in [(&[1; 4][..], 0), (&[1, 2, 3], 0), (&[1; 3], 1)] {
            let ring = maglev.build(&candidates(weights), order);
            assert_eq!(ring[..], build(&candidates(weights), SEED, order), "{weights:?}, {order}");
        }
        for weight in 2..20 {
            assert_eq!(maglev.build(&candidates(&[1, weight]), 0)[..], build(&candidates(&[1, weight]), SEED, 0));
        }
        assert_eq!(maglev.recent.lock().unwrap().len(), REMEMBERED);
        let again = maglev.build(&candidates(&[1; 3]), 0);
        assert!(again == first && !Arc::ptr_eq(&again, &first));
    }

    #[test]
    fn build_without_one_of_ten_moves_few_other_slots() {
        let all = build(&candidates(&[10; 10]), SEED, 0);
        let without = build(&candidates(&[10, 10, 10, 10, 10, 10, 10, 10, 10, 0]), SEED, 0);
        let moved = all.iter().zip(&without).filter(|(a, b)| **a != 10 && a != b).count();
        assert!(moved < RING_SLOTS / 10, "{moved} slots of reals that stayed moved");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn build_gives_each_real_its_weight_in_slots(weights in prop::collection::vec(0..=200_u16, 1..40)) {
            let total: usize = weights.iter().map(|&w| usize::from(w)).sum();
            prop_assume!(total > 0);
            let ring = build(&candidates(&weights), SEED, 0);
            let most = usize::from(weights.iter().copied().max().unwrap());
            for (n, &weight) in weights.iter().enumerate() {
                let due = usize::from(weight) * RING_SLOTS / total;
                let has = slots_of(&ring, u16::try_from(n + 1).unwrap());
                // A turn costs the largest weight, so nobody is off by more than a few turns.
                let slack = 2 + usize::from(weight) / most.max(1);
                prop_assert!(has.abs_diff(due) <= slack, "real {}: {has} slots, due {due}", n + 1);
            }
        }
    }
}
