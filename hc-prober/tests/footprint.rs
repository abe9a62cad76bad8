//! What the engine keeps in memory of many checks that it has run for longer than it remembers a probe: of a thousand, and
//! with `LBD_TEST_LONG` of a hundred thousand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test, a panic is the message")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::Ipv4Addr,
    num::NonZeroU8,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use hc_prober::{
    Check, CheckKey, Kind, State, Timing,
    ends::Ends,
    engine::{Engine, MEMORY, Output, Planned},
    settings::DAEMON_PORTS,
    subject::{Path, Tunnel},
    time::Monotonic,
};

/// The system's allocator, and how many bytes it has given out.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(more: usize, less: usize) {
    let live = LIVE.fetch_add(more, Relaxed) + more;
    LIVE.fetch_sub(less, Relaxed);
    PEAK.fetch_max(live, Relaxed);
}

#[expect(unsafe_code, reason = "an allocator")]
// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const US: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const TIMING: Timing = Timing {
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(1),
    fast_interval: Duration::from_secs(1),
    rise: 2,
    fall: 3,
};

/// As many checks of a VIP as `bench probe` has: of each of 25 reals one.
fn checks(vips: u32) -> Vec<Planned> {
    let pairs = (0..vips * 25).map(|n| {
        let address = |first: [u8; 4], n: u32| Ipv4Addr::from_bits(u32::from_be_bytes(first) + n);
        (address([198, 18, 101, 0], n % 25), address([198, 19, 64, 0], n / 25))
    });
    let planned = |(real, vip): (Ipv4Addr, Ipv4Addr)| {
        let key = CheckKey::new(real.into(), vip.into(), Kind::Tcp { port: 80 });
        let path = Path {
            tunnel: Some(Tunnel::V4 { source: US.into(), real }),
            inner: Ends::V4 { source: US, destination: vip },
            hops: NonZeroU8::MIN,
        };
        Planned { check: Check { key, timing: TIMING }, path: Ok(path) }
    };
    pairs.map(planned).collect()
}

/// The SYN-ACK to a SYN in IPv4 in IPv4; checksums are nobody's business here.
fn syn_ack(packet: &[u8]) -> Option<Vec<u8>> {
    const SYN: u8 = 2;
    let mut bytes = packet[20..60].to_vec();
    let (ip, tcp) = bytes.split_at_mut(20);
    if tcp[13] != SYN {
        return None;
    }
    ip[12..20].rotate_left(4);
    tcp[..4].rotate_left(2);
    let sequence = u32::from_be_bytes(*tcp[4..].first_chunk().unwrap());
    tcp[8..12].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    tcp[12..14].copy_from_slice(&[0x50, 0x12]);
    Some(bytes)
}

#[test]
fn check_a_second_costs_at_most_so_many_bytes() {
    let vips = if std::env::var_os("LBD_TEST_LONG").is_some() { 4_000 } else { 40 };
    let number = vips as usize * 25;
    let (mut now, mut out) = (Monotonic(1 << 50), Output::default());
    let before = LIVE.load(Relaxed);
    let mut engine = Engine::new(&[7; 16], DAEMON_PORTS);
    engine.set_checks(checks(vips), now);
    println!("{} bytes a check that has not run", (LIVE.load(Relaxed) - before) / number);
    let end = now + MEMORY + Duration::from_secs(6);
    PEAK.store(0, Relaxed);
    let mut answers = Vec::new();
    while now < end {
        now = now + Duration::from_millis(1);
        for answer in answers.drain(..) {
            let answer: Vec<u8> = answer;
            engine.receive(&answer, now, &mut out);
        }
        engine.poll(now, now, &mut out);
        answers.extend(out.packets.iter().filter_map(|packet| syn_ack(packet.bytes)));
        out.clear();
    }
    assert!(engine.subjects().all(|subject| subject.machine.state == State::Up), "{:?}", engine.counters());
    let (live, peak) = (LIVE.load(Relaxed) - before, PEAK.load(Relaxed) - before);
    println!("{} bytes a check, at most {}", live / number, peak / number);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{number} checks, {}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());
    assert!(peak / number <= 1_800, "{} bytes", peak / number);
}
