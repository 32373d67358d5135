// SPDX-License-Identifier: Apache-2.0
//! As much of gRPC as a unary call without a schema takes
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use bytes::{BufMut, Bytes, BytesMut};
use hyper::HeaderMap;

/// The call's path: a service and its method.
pub const PATH: &str = "/culvert.demo.Lines/Ask";

/// The media type of requests and responses.
pub const MEDIA_TYPE: &str = "application/grpc";

/// The trailer that says how a call ended, or the header if nothing but that is said.
pub const STATUS: &str = "grpc-status";

/// It went well.
pub const OK: &str = "0";

/// Try again later.
pub const UNAVAILABLE: &str = "14";

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A message as it is sent.
pub fn frame(message: &str) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message.as_bytes());
    framed.freeze()
}

/// The message of a body that holds one.
pub fn message(body: &[u8]) -> Option<String> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix.get(1..)?.try_into().ok()?);
    let whole = prefix[0] == 0 && message.len() == length as usize;
    whole.then(|| String::from_utf8_lossy(message).into_owned())
}

/// Whether these are a gRPC request's or response's headers.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let media_type = headers.get(hyper::header::CONTENT_TYPE);
    media_type.is_some_and(|value| value.as_bytes().starts_with(MEDIA_TYPE.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_framed() {
        let framed = frame("hello");
        assert_eq!(&framed[..6], b"\0\0\0\0\x05h");
        assert_eq!(message(&framed).as_deref(), Some("hello"));
        assert_eq!(message(&framed[..9]), None);
        assert_eq!(message(b"\0\0"), None);
    }
}
