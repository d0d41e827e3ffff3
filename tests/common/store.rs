//! A small store, and what its tests do with it and its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use fencegate::store::{EmbeddedStore, Options};
use fencegate_filters::store::{Binding, Raise, Record, Reply, Store, StoreError};
use fencegate_filters::{Key, Token};

pub(crate) fn options(path: &Path) -> Options {
    Options {
        segment_bytes: 64 << 10,
        flush_segments: 2,
        memory_keys: 500,
        cache_bytes: 1 << 20,
        ..Options::new(path)
    }
}

pub(crate) fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(&options(path)).unwrap()
}

pub(crate) fn raise(key: &str, counter: u64) -> Raise {
    Raise {
        key: Key::from_text(key),
        record: Record {
            mark: Token::new(0, counter).unwrap(),
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
        },
    }
}

pub(crate) fn reply<T: Send + 'static>() -> (Reply<T>, mpsc::Receiver<Result<T, StoreError>>) {
    let (sender, receiver) = mpsc::channel();
    let reply = Reply::new(move |result| drop(sender.send(result)));
    (reply, receiver)
}

/// Makes one call to a store, and waits for its answer.
pub(crate) fn asked<T: Send + 'static>(call: impl FnOnce(Reply<T>)) -> Result<T, StoreError> {
    let (reply, receiver) = reply();
    call(reply);
    receiver.recv().unwrap()
}

pub(crate) fn commit(store: &EmbeddedStore, raises: Vec<Raise>) -> Result<(), StoreError> {
    asked(|reply| store.commit(raises, reply))
}

pub(crate) fn read(store: &EmbeddedStore, key: &str) -> Option<Record> {
    asked(|reply| store.read(&Key::from_text(key), reply)).unwrap()
}

pub(crate) fn mark(store: &EmbeddedStore, key: &str) -> u64 {
    read(store, key).map_or(0, |record| record.mark.counter())
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Every file under a directory.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect();
    all.sort();
    all
}
