//! An HTTP/2 client that speaks frames, so that it can speak them wrongly.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use super::http::{Connection, Ended, Request, Response};
use super::parse::{Head, lossy};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const STREAM_CLOSED: u32 = 5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const COMPRESSION_ERROR: u32 = 9;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as it is on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.as_ref().to_vec(),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], self.kind, self.flags];
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The 32 bits at this place of the payload.
    pub(crate) fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A header block of literals that are not indexed and not compressed (RFC 7541, section 6.2.2).
pub(crate) fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            integer(&mut block, text.len());
            block.extend(text);
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn integer(into: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        into.push(u8::try_from(value).unwrap());
        return;
    }
    into.push(127);
    value -= 127;
    while value >= 128 {
        into.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    into.push(u8::try_from(value).unwrap());
}

/// The fields that a request to the tests' route begins with.
pub(crate) fn pseudo<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", "store.test"),
        (":path", path),
    ]
}

/// Why a stream has no response, or no whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The stream was reset, with this code.
    Reset(u32),
    /// The whole connection was given up, with this code.
    Away(u32),
    /// The connection ended.
    Ended(Ended),
}

/// What has come of one stream.
#[derive(Debug, Default)]
struct Incoming {
    response: Option<Response>,
    informational: Vec<u16>,
    whole: bool,
    reset: Option<u32>,
}

/// A connection to the gateway.
pub(crate) struct Http2 {
    pub(crate) connection: Connection,
    decoder: loona_hpack::Decoder<'static>,
    next: u32,
    streams: BTreeMap<u32, Incoming>,
    /// Whether windows are opened again as responses are read.
    pub(crate) reads: bool,
    /// Frames that are of no stream's response, acknowledgements left out.
    pub(crate) others: VecDeque<Frame>,
    pub(crate) away: Option<u32>,
    /// The last stream that the last GOAWAY said would be served.
    pub(crate) last_served: Option<u32>,
}

impl Http2 {
    /// Connects and shakes hands.
    pub(crate) fn open(address: SocketAddr) -> Self {
        let mut client = Self::silent(address);
        client.send_bytes(PREFACE);
        client.send(&Frame::new(SETTINGS, 0, 0, []));
        client
    }

    /// Shakes hands over a connection that is there.
    pub(crate) fn over(connection: Connection) -> Self {
        let mut client = Self::silent_over(connection);
        client.send_bytes(PREFACE);
        client.send(&Frame::new(SETTINGS, 0, 0, []));
        client
    }

    /// Connects, and says nothing yet.
    pub(crate) fn silent(address: SocketAddr) -> Self {
        Self::silent_over(Connection::open(address))
    }

    fn silent_over(connection: Connection) -> Self {
        Self {
            connection,
            decoder: loona_hpack::Decoder::new(),
            next: 1,
            streams: BTreeMap::new(),
            reads: true,
            others: VecDeque::new(),
            away: None,
            last_served: None,
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn send_bytes(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.connection.send(bytes);
        self
    }

    pub(crate) fn send(&mut self, frame: &Frame) -> &mut Self {
        self.send_bytes(frame.bytes())
    }

    /// The number of the next stream, which is taken by this.
    pub(crate) fn stream(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        stream
    }

    /// The number of the next stream, which stays free.
    pub(crate) fn next_stream(&self) -> u32 {
        self.next
    }

    /// Begins a request with these fields, as they are.
    pub(crate) fn headers<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        fields: &[(N, V)],
        flags: u8,
    ) -> u32 {
        let stream = self.stream();
        let frame = Frame::new(HEADERS, END_HEADERS | flags, stream, block(fields));
        self.send(&frame);
        stream
    }

    pub(crate) fn data(&mut self, stream: u32, data: impl AsRef<[u8]>, flags: u8) -> &mut Self {
        self.send(&Frame::new(DATA, flags, stream, data))
    }

    pub(crate) fn reset(&mut self, stream: u32, code: u32) -> &mut Self {
        self.send(&Frame::new(RST_STREAM, 0, stream, code.to_be_bytes()))
    }

    /// Sends a well-formed request.
    pub(crate) fn request(&mut self, request: &Request) -> u32 {
        let (fields, body) = request.for_http2();
        match body {
            Some(body) => {
                let stream = self.headers(&fields, 0);
                self.data(stream, body, END_STREAM);
                stream
            }
            None => self.headers(&fields, END_STREAM),
        }
    }

    /// Sends only the head of a well-formed request, with a Content-Length where one is given.
    pub(crate) fn begin(&mut self, request: &Request, length: Option<usize>) -> u32 {
        let (mut fields, _) = request.for_http2();
        fields.retain(|(name, _)| name != "content-length");
        if let Some(length) = length {
            fields.push(("content-length".to_owned(), length.to_string()));
        }
        self.headers(&fields, 0)
    }

    /// The whole response of a stream.
    #[track_caller]
    pub(crate) fn response(&mut self, stream: u32) -> Response {
        self.try_response(stream)
            .unwrap_or_else(|gone| panic!("expected a response on stream {stream}: {gone:?}"))
    }

    /// The same, or why there is none.
    pub(crate) fn try_response(&mut self, stream: u32) -> Result<Response, Gone> {
        loop {
            let incoming = self.streams.entry(stream).or_default();
            if incoming.whole {
                let mut response = incoming.response.take().unwrap();
                response.informational = std::mem::take(&mut incoming.informational);
                return Ok(response);
            }
            if let Some(code) = incoming.reset {
                return Err(Gone::Reset(code));
            }
            self.step().map_err(|ended| match self.away {
                Some(code) => Gone::Away(code),
                None => Gone::Ended(ended),
            })?;
        }
    }

    /// Waits until a response's head has come.
    pub(crate) fn head(&mut self, stream: u32) -> u16 {
        loop {
            let incoming = self.streams.entry(stream).or_default();
            if let Some(response) = &incoming.response {
                return response.status;
            }
            self.step().unwrap();
        }
    }

    /// Whether a reset of this stream has come so far.
    pub(crate) fn was_reset(&self, stream: u32) -> bool {
        let state = self.streams.get(&stream);
        state.is_some_and(|state| state.reset.is_some())
    }

    /// Waits for the reset of a stream.
    pub(crate) fn reset_code(&mut self, stream: u32) -> Result<u32, Gone> {
        loop {
            if let Some(code) = self.streams.entry(stream).or_default().reset {
                return Ok(code);
            }
            self.step().map_err(|ended| match self.away {
                Some(code) => Gone::Away(code),
                None => Gone::Ended(ended),
            })?;
        }
    }

    /// What of a response's body has come.
    pub(crate) fn received(&mut self, stream: u32) -> usize {
        let response = self.streams.entry(stream).or_default().response.as_ref();
        response.map_or(0, |response| response.body.len())
    }

    /// Waits for the end of the connection; says the code of the GOAWAY that came before, if one
    /// did.
    pub(crate) fn ended(&mut self) -> Option<u32> {
        loop {
            match self.step() {
                Ok(()) => {}
                Err(Ended::Silent) => panic!("the connection does not end"),
                Err(_) => return self.away,
            }
        }
    }

    /// Waits until a PING has come back: all that was sent before it has been read.
    pub(crate) fn sync(&mut self) -> Result<(), Ended> {
        self.send(&Frame::new(PING, 0, 0, b"in step?"));
        loop {
            let at = self.others.iter().position(|frame| {
                frame.kind == PING && frame.flags & ACK != 0 && frame.payload == b"in step?"
            });
            if let Some(at) = at {
                self.others.remove(at);
                return Ok(());
            }
            self.step()?;
        }
    }

    /// Waits for a GOAWAY.
    pub(crate) fn goaway(&mut self) -> u32 {
        loop {
            if let Some(code) = self.away {
                return code;
            }
            self.step().unwrap();
        }
    }

    /// Reads one frame and does what it asks for.
    pub(crate) fn step(&mut self) -> Result<(), Ended> {
        let frame = self.frame()?;
        let incoming = self.streams.entry(frame.stream).or_default();
        match frame.kind {
            HEADERS => {
                assert_ne!(frame.flags & END_HEADERS, 0, "responses here are short");
                let fields = self.decoder.decode(&frame.payload).unwrap();
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| (lossy(name), lossy(value)))
                    .collect();
                let status = fields.iter().find(|(name, _)| name == ":status");
                match (status, &mut incoming.response) {
                    (Some((_, status)), None) => {
                        let status: u16 = status.parse().unwrap();
                        if (100..200).contains(&status) {
                            incoming.informational.push(status);
                            return Ok(());
                        }
                        let head = Head {
                            line: format!("HTTP/2 {status}"),
                            fields,
                        };
                        incoming.response = Some(Response {
                            status,
                            head,
                            body: Vec::new(),
                            trailers: Vec::new(),
                            informational: Vec::new(),
                            broken: None,
                        });
                    }
                    (None, Some(response)) => response.trailers = fields,
                    other => panic!("a header block out of place: {other:?}"),
                }
                incoming.whole = frame.flags & END_STREAM != 0;
            }
            DATA => {
                let response = incoming.response.as_mut().expect("a head comes first");
                response.body.extend(&frame.payload);
                incoming.whole = frame.flags & END_STREAM != 0;
                let count = u32::try_from(frame.payload.len()).unwrap();
                if self.reads && count > 0 {
                    for stream in [0, frame.stream] {
                        let count = count.to_be_bytes();
                        self.send(&Frame::new(WINDOW_UPDATE, 0, stream, count));
                    }
                }
            }
            RST_STREAM => incoming.reset = Some(frame.word(0)),
            GOAWAY => {
                self.away = Some(frame.word(4));
                self.last_served = Some(frame.word(0));
            }
            SETTINGS if frame.flags & ACK == 0 => {
                self.send(&Frame::new(SETTINGS, ACK, 0, []));
                self.others.push_back(frame);
            }
            PING if frame.flags & ACK == 0 => {
                self.send(&Frame::new(PING, ACK, 0, &frame.payload));
            }
            _ => self.others.push_back(frame),
        }
        Ok(())
    }

    /// The next frame, whatever it is.
    pub(crate) fn frame(&mut self) -> Result<Frame, Ended> {
        let head = self.connection.take(9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        Ok(Frame {
            kind: head[3],
            flags: head[4],
            stream,
            payload: self.connection.take(length)?,
        })
    }
}
