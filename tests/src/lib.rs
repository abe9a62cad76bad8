//! tests

pub mod vm;
