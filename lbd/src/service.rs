//! One VIP in service: its members, what is known of each, and its ring.

use crate::{
    config::{self, Protocol},
    maglev::Candidate,
    model::Admin,
    ring::{Member, NewFlows, Ring},
};
use hc_prober::{CheckKey, Severity, State, Timing};
use lb_ebpf::ring::{RING_SLOTS, RealId, Ring as RingWords, RingRef};
use std::{collections::BTreeMap, net::IpAddr, time::Instant};

/// What is known of a real of this VIP.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its index.
    pub id: RealId,
    /// Its weight; that of its last configuration if it was removed.
    pub weight: u16,
    /// The verdict of its checks; that of an earlier daemon until there is one.
    pub state: State,
    /// It has been up since it was configured.
    pub admitted: bool,
    /// It is configured; otherwise it only finishes the flows it has.
    pub configured: bool,
    /// What the operator says of it.
    pub admin: Admin,
    /// It goes on serving the flows of this VIP that it has, as far as its checks say.
    serves: Serves,
    /// Its checks have come to a verdict since it was configured.
    heard: bool,
}

/// A VIP in service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its configuration.
    pub config: config::Vip,
    /// Index of its ring and counters.
    pub index: u16,
    /// Its ring.
    pub ring: Ring,
    standings: BTreeMap<IpAddr, Standing>,
    /// Configured reals whose checks have come to no verdict yet.
    unheard: usize,
    stage: Stage,
}

/// Whether packets meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its first round of checks runs, until this time at most.
    FirstRound(Instant),
    /// Packets may come.
    Published,
}

impl Service {
    /// A VIP without members yet, whose first round of checks is to be over at this time.
    #[must_use]
    pub fn new(config: config::Vip, index: u16, ring: Ring, patience: Instant) -> Self {
        Self { config, index, ring, standings: BTreeMap::new(), unheard: 0, stage: Stage::FirstRound(patience) }
    }

    /// Its first round of checks is over: each has a verdict, or has had the time for one.
    #[must_use]
    pub fn is_ready(&self, now: Instant) -> bool {
        match self.stage {
            Stage::FirstRound(patience) => now >= patience || self.unheard == 0,
            Stage::Published => true,
        }
    }

    /// The parts of its ring, each with its place in the map.
    pub fn ring_parts(&self) -> impl Iterator<Item = (u32, Box<RingWords>)> {
        let ring = RingRef::new(self.index, self.ring.order());
        (0..).zip(self.ring.words()).map(move |(part, words)| (ring.place(part), words))
    }

    /// The slots that its ring would have if it were created now.
    #[must_use]
    pub fn ring_size_wanted(&self) -> usize {
        RING_SLOTS << self.config.ring_order()
    }

    /// Whether packets may meet it.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.stage == Stage::Published
    }

    /// From now on packets may meet it.
    pub fn publish(&mut self, now: Instant) {
        self.refresh(now);
        self.stage = Stage::Published;
    }

    /// Takes a new configuration: members that stay keep what is known of them, those that go keep their flows.
    /// `known` gives a real's index and the flows that it serves although no VIP knows it.
    pub fn configure(&mut self, config: config::Vip, known: impl Fn(IpAddr) -> Option<(RealId, Serves)>) {
        let wanted: BTreeMap<_, _> = config.reals().iter().map(|real| (real.address, real.weight)).collect();
        for (address, standing) in &mut self.standings {
            if !wanted.contains_key(address) {
                standing.leave();
            }
        }
        let protocol = config.key().protocol;
        let in_use = self.ring.current();
        let recognised = self.standings.is_empty() && {
            let candidate = |(&address, &weight)| Some(Candidate { id: known(address)?.0, address, weight });
            self.ring.recognise(&wanted.iter().filter_map(candidate).collect::<Vec<_>>())
        };
        for (address, weight) in wanted {
            let Some((id, serves)) = known(address) else { continue };
            let standing = self.standings.entry(address).or_insert_with(|| {
                // Only the ring of an earlier daemon names a real that this one does not know.
                let up = in_use.contains(&id);
                let state = if up { State::Up } else { State::Init };
                let admitted = up || recognised;
                let serves = serves.only(protocol);
                Standing { id, weight, state, admitted, configured: true, admin: Admin::Enabled, serves, heard: false }
            });
            standing.weight = weight;
            standing.configured = true;
        }
        self.unheard = self.configured().filter(|(_, standing)| !standing.heard).count();
        self.config = config;
    }

    /// Whether it is configured with this real.
    #[must_use]
    pub fn has(&self, real: IpAddr) -> bool {
        self.config.reals().iter().any(|member| member.address == real)
    }

    /// The checks of one of its reals, in the order of the configuration.
    pub fn check_keys(&self, real: IpAddr) -> impl Iterator<Item = CheckKey> {
        check_keys(&self.config, real).map(|(key, _)| key)
    }

    /// Takes a verdict on a configured member; true if it changed what is known.
    pub fn verdict(&mut self, real: IpAddr, state: State) -> bool {
        let Some(standing) = self.standings.get_mut(&real).filter(|s| s.configured) else { return false };
        self.unheard -= usize::from(!standing.heard);
        standing.heard = true;
        standing.admitted |= state == State::Up;
        let before = (standing.state, standing.serves);
        standing.state = state;
        standing.serves = match (state, self.config.key().protocol) {
            (State::Up, protocol) => Serves::ALL.only(protocol),
            // The port is closed, but the host still forwards what is established (TCP); to UDP a closed port is as
            // good as no host.
            (State::Down(Severity::Soft), Protocol::Tcp) => Serves::ALL.only(Protocol::Tcp),
            (State::Down(Severity::Soft | Severity::Hard), _) => Serves::default(),
            // Nothing was learnt yet.
            (State::Init, _) => standing.serves,
        };
        before != (standing.state, standing.serves)
    }

    /// Takes what the operator says of a configured member; true if it is something new.
    pub fn administer(&mut self, real: IpAddr, admin: Admin) -> bool {
        let standing = self.standings.get_mut(&real).filter(|s| s.configured && s.admin != admin);
        standing.map(|standing| standing.admin = admin).is_some()
    }

    /// Rebuilds the ring from what is known; true if a slot changed that packets meet.
    pub fn refresh(&mut self, now: Instant) -> bool {
        let members: Vec<Member> = self.standings.iter().map(|(&address, s)| s.member(address)).collect();
        let changed = self.ring.update(&members, !self.is_published(), now);
        // Every datagram that has no entry goes to `prev`, those of new flows too: none may go where nobody answers.
        // TCP's new flows are known by their SYN, and the others have nowhere else to go.
        let forgotten = self.config.key().protocol == Protocol::Udp && {
            let gone = members.iter().filter(|m| !m.serves).map(|m| m.candidate.id).collect();
            self.ring.forget(&gone)
        };
        self.is_published() && (changed || forgotten)
    }

    /// Its configured reals and what is known of each.
    pub fn configured(&self) -> impl Iterator<Item = (IpAddr, &Standing)> {
        self.standings.iter().filter(|(_, s)| s.configured).map(|(&address, s)| (address, s))
    }

    /// Forgets a real that is not configured: no flow goes to it any more.
    pub fn forget(&mut self, real: IpAddr) {
        self.standings.retain(|&address, standing| address != real || standing.configured);
    }

    /// What is known of a real: also of one that was removed and finishes what it has.
    #[must_use]
    pub fn standing(&self, real: IpAddr) -> Option<&Standing> {
        self.standings.get(&real)
    }
}

/// The flows that a real goes on serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serves {
    /// Established TCP connections.
    pub tcp: bool,
    /// UDP flows.
    pub udp: bool,
}

impl Serves {
    const ALL: Self = Self { tcp: true, udp: true };

    /// Those of a VIP's protocol.
    fn only(self, protocol: Protocol) -> Self {
        Self { tcp: self.tcp && protocol == Protocol::Tcp, udp: self.udp && protocol == Protocol::Udp }
    }
}

impl Standing {
    /// The flows that it goes on serving: those of a disabled real are cut off.
    #[must_use]
    pub fn serves(&self) -> Serves {
        if self.admin == Admin::Disabled { Serves::default() } else { self.serves }
    }

    /// Removed: nobody checks it any more. When it is configured again it starts like a new one.
    fn leave(&mut self) {
        // A disabled one goes on serving nothing.
        self.serves = self.serves();
        (self.configured, self.admitted, self.admin) = (false, false, Admin::Enabled);
        (self.state, self.heard) = (State::Init, false);
    }

    fn member(&self, address: IpAddr) -> Member {
        Member {
            candidate: Candidate { id: self.id, address, weight: self.weight },
            admitted: self.admitted,
            new_flows: match (self.admin, self.state) {
                (Admin::Draining | Admin::Disabled, _) => NewFlows::Never,
                (Admin::Enabled, State::Up) if self.configured => NewFlows::Take,
                (Admin::Enabled, _) => NewFlows::Keep,
            },
            serves: self.serves() != Serves::default(),
        }
    }
}

/// The checks of a real as the prober names them.
pub fn check_keys(vip: &config::Vip, real: IpAddr) -> impl Iterator<Item = (CheckKey, Timing)> {
    let address = vip.key().address;
    vip.checks().iter().map(move |(check, timing)| (check.key(real, address), *timing))
}
