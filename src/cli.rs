//! The command line.

mod keys;
mod lock;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::client::Files;
use crate::config::{Address, Config, Loaded};
use crate::logging;
use crate::run::{RunError, serve};
use crate::store::tools;

/// Runtime failures.
const FAILED: u8 = 1;

/// A wrong command line or config.
const WRONG: u8 = 2;

/// A reverse proxy that makes an HTTP storage API refuse stale fencing tokens.
#[derive(Debug, Parser)]
#[command(name = "fencegate", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Serve {
        /// The config file
        #[arg(long, default_value = "config.yaml", env = "FENCEGATE_CONFIG")]
        config: PathBuf,
    },
    /// Check a config file: prints every problem, and exits with 2 where there is one
    Check {
        /// The config file
        #[arg(long, default_value = "config.yaml", env = "FENCEGATE_CONFIG")]
        config: PathBuf,
    },
    /// Run a command while a lock is held: fencegate lock NAMESPACE/KEY -- COMMAND
    Lock(lock::LockArgs),
    /// See and change the marks of a running gateway, by its admin API
    Keys(keys::Keys),
    /// Look into a store while no gateway uses it
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Write all marks to standard output, as JSON lines
    Export {
        /// The store's directory
        directory: PathBuf,
    },
    /// Read marks from standard input, as JSON lines; marks are only ever raised
    Import {
        /// The store's directory
        directory: PathBuf,
    },
    /// Read everything and check it
    Verify {
        /// The store's directory
        directory: PathBuf,
    },
    /// What the store has, as JSON
    Stats {
        /// The store's directory
        directory: PathBuf,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // A wrong command line exits with 2, as clap has it; help and version with 0.
    let cli = Cli::parse();
    match cli.command {
        None => {
            let named = std::env::var_os("FENCEGATE_CONFIG");
            run_gateway(Path::new(&named.unwrap_or_else(|| "config.yaml".into())))
        }
        Some(Command::Serve { config }) => run_gateway(&config),
        Some(Command::Check { config }) => check(&config),
        Some(Command::Lock(args)) => lock::run(&args),
        Some(Command::Keys(keys)) => keys::run(&keys),
        Some(Command::Store { command }) => store(command),
    }
}

fn say(text: &str) {
    use std::io::Write;
    let mut text = text.trim_end().to_owned();
    text.push('\n');
    // Where standard error is closed there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

fn load(path: &Path) -> Result<Loaded, ExitCode> {
    Config::load(path).map_err(|problems| {
        say(&problems.to_string());
        ExitCode::from(WRONG)
    })
}

/// How a server is known that is asked by https, and what it is shown.
#[derive(Debug, Args)]
struct Certificates {
    /// With https: the authority that the server's certificate comes from, in PEM; without it, those
    /// that this system believes
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// With https: a certificate of one's own, in PEM, and with --key its key
    #[arg(
        id = "own_cert",
        long = "cert",
        value_name = "FILE",
        requires = "own_key",
        global = true
    )]
    cert: Option<PathBuf>,
    /// The key of the certificate, in PEM
    #[arg(
        id = "own_key",
        long = "key",
        value_name = "FILE",
        requires = "own_cert",
        global = true
    )]
    key: Option<PathBuf>,
}

impl Certificates {
    fn files(&self) -> Files<'_> {
        Files {
            ca: self.ca.as_deref(),
            own: self.cert.as_deref().zip(self.key.as_deref()),
        }
    }
}

/// The URL of a listener of this machine.
fn url_of(address: &Address, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let host = match address.host() {
        "0.0.0.0" => "127.0.0.1".to_owned(),
        "::" => "[::1]".to_owned(),
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    format!("{scheme}://{host}:{}", address.port())
}

fn run_gateway(path: &Path) -> ExitCode {
    let loaded = match load(path) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    logging::start(&loaded.config.log);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match serve(loaded.config, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("fencegate: {error}"));
            ExitCode::from(match error {
                RunError::Config(_) | RunError::Rekeyed(_) => WRONG,
                _ => FAILED,
            })
        }
    }
}

fn check(path: &Path) -> ExitCode {
    let loaded = match load(path) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    say(&format!("{}: good", path.display()));
    ExitCode::SUCCESS
}

fn store(command: StoreCommand) -> ExitCode {
    let done = match command {
        StoreCommand::Export { directory } => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            tools::export(&directory, &mut out).map(|keys| say(&format!("{keys} marks exported")))
        }
        StoreCommand::Import { directory } => {
            let mut lines = io::BufReader::new(io::stdin().lock());
            tools::import(&directory, &mut lines).map(|keys| say(&format!("{keys} marks read")))
        }
        StoreCommand::Verify { directory } => tools::verify(&directory).and_then(|report| {
            say(&format!("{}: good", directory.display()));
            print_report(&report)
        }),
        StoreCommand::Stats { directory } => {
            tools::stats(&directory).and_then(|report| print_report(&report))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("fencegate: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

fn print_report(report: &tools::Report) -> Result<(), tools::ToolError> {
    use std::io::Write;
    let text = serde_json::to_string_pretty(report).map_err(io::Error::from)?;
    writeln!(io::stdout().lock(), "{text}").map_err(tools::ToolError::from)
}
