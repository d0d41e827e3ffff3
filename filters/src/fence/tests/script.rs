//! A store that answers when the test says so, and a write in flight that counts what it is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::fence::{Cut, Handle, InFlight, Permit, Uploads};
use crate::store::{Raise, Record, Reply, Store, StoreError};
use crate::{Key, Token};

type Read = (Key, Reply<Option<Record>>);
type Commit = (Vec<Raise>, Reply<()>);

#[derive(Default)]
pub(in crate::fence) struct Script {
    marks: Mutex<BTreeMap<Key, Record>>,
    floor: Mutex<Option<Token>>,
    /// Calls that wait for the test; `None` where they are answered at once.
    reads: Mutex<Option<VecDeque<Read>>>,
    commits: Mutex<Option<VecDeque<Commit>>>,
    /// How many keys each commit had.
    pub(in crate::fence) committed: Mutex<Vec<usize>>,
    pub(in crate::fence) read: AtomicUsize,
}

impl Script {
    pub(in crate::fence) fn new(marks: &[Raise]) -> Arc<Self> {
        let store = Self::default();
        store.keep(marks);
        Arc::new(store)
    }

    pub(in crate::fence) fn ask_before_reads(&self) {
        *self.reads.lock().unwrap() = Some(VecDeque::new());
    }

    pub(in crate::fence) fn ask_before_commits(&self) {
        *self.commits.lock().unwrap() = Some(VecDeque::new());
    }

    pub(in crate::fence) fn mark(&self, key: &Key) -> Option<Record> {
        self.marks.lock().unwrap().get(key).cloned()
    }

    /// The mark of `key` is gone, and `floor` stands for it.
    pub(in crate::fence) fn forget(&self, key: &Key, floor: Token) {
        *self.floor.lock().unwrap() = Some(floor);
        self.marks.lock().unwrap().remove(key);
    }

    fn keep(&self, raises: &[Raise]) {
        let mut marks = self.marks.lock().unwrap();
        for raise in raises {
            match marks.get_mut(&raise.key) {
                Some(record) => record.merge(raise.record.clone()),
                None => {
                    marks.insert(raise.key.clone(), raise.record.clone());
                }
            }
        }
    }

    fn next_commit(&self) -> Commit {
        let mut commits = self.commits.lock().unwrap();
        commits.as_mut().unwrap().pop_front().expect("a commit")
    }

    pub(in crate::fence) fn next_read(&self) -> Read {
        let mut reads = self.reads.lock().unwrap();
        reads.as_mut().unwrap().pop_front().expect("a read")
    }

    pub(in crate::fence) fn commit_next(&self) {
        let (raises, reply) = self.next_commit();
        self.keep(&raises);
        reply.send(Ok(()));
    }

    pub(in crate::fence) fn fail_commit(&self) {
        self.next_commit().1.send(Err(StoreError::NoSpace));
    }

    pub(in crate::fence) fn drop_commit(&self) {
        drop(self.next_commit());
    }

    pub(in crate::fence) fn answer_read(&self) {
        let (key, reply) = self.next_read();
        reply.send(Ok(self.mark(&key)));
    }
}

impl Store for Script {
    fn read(&self, key: &Key, reply: Reply<Option<Record>>) {
        self.read.fetch_add(1, Ordering::SeqCst);
        if let Some(reads) = &mut *self.reads.lock().unwrap() {
            reads.push_back((key.clone(), reply));
            return;
        }
        reply.send(Ok(self.mark(key)));
    }

    fn commit(&self, raises: Vec<Raise>, reply: Reply<()>) {
        self.committed.lock().unwrap().push(raises.len());
        if let Some(commits) = &mut *self.commits.lock().unwrap() {
            commits.push_back((raises, reply));
            return;
        }
        self.keep(&raises);
        reply.send(Ok(()));
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let marks = self.marks.lock().unwrap();
        let found = marks
            .iter()
            .filter(|one| one.0.as_str().starts_with(prefix))
            .filter(|one| after.is_none_or(|after| one.0.as_str() > after));
        Ok(found
            .take(limit)
            .map(|(key, record)| (key.clone(), record.clone()))
            .collect())
    }

    fn floor(&self, _namespace: &str) -> Option<Token> {
        *self.floor.lock().unwrap()
    }

    fn len(&self) -> u64 {
        self.marks.lock().unwrap().len() as u64
    }
}

/// A write in flight. Cut, it ends as an unknown outcome.
#[derive(Default)]
pub(in crate::fence) struct Write {
    pub(in crate::fence) drained: AtomicUsize,
    pub(in crate::fence) cut: AtomicUsize,
    pub(in crate::fence) permit: Mutex<Option<Permit>>,
}

impl Write {
    pub(in crate::fence) fn new() -> (Arc<Self>, Handle) {
        let write = Arc::new(Self::default());
        (Arc::clone(&write), write)
    }
}

impl InFlight for Write {
    fn drain(self: Arc<Self>, _: Uploads) {
        self.drained.fetch_add(1, Ordering::SeqCst);
    }

    fn cut(self: Arc<Self>, _: Cut) {
        self.cut.fetch_add(1, Ordering::SeqCst);
        drop(self.permit.lock().unwrap().take());
    }
}
