//! What the kernel side and user space agree on: map types, limits, the ring's slot word, verdict
//! reasons, hashing and header arithmetic. No I/O, no allocation; tested on the host.
//!
//! Feature `user` adds `aya::Pod` for the map types and the compiled BPF [`objects`].
#![cfg_attr(not(test), no_std)]
#![allow(clippy::inline_always, reason = "the packet path is one function: a call costs what it saves")]

pub mod answer;
pub mod bench;
pub mod counter;
pub mod decap;
pub mod flow;
pub mod hash;
pub mod header;
pub mod net;
#[cfg(feature = "user")]
pub mod objects;
pub mod probe;
pub mod rate;
pub mod real;
pub mod ring;
pub mod source;
pub mod syn;
pub mod vip;

/// Marks map types as plain data for aya. Each must be `repr(C)` without padding: every bit pattern valid.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($type:ty),+ $(,)?) => {$(
        #[expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]
        // SAFETY: repr(C) of unsigned integers whose sizes add up to the type's (asserted beside it).
        unsafe impl aya::Pod for $type {}
    )+};
}
#[cfg(not(feature = "user"))]
macro_rules! pod {
    ($($type:ty),+ $(,)?) => {};
}
pub(crate) use pod;
