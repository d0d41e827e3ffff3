//! The gate: config, listeners, the exchange with the upstream, the store and the admin API.
//!
//! Start with [`server`] (accept to connection) and [`gateway`] (request to upstream).

pub mod access;
pub mod admin;
pub mod body;
pub mod builtin;
pub mod cli;
pub mod config;
pub mod exchange;
mod flat;
pub mod forward;
pub mod gateway;
pub mod intake;
pub mod logging;
pub mod metrics;
pub(crate) mod reload;
pub mod route;
mod rules;
pub mod run;
pub mod server;
pub mod spool;
pub mod spool_layer;
pub mod store;
pub mod timer;
pub mod upstream;
pub mod wire;
