//! What no single crate can test: the [`lab`] and, on top of it, the end-to-end tests, the demo and the benches.

pub mod lab;
