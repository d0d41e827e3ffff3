//! The gate: config, listeners, the exchange with the upstream, the store and the admin API.

pub mod access;
pub mod body;
pub mod config;
pub mod exchange;
pub mod forward;
pub mod gateway;
pub mod intake;
pub mod metrics;
pub mod route;
pub mod server;
pub mod spool;
pub mod spool_layer;
pub mod store;
pub mod timer;
pub mod upstream;
pub mod wire;
