//! From YAML text to the tree.
//!
//! The tree is built from the parser's events rather than by a loader, so that a key that is given
//! twice is one more problem in the list instead of the end of it, and so that the limits below
//! hold while the tree grows.

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::problem::{Position, Reporter, quoted};
use super::tree::{Entry, Kind, Node, Scalar, entry_path, item_path};

/// The most nodes of a file, with those that aliases repeat: as many as it has bytes, within these. It bounds what an alias of
/// an alias of an alias can cost, and lets a long file say much.
const FEWEST_NODES: usize = 20_000;
const MOST_NODES: usize = 1_000_000;

/// The deepest nesting. The config itself needs six levels.
const MAX_DEPTH: usize = 32;

/// The longest key, in bytes.
const MAX_KEY_BYTES: usize = 128;

/// Reads a file of one document. `None` when nothing more can be said about the file than what was
/// reported.
pub(super) fn read(text: &str, reporter: &mut Reporter<'_>) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Builder {
        reporter,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        most_nodes: text.len().clamp(FEWEST_NODES, MOST_NODES),
        root: None,
    }
    .run(text)
}

/// A collection that is not closed yet.
struct Open {
    node: Node,
    anchor: usize,
    /// The key that waits for its value.
    key: Option<(String, Position)>,
    /// What comes next in a mapping is the value of a key that was reported: it goes nowhere.
    skip_value: bool,
    /// This collection is itself a key or the value of one that was reported.
    discarded: bool,
}

struct Builder<'r, 'f> {
    reporter: &'r mut Reporter<'f>,
    stack: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    most_nodes: usize,
    root: Option<Node>,
}

/// Nothing after this point of the file can be read.
struct Stop;

impl Builder<'_, '_> {
    fn run(mut self, text: &str) -> Option<Node> {
        let mut documents = 0_usize;
        for event in std::iter::from_fn({
            let mut parser = Parser::new_from_str(text);
            move || parser.next_event()
        }) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    let at = position(error.marker());
                    let message = format!("this is not YAML: {}", error.info());
                    self.reporter.problem(&at, message);
                    return None;
                }
            };
            if matches!(event, Event::StreamEnd) {
                break;
            }
            if matches!(event, Event::DocumentStart(_)) {
                documents += 1;
                if documents > 1 {
                    let at = position(&span.start);
                    self.reporter.problem(
                        &at,
                        "a second document starts here, a config is one document",
                    );
                    return None;
                }
            }
            if self.event(event, &span.start).is_err() {
                return None;
            }
        }
        match self.root {
            Some(root) if !root.is_null() => Some(root),
            _ => {
                let start = position(&Marker::new(0, 1, 0));
                let message = "the file is empty, a config needs listeners, upstreams and routes";
                self.reporter.problem(&start, message);
                None
            }
        }
    }

    fn event(&mut self, event: Event<'_>, mark: &Marker) -> Result<(), Stop> {
        let at = position(mark);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag {
                    self.tag(&at, &tag.to_string());
                }
                let node = Node {
                    at,
                    kind: Kind::Scalar(Scalar {
                        written: text.to_string(),
                        value: text.into_owned(),
                        plain: style == ScalarStyle::Plain,
                    }),
                };
                self.place(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                if let Some(tag) = tag {
                    self.tag(&at, &tag.to_string());
                }
                self.open(at, Kind::List(Vec::new()), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                if let Some(tag) = tag {
                    self.tag(&at, &tag.to_string());
                }
                self.open(at, Kind::Map(Vec::new()), anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.alias(at, anchor),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn tag(&mut self, at: &Position, tag: &str) {
        let message = format!("tags such as {} are not supported", quoted(tag));
        self.reporter.problem(at, message);
    }

    fn open(&mut self, mut at: Position, kind: Kind, anchor: usize) -> Result<(), Stop> {
        self.count(&at, 1, 1)?;
        let mut discarded = false;
        if let Some(parent) = self.stack.last_mut() {
            if matches!(parent.node.kind, Kind::Map(_))
                && parent.key.is_none()
                && !parent.skip_value
            {
                // This collection stands where a key should.
                self.reporter.problem(&at, "a key must be text");
                parent.skip_value = true;
                discarded = true;
            } else {
                discarded = parent.skip_value;
                parent.skip_value = false;
            }
        }
        if !discarded {
            at.key_path = self.next_path();
        }
        self.stack.push(Open {
            node: Node { at, kind },
            anchor,
            key: None,
            skip_value: false,
            discarded,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stop> {
        let Some(open) = self.stack.pop() else {
            return Ok(());
        };
        if open.anchor > 0 {
            self.anchors.insert(open.anchor, open.node.clone());
        }
        if !open.discarded {
            self.attach(open.node);
        }
        Ok(())
    }

    fn alias(&mut self, at: Position, anchor: usize) -> Result<(), Stop> {
        let Some(node) = self.anchors.get(&anchor) else {
            self.reporter
                .problem(&at, "this alias refers to a value that it is part of");
            return Err(Stop);
        };
        // Counted before it is copied: the copy is what an attack would want to be large.
        let (nodes, depth) = node.measure();
        let node = node.clone();
        self.count(&at, nodes, depth)?;
        self.place(node, 0)
    }

    fn place(&mut self, mut node: Node, anchor: usize) -> Result<(), Stop> {
        self.count(&node.at, 1, 1)?;
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        if let Some(parent) = self.stack.last_mut()
            && matches!(parent.node.kind, Kind::Map(_))
        {
            if parent.skip_value {
                parent.skip_value = false;
                return Ok(());
            }
            if parent.key.is_none() {
                return self.key(node);
            }
        }
        node.move_to(self.next_path());
        self.attach(node);
        Ok(())
    }

    /// A scalar, or an alias, stands where a key is due.
    fn key(&mut self, node: Node) -> Result<(), Stop> {
        let Some(parent) = self.stack.last_mut() else {
            return Ok(());
        };
        let key = match node.kind {
            Kind::Scalar(scalar) if !scalar.is_null() => scalar.written,
            _ => {
                self.reporter.problem(&node.at, "a key must be text");
                parent.skip_value = true;
                return Ok(());
            }
        };
        if key.len() > MAX_KEY_BYTES {
            let message = format!("a key is at most {MAX_KEY_BYTES} bytes long");
            self.reporter.problem(&node.at, message);
            parent.skip_value = true;
            return Ok(());
        }
        let at = Position {
            key_path: entry_path(&parent.node.at.key_path, &key),
            ..node.at
        };
        if let Kind::Map(entries) = &parent.node.kind
            && let Some(first) = entries.iter().find(|entry| entry.key == key)
        {
            let message = format!(
                "key {} is given twice, first in line {}",
                quoted(&key),
                first.key_at.line
            );
            self.reporter.problem(&at, message);
            parent.skip_value = true;
            return Ok(());
        }
        parent.key = Some((key, at));
        Ok(())
    }

    fn attach(&mut self, node: Node) {
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(parent) => match &mut parent.node.kind {
                Kind::List(items) => items.push(node),
                Kind::Map(entries) => {
                    if let Some((key, key_at)) = parent.key.take() {
                        entries.push(Entry {
                            key,
                            key_at,
                            value: node,
                        });
                    }
                }
                Kind::Scalar(_) => {}
            },
        }
    }

    /// The key path of the value that comes next.
    fn next_path(&self) -> Arc<str> {
        match self.stack.last() {
            None => Arc::from(""),
            Some(parent) => match (&parent.node.kind, &parent.key) {
                (Kind::List(items), _) => item_path(&parent.node.at.key_path, items.len()),
                (_, Some((_, at))) => at.key_path.clone(),
                (_, None) => parent.node.at.key_path.clone(),
            },
        }
    }

    fn count(&mut self, at: &Position, nodes: usize, depth: usize) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > self.most_nodes {
            let message = format!("the file has more than {} values", self.most_nodes);
            self.reporter.problem(at, message);
            return Err(Stop);
        }
        if self.stack.len() + depth > MAX_DEPTH {
            let message = format!("values are nested more than {MAX_DEPTH} deep");
            self.reporter.problem(at, message);
            return Err(Stop);
        }
        Ok(())
    }
}

fn position(mark: &Marker) -> Position {
    Position {
        line: mark.line().max(1),
        column: mark.col() + 1,
        key_path: Arc::from(""),
    }
}
