//! The config: read from YAML, checked as a whole, and handed on with every default applied.
//!
//! Reading goes through these steps, each in a file of its own: text to a tree whose nodes know
//! their places (`builder` and `tree`), `${NAME}` (`expand`), keys that this version does not do (`unsupported`),
//! the tree to the [`Config`] (`decode` and, for the parts, `sections`, `upstream` and `route`),
//! and what only shows when the parts are looked at together (`check`). None of them stops at its
//! first problem: all are reported at once.
//!
//! ```
//! use std::path::Path;
//! use fencegate::config::Config;
//!
//! let text = "
//! listeners: [{ address: 127.0.0.1:8080 }]
//! upstreams: { objects: { urls: ['builtin:objects'] } }
//! routes: [{ name: objects, path: '/objects/{id}', upstream: objects, fence: { key: '{id}' } }]
//! ";
//! let loaded = Config::parse(text, Path::new("config.yaml"), &|_| None)?;
//! assert_eq!(loaded.config.routes.len(), 1);
//!
//! let wrong = text.replace("upstream: objects", "upstream: object");
//! let problems = Config::parse(&wrong, Path::new("config.yaml"), &|_| None).unwrap_err();
//! assert_eq!(
//!     problems.to_string(),
//!     "config.yaml:4:60: routes[0].upstream: there is no upstream \"object\"; there is objects\n\
//!      1 problem"
//! );
//! # Ok::<(), fencegate::config::Problems>(())
//! ```

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

mod address;
mod builder;
mod check;
mod choice;
mod cidr;
mod decode;
mod expand;
mod header;
mod model;
mod problem;
mod route;
mod rules;
mod scalar;
mod secret;
mod sections;
mod signed;
mod tls;
mod tree;
mod unsupported;
mod upstream;

pub use address::{Address, BadAddress, BadUrl, Endpoint, Url};
pub use choice::{
    Access, Body, Case, ClientAuth, Holder, HolderFrom, Level, LogFormat, Mode, NewEpochs,
    OnTimeout, PathRules, Require, Trust, Uploads, When,
};
pub use cidr::{BadCidr, Cidr};
pub use model::{
    Admin, Config, Drain, Fence, Forget, Health, KeyRule, Limits, Listener, Locks, Log, Pool,
    Route, Shutdown, Store, Timeouts, Tls, Upstream, UpstreamHeader, UpstreamTls,
};
pub use problem::{Position, Problem, Problems, Spanned};
pub use rules::rules;
pub(crate) use scalar::duration as parse_duration;
pub use secret::{Secret, TokenHash};

use crate::route::RouteTable;
use decode::Decoder;
use expand::Env;

/// The largest config file, in bytes: room for tens of thousands of routes.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// A config that can be used, and what is odd about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// What is legal and most likely not meant, in the order of the file, and then of the files
    /// that it names.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Reads the config file at `path`, with the environment of this process.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the file, or why it can't be read.
    pub fn load(path: &Path) -> Result<Loaded, Problems> {
        let whole =
            |at: &Position, message: String| Problems::new(vec![Problem::new(path, at, message)]);
        let bytes = read(path).map_err(|message| whole(&Position::default(), message))?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let at = place(bytes.get(..error.valid_up_to()).unwrap_or_default());
            whole(&at, "the file is not UTF-8 from here on".to_owned())
        })?;
        Self::parse(text, path, &|name| std::env::var(name).ok())
    }

    /// Reads a config from `text`. `file` is what problems name, and where the paths of secrets
    /// begin; `env` is the environment.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text.
    pub fn parse(
        text: &str,
        file: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Loaded, Problems> {
        let mut decoder = Decoder::new(file, env);
        let config = decode(&mut decoder, text, env);
        let odd = std::mem::take(&mut decoder.warnings);
        let mut problems = decoder.reporter.into_problems();
        if let Some(config) = &config {
            add_template_problems(&mut problems, config, file);
        }
        match config {
            Some(config) if problems.is_empty() => {
                let mut warnings = check::warnings(file, &config);
                warnings.extend(odd);
                Ok(Loaded { config, warnings })
            }
            _ => Err(Problems::new(problems)),
        }
    }
}

/// Paths, hosts and keys are templates, which the routes' builder reads. A place that is wrong
/// already is not reported once more.
fn add_template_problems(problems: &mut Vec<Problem>, config: &Config, file: &Path) {
    let Err(found) = RouteTable::build(config, file, &BTreeMap::new()) else {
        return;
    };
    for problem in found.as_slice() {
        let same = |known: &Problem| {
            (known.line, known.column) == (problem.line, problem.column) && known.file == file
        };
        if !problems.iter().any(same) {
            problems.push(problem.clone());
        }
    }
}

fn decode(d: &mut Decoder<'_>, text: &str, env: Env<'_>) -> Option<Config> {
    let mut root = builder::read(text, &mut d.reporter)?;
    if !matches!(root.kind, tree::Kind::Map(_)) {
        let message = "a config is a mapping of listeners, upstreams, routes and more";
        d.problem(&root.at, message);
        return None;
    }
    expand::expand(&mut root, env, &mut d.reporter);
    unsupported::cut(&mut root, &mut d.reporter);
    let mut config = sections::config(d, &root);
    config.files = std::mem::take(&mut d.files);
    check::check(d, &root, &config);
    Some(config)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("can't read the config: {error}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!(
            "the file is larger than {}",
            scalar::show_size(MAX_FILE)
        ));
    }
    Ok(bytes)
}

/// The place after valid text.
fn place(before: &[u8]) -> Position {
    let before = String::from_utf8_lossy(before);
    let last = before.rsplit('\n').next().unwrap_or_default();
    Position {
        line: before.matches('\n').count() + 1,
        column: last.chars().count() + 1,
        key_path: Arc::from(""),
    }
}
