//! Source ports: handed out in rotation, and what was sent from each of them lately.
//!
//! A lane is all that shares its answers' addresses (our address, the target, its port). Ports are taken along a secret
//! permutation of the range, so the record of what was sent from a port is found by arithmetic: no map, and no memory for
//! ports that were not used lately.

use std::{collections::VecDeque, ops::RangeInclusive, time::Duration};

use crate::{batch::ProbeId, time::Monotonic};

/// What was sent from a port. There is one for each probe of the last minute, so it is small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    check: u32,
    serial: u32,
    /// When it was sent, in units of [`TICK_BITS`]; in the two highest bits [`COMPANION`] and [`ANSWERED`].
    word: u32,
}

const _: () = assert!(size_of::<Flight>() == 12);

/// A flight's time is told in units of 2¹⁶ ns, some 66 µs; 30 bits of them come round after 19 hours. A lane forgets its
/// flights long before that.
const TICK_BITS: u32 = 16;
const COMPANION: u32 = 1 << 31;
const ANSWERED: u32 = 1 << 30;
const TICKS: u32 = ANSWERED - 1;

impl Flight {
    /// A packet of `probe` that is sent now. `companion`: it is the echo request alongside a UDP probe.
    #[must_use]
    pub fn new(probe: ProbeId, companion: bool, now: Monotonic) -> Self {
        Self { check: probe.check, serial: probe.serial, word: ticks(now) | if companion { COMPANION } else { 0 } }
    }

    /// Of which probe.
    #[must_use]
    pub fn probe(self) -> ProbeId {
        ProbeId { check: self.check, serial: self.serial }
    }

    /// Whether it is the echo request alongside a UDP probe.
    #[must_use]
    pub fn is_companion(self) -> bool {
        self.word & COMPANION != 0
    }

    /// Whether a genuine answer has come.
    #[must_use]
    pub fn is_answered(self) -> bool {
        self.word & ANSWERED != 0
    }

    /// A genuine answer has come. Returns whether it was not the first.
    pub fn answer(&mut self) -> bool {
        let repeated = self.is_answered();
        self.word |= ANSWERED;
        repeated
    }

    /// How long ago it was sent, up to 66 µs more or less; zero if `now` is earlier.
    #[must_use]
    pub fn age(self, now: Monotonic) -> Duration {
        let ticks = ticks(now).wrapping_sub(self.word) & TICKS;
        Duration::from_nanos(if ticks > TICKS / 2 { 0 } else { u64::from(ticks) << TICK_BITS })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "they come round")]
fn ticks(at: Monotonic) -> u32 {
    (at.0 >> TICK_BITS) as u32 & TICKS
}

/// The flights of one lane.
#[derive(Debug, Clone)]
pub struct Lane {
    rotation: Rotation,
    /// In order of sending; the first has number `first`, each next one more.
    flights: VecDeque<Flight>,
    first: u64,
    /// When the last of them was sent.
    last: Monotonic,
    /// How long a flight is remembered, and its port left alone.
    memory: Duration,
}

impl Lane {
    /// An empty lane over `ports`; `secret` decides the order in which they are used. `memory`: no more than hours.
    #[must_use]
    pub fn new(ports: &RangeInclusive<u16>, secret: u64, memory: Duration) -> Self {
        let rotation = Rotation::new(ports, secret);
        Self { rotation, flights: VecDeque::new(), first: 0, last: Monotonic::default(), memory }
    }

    /// Records a flight that leaves now; returns its port and number (its epoch). When every port is remembered, the one used
    /// longest ago is taken again if its answer has come or nothing came of it for `rest`; otherwise there is `None`.
    pub fn launch(&mut self, flight: Flight, rest: Duration, now: Monotonic) -> Option<(u16, u64)> {
        let idle = self.is_idle(now);
        while self.flights.front().is_some_and(|old| idle || old.age(now) > self.memory) {
            self.forget();
        }
        if self.flights.len() >= self.rotation.len() {
            let oldest = self.flights.front()?;
            if !oldest.is_answered() && oldest.age(now) < rest {
                return None;
            }
            self.forget();
        }
        let epoch = self.first.wrapping_add(u64::try_from(self.flights.len()).ok()?);
        if self.flights.len() == self.flights.capacity() {
            // Most lanes have reached their size for good; doubling would leave half of it empty.
            self.flights.reserve_exact(self.flights.len() / 8 + 4);
        }
        self.flights.push_back(flight);
        self.last = now;
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
        now.since(self.last) > self.memory || self.flights.is_empty()
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
    use proptest::prelude::*;
    use std::collections::HashSet;

    const REST: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_hours(1);
    /// A unit of a flight's time.
    const TICK: u64 = 1 << TICK_BITS;

    fn flight(serial: u32, at: u64) -> Flight {
        Flight::new(ProbeId { check: 0, serial }, false, Monotonic(at))
    }

    impl Lane {
        fn launch_at(&mut self, serial: u32, at: u64) -> Option<(u16, u64)> {
            self.launch(flight(serial, at), REST, Monotonic(at))
        }
    }

    proptest! {
        #[test]
        fn ports_one_round_uses_each_once_and_finds_each(first in 1024_u16..60000, size in 1_u16..600, secret: u64) {
            let ports = first..=first + size - 1;
            let mut lane = Lane::new(&ports, secret, HOUR);
            let mut used = HashSet::new();
            for n in 0..u32::from(size) {
                let (port, epoch) = lane.launch_at(n, 0).unwrap();
                prop_assert!(ports.contains(&port) && used.insert(port));
                let (found, found_epoch) = lane.find(port).unwrap();
                prop_assert_eq!((found.probe().serial, found_epoch), (n, epoch));
            }
            prop_assert!(lane.launch_at(0, 0).is_none(), "all in use");
        }

        /// Against what was put in, for hours, and a while before it was sent.
        #[test]
        fn flight_says_what_was_put_in(
            check: u32, serial: u32, companion: bool, answered: bool, at in 1_u64 << 45..1 << 62, age in 0_u64..(1 << 45) - 2 * TICK,
        ) {
            let probe = ProbeId { check, serial };
            let mut flight = Flight::new(probe, companion, Monotonic(at));
            if answered {
                prop_assert!(!flight.answer());
            }
            prop_assert_eq!((flight.probe(), flight.is_companion(), flight.is_answered()), (probe, companion, answered));
            let found = flight.age(Monotonic(at + age)).as_nanos();
            prop_assert!(found.abs_diff(age.into()) < TICK.into(), "{found} for {age}");
            prop_assert!(flight.age(Monotonic(at - age)).is_zero());
        }
    }

    #[test]
    fn port_reused_finds_the_latest_flight() {
        let mut lane = Lane::new(&(61000..=61003), 12345, Duration::from_nanos(2 * TICK));
        for n in 0..100 {
            let (port, _) = lane.launch_at(n, u64::from(n) * TICK).unwrap();
            assert_eq!(lane.find(port).unwrap().0.probe().serial, n);
        }
    }

    #[test]
    fn port_answered_is_reused_when_none_is_left() {
        let mut lane = Lane::new(&(61000..=61001), 1, HOUR);
        let (port, _) = lane.launch_at(0, 0).unwrap();
        lane.launch_at(1, 0).unwrap();
        assert!(lane.launch_at(2, 0).is_none());
        assert!(!lane.find(port).unwrap().0.answer());
        assert_eq!(lane.launch_at(2, 0).unwrap().0, port);
    }

    /// After as long as the units of a flight's time take to come round, it would seem to be new.
    #[test]
    fn flights_of_a_lane_that_rested_for_long_are_forgotten() {
        let mut lane = Lane::new(&(61000..=61001), 1, HOUR);
        let round = u64::from(TICKS + 1) << TICK_BITS;
        lane.launch_at(0, TICK).unwrap();
        lane.launch_at(1, TICK).unwrap();
        assert!(lane.launch_at(2, TICK).is_none());
        assert!(lane.is_idle(Monotonic(round + TICK)));
        lane.launch_at(2, round + TICK).unwrap();
        assert_eq!(lane.flights.len(), 1);
    }

    #[test]
    fn port_outside_the_range_is_unknown() {
        assert!(Lane::new(&(61000..=61001), 1, HOUR).find(60999).is_none());
    }
}
