//! `fencegate keys`: what the admin API tells of keys and does to their marks, from a shell.
//!
//! Answers are JSON lines, as those of `fencegate store export`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::{Certificates, FAILED, WRONG, load, say, url_of};
use crate::client::{Client, ClientError, bearer, encoded};

/// How many keys one page has.
const PAGE: usize = 1000;

/// The most keys that are watched: all are asked for at every look.
const MOST_WATCHED: usize = 10_000;

#[derive(Debug, Args)]
pub(super) struct Keys {
    #[command(subcommand)]
    command: KeysCommand,
    /// Where the admin API is, as http://127.0.0.1:8081 or https://gateway.internal:8081
    #[arg(long, env = "FENCEGATE_ADMIN_URL", global = true)]
    url: Option<String>,
    /// The config whose section `admin` says where it is, where there is no URL
    #[arg(
        long,
        default_value = "config.yaml",
        env = "FENCEGATE_CONFIG",
        global = true
    )]
    config: PathBuf,
    /// A file with the bearer token; without it, FENCEGATE_ADMIN_TOKEN
    #[arg(long, global = true)]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    certificates: Certificates,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// All keys that have a mark, one JSON object a line, in order
    List {
        /// Only those that begin so, as objects/
        #[arg(default_value = "")]
        prefix: String,
    },
    /// What is known of one key
    Get {
        /// NAMESPACE/KEY
        key: String,
    },
    /// Fence it now: raise the mark; returns when older writes have ended
    Raise {
        /// NAMESPACE/KEY
        key: String,
        /// The token that the mark becomes
        token: String,
    },
    /// Lower a mark, once everything in flight has ended; the gateway's log tells of it
    Reset {
        /// NAMESPACE/KEY
        key: String,
        /// The mark as it is
        #[arg(long)]
        from: String,
        /// What it is to be
        #[arg(long)]
        to: String,
    },
    /// Print every key that has changed, once a second, until it is stopped
    Watch {
        /// Only those that begin so; at most 10,000
        prefix: String,
    },
}

/// Why it ended early.
enum End {
    Client(ClientError),
    Output(io::Error),
    TooMany,
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Runs one command.
pub(super) fn run(keys: &Keys) -> ExitCode {
    let url = match &keys.url {
        Some(url) => url.clone(),
        None => match of_config(keys) {
            Ok(url) => url,
            Err(code) => return code,
        },
    };
    let client = bearer(keys.token_file.as_deref(), "FENCEGATE_ADMIN_TOKEN")
        .map_err(|error| error.to_string())
        .and_then(|token| {
            let client = Client::with_files(&url, token.as_deref(), keys.certificates.files());
            client.map_err(|error| error.to_string())
        });
    let mut client = match client {
        Ok(client) => client,
        Err(error) => {
            say(&format!("fencegate: {error}"));
            return ExitCode::from(WRONG);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(call(&mut client, &keys.command)),
        Err(error) => Err(End::Output(error)),
    };
    let said = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(End::Client(error)) => error.to_string(),
        // Whoever read it has had enough.
        Err(End::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::SUCCESS;
        }
        Err(End::Output(error)) => error.to_string(),
        Err(End::TooMany) => {
            format!("more than {MOST_WATCHED} keys begin so: name a longer prefix")
        }
    };
    say(&format!("fencegate: {said}"));
    ExitCode::from(FAILED)
}

fn of_config(keys: &Keys) -> Result<String, ExitCode> {
    let config = load(&keys.config)?.config;
    let Some(admin) = config.admin else {
        say(&format!(
            "fencegate: {} has no section admin: name the API with --url",
            keys.config.display()
        ));
        return Err(ExitCode::from(WRONG));
    };
    Ok(url_of(&admin.address.value, admin.tls.is_some()))
}

async fn call(client: &mut Client, command: &KeysCommand) -> Result<(), End> {
    let path = |key: &str| format!("/v1/keys/{}", encoded(key));
    match command {
        KeysCommand::List { prefix } => {
            let mut after = None;
            loop {
                let (keys, next) = page(client, prefix, after.as_deref()).await?;
                keys.iter().try_for_each(print)?;
                match next {
                    Some(next) => after = Some(next),
                    None => return Ok(()),
                }
            }
        }
        KeysCommand::Get { key } => print(&client.call(Method::GET, &path(key), None).await?)?,
        KeysCommand::Raise { key, token } => {
            let target = path(key) + "/raise";
            let body = json!({ "token": token });
            print(&client.call(Method::POST, &target, Some(&body)).await?)?;
        }
        KeysCommand::Reset { key, from, to } => {
            let target = path(key) + "/reset";
            let body = json!({ "from": from, "to": to });
            print(&client.call(Method::POST, &target, Some(&body)).await?)?;
        }
        KeysCommand::Watch { prefix } => watch(client, prefix).await?,
    }
    Ok(())
}

async fn page(
    client: &mut Client,
    prefix: &str,
    after: Option<&str>,
) -> Result<(Vec<Value>, Option<String>), ClientError> {
    let mut target = format!("/v1/keys?limit={PAGE}&prefix={}", encoded(prefix));
    if let Some(after) = after {
        target += &format!("&after={}", encoded(after));
    }
    let mut page = client.call(Method::GET, &target, None).await?;
    let next = page.get("next").and_then(Value::as_str).map(str::to_owned);
    match page.get_mut("keys").map(Value::take) {
        Some(Value::Array(keys)) => Ok((keys, next)),
        _ => Err(ClientError::Garbled),
    }
}

async fn watch(client: &mut Client, prefix: &str) -> Result<(), End> {
    let mut known = BTreeMap::<String, Value>::new();
    loop {
        let mut after = None;
        loop {
            let (keys, next) = page(client, prefix, after.as_deref()).await?;
            for view in keys {
                let key = view.get("key").and_then(Value::as_str);
                let key = key.ok_or(ClientError::Garbled)?.to_owned();
                if known.get(&key) != Some(&view) {
                    print(&view)?;
                    known.insert(key, view);
                }
            }
            if known.len() > MOST_WATCHED {
                return Err(End::TooMany);
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn print(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}
