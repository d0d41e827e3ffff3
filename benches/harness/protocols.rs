//! What the loads speak beside HTTP: gRPC with messages as they are, for etcd, and Redis's commands.
#![allow(dead_code, reason = "each load uses its own part of this module")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark fails by panicking"
)]

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Calls a method with a message, and gives the answer's.
pub(crate) async fn call(
    client: &mut tonic::client::Grpc<Channel>,
    path: &'static str,
    message: Bytes,
) -> Bytes {
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static(path);
    let answer = client.unary(Request::new(message), path, Raw).await;
    answer.unwrap().into_inner()
}

/// Messages as they are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

fn put_varint(into: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        into.put_u8(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    into.put_u8(u8::try_from(number).unwrap());
}

pub(crate) fn put_number(into: &mut BytesMut, field: u64, number: u64) {
    put_varint(into, field << 3);
    put_varint(into, number);
}

pub(crate) fn put_bytes(into: &mut BytesMut, field: u64, bytes: &[u8]) {
    put_varint(into, field << 3 | 2);
    put_varint(into, bytes.len() as u64);
    into.put(bytes);
}

/// A field of a protobuf message.
pub(crate) enum Field {
    Number(u64),
    Bytes(Bytes),
}

/// The fields of a message that has numbers and bytes alone.
pub(crate) struct Fields(pub(crate) Bytes);

impl Fields {
    fn varint(&mut self) -> u64 {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.0.get_u8();
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number;
            }
            shift += 7;
        }
    }
}

impl Iterator for Fields {
    type Item = (u64, Field);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let tag = self.varint();
        let field = match tag & 7 {
            0 => Field::Number(self.varint()),
            2 => {
                let length = usize::try_from(self.varint()).unwrap();
                Field::Bytes(self.0.split_to(length))
            }
            other => panic!("a field of the type {other}"),
        };
        Some((tag >> 3, field))
    }
}

/// A command of Redis, as it is sent.
pub(crate) fn command(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    text.into_bytes()
}
