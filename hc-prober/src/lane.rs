//! Source ports: handed out in rotation, and what was sent from each of them lately.
//!
//! A lane is all that shares its answers' addresses (our address, the target, its port). Ports are taken along a secret
//! permutation of the range, so the record of what was sent from a port is found by arithmetic: no map, and no memory for
//! ports that were not used lately.

use std::{collections::VecDeque, ops::RangeInclusive, sync::Arc, time::Duration};

use crate::{subject::Path, time::Monotonic};

/// What was sent from a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flight {
    /// Which check.
    pub check: u32,
    /// Which of the check's probes.
    pub serial: u32,
    /// When.
    pub sent_at: Monotonic,
    /// Which way: a late SYN-ACK is still reset when the check is long gone.
    pub path: Arc<Path>,
    /// The echo request alongside a UDP probe.
    pub companion: bool,
    /// A genuine answer has come.
    pub answered: bool,
}

/// There is one for each probe of the last minute.
const _: () = assert!(size_of::<Flight>() <= 32);

/// The flights of one lane.
#[derive(Debug, Clone)]
pub struct Lane {
    rotation: Rotation,
    /// In order of sending; the first has number `first`, each next one more.
    flights: VecDeque<Flight>,
    first: u64,
    /// How long a flight is remembered, and its port left alone.
    memory: Duration,
}

impl Lane {
    /// An empty lane over `ports`; `secret` decides the order in which they are used.
    #[must_use]
    pub fn new(ports: &RangeInclusive<u16>, secret: u64, memory: Duration) -> Self {
        Self { rotation: Rotation::new(ports, secret), flights: VecDeque::new(), first: 0, memory }
    }

    /// Records a flight; returns its port and number (its epoch). When every port is remembered, the one used longest ago is
    /// taken again if its answer has come or nothing came of it for `rest`; otherwise there is `None`.
    pub fn launch(&mut self, flight: Flight, rest: Duration) -> Option<(u16, u64)> {
        let now = flight.sent_at;
        while self.flights.front().is_some_and(|old| now.since(old.sent_at) > self.memory) {
            self.forget();
        }
        if self.flights.len() >= self.rotation.len() {
            let oldest = self.flights.front()?;
            if !oldest.answered && now.since(oldest.sent_at) < rest {
                return None;
            }
            self.forget();
        }
        let epoch = self.first.wrapping_add(u64::try_from(self.flights.len()).ok()?);
        self.flights.push_back(flight);
        Some((self.rotation.port(epoch), epoch))
    }

    /// The flight that last left from `port`, and its number.
    pub fn find(&mut self, port: u16) -> Option<(&mut Flight, u64)> {
        let place = self.rotation.place(port)?;
        let size = self.rotation.size;
        let ahead = (place + size - self.first % size) % size;
        let flight = self.flights.get_mut(usize::try_from(ahead).ok()?)?;
        Some((flight, self.first.wrapping_add(ahead)))
    }

    /// Whether nothing that was sent here needs to be remembered.
    #[must_use]
    pub fn is_idle(&self, now: Monotonic) -> bool {
        self.flights.back().is_none_or(|last| now.since(last.sent_at) > self.memory)
    }

    fn forget(&mut self) {
        self.flights.pop_front();
        self.first = self.first.wrapping_add(1);
    }
}

/// The permutation `epoch → lowest + (start + epoch · stride) mod size` and its inverse.
#[derive(Debug, Clone)]
struct Rotation {
    lowest: u16,
    size: u64,
    start: u64,
    stride: u64,
    inverse: u64,
}

impl Rotation {
    fn new(ports: &RangeInclusive<u16>, secret: u64) -> Self {
        let size = u64::from(ports.end().saturating_sub(*ports.start())) + 1;
        let (start, wish) = (secret % size, (secret >> 32) % size);
        // Some stride at or after the wished one has an inverse: 1 has.
        let (stride, inverse) =
            (wish..wish + size).find_map(|stride| Some((stride, inverse(stride, size)?))).unwrap_or((1, 1));
        Self { lowest: *ports.start(), size, start, stride, inverse }
    }

    fn len(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }

    fn port(&self, epoch: u64) -> u16 {
        let offset = (self.start + epoch % self.size * self.stride) % self.size;
        self.lowest.saturating_add(u16::try_from(offset).unwrap_or(0))
    }

    /// `epoch mod size` of the flights that leave from `port`.
    fn place(&self, port: u16) -> Option<u64> {
        let offset = u64::from(port.checked_sub(self.lowest)?);
        (offset < self.size).then(|| (offset + self.size - self.start) * self.inverse % self.size)
    }
}

/// The inverse of `a` modulo `m` by Euclid's extended algorithm, if they have no common divisor.
fn inverse(a: u64, m: u64) -> Option<u64> {
    let m = i64::try_from(m).ok()?;
    let (mut r, mut next_r) = (m, i64::try_from(a).ok()? % m);
    let (mut t, mut next_t) = (0, 1);
    while next_r != 0 {
        let quotient = r / next_r;
        (r, next_r) = (next_r, r - quotient * next_r);
        (t, next_t) = (next_t, t - quotient * next_t);
    }
    (r == 1).then(|| u64::try_from(t.rem_euclid(m)).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ends::Ends, subject::Tunnel};
    use proptest::prelude::*;
    use std::{collections::HashSet, net::Ipv4Addr};

    const REST: Duration = Duration::from_secs(1);

    fn flight(serial: u32, at: u64) -> Flight {
        let here = Ipv4Addr::LOCALHOST;
        let tunnel = Tunnel::V4 { source: here.into(), real: here };
        let path = Path { tunnel: Some(tunnel), inner: Ends::V4 { source: here, destination: here } };
        Flight { check: 0, serial, sent_at: Monotonic(at), path: Arc::new(path), companion: false, answered: false }
    }

    proptest! {
        #[test]
        fn ports_one_round_uses_each_once_and_finds_each(first in 1024_u16..60000, size in 1_u16..600, secret: u64) {
            let ports = first..=first + size - 1;
            let mut lane = Lane::new(&ports, secret, Duration::MAX);
            let mut used = HashSet::new();
            for n in 0..u32::from(size) {
                let (port, epoch) = lane.launch(flight(n, 0), REST).unwrap();
                prop_assert!(ports.contains(&port) && used.insert(port));
                let (found, found_epoch) = lane.find(port).unwrap();
                prop_assert_eq!((found.serial, found_epoch), (n, epoch));
            }
            prop_assert!(lane.launch(flight(0, 0), REST).is_none(), "all in use");
        }
    }

    #[test]
    fn port_reused_finds_the_latest_flight() {
        let mut lane = Lane::new(&(61000..=61003), 12345, Duration::from_nanos(10));
        for n in 0..100 {
            let (port, _) = lane.launch(flight(n, u64::from(n) * 5), REST).unwrap();
            assert_eq!(lane.find(port).unwrap().0.serial, n);
        }
    }

    #[test]
    fn port_answered_is_reused_when_none_is_left() {
        let mut lane = Lane::new(&(61000..=61001), 1, Duration::MAX);
        let (port, _) = lane.launch(flight(0, 0), REST).unwrap();
        lane.launch(flight(1, 0), REST).unwrap();
        assert!(lane.launch(flight(2, 0), REST).is_none());
        lane.find(port).unwrap().0.answered = true;
        assert_eq!(lane.launch(flight(2, 0), REST).unwrap().0, port);
    }

    #[test]
    fn port_outside_the_range_is_unknown() {
        assert!(Lane::new(&(61000..=61001), 1, Duration::MAX).find(60999).is_none());
    }
}
