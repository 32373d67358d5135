// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 frames by hand (RFC 9113), for clients and servers that break its rules.

use std::io::{self, Read, Write};

/// What a client begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (RFC 9113, section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags. `ACK` and `END_STREAM` are the same bit.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

/// Error codes (RFC 9113, section 7).
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// `:status: 200` in HPACK's static table (RFC 7541, appendix A).
pub const STATUS_200: &[u8] = &[0x88];

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block: literals without indexing and without Huffman's code.
pub fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(&mut block, name.as_bytes());
        string(&mut block, value);
    }
    block
}

/// RFC 7541, section 5.2.
fn string(block: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text.len();
    if rest < 127 {
        block.push(rest as u8);
    } else {
        block.push(127);
        rest -= 127;
        while rest >= 128 {
            block.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend(text);
}

/// Reads the next frame. None: the connection ended.
pub fn read(from: &mut dyn Read) -> io::Result<Option<Frame>> {
    let mut head = [0; 9];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let [a, b, c, kind, flags, s @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    from.read_exact(&mut payload)?;
    let stream = u32::from_be_bytes(s) & 0x7fff_ffff;
    Ok(Some(Frame {
        kind,
        flags,
        stream,
        payload,
    }))
}

// === impl Frame ===

impl Frame {
    /// A number in the payload, in its four bytes from `at` on.
    pub fn number(&self, at: usize) -> Option<u32> {
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Answers what has to be answered at once, as everybody does.
    pub fn acknowledge(&self, to: &mut dyn Write) -> io::Result<()> {
        match (self.kind, self.has(ACK)) {
            (SETTINGS, false) => to.write_all(&frame(SETTINGS, ACK, 0, &[])),
            (PING, false) => to.write_all(&frame(PING, ACK, 0, &self.payload)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() -> io::Result<()> {
        let bytes = [
            frame(HEADERS, 5, 3, &[7; 300]),
            frame(PING, 0, 0, b"12345678"),
        ]
        .concat();
        let mut from = &bytes[..];
        let first = read(&mut from)?;
        assert!(
            first.is_some_and(|f| f.stream == 3 && f.payload == [7; 300] && f.has(END_HEADERS))
        );
        let mut answer = Vec::new();
        let ping = read(&mut from)?;
        ping.map(|ping| ping.acknowledge(&mut answer)).transpose()?;
        assert_eq!(answer, frame(PING, ACK, 0, b"12345678"));
        assert_eq!(read(&mut from)?, None);
        Ok(())
    }

    #[test]
    fn long_strings_have_their_length_in_pieces() {
        assert_eq!(block(&[("a", b"b")]), [0, 1, b'a', 1, b'b']);
        let long = block(&[("a", &[b'x'; 1337 + 127])]);
        assert_eq!(long[..6], [0, 1, b'a', 127, 0xb9, 0x0a]);
    }
}
