//! Every way in which servers read a path that they don't all read alike.

use smallvec::SmallVec;

/// Stands for a `%2F` that a reading takes for a character of the segment's name.
pub(super) const DATA_SLASH: char = '\0';

/// Stands for a control character, where some servers end the path.
const CONTROL: char = '\u{1}';

/// The longest path that is read in all ways. What is longer has no reading here.
pub(super) const MAX_BYTES: usize = 4096;

/// What a server may do to a path, in the order in which they do it.
const STEPS: [fn(&str) -> String; 6] = [
    |path| path.replace(DATA_SLASH, "/"),
    |path| path.replace('\\', "/"),
    |path| path.split(CONTROL).next().unwrap_or_default().to_owned(),
    |path| map_segments(path, |name| name.split(';').next()),
    |path| {
        let absolute: String = map_segments(path, |name| (!name.is_empty()).then_some(name));
        if path.ends_with('/') && !absolute.is_empty() {
            absolute + "/"
        } else {
            absolute
        }
    },
    resolve,
];

/// Calls `found` with every reading of a raw path, without its leading slash, decoded once.
///
/// A reading is a set of the steps above; escapes that are malformed stand for themselves.
pub(super) fn readings(raw: &[u8], found: &mut dyn FnMut(&str)) {
    if raw.len() > MAX_BYTES {
        return;
    }
    let base = decode(raw.strip_prefix(b"/").unwrap_or(raw));
    every(&base, &STEPS, found);
}

fn every(path: &str, steps: &[fn(&str) -> String], found: &mut dyn FnMut(&str)) {
    let Some((step, steps)) = steps.split_first() else {
        found(path);
        return;
    };
    every(path, steps, found);
    let changed = step(path);
    // A step that changes nothing is no other reading, so ordinary paths have one in all.
    if changed != path {
        every(&changed, steps, found);
    }
}

/// Decodes once, whatever the bytes are.
fn decode(raw: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        let escaped = (byte == b'%')
            .then(|| digit(0).zip(digit(1)))
            .flatten()
            .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        bytes.push(match escaped.unwrap_or(byte) {
            b'/' if escaped.is_some() => 0,
            0..=0x1f | 0x7f => 1,
            byte => byte,
        });
        rest = if escaped.is_some() {
            tail.get(2..).unwrap_or_default()
        } else {
            tail
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn map_segments<'a>(path: &'a str, map: impl Fn(&'a str) -> Option<&'a str>) -> String {
    let names: SmallVec<[&str; 16]> = path.split('/').filter_map(map).collect();
    names.join("/")
}

/// Resolves dot segments (RFC 3986, section 5.2.4).
fn resolve(path: &str) -> String {
    let mut names: SmallVec<[&str; 16]> = SmallVec::new();
    let mut segments = path.split('/').peekable();
    while let Some(name) = segments.next() {
        match name {
            "." | ".." => {
                if name == ".." {
                    names.pop();
                }
                if segments.peek().is_none() && !names.is_empty() {
                    names.push("");
                }
            }
            name => names.push(name),
        }
    }
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(raw: &str) -> Vec<String> {
        let mut all = Vec::new();
        readings(raw.as_bytes(), &mut |reading| all.push(reading.to_owned()));
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn a_plain_path_has_one_reading() {
        assert_eq!(all("/objects/42"), ["objects/42"]);
        assert_eq!(all("/objects/42/"), ["objects/42/"]);
        assert_eq!(all("/"), [""]);
    }

    #[test]
    fn what_servers_do_is_read() {
        assert_eq!(all("/a//b"), ["a//b", "a/b"]);
        assert_eq!(all("/a%2Fb"), ["a\0b", "a/b"]);
        assert_eq!(all("/a%5Cb"), ["a/b", "a\\b"]);
        assert_eq!(all("/a;x/b"), ["a/b", "a;x/b"]);
        assert_eq!(all("/x/%2e%2e/a"), ["a", "x/../a"]);
        assert_eq!(all("/x/..;y/a"), ["a", "x/../a", "x/..;y/a"]);
        assert_eq!(all("/a%00b"), ["a", "a\u{1}b"]);
        assert!(all("/x/..%2f..%5ca//b;c").contains(&"a/b".to_owned()));
    }

    #[test]
    fn the_work_is_bounded() {
        assert_eq!(all(&"/;".repeat(MAX_BYTES)).len(), 0);
        let mut count = 0;
        readings(b"/a%2f%5c%00;x//../b\xff%zz", &mut |_| count += 1);
        assert!(count <= 64, "{count}");
    }
}
