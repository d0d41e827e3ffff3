//! The seam between the fence and what keeps its marks.
//!
//! A [`Store`] is told of every raised mark and answers when it is durable. Answers come through a
//! [`Reply`], so a store may answer at once, from a thread of its own, or from a task; one that is
//! dropped unanswered counts as a failure, never as success.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::{Key, Token};

/// To whom a mark is bound (`fence.holder: bind`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Binding {
    /// No request has bound it: the first equal token will.
    #[default]
    Unbound,
    /// Bound to a holder that gave no name.
    Nobody,
    /// Bound to the holder of this name.
    Holder(Arc<str>),
}

/// What is kept of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The highest token seen.
    pub mark: Token,
    /// Who may use a token equal to the mark.
    pub holder: Binding,
    /// Whether an older write was in flight or unsettled when the mark was raised: after a crash
    /// its drain may not have ended.
    pub draining: bool,
    /// How often the mark has been reset: of two records the one that was reset more often is the
    /// newer, whatever their marks are.
    pub resets: u64,
}

impl Record {
    /// Merges a record of the same key into this one: the one that was reset more often wins, then
    /// the higher mark, then the one that is bound.
    ///
    /// So a reset is the one thing that lowers a mark, in whatever order records come, and what was
    /// raised before it never undoes it.
    ///
    /// Of two that are equal in both, this one stays, but `draining` is set if either has it:
    /// holding back once too often after a crash is safe. So merging a record twice, or an older
    /// one late, changes nothing.
    pub fn merge(&mut self, other: Self) {
        match (other.resets, other.mark).cmp(&(self.resets, self.mark)) {
            Ordering::Less => {}
            Ordering::Greater => *self = other,
            Ordering::Equal => {
                self.draining |= other.draining;
                if self.holder == Binding::Unbound {
                    self.holder = other.holder;
                }
            }
        }
    }
}

/// One raised, newly bound or reset mark, to be made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raise {
    /// The key.
    pub key: Key,
    /// Its new record, to be [merged](Record::merge) with what the store has.
    pub record: Record,
}

/// Keeps marks on stable storage.
pub trait Store: Send + Sync + 'static {
    /// Reads what is durable for `key`; `None` where the key has no mark.
    ///
    /// May block for no longer than a memory access: what needs the disk is answered from another
    /// thread.
    fn read(&self, key: &Key, reply: Reply<Option<Record>>);

    /// Makes all of `raises` durable, or none of them, then replies.
    ///
    /// A later raise of a key may be submitted before the reply to an earlier one, and two that
    /// are submitted at once may come in either order. So what is kept is never replaced but by
    /// [`Record::merge`], and a record that changes nothing is made durable all the same: its reply
    /// says that the key's mark is at least this.
    fn commit(&self, raises: Vec<Raise>, reply: Reply<()>);

    /// Up to `limit` keys whose full text starts with `prefix` and sorts after `after`, in order.
    /// Reads the disk: not for the request's way.
    ///
    /// # Errors
    ///
    /// As [`StoreError`] says.
    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError>;

    /// The mark that a key of `namespace` counts as having where it has none of its own: marks up
    /// to it may have been forgotten. `None` where no mark ever was.
    ///
    /// It never goes down, and is asked after a read has found no mark. Blocks for no longer than a
    /// memory access.
    fn floor(&self, namespace: &str) -> Option<Token> {
        let _ = namespace;
        None
    }

    /// How many keys have a mark.
    fn len(&self) -> u64;

    /// Whether no key has a mark.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a store sends its answer to one call.
///
/// Dropping it unanswered answers [`StoreError::Unavailable`].
pub struct Reply<T>(Option<Answer<T>>);

type Answer<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

impl<T> Reply<T> {
    /// A reply that runs `answer` once, on whatever thread the store answers from.
    pub fn new(answer: impl FnOnce(Result<T, StoreError>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// Answers the call.
    pub fn send(mut self, result: Result<T, StoreError>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(StoreError::Unavailable(
                "the store dropped the call".into(),
            )));
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// Why a mark could not be read or made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// There is no room on the device. A later commit may succeed.
    NoSpace,
    /// It did not work this time, or no longer: what failed, in words for the log.
    Unavailable(Arc<str>),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSpace => f.write_str("no space left for marks"),
            Self::Unavailable(why) => write!(f, "the store is not available: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}
