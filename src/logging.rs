//! Logs: text on a terminal, JSON otherwise. They go to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::Subscriber;

use crate::config::{Level, Log, LogFormat};

/// Starts logging as the config says. `FENCEGATE_LOG` overrides the level, target by target.
pub fn start(config: &Log) {
    let terminal = std::io::stderr().is_terminal();
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let level = match config.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    // What was done to marks is told at every level.
    let level = format!("{level},fencegate::audit=info");
    let filter = EnvFilter::try_from_env("FENCEGATE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logs = Subscriber::builder()
        .with_env_filter(filter)
        .with_ansi(terminal)
        .with_writer(std::io::stderr);
    // A second start changes nothing: the first subscriber stays.
    let _ = if json {
        tracing::subscriber::set_global_default(logs.json().flatten_event(true).finish())
    } else {
        tracing::subscriber::set_global_default(logs.finish())
    };
}
