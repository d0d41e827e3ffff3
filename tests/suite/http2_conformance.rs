//! What RFC 9113 and RFC 7541 demand of a server, case by case: the list is that of h2spec, in frames
//! written by hand. Each case names those of h2spec that it is for, as `h2spec -S` does; h2spec counts the
//! sections of RFC 7540, which RFC 9113 has replaced.

use crate::common::http2::{
    ACK, CANCEL, COMPRESSION_ERROR, CONTINUATION, DATA, END_HEADERS, END_STREAM,
    FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, Frame, GOAWAY, Gone, HEADERS, Http2, PADDED, PING,
    PREFACE, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, REFUSED_STREAM, RST_STREAM, SETTINGS,
    STREAM_CLOSED, WINDOW_UPDATE, WITH_PRIORITY, block, pseudo,
};
use crate::common::{Next, Stage};

/// What must come of a case.
#[derive(Clone, Copy)]
enum Want {
    /// The stream that is returned gets its response; 0: a PING comes back.
    Fine,
    /// The stream is reset with one of these codes, or the connection is ended.
    Stream(&'static [u32]),
    /// The connection is ended with one of these codes.
    Connection(&'static [u32]),
}
use Want::{Connection, Fine, Stream};

struct Case {
    /// Which of h2spec's cases it is; none where it is one more.
    ids: &'static str,
    what: &'static str,
    want: Want,
    run: fn(&mut Http2) -> u32,
}

/// Cases that end as they must, told by PROTOCOL_ERROR where the standard names another code. It is
/// the codec's word for a frame of a wrong size, and for a header block that does not decode.
const OTHER_CODES: &[&str] = &[
    "a header block that is none",
    "half-closed: DATA",
    "half-closed: HEADERS",
    "a broken PING",
    "PRIORITY of another length",
    "RST_STREAM of another length",
    "PING of another length",
    "SETTINGS ACK with a payload",
    "SETTINGS of another length",
    "INITIAL_WINDOW_SIZE of 2^31",
    "WINDOW_UPDATE of another length",
    "an index beyond the tables",
    "a name beyond the tables",
    "a change of size at the end of a block",
    "Huffman padding of more than 7 bits",
    "Huffman padding of zeros",
    "Huffman's end of string within one",
    "an index of 0",
    "a size above the one allowed",
];

fn get() -> Vec<u8> {
    block(&pseudo("GET", "/objects/42"))
}

fn post() -> Vec<u8> {
    let mut fields = pseudo("PUT", "/objects/42");
    fields.push(("fencing-token", "1"));
    block(&fields)
}

/// A request that stays without an answer.
fn held() -> Vec<u8> {
    let mut fields = pseudo("GET", "/objects/42");
    fields.push(("x-tag", "held"));
    block(&fields)
}

fn frame(client: &mut Http2, kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) {
    client.send(&Frame::new(kind, flags, stream, payload));
}

/// Sends a head, with flags beside END_HEADERS.
fn head(client: &mut Http2, flags: u8, fields: &[u8]) -> u32 {
    let stream = client.stream();
    frame(client, HEADERS, END_HEADERS | flags, stream, fields);
    stream
}

fn with(more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = get();
    fields.extend(block(more));
    fields
}

/// A stream of which the request has ended and the response has not.
fn half_closed(client: &mut Http2) -> u32 {
    let stream = head(client, END_STREAM, &held());
    client.sync().unwrap();
    stream
}

/// A stream that the client has reset.
fn reset(client: &mut Http2) -> u32 {
    let stream = head(client, 0, &held());
    client.reset(stream, CANCEL);
    client.sync().unwrap();
    stream
}

/// A stream that has ended both ways.
fn closed(client: &mut Http2) -> u32 {
    let stream = head(client, END_STREAM, &get());
    client.response(stream);
    stream
}

fn setting(client: &mut Http2, id: u16, value: u32) {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    frame(client, SETTINGS, 0, 0, payload);
}

fn update(client: &mut Http2, stream: u32, increment: u32) {
    frame(client, WINDOW_UPDATE, 0, stream, increment.to_be_bytes());
}

/// A head that ends with these bytes.
fn ends_with(client: &mut Http2, bytes: &[u8]) -> u32 {
    let mut fields = get();
    fields.extend(bytes);
    head(client, END_STREAM, &fields)
}

/// A request after a PRIORITY frame of its stream, or of one that many above it.
fn prioritised(client: &mut Http2, above: u32, payload: [u8; 5]) -> u32 {
    let stream = client.next_stream() + above;
    frame(client, PRIORITY, 0, stream, payload);
    head(client, END_STREAM, &get())
}

/// The index of `user-agent` in the static table.
const USER_AGENT: u8 = 58;
/// `x-a`, in Huffman's code.
const HUFFMAN_NAME: &[u8] = &[0x83, 0xf2, 0xb0, 0xff];
/// `1`, in the same.
const HUFFMAN_VALUE: &[u8] = &[0x81, 0x0f];

/// A head without the field of this name, and with others.
fn changed(client: &mut Http2, without: &str, more: &[(&str, &str)]) -> u32 {
    let mut fields = pseudo("GET", "/objects/42");
    fields.retain(|(name, _)| *name != without);
    fields.extend_from_slice(more);
    head(client, END_STREAM, &block(&fields))
}

macro_rules! cases {
    ($($ids:literal, $what:literal, $want:expr, $run:expr;)*) => {
        vec![$(Case { ids: $ids, what: $what, want: $want, run: $run },)*]
    };
}

fn cases() -> Vec<Case> {
    let mut all = starting();
    all.extend(streams());
    all.extend(frames());
    all.extend(settings_and_windows());
    all.extend(messages());
    all.extend(compression());
    all
}

/// Sections 3 and 4.
fn starting() -> Vec<Case> {
    cases! {
        "generic/1/1 generic/3.2/1 generic/4/1 generic/5/8 http2/3.5/1", "a GET", Fine, |c| head(c, END_STREAM, &get());
        "generic/4/2", "a HEAD", Fine, |c| {
            let fields = block(&pseudo("HEAD", "/objects/42"));
            head(c, END_STREAM, &fields)
        };
        "generic/3.1/2 generic/4/3", "a PUT with a body", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, 0, stream, "da");
            frame(c, DATA, END_STREAM, stream, "ta");
            stream
        };
        "generic/4/4", "a PUT with trailers", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, 0, stream, "data");
            let trailers = block(&[("x-test", "ok")]);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, trailers);
            stream
        };
        "generic/3.1/1", "a PUT with a body in one piece", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM, stream, "data");
            stream
        };
        "http2/4.1/1 http2/5.5/1", "a frame of unknown type", Fine, |c| {
            frame(c, 0x16, 0, 0, "unknown!");
            head(c, END_STREAM, &get())
        };
        "http2/4.1/2", "undefined flags", Fine, |c| { frame(c, PING, 0x16, 0, [0; 8]); 0 };
        "http2/4.1/3", "the reserved bit", Fine, |c| { frame(c, PING, 0, 1 << 31, [0; 8]); 0 };
        "http2/4.2/1", "DATA of 16,384 bytes", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM, stream, vec![0; 16_384]);
            stream
        };
        "http2/4.2/2", "DATA of 16,385 bytes", Stream(&[FRAME_SIZE_ERROR]), |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM, stream, vec![0; 16_385]);
            stream
        };
        "http2/4.2/3", "HEADERS of more than 16,384 bytes", Connection(&[FRAME_SIZE_ERROR]), |c| {
            let long = "x".repeat(17_000);
            head(c, END_STREAM, &with(&[("x-long", &long)]))
        };
        "http2/4.3/1", "a header block that is none", Connection(&[COMPRESSION_ERROR]), |c| {
            head(c, END_STREAM, &[0x40, 0x01])
        };
        "http2/4.3/2 http2/6.2/1", "PRIORITY within a header block", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, END_STREAM, stream, get());
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 0, 1]);
            stream
        };
        "http2/4.3/3 http2/6.2/2", "HEADERS of another stream within a header block",
        Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, END_STREAM, stream, get());
            head(c, END_STREAM, &get())
        };
    }
}

/// Section 5.
fn streams() -> Vec<Case> {
    cases! {
        "http2/5.1/1", "idle: DATA", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, DATA, END_STREAM, 1, "x"); 1
        };
        "http2/5.1/2 http2/6.4/2", "idle: RST_STREAM", Connection(&[PROTOCOL_ERROR]), |c| {
            c.reset(1, CANCEL); 1
        };
        "http2/5.1/3", "idle: WINDOW_UPDATE", Connection(&[PROTOCOL_ERROR]), |c| { update(c, 1, 100); 1 };
        "http2/5.1/4", "idle: CONTINUATION", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, CONTINUATION, END_HEADERS, 1, get()); 1
        };
        "generic/2/1 generic/3.3/2", "idle: PRIORITY", Fine, |c| prioritised(c, 0, [0, 0, 0, 0, 255]);
        "generic/3.3/1", "idle: PRIORITY with the least weight", Fine, |c| {
            prioritised(c, 0, [0, 0, 0, 0, 0])
        };
        "generic/3.3/3", "idle: PRIORITY with a dependency", Fine, |c| {
            prioritised(c, 0, [0, 0, 0, 7, 255])
        };
        "generic/3.3/4", "idle: PRIORITY with an exclusive dependency", Fine, |c| {
            prioritised(c, 0, [0x80, 0, 0, 7, 255])
        };
        "generic/3.3/5", "idle: PRIORITY of a stream above the next", Fine, |c| {
            prioritised(c, 2, [0, 0, 0, 0, 255])
        };
        "http2/5.1/5 http2/6.1/2", "half-closed: DATA", Stream(&[STREAM_CLOSED]), |c| {
            let stream = half_closed(c);
            frame(c, DATA, END_STREAM, stream, "x");
            stream
        };
        "http2/5.1/6", "half-closed: HEADERS", Stream(&[STREAM_CLOSED]), |c| {
            let stream = half_closed(c);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, get());
            stream
        };
        "http2/5.1/7", "half-closed: CONTINUATION", Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = half_closed(c);
            frame(c, CONTINUATION, END_HEADERS, stream, get());
            stream
        };
        "generic/2/2 generic/2/3", "half-closed: WINDOW_UPDATE and PRIORITY", Fine, |c| {
            let stream = half_closed(c);
            update(c, stream, 100);
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 0, 1]);
            0
        };
        "generic/2/4 generic/3.4/1", "half-closed: RST_STREAM", Fine, |c| {
            let stream = half_closed(c);
            c.reset(stream, CANCEL);
            0
        };
        "http2/5.1/8", "reset: DATA", Stream(&[STREAM_CLOSED]), |c| {
            let stream = reset(c);
            frame(c, DATA, END_STREAM, stream, "x");
            stream
        };
        "http2/5.1/9", "reset: HEADERS", Stream(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = reset(c);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, get());
            stream
        };
        "http2/5.1/10", "reset: CONTINUATION", Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = reset(c);
            frame(c, CONTINUATION, END_HEADERS, stream, get());
            stream
        };
        "http2/5.1/11", "closed: DATA", Stream(&[STREAM_CLOSED]), |c| {
            let stream = closed(c);
            frame(c, DATA, END_STREAM, stream, "x");
            stream
        };
        "http2/5.1/12", "closed: HEADERS", Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = closed(c);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, get());
            stream
        };
        "http2/5.1/13", "closed: CONTINUATION", Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = closed(c);
            frame(c, CONTINUATION, END_HEADERS, stream, get());
            stream
        };
        "generic/2/5", "closed: PRIORITY", Fine, |c| {
            let stream = closed(c);
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 0, 1]);
            0
        };
        "", "closed: WINDOW_UPDATE and RST_STREAM", Fine, |c| {
            let stream = closed(c);
            update(c, stream, 1);
            c.reset(stream, CANCEL);
            0
        };
        "http2/5.1.1/1", "an even stream", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, HEADERS, END_STREAM | END_HEADERS, 2, get()); 2
        };
        "http2/5.1.1/2", "a smaller stream than before", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, HEADERS, END_STREAM | END_HEADERS, 5, get());
            frame(c, HEADERS, END_STREAM | END_HEADERS, 3, get());
            3
        };
        "http2/5.1.2/1", "more streams than allowed", Stream(&[REFUSED_STREAM, PROTOCOL_ERROR]), |c| {
            for _ in 0..100 {
                head(c, 0, &held());
            }
            head(c, 0, &held())
        };
        "http2/5.3.1/1", "HEADERS that depend on themselves", Stream(&[PROTOCOL_ERROR]), |c| {
            let mut payload = vec![0, 0, 0, 1, 255];
            payload.extend(get());
            head(c, END_STREAM | WITH_PRIORITY, &payload)
        };
        "http2/5.3.1/2", "PRIORITY that depends on itself", Stream(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 1, 255]);
            stream
        };
        "http2/5.4.1/1 http2/5.4.1/2", "a broken PING", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, PING, 0, 0, [0; 6]); 0
        };
        "http2/5.5/2", "an extension within a header block", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, END_STREAM, stream, get());
            frame(c, 0x16, 0, 0, "unknown!");
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            stream
        };
    }
}

/// Sections 6.1 to 6.4, 6.7, 6.8 and 6.10, and 7.
fn frames() -> Vec<Case> {
    cases! {
        "http2/6.1/1", "DATA on stream 0", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, DATA, END_STREAM, 0, "x"); 0
        };
        "generic/3.1/3", "padded DATA", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM | PADDED, stream, b"\x05data\0\0\0\0\0");
            stream
        };
        "http2/6.1/3", "more padding than payload in DATA", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM | PADDED, stream, b"\x06data");
            stream
        };
        "generic/3.2/2", "padded HEADERS", Fine, |c| {
            let mut payload = vec![3];
            payload.extend(get());
            payload.extend([0; 3]);
            head(c, END_STREAM | PADDED, &payload)
        };
        "generic/3.2/3", "HEADERS with priority", Fine, |c| {
            let mut payload = vec![0x80, 0, 0, 0, 255];
            payload.extend(get());
            head(c, END_STREAM | WITH_PRIORITY, &payload)
        };
        "", "padded HEADERS with priority", Fine, |c| {
            let mut payload = vec![2, 0, 0, 0, 0, 7];
            payload.extend(get());
            payload.extend([0; 2]);
            head(c, END_STREAM | PADDED | WITH_PRIORITY, &payload)
        };
        "http2/6.2/3", "HEADERS on stream 0", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, HEADERS, END_STREAM | END_HEADERS, 0, get()); 0
        };
        "http2/6.2/4", "more padding than payload in HEADERS", Connection(&[PROTOCOL_ERROR]), |c| {
            let mut payload = vec![255];
            payload.extend(&get()[..20]);
            head(c, END_STREAM | PADDED, &payload)
        };
        "http2/6.3/1", "PRIORITY on stream 0", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, PRIORITY, 0, 0, [0, 0, 0, 0, 1]); 0
        };
        "http2/6.3/2", "PRIORITY of another length", Stream(&[FRAME_SIZE_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 1]);
            stream
        };
        "http2/6.4/1", "RST_STREAM on stream 0", Connection(&[PROTOCOL_ERROR]), |c| { c.reset(0, CANCEL); 0 };
        "http2/6.4/3", "RST_STREAM of another length", Connection(&[FRAME_SIZE_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, RST_STREAM, 0, stream, [0, 0, 0]);
            stream
        };
        "generic/3.7/1 http2/6.7/1", "a PING comes back", Fine, |_| 0;
        "http2/6.7/2", "an acknowledged PING does not", Fine, |c| {
            frame(c, PING, ACK, 0, b"unasked!");
            c.sync().unwrap();
            let came = c.others.iter().any(|frame| frame.payload == b"unasked!");
            assert!(!came);
            0
        };
        "http2/6.7/3", "PING on a stream", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, PING, 0, 1, [0; 8]); 0
        };
        "http2/6.7/4", "PING of another length", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, PING, 0, 0, [0; 7]); 0
        };
        "http2/6.8/1", "GOAWAY on a stream", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, GOAWAY, 0, 1, [0; 8]); 0
        };
        "generic/3.8/1", "GOAWAY after which streams go on", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, GOAWAY, 0, 0, [0; 8]);
            frame(c, DATA, END_STREAM, stream, "data");
            stream
        };
        "generic/3.10/1", "one CONTINUATION", Fine, |c| {
            let stream = c.stream();
            let fields = get();
            frame(c, HEADERS, END_STREAM, stream, &fields[..10]);
            frame(c, CONTINUATION, END_HEADERS, stream, &fields[10..]);
            stream
        };
        "generic/3.10/2 http2/6.10/1", "two CONTINUATIONs", Fine, |c| {
            let stream = c.stream();
            let fields = get();
            frame(c, HEADERS, END_STREAM, stream, &fields[..10]);
            frame(c, CONTINUATION, 0, stream, &fields[10..20]);
            frame(c, CONTINUATION, END_HEADERS, stream, &fields[20..]);
            stream
        };
        "http2/6.10/2", "CONTINUATION and then DATA", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, 0, stream, post());
            frame(c, CONTINUATION, 0, stream, block(&[("x-a", "b")]));
            frame(c, DATA, END_STREAM, stream, "data");
            stream
        };
        "http2/6.10/3", "CONTINUATION on stream 0", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, END_STREAM, stream, get());
            frame(c, CONTINUATION, END_HEADERS, 0, []);
            stream
        };
        "", "CONTINUATION of another stream", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, END_STREAM, stream, get());
            frame(c, CONTINUATION, END_HEADERS, stream + 2, []);
            stream
        };
        "http2/6.10/4", "CONTINUATION after the block's end", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            stream
        };
        "http2/6.10/5", "CONTINUATION after CONTINUATION that ended it",
        Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, 0, stream, held());
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            stream
        };
        "http2/6.10/6", "CONTINUATION after DATA", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, DATA, 0, stream, "x");
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            stream
        };
        "http2/7/2", "RST_STREAM with an unknown code", Fine, |c| {
            let stream = head(c, 0, &held());
            c.reset(stream, 0xff);
            0
        };
        "http2/7/1", "GOAWAY with an unknown code", Fine, |c| {
            frame(c, GOAWAY, 0, 0, [0, 0, 0, 0, 0, 0, 0, 0xff]);
            // It may close at once, having nothing to do.
            c.send(&Frame::new(PING, 0, 0, [0; 8]));
            u32::MAX
        };
    }
}

/// Sections 6.5 and 6.9.
fn settings_and_windows() -> Vec<Case> {
    cases! {
        "http2/6.5/1", "SETTINGS ACK with a payload", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, SETTINGS, ACK, 0, [0, 1, 0, 0, 0, 0]); 0
        };
        "http2/6.5/2", "SETTINGS on a stream", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, SETTINGS, 0, 1, [0, 3, 0, 0, 0, 100]); 0
        };
        "http2/6.5/3", "SETTINGS of another length", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, SETTINGS, 0, 0, [0, 3, 0]); 0
        };
        "http2/6.5.2/1", "ENABLE_PUSH of 2", Connection(&[PROTOCOL_ERROR]), |c| { setting(c, 2, 2); 0 };
        "http2/6.5.2/2", "INITIAL_WINDOW_SIZE of 2^31", Connection(&[FLOW_CONTROL_ERROR]), |c| {
            setting(c, 4, 1 << 31); 0
        };
        "http2/6.5.2/3", "MAX_FRAME_SIZE of 16,383", Connection(&[PROTOCOL_ERROR]), |c| {
            setting(c, 5, 16_383); 0
        };
        "http2/6.5.2/4", "MAX_FRAME_SIZE of 2^24", Connection(&[PROTOCOL_ERROR]), |c| {
            setting(c, 5, 1 << 24); 0
        };
        "http2/6.5.2/5", "an unknown setting", Fine, |c| { setting(c, 0xff, 1); 0 };
        "http2/6.5.3/1", "the last of two values counts", Fine, |c| {
            let mut payload = vec![0, 4, 0, 0, 0, 100];
            payload.extend([0, 4, 0, 0, 0, 1]);
            frame(c, SETTINGS, 0, 0, payload);
            c.reads = false;
            let stream = head(c, END_STREAM, &get());
            c.head(stream);
            c.sync().unwrap();
            assert_eq!(c.received(stream), 1);
            update(c, stream, 1000);
            stream
        };
        "generic/3.5/1 http2/6.5.3/2", "SETTINGS are acknowledged", Fine, |c| {
            setting(c, 4, 100);
            c.sync().unwrap();
            let acks = c.others.iter();
            let acks = acks.filter(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0);
            assert_eq!(acks.count(), 2);
            0
        };
        "generic/3.9/1", "WINDOW_UPDATE for the connection", Fine, |c| {
            update(c, 0, 1);
            head(c, END_STREAM, &get())
        };
        "generic/3.9/2", "WINDOW_UPDATE for a stream", Fine, |c| {
            let stream = head(c, 0, &post());
            update(c, stream, 1);
            frame(c, DATA, END_STREAM, stream, "data");
            stream
        };
        "http2/6.9/1", "WINDOW_UPDATE of 0 for the connection", Connection(&[PROTOCOL_ERROR]), |c| {
            update(c, 0, 0); 0
        };
        "http2/6.9/2", "WINDOW_UPDATE of 0 for a stream", Stream(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            update(c, stream, 0);
            stream
        };
        "http2/6.9/3", "WINDOW_UPDATE of another length", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, WINDOW_UPDATE, 0, 0, [0, 0, 1]); 0
        };
        "http2/6.9.1/1", "a window of one byte", Fine, |c| {
            setting(c, 4, 1);
            c.reads = false;
            let stream = head(c, END_STREAM, &get());
            c.head(stream);
            c.sync().unwrap();
            assert_eq!(c.received(stream), 1);
            update(c, stream, 1);
            stream
        };
        "http2/6.9.1/2", "more than 2^31-1 for the connection", Connection(&[FLOW_CONTROL_ERROR]), |c| {
            update(c, 0, 0x7fff_ffff);
            update(c, 0, 0x7fff_ffff);
            0
        };
        "http2/6.9.1/3", "more than 2^31-1 for a stream", Stream(&[FLOW_CONTROL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            update(c, stream, 0x7fff_ffff);
            update(c, stream, 0x7fff_ffff);
            stream
        };
        "http2/6.9.2/1", "a window that opens after the request", Fine, |c| {
            setting(c, 4, 0);
            c.reads = false;
            let stream = head(c, END_STREAM, &get());
            c.head(stream);
            c.sync().unwrap();
            assert_eq!(c.received(stream), 0);
            setting(c, 4, 100);
            stream
        };
        "http2/6.9.2/2", "a window below zero", Fine, |c| {
            setting(c, 4, 1);
            c.reads = false;
            let stream = head(c, END_STREAM, &get());
            c.head(stream);
            c.sync().unwrap();
            setting(c, 4, 0);
            // It stands at -1 now.
            update(c, stream, 1);
            c.sync().unwrap();
            assert_eq!(c.received(stream), 1);
            update(c, stream, 1);
            stream
        };
        "http2/6.9.2/3", "settings that push a window beyond 2^31-1",
        Connection(&[FLOW_CONTROL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            update(c, stream, 0x7fff_0000);
            setting(c, 4, 0x7fff_ffff);
            stream
        };
    }
}

/// Section 8.
fn messages() -> Vec<Case> {
    const BAD: Want = Stream(&[PROTOCOL_ERROR]);
    cases! {
        "http2/8.1/1", "a second head that ends nothing", BAD, |c| {
            let stream = head(c, 0, &held());
            frame(c, HEADERS, END_HEADERS, stream, block(&[("x-a", "b")]));
            stream
        };
        "http2/8.1.2/1", "an upper-case name", BAD, |c| head(c, END_STREAM, &with(&[("X-Test", "ok")]));
        "http2/8.1.2.1/1", "an unknown pseudo-header", BAD, |c| changed(c, "", &[(":test", "ok")]);
        "http2/8.1.2.1/2", "a response's pseudo-header", BAD, |c| changed(c, "", &[(":status", "200")]);
        "http2/8.1.2.1/3", "a pseudo-header in trailers", BAD, |c| {
            let stream = head(c, 0, &held());
            let trailers = block(&[(":method", "PUT")]);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, trailers);
            stream
        };
        "http2/8.1.2.1/4", "a pseudo-header after a field", BAD, |c| {
            changed(c, ":path", &[("x-test", "ok"), (":path", "/objects/42")])
        };
        "http2/8.1.2.2/1", "a field of the connection", BAD, |c| {
            head(c, END_STREAM, &with(&[("connection", "keep-alive")]))
        };
        "http2/8.1.2.2/2", "TE other than trailers", BAD, |c| {
            head(c, END_STREAM, &with(&[("te", "trailers, deflate")]))
        };
        "", "TE: trailers", Fine, |c| head(c, END_STREAM, &with(&[("te", "trailers")]));
        "http2/8.1.2.3/1", "an empty :path", BAD, |c| changed(c, ":path", &[(":path", "")]);
        "http2/8.1.2.3/2", "no :method", BAD, |c| changed(c, ":method", &[]);
        "http2/8.1.2.3/3", "no :scheme", BAD, |c| changed(c, ":scheme", &[]);
        "http2/8.1.2.3/4", "no :path", BAD, |c| changed(c, ":path", &[]);
        "http2/8.1.2.3/5", "two :method", BAD, |c| changed(c, "", &[(":method", "GET")]);
        "http2/8.1.2.3/6", "two :scheme", BAD, |c| changed(c, "", &[(":scheme", "http")]);
        "http2/8.1.2.3/7", "two :path", BAD, |c| changed(c, "", &[(":path", "/objects/42")]);
        "", "two :authority", BAD, |c| changed(c, "", &[(":authority", "store.test")]);
        "http2/8.1.2.6/1", "a length that is not that of DATA", BAD, |c| {
            let mut fields = held();
            fields.extend(block(&[("content-length", "1")]));
            let stream = head(c, 0, &fields);
            frame(c, DATA, END_STREAM, stream, "test");
            stream
        };
        "http2/8.1.2.6/2", "a length that is not that of all DATA", BAD, |c| {
            let mut fields = held();
            fields.extend(block(&[("content-length", "1")]));
            let stream = head(c, 0, &fields);
            frame(c, DATA, 0, stream, "t");
            frame(c, DATA, END_STREAM, stream, "est");
            stream
        };
        "http2/8.2/1", "PUSH_PROMISE from a client", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            let mut payload = vec![0, 0, 0, 2];
            payload.extend(get());
            frame(c, PUSH_PROMISE, END_HEADERS, stream, payload);
            stream
        };
    }
}

/// RFC 7541.
fn compression() -> Vec<Case> {
    const BAD: Want = Connection(&[COMPRESSION_ERROR]);
    cases! {
        "hpack/2.3.3/1", "an index beyond the tables", BAD, |c| ends_with(c, &[0x80 | 70]);
        "hpack/2.3.3/2", "a name beyond the tables", BAD, |c| {
            ends_with(c, &[0x40 | 0x3f, 0x07, 0x01, b'a'])
        };
        "hpack/4.2/1", "a change of size at the end of a block", BAD, |c| ends_with(c, &[0x20]);
        "generic/5/15", "changes of size at the beginning", Fine, |c| {
            let mut fields = vec![0x20, 0x3f, 0xe1, 0x1f];
            fields.extend(get());
            head(c, END_STREAM, &fields)
        };
        "hpack/5.2/1", "Huffman padding of more than 7 bits", BAD, |c| {
            ends_with(c, &[0, 1, b'a', 0x82, 0x1f, 0xff])
        };
        "hpack/5.2/2", "Huffman padding of zeros", BAD, |c| ends_with(c, &[0, 1, b'a', 0x81, 0x18]);
        "hpack/5.2/3", "Huffman's end of string within one", BAD, |c| {
            ends_with(c, &[0, 1, b'a', 0x84, 0xff, 0xff, 0xff, 0xff])
        };
        "generic/5/3", "a Huffman string", Fine, |c| {
            // The name is that of the static table, the value www.example.com.
            let mut fields = block(&[(":method", "GET"), (":path", "/objects/42")]);
            fields.push(0x86);
            fields.extend([0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90]);
            fields.extend([0xf4, 0xff]);
            head(c, END_STREAM, &fields)
        };
        "hpack/6.1/1", "an index of 0", BAD, |c| ends_with(c, &[0x80]);
        "generic/5/1", "indexed fields", Fine, |c| {
            let mut fields = vec![0x82, 0x86];
            fields.extend(block(&[(":authority", "store.test"), (":path", "/objects/42")]));
            head(c, END_STREAM, &fields)
        };
        "generic/5/4", "a field that is put into the table, and taken from it", Fine, |c| {
            let first = ends_with(c, &[0x40, 3, b'x', b'-', b'a', 1, b'1']);
            c.response(first);
            ends_with(c, &[0x80 | 62])
        };
        "generic/5/12", "a field that is never indexed", Fine, |c| {
            ends_with(c, &[0x10, 3, b'x', b'-', b'a', 1, b'1'])
        };
        "generic/5/2", "put into the table, by an indexed name", Fine, |c| {
            ends_with(c, &[0x40 | USER_AGENT, 1, b'1'])
        };
        "generic/5/5", "put into the table, a new name in Huffman's code", Fine, |c| {
            ends_with(c, &[&[0x40][..], HUFFMAN_NAME, HUFFMAN_VALUE].concat())
        };
        "generic/5/6", "not indexed, by an indexed name", Fine, |c| {
            ends_with(c, &[0x0f, USER_AGENT - 15, 1, b'1'])
        };
        "generic/5/7", "not indexed, by an indexed name, in Huffman's code", Fine, |c| {
            ends_with(c, &[&[0x0f, USER_AGENT - 15], HUFFMAN_VALUE].concat())
        };
        "generic/5/9", "not indexed, a new name in Huffman's code", Fine, |c| {
            ends_with(c, &[&[0][..], HUFFMAN_NAME, HUFFMAN_VALUE].concat())
        };
        "generic/5/10", "never indexed, by an indexed name", Fine, |c| {
            ends_with(c, &[0x1f, USER_AGENT - 15, 1, b'1'])
        };
        "generic/5/11", "never indexed, by an indexed name, in Huffman's code", Fine, |c| {
            ends_with(c, &[&[0x1f, USER_AGENT - 15], HUFFMAN_VALUE].concat())
        };
        "generic/5/13", "never indexed, a new name in Huffman's code", Fine, |c| {
            ends_with(c, &[&[0x10][..], HUFFMAN_NAME, HUFFMAN_VALUE].concat())
        };
        "generic/5/14", "one change of size at the beginning", Fine, |c| {
            let mut fields = vec![0x3f, 0xe1, 0x1f];
            fields.extend(get());
            head(c, END_STREAM, &fields)
        };
        "hpack/6.3/1", "a size above the one allowed", BAD, |c| {
            let mut fields = vec![0x3f, 0xe2, 0x1f];
            fields.extend(get());
            head(c, END_STREAM, &fields)
        };
    }
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// As the standard has it.
    Right,
    /// As it must, told by another code.
    OtherCode(u32),
    /// Otherwise.
    Wrong,
}

fn judge(client: &mut Http2, stream: u32, want: Want) -> Ended {
    let by = |code: u32, codes: &[u32]| match codes.contains(&code) {
        true => Ended::Right,
        false => Ended::OtherCode(code),
    };
    match want {
        Fine if stream == u32::MAX => Ended::Right,
        Fine if stream == 0 => match client.sync() {
            Ok(()) => Ended::Right,
            Err(_) => Ended::Wrong,
        },
        Fine => match client.try_response(stream) {
            Ok(response) if response.status == 200 => Ended::Right,
            _ => Ended::Wrong,
        },
        Stream(codes) => match client.reset_code(stream) {
            Ok(code) | Err(Gone::Away(code)) => by(code, codes),
            // h2spec takes the end of the connection for any error.
            Err(Gone::Ended(crate::common::Ended::Closed | crate::common::Ended::Reset)) => {
                Ended::OtherCode(u32::MAX)
            }
            _ => Ended::Wrong,
        },
        Connection(codes) => match client.ended() {
            Some(code) => by(code, codes),
            None => Ended::OtherCode(u32::MAX),
        },
    }
}

#[test]
fn every_case_ends_as_the_standard_has_it() {
    let stage = Stage::new();
    stage.recorder.on("held", |exchange| {
        exchange.never()?;
        Ok(Next::Close)
    });
    let cases = cases();
    let mut right = 0;
    let mut other = Vec::new();
    let mut wrong = Vec::new();
    for case in &cases {
        let mut client = Http2::open(stage.http());
        client.sync().unwrap();
        let stream = (case.run)(&mut client);
        let ended = judge(&mut client, stream, case.want);
        match ended {
            Ended::Right => right += 1,
            Ended::OtherCode(code) => {
                println!("{} {}: code {code}", case.ids, case.what);
                assert_eq!(code, PROTOCOL_ERROR, "{}", case.what);
                other.push(case.what);
            }
            Ended::Wrong => {
                println!("{} {}: WRONG", case.ids, case.what);
                wrong.push(case.what);
            }
        }
    }
    println!(
        "{} cases: {right} as the standard has it, {} told by another code, {} wrong",
        cases.len(),
        other.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(other, OTHER_CODES);
    stage.assert_alive();
}

/// How many cases h2spec has in each section.
const H2SPEC: &[(&str, usize)] = &[
    ("generic/1", 1),
    ("generic/2", 5),
    ("generic/3.1", 3),
    ("generic/3.10", 2),
    ("generic/3.2", 3),
    ("generic/3.3", 5),
    ("generic/3.4", 1),
    ("generic/3.5", 1),
    ("generic/3.7", 1),
    ("generic/3.8", 1),
    ("generic/3.9", 2),
    ("generic/4", 4),
    ("generic/5", 15),
    ("http2/3.5", 2),
    ("http2/4.1", 3),
    ("http2/4.2", 3),
    ("http2/4.3", 3),
    ("http2/5.1", 13),
    ("http2/5.1.1", 2),
    ("http2/5.1.2", 1),
    ("http2/5.3.1", 2),
    ("http2/5.4.1", 2),
    ("http2/5.5", 2),
    ("http2/6.1", 3),
    ("http2/6.10", 6),
    ("http2/6.2", 4),
    ("http2/6.3", 2),
    ("http2/6.4", 3),
    ("http2/6.5", 3),
    ("http2/6.5.2", 5),
    ("http2/6.5.3", 2),
    ("http2/6.7", 4),
    ("http2/6.8", 1),
    ("http2/6.9", 3),
    ("http2/6.9.1", 3),
    ("http2/6.9.2", 3),
    ("http2/7", 2),
    ("http2/8.1", 1),
    ("http2/8.1.2", 1),
    ("http2/8.1.2.1", 4),
    ("http2/8.1.2.2", 2),
    ("http2/8.1.2.3", 7),
    ("http2/8.1.2.6", 2),
    ("http2/8.2", 1),
    ("hpack/2.3.3", 2),
    ("hpack/4.2", 1),
    ("hpack/5.2", 3),
    ("hpack/6.1", 1),
    ("hpack/6.3", 1),
];

/// The case of h2spec that is a test of its own, below.
const PREFACE_THAT_IS_NONE: &str = "http2/3.5/2";

#[test]
fn every_case_of_h2spec_is_here_once() {
    let cases = cases();
    let mut here: Vec<&str> = cases.iter().flat_map(|case| case.ids.split(' ')).collect();
    here.retain(|id| !id.is_empty());
    here.push(PREFACE_THAT_IS_NONE);
    here.sort_unstable();
    let mut all: Vec<String> = H2SPEC
        .iter()
        .flat_map(|(section, count)| (1..=*count).map(move |n| format!("{section}/{n}")))
        .collect();
    all.sort_unstable();
    assert_eq!(here, all);
}

#[test]
fn the_huffman_codes_of_the_cases_are_right() {
    let block = [&[0][..], HUFFMAN_NAME, HUFFMAN_VALUE].concat();
    let decoded = loona_hpack::Decoder::new().decode(&block).unwrap();
    assert_eq!(decoded, [(b"x-a"[..].into(), b"1"[..].into())]);
}

// 3.4
#[test]
fn a_preface_that_is_none_gets_no_http2() {
    let stage = Stage::new();
    for bytes in [
        &b"INVALID CONNECTION PREFACE\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ] {
        let mut client = Http2::silent(stage.http());
        client.send_bytes(bytes);
        let ended = client.connection.ended();
        assert_ne!(ended, crate::common::Ended::Silent);
    }
    let mut client = Http2::silent(stage.http());
    client.send_bytes(PREFACE);
    // The first frame has to be SETTINGS.
    client.send(&Frame::new(PING, 0, 0, [0; 8]));
    let _ = client.step();
    stage.assert_alive();
}
