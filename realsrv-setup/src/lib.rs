//! realsrv-setup
