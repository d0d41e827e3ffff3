//! The gate: config, listeners, the exchange with the upstream, the store and the admin API.

pub mod body;
pub mod config;
pub mod exchange;
pub mod spool;
pub mod timer;
pub mod upstream;
pub mod wire;
pub mod store;
