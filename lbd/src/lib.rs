//! The load balancer's daemon and its CLI.
//!
//! Pure: `config`, `maglev`, `ring`, `service`, `reconcile`, `sweep`, `vip_table`, `ids`, `path_mtu`, `history`, `flap`,
//! `slow_start`, `announce::Plan`. Edges: `data_plane`, `nexthop`, `announce`, `api`, `daemon`, `manager`,
//! `capabilities`, `admin` and `node` (a file each), `cli`, `commands`, `notice` (the log), `simulate`, `why`.

pub mod admin;
pub mod announce;
pub mod api;
pub mod capabilities;
pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod data_plane;
pub mod flap;
pub mod history;
pub mod ids;
pub mod maglev;
pub mod manager;
pub mod model;
pub mod nexthop;
pub mod node;
pub mod notice;
pub mod path_mtu;
pub mod reconcile;
pub mod ring;
pub mod service;
pub mod simulate;
pub mod slow_start;
pub mod sweep;
pub mod vip_table;
pub mod why;

#[cfg(test)]
mod policy_tests;
