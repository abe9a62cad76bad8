//! lbd

pub mod api;
pub mod cli;
pub mod config;
pub mod model;
pub mod nexthop;
