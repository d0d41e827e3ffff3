//! As much of HTTP/1.1 as the upstream and the client of the tests must understand.

/// A head: its first line and its fields, as they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    /// Cuts a head off the front of `bytes`, when it is there whole.
    pub(crate) fn cut(bytes: &mut Vec<u8>) -> Option<Self> {
        let end = find(bytes, b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes.drain(..end + 4);
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        Some(Self {
            line,
            fields: lines.map(field).collect(),
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        all(&self.fields, name)
    }

    pub(crate) fn framing(&self) -> Framing {
        let chunked = self
            .all("transfer-encoding")
            .iter()
            .any(|coding| coding.to_ascii_lowercase().ends_with("chunked"));
        if chunked {
            return Framing::Chunked;
        }
        self.get("content-length")
            .and_then(|length| length.trim().parse().ok())
            .map_or(Framing::None, Framing::Length)
    }
}

pub(crate) fn all<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    fields
        .iter()
        .filter(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect()
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
    /// By the end of the connection.
    Close,
}

/// Takes a body off a stream of bytes as they come.
#[derive(Debug)]
pub(crate) struct Body {
    framing: Framing,
    left: u64,
    in_chunk: bool,
    pub(crate) done: bool,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Body {
    pub(crate) fn new(framing: Framing) -> Self {
        let left = if let Framing::Length(length) = framing {
            length
        } else {
            0
        };
        Self {
            framing,
            left,
            in_chunk: false,
            done: framing == Framing::None || framing == Framing::Length(0),
            trailers: Vec::new(),
        }
    }

    pub(crate) const fn framing(&self) -> Framing {
        self.framing
    }

    /// Moves what of `bytes` belongs to the body to `out`. An error is broken framing.
    pub(crate) fn feed(&mut self, bytes: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), String> {
        while !self.done && !bytes.is_empty() {
            match self.framing {
                Framing::None => self.done = true,
                Framing::Close => out.append(bytes),
                Framing::Length(_) => {
                    self.take(bytes, out);
                    self.done = self.left == 0;
                }
                Framing::Chunked if self.in_chunk && self.left > 0 => self.take(bytes, out),
                Framing::Chunked => {
                    if !self.next_chunk(bytes)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &mut Vec<u8>, out: &mut Vec<u8>) {
        let count = bytes.len().min(usize::try_from(self.left).unwrap());
        out.extend(bytes.drain(..count));
        self.left -= count as u64;
    }

    /// Reads what stands between two chunks; `false` when more bytes are needed.
    fn next_chunk(&mut self, bytes: &mut Vec<u8>) -> Result<bool, String> {
        if self.in_chunk {
            if bytes.len() < 2 {
                return Ok(false);
            }
            if &bytes[..2] != b"\r\n" {
                return Err(format!("no line end after a chunk: {:?}", lossy(bytes)));
            }
            bytes.drain(..2);
            self.in_chunk = false;
        }
        let Some(end) = find(bytes, b"\r\n") else {
            return Ok(false);
        };
        let line = lossy(&bytes[..end]);
        let size = line.split(';').next().unwrap_or_default().trim().to_owned();
        let size = u64::from_str_radix(&size, 16).map_err(|_| format!("chunk size {line:?}"))?;
        if size > 0 {
            bytes.drain(..end + 2);
            self.left = size;
            self.in_chunk = true;
            return Ok(true);
        }
        if bytes[end + 2..].starts_with(b"\r\n") {
            bytes.drain(..end + 4);
        } else if let Some(trailers) = find(&bytes[end + 2..], b"\r\n\r\n") {
            let text = lossy(&bytes[end + 2..end + 2 + trailers]);
            self.trailers = text.split("\r\n").map(field).collect();
            bytes.drain(..end + 2 + trailers + 4);
        } else {
            return Ok(false);
        }
        self.done = true;
        Ok(true)
    }
}

pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
