//! Requests whose leases are over, so that one that comes again gets no second lease.

use std::collections::VecDeque;

use super::{Lease, Request};

/// How many requests are remembered, beside that of the newest lease.
pub(super) const REMEMBERED: usize = 16;

/// Requests of before, the newest last.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(VecDeque<u64>);

impl Memory {
    /// Another lease takes the place of this one, whose request may come again.
    pub(super) fn remember(&mut self, lease: &Lease) {
        let Some(id) = &lease.id else { return };
        self.0.push_back(fingerprint(&lease.holder, id));
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
    }

    /// Whether it is known that what this request got is over.
    pub(super) fn has(&self, request: &Request) -> bool {
        let id = request.id.as_ref();
        id.is_some_and(|id| self.0.contains(&fingerprint(&request.holder, id)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().copied()
    }
}

impl From<Vec<u64>> for Memory {
    fn from(kept: Vec<u64>) -> Self {
        Self(kept.into())
    }
}

/// What is remembered of a request: FNV-1a over its holder and its id, the same in every process.
fn fingerprint(holder: &str, id: &str) -> u64 {
    // Neither has a line break in it.
    let bytes = holder.bytes().chain(*b"\n").chain(id.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
