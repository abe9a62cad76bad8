//! A captured packet is whatever somebody sent to the prober's address: reading it must end, and never panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    let _ = std::hint::black_box(hc_prober::reply::parse(packet));
});
