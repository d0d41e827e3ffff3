//! `fencegate lock KEY -- COMMAND…`: runs a command while a lock is held.
//!
//! The lease is taken, renewed at a third of its time, and given back when the command has ended.
//! When it is lost the command is told to end, and made to.

use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Listening, SignalKind, signal};

use super::{Certificates, FAILED, WRONG, load, say, url_of};
use crate::client::bearer;
use crate::config::parse_duration;
use crate::lease::{Ask, Client, Lease, myself};

/// The status of a shell for a command that is not there, and for one that can't be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

/// What of a status is that of a signal.
const SIGNALLED: i32 = 128;

/// Runs a command while a lock is held.
#[derive(Debug, Args)]
pub(super) struct LockArgs {
    /// The lock: NAMESPACE/KEY
    key: String,
    /// The command and its arguments; it finds the token in FENCING_TOKEN, the key in FENCING_KEY
    #[arg(last = true, required = true)]
    command: Vec<std::ffi::OsString>,
    /// Where the lock service is, as http://127.0.0.1:8082 or https://locks.internal:8082
    #[arg(long, env = "FENCEGATE_LOCKS_URL")]
    url: Option<String>,
    /// The config whose section `locks` says where it is, where there is no URL
    #[arg(long, default_value = "config.yaml", env = "FENCEGATE_CONFIG")]
    config: PathBuf,
    /// A file with the bearer token; without it, FENCEGATE_LOCKS_TOKEN
    #[arg(long)]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    certificates: Certificates,
    /// How long the lease lasts without a renewal
    #[arg(long, default_value = "10s", value_parser = time)]
    ttl: Duration,
    /// How long to wait for the lock
    #[arg(long, default_value = "1m", value_parser = time)]
    wait: Duration,
    /// How long the command has to end when the lease is lost
    #[arg(long, default_value = "10s", value_parser = time)]
    grace: Duration,
    /// The name under which the lock is held; without it, this machine's and the process's number
    #[arg(long)]
    holder: Option<String>,
}

fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration, such as 500ms, 10s or 2m".to_owned())
}

/// Runs the command.
pub(super) fn run(args: &LockArgs) -> ExitCode {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => match of_config(args) {
            Ok(url) => url,
            Err(code) => return code,
        },
    };
    let client = bearer(args.token_file.as_deref(), "FENCEGATE_LOCKS_TOKEN")
        .map_err(|error| error.to_string())
        .and_then(|token| {
            let client = Client::with_files(&url, token.as_deref(), args.certificates.files());
            client.map_err(|error| error.to_string())
        });
    let client = match client {
        Ok(client) => client,
        Err(error) => return told(&error, WRONG),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(Held::run(args, client)),
        Err(error) => told(&error.to_string(), FAILED),
    }
}

fn of_config(args: &LockArgs) -> Result<String, ExitCode> {
    let config = load(&args.config)?.config;
    let Some(locks) = config.locks else {
        let config = args.config.display();
        let said = format!("{config} has no section locks: name the lock service with --url");
        return Err(told(&said, WRONG));
    };
    Ok(url_of(&locks.address.value, locks.tls.is_some()))
}

fn told(said: &str, code: u8) -> ExitCode {
    say(&format!("fencegate: {said}"));
    ExitCode::from(code)
}

/// A command under a lease.
struct Held<'a> {
    args: &'a LockArgs,
    lease: Lease,
}

impl<'a> Held<'a> {
    async fn run(args: &'a LockArgs, client: Client) -> ExitCode {
        // From before the lock is taken on: whoever stops this waits for what it is at.
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return told(&error.to_string(), FAILED),
        };
        let ask = Ask {
            key: args.key.clone(),
            holder: args.holder.clone().unwrap_or_else(myself),
            ttl: args.ttl,
            wait: args.wait,
        };
        let acquired = tokio::select! {
            biased;
            number = signals.next(true) => {
                return ExitCode::from(status_of(SIGNALLED + number.as_raw()));
            }
            acquired = Lease::acquire(client, &ask) => acquired,
        };
        let mut held = match acquired {
            Ok(lease) => Self { args, lease },
            Err(error) => return told(&format!("{} was not acquired: {error}", args.key), FAILED),
        };
        let code = held.supervise(&mut signals).await;
        held.lease.release().await;
        code
    }

    /// Renews the lease for as long as that succeeds; gives why it no longer does.
    async fn keep(lease: &mut Lease) -> String {
        loop {
            if let Err(why) = lease.stay().await {
                return why;
            }
        }
    }

    async fn supervise(&mut self, signals: &mut Signals) -> ExitCode {
        let args = self.args;
        let Some((program, arguments)) = args.command.split_first() else {
            return ExitCode::from(WRONG);
        };
        let child = Command::new(program)
            .args(arguments)
            .env("FENCING_TOKEN", self.lease.token())
            .env("FENCING_KEY", &args.key)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                let code = match error.kind() {
                    std::io::ErrorKind::NotFound => NOT_FOUND,
                    _ => NOT_RUN,
                };
                return told(&format!("{}: {error}", program.display()), code);
            }
        };
        let keep = Self::keep(&mut self.lease);
        tokio::pin!(keep);
        loop {
            tokio::select! {
                biased;
                status = child.wait() => return passed_on(status),
                number = signals.next(false) => pass_on(&child, number),
                why = &mut keep => {
                    say(&format!("fencegate: the lock of {} is lost: {why}", args.key));
                    return end(&mut child, args.grace).await;
                }
            }
        }
    }
}

/// The lease is lost: whatever the command still does comes too late.
async fn end(child: &mut Child, grace: Duration) -> ExitCode {
    pass_on(child, Signal::TERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    ExitCode::from(FAILED)
}

fn pass_on(child: &Child, number: Signal) {
    // One that has ended and was waited for has no id any more.
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, number);
    }
}

fn passed_on(status: std::io::Result<ExitStatus>) -> ExitCode {
    match status {
        Ok(status) => {
            let signalled = status.signal().map(|number| SIGNALLED + number);
            ExitCode::from(status_of(status.code().or(signalled).unwrap_or(1)))
        }
        Err(error) => told(&error.to_string(), FAILED),
    }
}

fn status_of(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(FAILED)
}

/// The signals that are passed on.
struct Signals {
    term: Listening,
    hup: Listening,
    usr1: Listening,
    usr2: Listening,
    int: Listening,
    quit: Listening,
    /// A terminal sends these two to the command itself.
    terminal: bool,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminal: std::io::stdin().is_terminal(),
        })
    }

    /// The next one; `all`: also what a terminal sends to the command itself.
    async fn next(&mut self, all: bool) -> Signal {
        let own = all || !self.terminal;
        tokio::select! {
            biased;
            _ = self.term.recv() => Signal::TERM,
            _ = self.hup.recv() => Signal::HUP,
            _ = self.usr1.recv() => Signal::USR1,
            _ = self.usr2.recv() => Signal::USR2,
            _ = self.int.recv(), if own => Signal::INT,
            _ = self.quit.recv(), if own => Signal::QUIT,
        }
    }
}
