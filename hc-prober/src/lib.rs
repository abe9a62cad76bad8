//! hc-prober
