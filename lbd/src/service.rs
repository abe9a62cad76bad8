//! One VIP in service: its members, what is known of each, and its ring.

use crate::{
    config::{self, OnAllDown, Protocol},
    flap::{self, Flaps},
    maglev::Candidate,
    model::{Admin, VipState},
    notice::Notice,
    ring::{Member, NewFlows, Ring, WHOLE},
    slow_start,
};
use hc_prober::{CheckKey, Severity, State, Timing};
use lb_ebpf::ring::{RING_SLOTS, RealId, Ring as RingWords, RingRef};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// What is known of a real of this VIP.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its index.
    pub id: RealId,
    /// Its weight; that of its last configuration if it was removed.
    pub weight: u16,
    /// Whether it is up, as far as its checks say, and its falls let it; that of an earlier daemon until they say something.
    pub state: State,
    /// How often it fell, and whether it is held down although its checks pass.
    pub flaps: Flaps,
    /// While it gets fewer new flows than its weight says.
    ramp: Option<Ramp>,
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

/// A real that starts slowly.
#[derive(Clone, Copy, Debug)]
struct Ramp {
    /// When it began to take new flows.
    since: Instant,
    /// How much of its part of the ring it has, of [`WHOLE`]: whatever becomes of the configuration, it never shrinks.
    portion: u8,
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
    /// Whether it is able to serve, with the ring that was built last.
    state: VipState,
    /// The state that was told last.
    told: VipState,
    /// What is to be told besides.
    notices: Vec<Notice>,
    /// When time changes what is known.
    due: Option<Instant>,
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
        Self {
            config,
            index,
            ring,
            standings: BTreeMap::new(),
            unheard: 0,
            stage: Stage::FirstRound(patience),
            state: VipState::Starting,
            told: VipState::Starting,
            notices: Vec::new(),
            due: None,
        }
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
        self.judge();
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
                // One without weight is part of no ring: nobody knows whether it was ever up.
                let admitted = up || (recognised && weight > 0);
                let serves = serves.only(protocol);
                let (flaps, admin) = (Flaps::default(), Admin::Enabled);
                let (ramp, configured, heard) = (None, true, false);
                Standing { id, weight, state, flaps, ramp, admitted, configured, admin, serves, heard }
            });
            standing.flaps.reprice(&config.policy().flap);
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
    pub fn verdict(&mut self, real: IpAddr, checks: State, now: Instant) -> bool {
        let (vip, policy) = (self.config.key(), self.config.policy().flap);
        let needed = self.lacks_reals();
        let Some(standing) = self.standings.get_mut(&real).filter(|s| s.configured) else { return false };
        self.unheard -= usize::from(!standing.heard);
        standing.heard = true;
        let known = |standing: &Standing| (standing.state, standing.serves, standing.flaps.held_until());
        let before = known(standing);
        standing.take(checks, needed, &policy, now);
        standing.admitted |= standing.state == State::Up;
        if let ((_, _, None), Some(until)) = (before, standing.flaps.held_until()) {
            let (flaps, hold) = (standing.flaps.recent(policy.window, now), until.saturating_duration_since(now));
            self.notices.push(Notice::Held { vip, real, flaps, hold });
        }
        // A real that is held down goes on with the flows that it has: its checks pass.
        standing.serves = match (checks, vip.protocol) {
            (State::Up, protocol) => Serves::ALL.only(protocol),
            // The port is closed, but the host still forwards what is established (TCP); to UDP a closed port is as
            // good as no host.
            (State::Down(Severity::Soft), Protocol::Tcp) => Serves::ALL.only(Protocol::Tcp),
            (State::Down(Severity::Soft | Severity::Hard), _) => Serves::default(),
            // Nothing was learnt yet.
            (State::Init, _) => standing.serves,
        };
        before != known(standing)
    }

    /// Takes what the operator says of a configured member; true if it is something new. Who enables a real wants it up: it is
    /// held down no longer.
    pub fn administer(&mut self, real: IpAddr, admin: Admin, now: Instant) -> bool {
        let vip = self.config.key();
        let Some(standing) = self.standings.get_mut(&real).filter(|s| s.configured) else { return false };
        let changed = std::mem::replace(&mut standing.admin, admin) != admin;
        let released = admin == Admin::Enabled && standing.release(now);
        if released {
            self.notices.push(Notice::Released { vip, real, early: false });
        }
        changed || released
    }

    /// Rebuilds the ring from what is known at this time; true if a slot changed that packets meet.
    pub fn refresh(&mut self, now: Instant) -> bool {
        self.end_holds(now);
        self.ramp(now);
        let span = self.config.policy().slow_start;
        let due = |s: &Standing| s.flaps.held_until().into_iter().chain(s.grows_at(span)).min();
        self.due = self.standings.values().filter_map(due).min();
        let members: Vec<Member> = self.standings.iter().map(|(&address, s)| s.member(address)).collect();
        let changed = self.ring.update(&members, !self.is_published(), now);
        // Every datagram that has no entry goes to `prev`, those of new flows too: none may go where nobody answers.
        // TCP's new flows are known by their SYN, and the others have nowhere else to go.
        let forgotten = self.config.key().protocol == Protocol::Udp && {
            let gone = members.iter().filter(|m| !m.serves).map(|m| m.candidate.id).collect();
            self.ring.forget(&gone)
        };
        self.judge();
        self.is_published() && (changed || forgotten)
    }

    /// Whether time has changed what is known.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.is_published() && self.due.is_some_and(|due| due <= now)
    }

    /// Whether these reals carry its traffic without further ones: they are as many as must serve, and have at least half
    /// of the weight of all that could.
    fn are_enough(&self, chosen: impl Fn(&Standing) -> bool) -> bool {
        let weight = |standing: &Standing| u64::from(standing.weight);
        let could: u64 = self.standings.values().filter(|standing| standing.could_serve()).map(weight).sum();
        let chosen: Vec<_> = self.standings.values().filter(|standing| chosen(standing)).map(weight).collect();
        chosen.len() >= self.config.min_healthy() && 2 * chosen.iter().sum::<u64>() >= could
    }

    /// Those that serve need further ones.
    fn lacks_reals(&self) -> bool {
        !self.are_enough(Standing::is_serving)
    }

    /// Those whose time is over are up; all, where too few reals serve without them.
    fn end_holds(&mut self, now: Instant) {
        let (vip, early) = (self.config.key(), self.lacks_reals());
        for (&real, standing) in &mut self.standings {
            if standing.flaps.held_until().is_some_and(|until| early || until <= now) {
                standing.release(now);
                self.notices.push(Notice::Released { vip, real, early });
            }
        }
    }

    /// A real that begins to take new flows while packets come starts slowly, as long as enough others have all that is theirs.
    fn ramp(&mut self, now: Instant) {
        let (span, published) = (self.config.policy().slow_start, self.is_published());
        let takers = self.ring.takers();
        for standing in self.standings.values_mut() {
            let begins = published && !span.is_zero() && !takers.contains(&standing.id);
            standing.ramp = match standing.ramp {
                _ if !standing.is_serving() => None,
                None => begins.then_some(Ramp { since: now, portion: 1 }),
                Some(ramp) => ramp.at(span, now),
            };
        }
        if !self.are_enough(|s| s.is_serving() && s.ramp.is_none()) {
            self.standings.values_mut().for_each(|standing| standing.ramp = None);
        }
    }

    /// Whether it is able to serve, with the ring that it has.
    fn judge(&mut self) {
        let keeps = || self.config.on_all_down() == OnAllDown::Keep && !self.ring.current().is_empty();
        self.state = match self.stage {
            Stage::FirstRound(_) => VipState::Starting,
            Stage::Published if self.serving() >= self.config.min_healthy() => VipState::Serving,
            Stage::Published if keeps() => VipState::Kept,
            Stage::Published => VipState::Unable,
        };
    }

    /// How many of its reals take new flows because their checks pass and the operator lets them; before packets meet it, are
    /// going to.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.standings.values().filter(|standing| standing.is_serving()).count()
    }

    /// Whether it is able to serve.
    #[must_use]
    pub fn state(&self) -> VipState {
        self.state
    }

    /// What is to be told of it since the last time.
    pub fn news(&mut self) -> Vec<Notice> {
        let mut notices = std::mem::take(&mut self.notices);
        let (before, after) = (std::mem::replace(&mut self.told, self.state), self.state);
        if before != after {
            let (vip, serving, needed) = (self.config.key(), self.serving(), self.config.min_healthy());
            notices.push(Notice::Vip { vip, before, after, serving, needed });
        }
        notices
    }

    /// Whether its clients are served here: new flows go somewhere, or a real that drains finishes those that it has. With
    /// `all_down = "keep"` that is so while the last reals are kept; with `withdraw` not while fewer than `min_healthy` serve.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        let drains = || self.configured().any(|(_, standing)| standing.drains());
        // The state first: to find no taker is to look at every slot.
        self.is_published() && (self.state != VipState::Unable && self.ring.has_takers() || drains())
    }

    /// Whether clients may be served by this real: it takes new flows, or drains and finishes those that it has.
    #[must_use]
    pub fn uses(&self, standing: &Standing) -> bool {
        self.ring.takers().contains(&standing.id) || standing.drains()
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

impl Ramp {
    /// How far it is by now; `None`: it is over.
    fn at(self, span: Duration, now: Instant) -> Option<Self> {
        let portion = slow_start::portion(span, now.saturating_duration_since(self.since)).max(self.portion);
        (portion < WHOLE).then_some(Self { portion, ..self })
    }
}

impl Standing {
    /// The flows that it goes on serving: those of a disabled real are cut off.
    #[must_use]
    pub fn serves(&self) -> Serves {
        if self.admin == Admin::Disabled { Serves::default() } else { self.serves }
    }

    /// It takes new flows while its checks pass.
    fn could_serve(&self) -> bool {
        self.configured && self.weight > 0 && self.admin == Admin::Enabled
    }

    /// The operator has it take no new flows, and it finishes those that it has.
    fn drains(&self) -> bool {
        self.admin == Admin::Draining && self.serves() != Serves::default()
    }

    /// It takes new flows on its own account.
    fn is_serving(&self) -> bool {
        self.could_serve() && self.admitted && self.state == State::Up
    }

    /// Removed: nobody checks it any more. When it is configured again it starts like a new one.
    fn leave(&mut self) {
        // A disabled one goes on serving nothing.
        self.serves = self.serves();
        (self.configured, self.admitted, self.admin) = (false, false, Admin::Enabled);
        (self.state, self.heard) = (State::Init, false);
        (self.flaps, self.ramp) = (Flaps::default(), None);
    }

    /// Takes a verdict of its checks. One that is needed is not held down.
    fn take(&mut self, checks: State, needed: bool, policy: &flap::Policy, now: Instant) {
        self.state = match (self.state, checks) {
            (State::Up, State::Down(_)) => {
                self.flaps.fell(now);
                checks
            }
            (State::Init | State::Down(_), State::Down(_)) => {
                self.flaps.fails(now);
                checks
            }
            (State::Down(_), State::Up) if self.flaps.held_until().is_some() => self.state,
            (State::Down(_), State::Up) if !self.flaps.passes(policy, needed, now) => State::Down(Severity::Soft),
            (_, State::Up | State::Init) => checks,
        };
    }

    /// Whether its checks have come to a verdict since it was configured.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.heard
    }

    /// Held down no longer, it is up: its checks pass. True if it was held.
    fn release(&mut self, now: Instant) -> bool {
        let was_held = self.flaps.release(now);
        if was_held {
            self.state = State::Up;
        }
        was_held
    }

    /// How much of its part of the ring it has, of [`WHOLE`].
    #[must_use]
    pub fn portion(&self) -> u8 {
        self.ramp.map_or(WHOLE, |ramp| ramp.portion)
    }

    fn grows_at(&self, span: Duration) -> Option<Instant> {
        self.ramp.map(|ramp| ramp.since + slow_start::outgrown_after(span, ramp.portion))
    }

    /// When it has all of its part of the ring, if it starts as slowly as that.
    #[must_use]
    pub fn ramp_until(&self, span: Duration) -> Option<Instant> {
        self.ramp.map(|ramp| ramp.since + span)
    }

    fn member(&self, address: IpAddr) -> Member {
        Member {
            portion: self.portion(),
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
