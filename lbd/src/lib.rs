//! lbd
