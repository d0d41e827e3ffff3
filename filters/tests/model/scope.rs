//! What a run of the checker covers: who asks for what, and what may go wrong how often.

use fencegate_filters::Token;
use fencegate_filters::fence::lane::{Access, Ask};
use fencegate_filters::store::{Binding, Record};
use smallvec::smallvec;

use super::state::{KEYS, Left, Number, Slot, State, number};

/// A request that a client may make.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) keys: Vec<usize>,
    pub(crate) asks: Vec<Ask>,
    /// Whether it writes, or reads with a token.
    pub(crate) write: bool,
}

pub(crate) fn token(number: Number) -> Token {
    Token::new(0, u64::from(number)).unwrap()
}

impl Wanted {
    /// A write with one token on all of `keys`.
    pub(crate) fn write(number: Number, keys: &[usize]) -> Self {
        let ask = Ask {
            token: token(number),
            holder: None,
            access: Access::Write,
            max_advance: None,
            new_epochs: true,
        };
        Self {
            keys: keys.to_vec(),
            asks: vec![ask; keys.len()],
            write: true,
        }
    }

    /// The same as a read.
    pub(crate) fn read(number: Number, keys: &[usize]) -> Self {
        Self {
            write: false,
            ..Self::write(number, keys)
        }
    }

    /// A write whose last key is only read from, as the source of a copy is.
    pub(crate) fn copy(number: Number, keys: &[usize]) -> Self {
        let mut copy = Self::write(number, keys);
        copy.asks.last_mut().unwrap().access = Access::Read;
        copy
    }

    /// The same from a holder that has a name.
    pub(crate) fn by(mut self, holder: &str) -> Self {
        for ask in &mut self.asks {
            ask.holder = Some(Binding::Holder(holder.into()));
        }
        self
    }

    fn newest(&self) -> Number {
        let tokens = self.asks.iter().map(|ask| number(ask.token));
        tokens.max().unwrap_or(0)
    }

    pub(crate) fn writes(&self, at: usize) -> bool {
        self.write && self.asks[at].access == Access::Write
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) name: &'static str,
    /// What clients may ask for, and then the probes.
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) kinds: u8,
    /// How many requests of one kind may be under way at once.
    pub(crate) copies: Slot,
    /// How many may wait for one key.
    pub(crate) queue: usize,
    pub(crate) left: Left,
    /// The marks that the store has at first: token, and whether it was draining.
    pub(crate) marks: [Option<(Number, bool)>; KEYS],
    /// Orphans of the life before; where there are some, the run begins under the hold.
    pub(crate) orphans: [Number; KEYS],
    /// Whether the lanes of a request with two keys are told one after the other, or at once.
    pub(crate) in_turn: bool,
    /// Whether states that differ only in numbers are one.
    pub(crate) renumbers: bool,
}

impl Scope {
    /// Nothing goes wrong, and `requests` of `wanted` come.
    pub(crate) fn new(name: &'static str, requests: u8, wanted: Vec<Wanted>) -> Self {
        let kinds = u8::try_from(wanted.len()).unwrap();
        let newest = 1 + wanted.iter().map(Wanted::newest).max().unwrap_or(0);
        let single = |key| move |token| Wanted::write(token, &[key]);
        let probes = (1..=newest).map(single(0));
        let probes = probes.chain((1..=newest).map(single(1)));
        let both = Wanted::write(newest, &[0, 1]);
        let wanted = wanted.into_iter().chain(probes).chain([both]).collect();
        Self {
            name,
            wanted,
            kinds,
            copies: 2,
            queue: 256,
            left: Left {
                requests,
                crashes: 0,
                clean_restarts: 0,
                failed_commits: 0,
                failed_reads: 0,
                slow_reads: 0,
                unsent: 0,
                resets: 0,
                forgets: 0,
                touches: 0,
            },
            marks: [None; KEYS],
            orphans: [0; KEYS],
            in_turn: false,
            renumbers: true,
        }
    }

    pub(crate) fn wanted(&self, slot: Slot) -> &Wanted {
        &self.wanted[usize::from(slot / self.copies)]
    }

    /// A request as counterexamples name it: `2a` writes to the first key with token 2, `2ab` to
    /// both, `r2a` reads, `3a<b` copies, and `2a'` is another `2a`.
    pub(crate) fn label(&self, slot: Slot) -> String {
        let wanted = self.wanted(slot);
        let mut label = if wanted.write { "" } else { "r" }.to_owned();
        label.push_str(&wanted.newest().to_string());
        for (key, ask) in wanted.keys.iter().zip(&wanted.asks) {
            if ask.access == Access::Read {
                label.push('<');
            }
            label.push(if *key == 0 { 'a' } else { 'b' });
        }
        if let Some(Binding::Holder(holder)) = &wanted.asks[0].holder {
            label.push_str(&format!("({holder})"));
        }
        for _ in 0..slot % self.copies {
            label.push('\'');
        }
        label
    }

    /// The requests that see whether a key is wedged: equal tokens, and newer ones than any.
    pub(crate) fn probes(&self) -> std::ops::Range<u8> {
        self.kinds..u8::try_from(self.wanted.len()).unwrap()
    }

    pub(crate) fn initial(&self) -> State {
        let disk = self.marks.map(|mark| {
            mark.map(|(number, draining)| Record {
                mark: token(number),
                holder: Binding::Unbound,
                draining,
                resets: 0,
            })
        });
        let begun = self.marks.map(|mark| mark.map_or(0, |mark| mark.0));
        State {
            lanes: [None, None],
            cache: [None, None],
            disk,
            floor: 0,
            touches: smallvec![],
            commits: smallvec![],
            reads: smallvec![],
            tells: smallvec![],
            attempts: smallvec![],
            unsettled: smallvec![],
            orphans: self.orphans,
            hold: self.orphans != [0; KEYS],
            resets: [None; KEYS],
            begun: [0; KEYS],
            admitted: begun,
            left: self.left,
            broken: None,
        }
    }
}
