//! What the resource saw, and the checker of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use super::lateness;

/// A token, as the contract compares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token {
    pub(crate) epoch: u64,
    pub(crate) counter: u64,
}

impl Token {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (epoch, counter) = text.split_once('.').unwrap_or(("0", text));
        Some(Self {
            epoch: epoch.parse().ok()?,
            counter: counter.parse().ok()?,
        })
    }
}

impl From<u64> for Token {
    fn from(counter: u64) -> Self {
        Self { epoch: 0, counter }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch {
            0 => write!(f, "{}", self.counter),
            epoch => write!(f, "{epoch}.{}", self.counter),
        }
    }
}

/// A place in the one order of all events of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Event {
    pub(crate) order: u64,
    pub(crate) at: Instant,
}

/// One request as the resource saw it.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// The resource: the path of the request.
    pub(crate) key: String,
    pub(crate) method: String,
    pub(crate) tag: String,
    pub(crate) token: Option<Token>,
    pub(crate) safe: bool,
    pub(crate) connection: u64,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) target: String,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// The first byte of it was there: from here on the resource may act on it.
    pub(crate) began: Event,
    /// The body was there whole.
    pub(crate) body_done: Option<Event>,
    /// The resource saw its connection break.
    pub(crate) broke: Option<Event>,
    /// The resource does nothing for it any more.
    pub(crate) ended: Option<Event>,
}

impl Write {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).first().copied()
    }

    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        super::parse::all(&self.fields, name)
    }
}

/// A reset of a mark that was answered as done: the mark went down somewhere in between.
#[derive(Clone, Debug)]
pub(crate) struct Lowered {
    /// The resource.
    pub(crate) key: String,
    pub(crate) asked: Event,
    pub(crate) answered: Event,
}

/// The log of a resource, in the order in which requests reached it, and the resets of its marks.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(pub(crate) Vec<Write>, pub(crate) Vec<Lowered>);

/// Two requests on one key that the fence should have kept apart.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) what: &'static str,
    pub(crate) older: Write,
    pub(crate) newer: Write,
}

impl History {
    /// Finds the first pair of requests that breaks G1 or G2, but for resets.
    ///
    /// A lower token may follow a higher one where a reset may lie between them, and then the higher
    /// one's write must have ended before: a reset drains everything.
    ///
    /// A read with a token is fenced like a write but holds nobody back, so it may be the newer of
    /// a violating pair and never the older.
    pub(crate) fn check(&self) -> Result<(), Box<Violation>> {
        let mut by_key = BTreeMap::<&str, Vec<&Write>>::new();
        for write in &self.0 {
            by_key.entry(&write.key).or_default().push(write);
        }
        for older in self.0.iter().filter(|write| !write.safe) {
            let Some(low) = older.token else { continue };
            let others = by_key.get(older.key.as_str());
            for newer in others.into_iter().flatten().copied() {
                let Some(high) = newer.token else { continue };
                if low >= high {
                    continue;
                }
                let violation = |rule, what| {
                    Err(Box::new(Violation {
                        rule,
                        what,
                        older: older.clone(),
                        newer: newer.clone(),
                    }))
                };
                if older.began > newer.began {
                    let reset = self.1.iter().any(|reset| {
                        reset.key == older.key
                            && newer.began < reset.answered
                            && reset.asked < older.began
                    });
                    if reset && (newer.safe || newer.ended.is_some_and(|end| end < older.began)) {
                        continue;
                    }
                    if reset {
                        return violation(
                            "G2",
                            "a write from before a reset had not ended when one from after it began",
                        );
                    }
                    return violation("G1", "the lower token was admitted after the higher one");
                }
                if older.ended.is_none_or(|ended| ended > newer.began) {
                    return violation(
                        "G2",
                        "the lower token's write had not ended when the higher one began",
                    );
                }
            }
        }
        self.check_resets()
    }

    /// What had begun before a reset was asked for has ended when it is answered, whatever its token.
    fn check_resets(&self) -> Result<(), Box<Violation>> {
        for reset in &self.1 {
            let late = self.0.iter().find(|write| {
                write.key == reset.key
                    && !write.safe
                    && write.token.is_some()
                    && write.began < reset.asked
                    && write.ended.is_none_or(|ended| ended > reset.answered)
            });
            if let Some(late) = late {
                return Err(Box::new(Violation {
                    rule: "G2",
                    what: "a reset was answered while a write from before it was in flight",
                    older: late.clone(),
                    newer: late.clone(),
                }));
            }
        }
        Ok(())
    }

    /// Fails the test with a report when the history breaks the contract.
    #[track_caller]
    pub(crate) fn assert_ordered(&self) {
        if let Err(violation) = self.check() {
            panic!("{violation}\n{self}");
        }
    }

    /// The highest token that reached the resource for a key.
    pub(crate) fn highest(&self, key: &str) -> Option<Token> {
        self.0
            .iter()
            .filter(|write| write.key == key)
            .filter_map(|write| write.token)
            .max()
    }

    /// The highest token that reached the resource, for every key.
    pub(crate) fn highest_of_all(&self) -> BTreeMap<String, Token> {
        let mut highest = BTreeMap::<String, Token>::new();
        for write in &self.0 {
            let Some(token) = write.token else { continue };
            let known = highest.entry(write.key.clone()).or_default();
            *known = token.max(*known);
        }
        highest
    }

    /// Every key that a token reached.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.0.iter().map(|write| write.key.clone()).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    pub(crate) fn tagged(&self, tag: &str) -> Vec<&Write> {
        self.0.iter().filter(|write| write.tag == tag).collect()
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} is broken on {}: {}",
            self.rule, self.older.key, self.what
        )?;
        let start = self.older.began.at.min(self.newer.began.at);
        writeln!(f, "  older: {}", Line(&self.older, start))?;
        writeln!(f, "  newer: {}", Line(&self.newer, start))?;
        let late = lateness::longest(start, self.older.began.at.max(self.newer.began.at));
        write!(
            f,
            "  threads of the resource were up to {} ms late meanwhile",
            late.as_millis()
        )
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else {
            return write!(f, "the history is empty");
        };
        // The tail is enough to see what led to a violation, and a log of thousands is not read.
        let skipped = self.0.len().saturating_sub(60);
        writeln!(f, "history ({skipped} earlier ones left out):")?;
        for write in self.0.iter().skip(skipped) {
            writeln!(f, "  {}", Line(write, first.began.at))?;
        }
        Ok(())
    }
}

struct Line<'a>(&'a Write, Instant);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(write, start) = self;
        let at = |event: Option<Event>| match event {
            Some(event) => format!(
                "#{} (+{} ms)",
                event.order,
                event.at.saturating_duration_since(*start).as_millis()
            ),
            None => "never".to_owned(),
        };
        let token = write
            .token
            .map_or("none".to_owned(), |token| token.to_string());
        write!(
            f,
            "{} {} token {token} tag {:?} began {} body {} broke {} ended {}",
            write.method,
            write.key,
            write.tag,
            at(Some(write.began)),
            at(write.body_done),
            at(write.broke),
            at(write.ended),
        )
    }
}
