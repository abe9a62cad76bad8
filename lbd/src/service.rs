//! One VIP in service: its members, what is known of each, and its ring.

use crate::{
    config,
    maglev::Candidate,
    ring::{Member, Ring},
};
use hc_prober::{CheckKey, Kind, Severity, State};
use lb_ebpf::ring::RealId;
use std::{collections::BTreeMap, net::IpAddr, time::Instant};

/// What is known of a real of this VIP.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its index.
    pub id: RealId,
    /// Its weight; that of its last configuration if it was removed.
    pub weight: u16,
    /// The last verdict of its check; that of an earlier daemon until there is one.
    pub state: State,
    /// It has been up since it was configured.
    pub admitted: bool,
    /// It is configured; otherwise it only finishes the flows it has.
    pub configured: bool,
    /// The flows that it goes on serving.
    pub serves: Serves,
    /// Its check has come to a verdict since it was configured.
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
}

impl Service {
    /// A VIP without members yet.
    #[must_use]
    pub fn new(config: config::Vip, index: u16, ring: Ring) -> Self {
        Self { config, index, ring, standings: BTreeMap::new() }
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
        let in_use = self.ring.current();
        for (address, weight) in wanted {
            let Some((id, serves)) = known(address) else { continue };
            let standing = self.standings.entry(address).or_insert_with(|| {
                // Only the ring of an earlier daemon names a real that this one does not know.
                let up = in_use.contains(&id);
                let state = if up { State::Up } else { State::Init };
                Standing { id, weight, state, admitted: up, configured: true, serves, heard: false }
            });
            standing.weight = weight;
            standing.configured = true;
        }
        self.config = config;
    }

    /// The check of one of its reals.
    #[must_use]
    pub fn check_key(&self, real: IpAddr) -> CheckKey {
        check_key(&self.config, real)
    }

    /// Takes a verdict on a configured member; true if it changed what is known.
    pub fn verdict(&mut self, real: IpAddr, state: State) -> bool {
        let Some(standing) = self.standings.get_mut(&real).filter(|s| s.configured) else { return false };
        standing.heard = true;
        if standing.state == state {
            return false;
        }
        standing.state = state;
        standing.admitted |= state == State::Up;
        standing.serves = standing.serves.after(state);
        true
    }

    /// Rebuilds the ring from what is known; true if a slot changed.
    pub fn refresh(&mut self, quiet: bool, now: Instant) -> bool {
        let members: Vec<Member> = self.standings.iter().map(|(&address, s)| s.member(address)).collect();
        self.ring.update(&members, quiet, now)
    }

    /// Its configured reals and what is known of each.
    pub fn configured(&self) -> impl Iterator<Item = (IpAddr, &Standing)> {
        self.standings.iter().filter(|(_, s)| s.configured).map(|(&address, s)| (address, s))
    }

    /// Whether a check of a configured real has not come to a verdict.
    #[must_use]
    pub fn awaits_verdicts(&self) -> bool {
        self.configured().any(|(_, s)| !s.heard)
    }

    /// The flows that a real goes on serving, as far as this VIP knows it: removed ones finish what they have.
    #[must_use]
    pub fn serves(&self, real: IpAddr) -> Option<Serves> {
        self.standings.get(&real).map(|standing| standing.serves)
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
    /// Soft down: the port is closed, but the host still forwards what is established (TCP); to UDP a closed
    /// port is as good as no host.
    fn after(self, verdict: State) -> Self {
        match verdict {
            State::Up => Self { tcp: true, udp: true },
            State::Down(Severity::Soft) => Self { tcp: true, udp: false },
            State::Down(Severity::Hard) => Self::default(),
            // Nothing was learnt yet.
            State::Init => self,
        }
    }
}

impl Standing {
    /// Removed: nobody checks it any more. When it is configured again it starts like a new one.
    fn leave(&mut self) {
        (self.configured, self.admitted) = (false, false);
        (self.state, self.heard) = (State::Init, false);
    }

    fn member(&self, address: IpAddr) -> Member {
        Member {
            candidate: Candidate { id: self.id, address, weight: self.weight },
            admitted: self.admitted,
            takes_new: self.configured && self.state == State::Up,
            serves: self.serves.tcp,
        }
    }
}

/// The check of a real as the prober names it.
#[must_use]
pub fn check_key(vip: &config::Vip, real: IpAddr) -> CheckKey {
    let check = vip.check();
    let kind = match &check.kind {
        config::CheckKind::Icmp => Kind::Icmp,
        config::CheckKind::Tcp { port } => Kind::Tcp { port: *port },
        config::CheckKind::Udp { port, payload, expect, require_reply } => Kind::Udp {
            port: *port,
            payload: payload.clone().unwrap_or_default(),
            expect: expect.clone(),
            require_reply: *require_reply,
        },
    };
    CheckKey { real, target: check.target.unwrap_or(vip.key().address), kind }
}
