//! What the kernel side and user space agree on: map types, limits, header arithmetic. No I/O.
#![cfg_attr(not(test), no_std)]

pub mod decap;
#[cfg(feature = "user")]
pub mod objects;
pub mod probe;
