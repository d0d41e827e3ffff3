//! A store of one's own: marks in one file that is appended to and synced.
//!
//! `cargo run --example custom_store -- FILE` lets tokens 33 and 34 through on one key, shows that
//! 33 is stale from then on, and does so again with the file opened anew. Run it twice: the second
//! time 33 is stale from the start.
//!
//! Each line of the file is one commit, a JSON list of records. A line that was not written whole
//! was never acknowledged, and is cut off at the next opening.
//!
//! What a [`Store`] must get right is in its documentation. The short of it: reply when it is on
//! stable storage and not before, all of a commit or nothing, never let a mark down, and never go
//! on after a sync that failed.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use fencegate_filters::Key;
use fencegate_filters::fence::{Claim, Fence};
use fencegate_filters::store::{Binding, Raise, Record, Reply, Store, StoreError};
use serde::{Deserialize, Serialize};

type Marks = Arc<Mutex<BTreeMap<Key, Record>>>;
type Commit = (Vec<Raise>, Reply<()>);

/// Marks in a file, and all of them in memory.
struct FileStore {
    marks: Marks,
    commits: mpsc::Sender<Commit>,
}

/// One record as it stands in the file.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    mark: String,
    /// Absent: unbound. Empty: bound to a holder without a name.
    holder: Option<String>,
    draining: bool,
    resets: u64,
}

impl FileStore {
    fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).read(true).append(true).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        let mut marks = BTreeMap::new();
        for commit in text.get(..whole).unwrap_or_default().lines() {
            let lines: Vec<Line> = serde_json::from_str(commit)?;
            let raises: Result<Vec<Raise>, _> = lines.into_iter().map(Raise::try_from).collect();
            merge(&mut marks, &raises?);
        }
        // The file itself, and its name.
        file.sync_all()?;
        let directory = path.parent().filter(|name| !name.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        let marks = Marks::new(Mutex::new(marks));
        let (commits, pending) = mpsc::channel();
        let of_thread = Arc::clone(&marks);
        thread::spawn(move || run(&mut file, &of_thread, &pending));
        Ok(Self { marks, commits })
    }
}

/// Takes everything that is pending, makes it durable with one sync, then answers.
fn run(file: &mut File, marks: &Marks, pending: &mpsc::Receiver<Commit>) {
    while let Ok(first) = pending.recv() {
        let batch: Vec<Commit> = std::iter::once(first).chain(pending.try_iter()).collect();
        if let Err(error) = append(file, &batch) {
            // What is on the disk now is not known. This thread ends, and with it every commit
            // fails from here on: replies that are dropped say so.
            tracing::error!(%error, "marks can't be made durable any more");
            return;
        }
        for (raises, _) in &batch {
            merge(&mut lock(marks), raises);
        }
        batch.into_iter().for_each(|(_, reply)| reply.send(Ok(())));
    }
}

fn append(file: &mut File, batch: &[Commit]) -> io::Result<()> {
    let mut text = Vec::new();
    for (raises, _) in batch {
        let lines: Vec<Line> = raises.iter().map(Line::from).collect();
        serde_json::to_writer(&mut text, &lines)?;
        text.push(b'\n');
    }
    file.write_all(&text)?;
    file.sync_data()
}

fn merge(marks: &mut BTreeMap<Key, Record>, raises: &[Raise]) {
    for Raise { key, record } in raises {
        match marks.get_mut(key) {
            Some(known) => known.merge(record.clone()),
            None => {
                marks.insert(key.clone(), record.clone());
            }
        }
    }
}

fn lock(marks: &Marks) -> MutexGuard<'_, BTreeMap<Key, Record>> {
    marks.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for FileStore {
    fn read(&self, key: &Key, reply: Reply<Option<Record>>) {
        let found = lock(&self.marks).get(key).cloned();
        reply.send(Ok(found));
    }

    fn commit(&self, raises: Vec<Raise>, reply: Reply<()>) {
        // Where the thread has ended, the reply is dropped, which is a failure.
        let _ = self.commits.send((raises, reply));
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let from = after.map_or(prefix, |after| after.max(prefix));
        let marks = lock(&self.marks);
        let found = marks
            .range::<str, _>((Bound::Included(from), Bound::Unbounded))
            .filter(|one| after.is_none_or(|after| one.0.as_str() > after))
            .take_while(|one| one.0.as_str().starts_with(prefix));
        Ok(found
            .take(limit)
            .map(|(key, record)| (key.clone(), record.clone()))
            .collect())
    }

    fn len(&self) -> u64 {
        lock(&self.marks).len() as u64
    }
}

impl From<&Raise> for Line {
    fn from(raise: &Raise) -> Self {
        Self {
            key: raise.key.as_str().to_owned(),
            mark: raise.record.mark.to_string(),
            holder: match &raise.record.holder {
                Binding::Unbound => None,
                Binding::Nobody => Some(String::new()),
                Binding::Holder(name) => Some(name.as_ref().to_owned()),
            },
            draining: raise.record.draining,
            resets: raise.record.resets,
        }
    }
}

impl TryFrom<Line> for Raise {
    type Error = Box<dyn Error>;

    fn try_from(line: Line) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            key: Key::from_text(&line.key),
            record: Record {
                mark: line.mark.parse()?,
                holder: match line.holder.as_deref() {
                    None => Binding::Unbound,
                    Some("") => Binding::Nobody,
                    Some(name) => Binding::Holder(name.into()),
                },
                draining: line.draining,
                resets: line.resets,
            },
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or("marks.jsonl".to_owned());
    for _ in 0..2 {
        let store = FileStore::open(Path::new(&path))?;
        let fence = Fence::new(Arc::new(store), 1 << 20);
        for token in ["33", "34", "33"] {
            let said = match fence
                .admit(Claim::write(Key::new("objects", "42"), token.parse()?))
                .await
            {
                Ok(_) => "admitted".to_owned(),
                Err(refusal) => refusal.to_string(),
            };
            writeln!(io::stdout(), "{token}: {said}")?;
        }
    }
    Ok(())
}
