//! Verify, export, import and stats of a store that no process has open.
//!
//! All of them take the store's lock, and none makes a store where there is none but [`import`].
//!
//! One line of an export is one key:
//!
//! ```text
//! {"key":"objects/42","token":"35","holder":"pod-7","draining":true}
//! ```
//!
//! `key` is `NAMESPACE/KEY`. `token` is text, as clients send it: JSON's numbers lose digits.
//! `holder` is the name it is bound to, `""` where it is bound to a holder without a name, and
//! `null` or absent where it is not bound. `draining` may be absent for `false`.
//!
//! What begins with `!` is no mark: `!locks/KEY` is the last token of a lock, and
//! `!floors/NAMESPACE` the floor below which marks were forgotten. A store that is made of an export
//! without them forgets what was promised.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use fencegate_filters::store::{Binding, Raise, Record, Reply, Store, StoreError};
use fencegate_filters::{Key, Token};
use serde::{Deserialize, Serialize};

use super::ages::{FLOORS, floor_of, is_of_this_store};
use super::disk::Directory;
use super::index::Index;
use super::lock::Lock;
use super::opening::Found;
use super::segment::is_segment;
use super::table::{Lookup, Tables};
use super::{EmbeddedStore, OpenError, Options, open_index};

/// How many keys are read, or written, at a time.
const CHUNK: usize = 1000;

/// Why a tool stopped.
#[derive(Debug)]
pub enum ToolError {
    /// The store could not be opened.
    Open(OpenError),
    /// The store failed on the way.
    Store(StoreError),
    /// The lines could not be read or written.
    Io(io::Error),
    /// A line is not what an export has. Nothing was imported.
    Line {
        /// Its number, from 1.
        number: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The store has not as many keys as it counted.
    Count {
        /// The directory.
        path: PathBuf,
        /// How many it counted.
        counted: u64,
        /// How many there are.
        found: u64,
    },
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
            Self::Line { number, what } => {
                write!(f, "line {number}: {what}; nothing was imported")
            }
            Self::Count {
                path,
                counted,
                found,
            } => write!(
                f,
                "the store in {} is damaged: it counted {counted} keys, and has {found}",
                path.display()
            ),
        }
    }
}

impl std::error::Error for ToolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open(error) => Some(error),
            Self::Store(error) => Some(error),
            Self::Io(error) => Some(error),
            Self::Line { .. } | Self::Count { .. } => None,
        }
    }
}

impl From<OpenError> for ToolError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<StoreError> for ToolError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for ToolError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a store has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many keys have a mark.
    pub keys: u64,
    /// How many records the log has that the index does not have yet.
    pub log_records: u64,
    /// The log's files, those in reserve included.
    pub segments: usize,
    /// The last frame of the log.
    pub last: u64,
    /// The last frame that the index has.
    pub checkpoint: u64,
    /// The size of all files, in bytes.
    pub bytes: u64,
    /// Whether it was closed with nothing in flight.
    pub clean: bool,
    /// The floors of the namespaces of which marks were forgotten.
    pub floors: BTreeMap<String, String>,
}

/// Reads everything, checksums included, and changes nothing but what the index does when it is
/// opened.
///
/// # Errors
///
/// [`OpenError::Corrupt`] for the first damage that is found, and [`ToolError::Count`].
pub fn verify(directory: &Path) -> Result<Report, ToolError> {
    inspect(directory, true)
}

/// What a store has, without reading all of the index.
///
/// # Errors
///
/// Where the store cannot be read.
pub fn stats(directory: &Path) -> Result<Report, ToolError> {
    inspect(directory, false)
}

fn inspect(directory: &Path, whole: bool) -> Result<Report, ToolError> {
    let options = existing(directory);
    let missing = || OpenError::Missing {
        path: directory.to_owned(),
    };
    let has = |name: &str| directory.join(name).exists();
    // A lock file alone is no store, and none is to be left where there was none.
    if !has(super::files::FORMAT) && !has(super::files::CHECKPOINT) {
        return Err(missing().into());
    }
    let disk = Directory::open(directory, Lock::take(directory)?)?;
    let open = |fresh| open_index(directory, fresh, options.cache_bytes);
    let found = Found::read(&disk, &open, directory)?;
    let mut tables = Tables::default();
    tables.indexed = found.mark.keys;
    let scan = found.scan(&disk, directory, |sequence, raise| {
        tables.insert(sequence, [raise]);
    })?;
    let damaged = |error: super::IndexError| OpenError::Corrupt {
        path: directory.to_owned(),
        file: super::INDEX.to_owned(),
        offset: None,
        what: error.to_string(),
    };
    if whole {
        let keys = count(&*found.index).map_err(damaged)?;
        if keys != found.mark.keys {
            return Err(ToolError::Count {
                path: directory.to_owned(),
                counted: found.mark.keys,
                found: keys,
            });
        }
    }
    while let Some((key, generation)) = tables.next_unresolved() {
        let known = found.index.get(key.as_str()).map_err(damaged)?;
        let known = known.map(|kept| kept.record);
        let _ = tables.resolve(&key, known, generation);
    }
    let floors = floors(&*found.index, &tables).map_err(damaged)?;
    let names = std::fs::read_dir(directory)?.filter_map(Result::ok);
    let segments = names.filter(|name| is_segment(&name.file_name().to_string_lossy()));
    Ok(Report {
        keys: tables.least_count(),
        log_records: scan.records,
        segments: segments.count(),
        last: scan.last,
        checkpoint: found.mark.sequence,
        bytes: size(directory)?,
        clean: found.clean == Some(scan.last),
        floors,
    })
}

/// The floors that are in the index, or in the log and resolved.
fn floors(
    index: &dyn Index,
    tables: &Tables,
) -> Result<BTreeMap<String, String>, super::IndexError> {
    let indexed = index.range(FLOORS, None, usize::MAX)?;
    let mut found: BTreeMap<_, _> = indexed
        .into_iter()
        .map(|(key, kept)| (Key::from_text(&key), kept.record))
        .collect();
    for key in tables.keys(FLOORS, None) {
        if let Lookup::Found(record) = tables.lookup(&key) {
            found.insert(key, record);
        }
    }
    let floors = found
        .iter()
        .filter_map(|(key, record)| Some((floor_of(key)?.to_owned(), record.mark.to_string())));
    Ok(floors.collect())
}

/// Reads every block of the index.
fn count(index: &dyn Index) -> Result<u64, super::IndexError> {
    let (mut keys, mut after) = (0, None::<String>);
    loop {
        let chunk = index.range("", after.as_deref(), CHUNK)?;
        let marks = chunk.iter().filter(|one| !one.0.starts_with(Key::INTERNAL));
        keys += marks.count() as u64;
        match chunk.into_iter().next_back() {
            Some((last, _)) => after = Some(last),
            None => return Ok(keys),
        }
    }
}

fn size(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => size(&entry.path())?,
            false => metadata.len(),
        };
    }
    Ok(bytes)
}

fn existing(directory: &Path) -> Options {
    Options {
        require_existing: true,
        ..Options::new(directory)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    token: String,
    #[serde(default)]
    holder: Option<String>,
    #[serde(default)]
    draining: bool,
}

impl Line {
    fn of(key: &Key, record: &Record) -> Self {
        Self {
            key: key.as_str().to_owned(),
            token: record.mark.to_string(),
            holder: match &record.holder {
                // Of a lock the last token is kept. A lease is not for another store: whoever has it
                // can't know of that one.
                _ if key.is_internal() => None,
                Binding::Unbound => None,
                Binding::Nobody => Some(String::new()),
                Binding::Holder(name) => Some(name.to_string()),
            },
            draining: record.draining,
        }
    }

    fn raise(self) -> Result<Raise, String> {
        let Some((namespace, key)) = self.key.split_once('/') else {
            return Err(format!("the key {:?} has no namespace", self.key));
        };
        let most = match namespace.starts_with(Key::INTERNAL) {
            // Of a lock this is the namespace and the key.
            true => 2 * Key::MAX_BYTES,
            false => Key::MAX_BYTES,
        };
        if namespace.is_empty() || key.is_empty() || key.len() > most {
            return Err(format!("{:?} is not a key", self.key));
        }
        if namespace.len() > Key::MAX_BYTES {
            return Err(format!("the namespace of {:?} is too long", self.key));
        }
        let mark: Token = self.token.parse().map_err(|error| {
            let token = &self.token;
            format!("{token:?} is no token: {error}")
        })?;
        let holder = match self.holder {
            None => Binding::Unbound,
            Some(name) if name.is_empty() => Binding::Nobody,
            Some(name) if name.len() <= 128 && name.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Binding::Holder(Arc::from(name))
            }
            Some(name) => return Err(format!("{name:?} is no holder")),
        };
        Ok(Raise {
            key: Key::from_text(&self.key),
            record: Record {
                mark,
                holder,
                draining: self.draining,
                resets: 0,
            },
        })
    }
}

/// Writes one line for each key, in order; gives their number. Leaves the store as clean as it was.
///
/// # Errors
///
/// Where the store cannot be read, or `out` not be written.
pub fn export(directory: &Path, out: &mut dyn Write) -> Result<u64, ToolError> {
    let store = EmbeddedStore::open(&existing(directory))?;
    let (mut keys, mut after) = (0, None::<Key>);
    loop {
        let chunk = store.list("", after.as_ref().map(Key::as_str), CHUNK)?;
        let of_all = chunk.iter().filter(|(key, _)| !is_of_this_store(key));
        for (key, record) in of_all {
            keys += 1;
            serde_json::to_writer(&mut *out, &Line::of(key, record)).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        match chunk.into_iter().next_back() {
            Some((last, _)) => after = Some(last),
            None => break,
        }
    }
    out.flush()?;
    store.close(store.was_clean())?;
    Ok(keys)
}

/// Raises marks to those that an export wrote; gives the number of lines. A mark that is higher
/// already stays. The store is made if there is none, and left as clean as it was.
///
/// All lines are read and checked before the first is imported, so they are held in memory.
///
/// # Errors
///
/// [`ToolError::Line`] for the first bad line, with nothing imported. Where the store fails on
/// the way, the lines before are imported; doing it again does no harm.
pub fn import(directory: &Path, lines: &mut dyn BufRead) -> Result<u64, ToolError> {
    let mut raises = Vec::new();
    for (number, line) in (1..).zip(lines.lines()) {
        let bad = |what: String| ToolError::Line { number, what };
        let line = line.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => bad("it is not UTF-8".to_owned()),
            _ => error.into(),
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?;
        raises.push(line.raise().map_err(bad)?);
    }
    let count = raises.len() as u64;
    let store = EmbeddedStore::open(&Options::new(directory))?;
    // A floor that this very import raises is none of the marks that come with it: those are last.
    let (floors, marks): (Vec<_>, Vec<_>) = raises
        .into_iter()
        .partition(|raise: &Raise| floor_of(&raise.key).is_some());
    let above = unnamed_below(&store, &marks, &floors)?;
    let mut raises = marks.into_iter().chain(above).chain(floors);
    loop {
        let chunk: Vec<_> = raises.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        // A line says nothing of resets: it raises the mark as it is now.
        let known: Vec<_> = chunk
            .iter()
            .map(|raise| asked(|reply| store.read(&raise.key, reply)))
            .collect();
        let mut higher = Vec::with_capacity(chunk.len());
        for (mut raise, known) in chunk.into_iter().zip(known) {
            match answer(&known)? {
                Some(known) => raise.record.resets = known.resets,
                // This store has forgotten the key's mark, and the floor stands for it.
                None if is_below(store.floor(raise.key.namespace()), &raise) => continue,
                None => {}
            }
            higher.push(raise);
        }
        answer(&asked(|reply| store.commit(higher, reply)))?;
    }
    store.close(store.was_clean())?;
    Ok(count)
}

/// Raises for the keys that these lines do not name and that are below a floor of theirs: where the
/// lines come from, such a key may have been forgotten at any mark up to it.
fn unnamed_below(
    store: &EmbeddedStore,
    marks: &[Raise],
    floors: &[Raise],
) -> Result<Vec<Raise>, StoreError> {
    let named: HashSet<&Key> = marks.iter().map(|raise| &raise.key).collect();
    let mut raises = Vec::new();
    for (namespace, floor) in floors
        .iter()
        .filter_map(|raise| Some((floor_of(&raise.key)?, raise.record.mark)))
    {
        let prefix = format!("{namespace}/");
        let mut after = None::<Key>;
        loop {
            let chunk = store.list(&prefix, after.as_ref().map(Key::as_str), CHUNK)?;
            let below = |one: &&(Key, Record)| one.1.mark < floor && !named.contains(&one.0);
            raises.extend(chunk.iter().filter(below).map(|(key, _)| Raise {
                key: key.clone(),
                record: Record {
                    mark: floor,
                    holder: Binding::Unbound,
                    draining: false,
                    resets: 0,
                },
            }));
            after = match chunk.into_iter().next_back() {
                Some((last, _)) => Some(last),
                None => break,
            };
        }
    }
    Ok(raises)
}

fn is_below(floor: Option<Token>, raise: &Raise) -> bool {
    floor.is_some_and(|floor| raise.record.mark < floor)
}

type Asked<T> = mpsc::Receiver<Result<T, StoreError>>;

/// Makes one call to the store.
fn asked<T: Send + 'static>(call: impl FnOnce(Reply<T>)) -> Asked<T> {
    let (sender, receiver) = mpsc::channel();
    call(Reply::new(move |result| {
        let _ = sender.send(result);
    }));
    receiver
}

/// Waits for the answer to one.
fn answer<T>(asked: &Asked<T>) -> Result<T, StoreError> {
    let dropped = StoreError::Unavailable("the store dropped the call".into());
    asked.recv().unwrap_or(Err(dropped))
}
