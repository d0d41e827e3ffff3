//! What RFC 9113 and RFC 7541 demand of a server, case by case: the list is that of h2spec, in frames
//! written by hand.

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
    section: &'static str,
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

/// A head without the field of this name, and with others.
fn changed(client: &mut Http2, without: &str, more: &[(&str, &str)]) -> u32 {
    let mut fields = pseudo("GET", "/objects/42");
    fields.retain(|(name, _)| *name != without);
    fields.extend_from_slice(more);
    head(client, END_STREAM, &block(&fields))
}

macro_rules! cases {
    ($($section:literal, $what:literal, $want:expr, $run:expr;)*) => {
        vec![$(Case { section: $section, what: $what, want: $want, run: $run },)*]
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
        "3.4", "a GET", Fine, |c| head(c, END_STREAM, &get());
        "3.4", "a HEAD", Fine, |c| {
            let fields = block(&pseudo("HEAD", "/objects/42"));
            head(c, END_STREAM, &fields)
        };
        "3.4", "a PUT with a body", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, 0, stream, "da");
            frame(c, DATA, END_STREAM, stream, "ta");
            stream
        };
        "3.4", "a PUT with trailers", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, 0, stream, "data");
            let trailers = block(&[("x-test", "ok")]);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, trailers);
            stream
        };
        "4.1", "a frame of unknown type", Fine, |c| {
            frame(c, 0x16, 0, 0, "unknown!");
            head(c, END_STREAM, &get())
        };
        "4.1", "undefined flags", Fine, |c| { frame(c, PING, 0x16, 0, [0; 8]); 0 };
        "4.1", "the reserved bit", Fine, |c| { frame(c, PING, 0, 1 << 31, [0; 8]); 0 };
        "4.2", "DATA of 16,384 bytes", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM, stream, vec![0; 16_384]);
            stream
        };
        "4.2", "DATA of 16,385 bytes", Stream(&[FRAME_SIZE_ERROR]), |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM, stream, vec![0; 16_385]);
            stream
        };
        "4.2", "HEADERS of more than 16,384 bytes", Connection(&[FRAME_SIZE_ERROR]), |c| {
            let long = "x".repeat(17_000);
            head(c, END_STREAM, &with(&[("x-long", &long)]))
        };
        "4.3", "a header block that is none", Connection(&[COMPRESSION_ERROR]), |c| {
            head(c, END_STREAM, &[0x40, 0x01])
        };
        "4.3", "PRIORITY within a header block", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, END_STREAM, stream, get());
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 0, 1]);
            stream
        };
        "4.3", "HEADERS of another stream within a header block",
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
        "5.1", "idle: DATA", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, DATA, END_STREAM, 1, "x"); 1
        };
        "5.1", "idle: RST_STREAM", Connection(&[PROTOCOL_ERROR]), |c| {
            c.reset(1, CANCEL); 1
        };
        "5.1", "idle: WINDOW_UPDATE", Connection(&[PROTOCOL_ERROR]), |c| { update(c, 1, 100); 1 };
        "5.1", "idle: CONTINUATION", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, CONTINUATION, END_HEADERS, 1, get()); 1
        };
        "5.1", "idle: PRIORITY", Fine, |c| {
            frame(c, PRIORITY, 0, 1, [0, 0, 0, 0, 255]);
            head(c, END_STREAM, &get())
        };
        "5.1", "half-closed: DATA", Stream(&[STREAM_CLOSED]), |c| {
            let stream = half_closed(c);
            frame(c, DATA, END_STREAM, stream, "x");
            stream
        };
        "5.1", "half-closed: HEADERS", Stream(&[STREAM_CLOSED]), |c| {
            let stream = half_closed(c);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, get());
            stream
        };
        "5.1", "half-closed: CONTINUATION", Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = half_closed(c);
            frame(c, CONTINUATION, END_HEADERS, stream, get());
            stream
        };
        "5.1", "half-closed: WINDOW_UPDATE and PRIORITY", Fine, |c| {
            let stream = half_closed(c);
            update(c, stream, 100);
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 0, 1]);
            0
        };
        "5.1", "half-closed: RST_STREAM", Fine, |c| {
            let stream = half_closed(c);
            c.reset(stream, CANCEL);
            0
        };
        "5.1", "reset: DATA", Stream(&[STREAM_CLOSED]), |c| {
            let stream = reset(c);
            frame(c, DATA, END_STREAM, stream, "x");
            stream
        };
        "5.1", "reset: HEADERS", Stream(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = reset(c);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, get());
            stream
        };
        "5.1", "reset: CONTINUATION", Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = reset(c);
            frame(c, CONTINUATION, END_HEADERS, stream, get());
            stream
        };
        "5.1", "closed: DATA", Stream(&[STREAM_CLOSED]), |c| {
            let stream = closed(c);
            frame(c, DATA, END_STREAM, stream, "x");
            stream
        };
        "5.1", "closed: HEADERS", Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = closed(c);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, get());
            stream
        };
        "5.1", "closed: CONTINUATION", Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]), |c| {
            let stream = closed(c);
            frame(c, CONTINUATION, END_HEADERS, stream, get());
            stream
        };
        "5.1", "closed: PRIORITY", Fine, |c| {
            let stream = closed(c);
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 0, 1]);
            0
        };
        "5.1", "closed: WINDOW_UPDATE and RST_STREAM", Fine, |c| {
            let stream = closed(c);
            update(c, stream, 1);
            c.reset(stream, CANCEL);
            0
        };
        "5.1.1", "an even stream", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, HEADERS, END_STREAM | END_HEADERS, 2, get()); 2
        };
        "5.1.1", "a smaller stream than before", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, HEADERS, END_STREAM | END_HEADERS, 5, get());
            frame(c, HEADERS, END_STREAM | END_HEADERS, 3, get());
            3
        };
        "5.1.2", "more streams than allowed", Stream(&[REFUSED_STREAM, PROTOCOL_ERROR]), |c| {
            for _ in 0..100 {
                head(c, 0, &held());
            }
            head(c, 0, &held())
        };
        "5.3.1", "HEADERS that depend on themselves", Stream(&[PROTOCOL_ERROR]), |c| {
            let mut payload = vec![0, 0, 0, 1, 255];
            payload.extend(get());
            head(c, END_STREAM | WITH_PRIORITY, &payload)
        };
        "5.3.1", "PRIORITY that depends on itself", Stream(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 1, 255]);
            stream
        };
        "5.4.1", "a broken PING", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, PING, 0, 0, [0; 6]); 0
        };
        "5.5", "an extension within a header block", Connection(&[PROTOCOL_ERROR]), |c| {
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
        "6.1", "DATA on stream 0", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, DATA, END_STREAM, 0, "x"); 0
        };
        "6.1", "padded DATA", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM | PADDED, stream, b"\x05data\0\0\0\0\0");
            stream
        };
        "6.1", "more padding than payload in DATA", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &post());
            frame(c, DATA, END_STREAM | PADDED, stream, b"\x06data");
            stream
        };
        "6.2", "padded HEADERS", Fine, |c| {
            let mut payload = vec![3];
            payload.extend(get());
            payload.extend([0; 3]);
            head(c, END_STREAM | PADDED, &payload)
        };
        "6.2", "HEADERS with priority", Fine, |c| {
            let mut payload = vec![0x80, 0, 0, 0, 255];
            payload.extend(get());
            head(c, END_STREAM | WITH_PRIORITY, &payload)
        };
        "6.2", "padded HEADERS with priority", Fine, |c| {
            let mut payload = vec![2, 0, 0, 0, 0, 7];
            payload.extend(get());
            payload.extend([0; 2]);
            head(c, END_STREAM | PADDED | WITH_PRIORITY, &payload)
        };
        "6.2", "HEADERS on stream 0", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, HEADERS, END_STREAM | END_HEADERS, 0, get()); 0
        };
        "6.2", "more padding than payload in HEADERS", Connection(&[PROTOCOL_ERROR]), |c| {
            let mut payload = vec![255];
            payload.extend(&get()[..20]);
            head(c, END_STREAM | PADDED, &payload)
        };
        "6.3", "PRIORITY on stream 0", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, PRIORITY, 0, 0, [0, 0, 0, 0, 1]); 0
        };
        "6.3", "PRIORITY of another length", Stream(&[FRAME_SIZE_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, PRIORITY, 0, stream, [0, 0, 0, 1]);
            stream
        };
        "6.4", "RST_STREAM on stream 0", Connection(&[PROTOCOL_ERROR]), |c| { c.reset(0, CANCEL); 0 };
        "6.4", "RST_STREAM of another length", Connection(&[FRAME_SIZE_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, RST_STREAM, 0, stream, [0, 0, 0]);
            stream
        };
        "6.7", "a PING comes back", Fine, |_| 0;
        "6.7", "an acknowledged PING does not", Fine, |c| {
            frame(c, PING, ACK, 0, b"unasked!");
            c.sync().unwrap();
            let came = c.others.iter().any(|frame| frame.payload == b"unasked!");
            assert!(!came);
            0
        };
        "6.7", "PING on a stream", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, PING, 0, 1, [0; 8]); 0
        };
        "6.7", "PING of another length", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, PING, 0, 0, [0; 7]); 0
        };
        "6.8", "GOAWAY on a stream", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, GOAWAY, 0, 1, [0; 8]); 0
        };
        "6.8", "GOAWAY after which streams go on", Fine, |c| {
            let stream = head(c, 0, &post());
            frame(c, GOAWAY, 0, 0, [0; 8]);
            frame(c, DATA, END_STREAM, stream, "data");
            stream
        };
        "6.10", "two CONTINUATIONs", Fine, |c| {
            let stream = c.stream();
            let fields = get();
            frame(c, HEADERS, END_STREAM, stream, &fields[..10]);
            frame(c, CONTINUATION, 0, stream, &fields[10..20]);
            frame(c, CONTINUATION, END_HEADERS, stream, &fields[20..]);
            stream
        };
        "6.10", "CONTINUATION and then DATA", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, 0, stream, post());
            frame(c, CONTINUATION, 0, stream, block(&[("x-a", "b")]));
            frame(c, DATA, END_STREAM, stream, "data");
            stream
        };
        "6.10", "CONTINUATION on stream 0", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, END_STREAM, stream, get());
            frame(c, CONTINUATION, END_HEADERS, 0, []);
            stream
        };
        "6.10", "CONTINUATION of another stream", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, END_STREAM, stream, get());
            frame(c, CONTINUATION, END_HEADERS, stream + 2, []);
            stream
        };
        "6.10", "CONTINUATION after the block's end", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            stream
        };
        "6.10", "CONTINUATION after CONTINUATION that ended it",
        Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = c.stream();
            frame(c, HEADERS, 0, stream, held());
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            stream
        };
        "6.10", "CONTINUATION after DATA", Connection(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            frame(c, DATA, 0, stream, "x");
            frame(c, CONTINUATION, END_HEADERS, stream, []);
            stream
        };
        "7", "RST_STREAM with an unknown code", Fine, |c| {
            let stream = head(c, 0, &held());
            c.reset(stream, 0xff);
            0
        };
        "7", "GOAWAY with an unknown code", Fine, |c| {
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
        "6.5", "SETTINGS ACK with a payload", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, SETTINGS, ACK, 0, [0, 1, 0, 0, 0, 0]); 0
        };
        "6.5", "SETTINGS on a stream", Connection(&[PROTOCOL_ERROR]), |c| {
            frame(c, SETTINGS, 0, 1, [0, 3, 0, 0, 0, 100]); 0
        };
        "6.5", "SETTINGS of another length", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, SETTINGS, 0, 0, [0, 3, 0]); 0
        };
        "6.5.2", "ENABLE_PUSH of 2", Connection(&[PROTOCOL_ERROR]), |c| { setting(c, 2, 2); 0 };
        "6.5.2", "INITIAL_WINDOW_SIZE of 2^31", Connection(&[FLOW_CONTROL_ERROR]), |c| {
            setting(c, 4, 1 << 31); 0
        };
        "6.5.2", "MAX_FRAME_SIZE of 16,383", Connection(&[PROTOCOL_ERROR]), |c| {
            setting(c, 5, 16_383); 0
        };
        "6.5.2", "MAX_FRAME_SIZE of 2^24", Connection(&[PROTOCOL_ERROR]), |c| {
            setting(c, 5, 1 << 24); 0
        };
        "6.5.2", "an unknown setting", Fine, |c| { setting(c, 0xff, 1); 0 };
        "6.5.3", "the last of two values counts", Fine, |c| {
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
        "6.5.3", "SETTINGS are acknowledged", Fine, |c| {
            setting(c, 4, 100);
            c.sync().unwrap();
            let acks = c.others.iter();
            let acks = acks.filter(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0);
            assert_eq!(acks.count(), 2);
            0
        };
        "6.9", "WINDOW_UPDATE of 0 for the connection", Connection(&[PROTOCOL_ERROR]), |c| {
            update(c, 0, 0); 0
        };
        "6.9", "WINDOW_UPDATE of 0 for a stream", Stream(&[PROTOCOL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            update(c, stream, 0);
            stream
        };
        "6.9", "WINDOW_UPDATE of another length", Connection(&[FRAME_SIZE_ERROR]), |c| {
            frame(c, WINDOW_UPDATE, 0, 0, [0, 0, 1]); 0
        };
        "6.9.1", "a window of one byte", Fine, |c| {
            setting(c, 4, 1);
            c.reads = false;
            let stream = head(c, END_STREAM, &get());
            c.head(stream);
            c.sync().unwrap();
            assert_eq!(c.received(stream), 1);
            update(c, stream, 1);
            stream
        };
        "6.9.1", "more than 2^31-1 for the connection", Connection(&[FLOW_CONTROL_ERROR]), |c| {
            update(c, 0, 0x7fff_ffff);
            update(c, 0, 0x7fff_ffff);
            0
        };
        "6.9.1", "more than 2^31-1 for a stream", Stream(&[FLOW_CONTROL_ERROR]), |c| {
            let stream = head(c, 0, &held());
            update(c, stream, 0x7fff_ffff);
            update(c, stream, 0x7fff_ffff);
            stream
        };
        "6.9.2", "a window that opens after the request", Fine, |c| {
            setting(c, 4, 0);
            c.reads = false;
            let stream = head(c, END_STREAM, &get());
            c.head(stream);
            c.sync().unwrap();
            assert_eq!(c.received(stream), 0);
            setting(c, 4, 100);
            stream
        };
        "6.9.2", "a window below zero", Fine, |c| {
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
        "6.9.2", "settings that push a window beyond 2^31-1",
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
        "8.1", "a second head that ends nothing", BAD, |c| {
            let stream = head(c, 0, &held());
            frame(c, HEADERS, END_HEADERS, stream, block(&[("x-a", "b")]));
            stream
        };
        "8.2.1", "an upper-case name", BAD, |c| head(c, END_STREAM, &with(&[("X-Test", "ok")]));
        "8.3", "an unknown pseudo-header", BAD, |c| changed(c, "", &[(":test", "ok")]);
        "8.3", "a response's pseudo-header", BAD, |c| changed(c, "", &[(":status", "200")]);
        "8.3", "a pseudo-header in trailers", BAD, |c| {
            let stream = head(c, 0, &held());
            let trailers = block(&[(":method", "PUT")]);
            frame(c, HEADERS, END_STREAM | END_HEADERS, stream, trailers);
            stream
        };
        "8.3", "a pseudo-header after a field", BAD, |c| {
            changed(c, ":path", &[("x-test", "ok"), (":path", "/objects/42")])
        };
        "8.2.2", "a field of the connection", BAD, |c| {
            head(c, END_STREAM, &with(&[("connection", "keep-alive")]))
        };
        "8.2.2", "TE other than trailers", BAD, |c| {
            head(c, END_STREAM, &with(&[("te", "trailers, deflate")]))
        };
        "8.2.2", "TE: trailers", Fine, |c| head(c, END_STREAM, &with(&[("te", "trailers")]));
        "8.3.1", "an empty :path", BAD, |c| changed(c, ":path", &[(":path", "")]);
        "8.3.1", "no :method", BAD, |c| changed(c, ":method", &[]);
        "8.3.1", "no :scheme", BAD, |c| changed(c, ":scheme", &[]);
        "8.3.1", "no :path", BAD, |c| changed(c, ":path", &[]);
        "8.3.1", "two :method", BAD, |c| changed(c, "", &[(":method", "GET")]);
        "8.3.1", "two :scheme", BAD, |c| changed(c, "", &[(":scheme", "http")]);
        "8.3.1", "two :path", BAD, |c| changed(c, "", &[(":path", "/objects/42")]);
        "8.3.1", "two :authority", BAD, |c| changed(c, "", &[(":authority", "store.test")]);
        "8.1.1", "a length that is not that of DATA", BAD, |c| {
            let mut fields = held();
            fields.extend(block(&[("content-length", "1")]));
            let stream = head(c, 0, &fields);
            frame(c, DATA, END_STREAM, stream, "test");
            stream
        };
        "8.1.1", "a length that is not that of all DATA", BAD, |c| {
            let mut fields = held();
            fields.extend(block(&[("content-length", "1")]));
            let stream = head(c, 0, &fields);
            frame(c, DATA, 0, stream, "t");
            frame(c, DATA, END_STREAM, stream, "est");
            stream
        };
        "8.4", "PUSH_PROMISE from a client", Connection(&[PROTOCOL_ERROR]), |c| {
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
        "HPACK 2.3.3", "an index beyond the tables", BAD, |c| ends_with(c, &[0x80 | 70]);
        "HPACK 2.3.3", "a name beyond the tables", BAD, |c| {
            ends_with(c, &[0x40 | 0x3f, 0x07, 0x01, b'a'])
        };
        "HPACK 4.2", "a change of size at the end of a block", BAD, |c| ends_with(c, &[0x20]);
        "HPACK 4.2", "changes of size at the beginning", Fine, |c| {
            let mut fields = vec![0x20, 0x3f, 0xe1, 0x1f];
            fields.extend(get());
            head(c, END_STREAM, &fields)
        };
        "HPACK 5.2", "Huffman padding of more than 7 bits", BAD, |c| {
            ends_with(c, &[0, 1, b'a', 0x82, 0x1f, 0xff])
        };
        "HPACK 5.2", "Huffman padding of zeros", BAD, |c| ends_with(c, &[0, 1, b'a', 0x81, 0x18]);
        "HPACK 5.2", "Huffman's end of string within one", BAD, |c| {
            ends_with(c, &[0, 1, b'a', 0x84, 0xff, 0xff, 0xff, 0xff])
        };
        "HPACK 5.2", "a Huffman string", Fine, |c| {
            // The name is that of the static table, the value www.example.com.
            let mut fields = block(&[(":method", "GET"), (":path", "/objects/42")]);
            fields.push(0x86);
            fields.extend([0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90]);
            fields.extend([0xf4, 0xff]);
            head(c, END_STREAM, &fields)
        };
        "HPACK 6.1", "an index of 0", BAD, |c| ends_with(c, &[0x80]);
        "HPACK 6.1", "indexed fields", Fine, |c| {
            let mut fields = vec![0x82, 0x86];
            fields.extend(block(&[(":authority", "store.test"), (":path", "/objects/42")]));
            head(c, END_STREAM, &fields)
        };
        "HPACK 6.2.1", "a field that is put into the table, and taken from it", Fine, |c| {
            let first = ends_with(c, &[0x40, 3, b'x', b'-', b'a', 1, b'1']);
            c.response(first);
            ends_with(c, &[0x80 | 62])
        };
        "HPACK 6.2.3", "a field that is never indexed", Fine, |c| {
            ends_with(c, &[0x10, 3, b'x', b'-', b'a', 1, b'1'])
        };
        "HPACK 6.3", "a size above the one allowed", BAD, |c| {
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
                println!("{} {}: code {code}", case.section, case.what);
                other.push(case.what);
            }
            Ended::Wrong => {
                println!("{} {}: WRONG", case.section, case.what);
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
    let unknown: Vec<_> = other
        .iter()
        .filter(|what| !OTHER_CODES.contains(what))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    stage.assert_alive();
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
