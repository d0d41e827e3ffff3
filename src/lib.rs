//! The gate: config, listeners, the exchange with the upstream, the store and the admin API.

pub mod store;
