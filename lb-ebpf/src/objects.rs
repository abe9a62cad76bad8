//! The compiled BPF objects, built by this crate's build script and embedded where they are loaded.

/// Bytes aligned as the ELF parser needs them.
#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        pub static $name: &[u8] = {
            static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $file)));
            &OBJECT.0
        };
    };
}

object!(
    /// The XDP load balancer: `src/bin/load_balancer.rs`.
    LOAD_BALANCER,
    "load_balancer"
);
object!(
    /// Copies out what the load balancer's outer maps name: `src/bin/map_reader.rs`.
    MAP_READER,
    "map_reader"
);
object!(
    /// The capture of probe replies at tc ingress: `src/bin/probe_capture.rs`.
    PROBE_CAPTURE,
    "probe_capture"
);
object!(
    /// The real's decapsulation at tc ingress and MSS clamp at tc egress: `src/bin/decap.rs`.
    DECAP,
    "decap"
);
object!(
    /// Hands frames to another device's ingress, for the proof of a real: `src/bin/proof.rs`.
    PROOF,
    "proof"
);
object!(
    /// A bare pass, for the peer of a veth device whose other end uses `XDP_TX`: `src/bin/xdp_pass.rs`.
    XDP_PASS,
    "xdp_pass"
);
object!(
    /// The load balancer's path under a harness, only for benches: `src/bin/bench_packet/main.rs`.
    BENCH_PACKET,
    "bench_packet"
);
object!(
    /// Generator, mirror and sink of the bench on a wire: `src/bin/bench_wire.rs`.
    BENCH_WIRE,
    "bench_wire"
);
