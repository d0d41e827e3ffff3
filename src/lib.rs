//! The gate: config, listeners, the exchange with the upstream, the store and the admin API.
//!
//! Start with [`server`] (accept to connection) and [`gateway`] (request to upstream).

pub mod access;
pub mod admin;
mod api;
pub mod body;
pub mod builtin;
pub mod cli;
mod client;
pub(crate) mod clock;
pub mod config;
mod descriptors;
pub mod exchange;
mod flat;
mod forget;
pub mod forward;
pub mod gateway;
pub mod intake;
pub mod lease;
pub mod locks;
pub mod logging;
mod marks;
pub mod metrics;
pub mod net;
pub mod outbox;
pub mod readied;
pub(crate) mod reload;
pub mod route;
mod rules;
pub mod run;
pub mod server;
pub mod signed;
#[cfg(feature = "sim")]
pub mod sim;
pub mod socket_file;
pub mod spool;
pub mod spool_layer;
pub mod stop;
pub mod store;
mod sync;
mod test_features;
pub mod timer;
pub mod tls;
pub mod trust;
pub mod upstream;
pub mod wire;
