//! What no single crate can test: the [`lab`] and, on top of it, the end-to-end tests, the demo and the benches; and
//! a [`vm`] with Debian's stock kernel for what the host's kernel lacks.

pub mod lab;
pub mod vm;
