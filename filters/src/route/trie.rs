//! An index of templates by their segments, so that the cost of matching follows the depth of the
//! path and not the number of routes.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// One segment of a template, as far as matching goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step<'a> {
    /// Exactly this text.
    Literal(&'a str),
    /// One segment that is not empty.
    Capture,
    /// Any number of segments; at most once in a template.
    Rest,
}

/// A node: what follows a run of segments. The literals come from the config alone, so their hash
/// needs no secret.
#[derive(Debug, Default)]
pub(super) struct Node {
    literals: HashMap<Box<str>, Self, RandomState>,
    capture: Option<Box<Self>>,
    /// The ids of the templates that end here, in the order of insertion.
    ends: Vec<u32>,
    /// After a rest: a tree for each number of segments that can follow it.
    rest: Vec<(usize, Self)>,
}

impl Node {
    /// Adds a template.
    pub(super) fn insert(&mut self, steps: &[Step<'_>], id: u32) {
        let Some((step, steps)) = steps.split_first() else {
            self.ends.push(id);
            return;
        };
        match step {
            Step::Literal(text) => self.literals.entry((*text).into()).or_default(),
            Step::Capture => self.capture.get_or_insert_default(),
            Step::Rest => {
                let length = steps.len();
                let at = self.rest.iter().position(|(other, _)| *other == length);
                let at = at.unwrap_or_else(|| {
                    self.rest.push((length, Self::default()));
                    self.rest.len() - 1
                });
                match self.rest.get_mut(at) {
                    Some((_, node)) => node,
                    None => return,
                }
            }
        }
        .insert(steps, id);
    }

    /// Calls `found` with the ids of every set of templates that matches the segments.
    pub(super) fn visit(&self, segments: &[&str], found: &mut dyn FnMut(&[u32])) {
        match segments.split_first() {
            None if self.ends.is_empty() => {}
            None => found(&self.ends),
            Some((head, tail)) => {
                if let Some(node) = self.literals.get(*head) {
                    node.visit(tail, found);
                }
                if let Some(node) = &self.capture
                    && !head.is_empty()
                {
                    node.visit(tail, found);
                }
            }
        }
        for (length, node) in &self.rest {
            let tail = segments
                .len()
                .checked_sub(*length)
                .and_then(|at| segments.get(at..));
            if let Some(tail) = tail {
                node.visit(tail, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Step::{Capture, Literal, Rest};
    use super::*;

    fn matches(node: &Node, segments: &[&str]) -> Vec<u32> {
        let mut ids = Vec::new();
        node.visit(segments, &mut |found| ids.extend(found));
        ids
    }

    #[test]
    fn finds_literals_captures_and_rests() {
        let mut node = Node::default();
        for (id, steps) in [
            vec![Literal("a"), Literal("b")],
            vec![Literal("a"), Capture],
            vec![Literal("a"), Rest],
            vec![Literal("v2"), Rest, Literal("manifests"), Capture],
            vec![Literal("v2"), Rest, Literal("tags"), Literal("list")],
            vec![],
        ]
        .into_iter()
        .enumerate()
        {
            node.insert(&steps, u32::try_from(id).unwrap());
        }
        assert_eq!(matches(&node, &["a", "b"]), [0, 1, 2]);
        assert_eq!(matches(&node, &["a", "c"]), [1, 2]);
        assert_eq!(matches(&node, &["a", ""]), [2]);
        assert_eq!(matches(&node, &["a"]), [2]);
        assert_eq!(matches(&node, &["v2", "x", "y", "manifests", "1"]), [3]);
        assert_eq!(matches(&node, &["v2", "tags", "list"]), [4]);
        assert!(matches(&node, &["v2", "manifests"]).is_empty());
        assert_eq!(matches(&node, &[]), [5]);
    }
}
