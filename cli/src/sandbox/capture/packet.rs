// SPDX-License-Identifier: Apache-2.0
//! TCP segments in Ethernet frames.

use std::net::{IpAddr, SocketAddr};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const SYN: u8 = 0x02;

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// From whom.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// Whether it opens its direction.
    pub syn: bool,
    /// What it carries.
    pub payload: &'a [u8],
}

/// The segment in a frame, if there is a whole one.
pub fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = frame.get(14..)?;
    match u16::from_be_bytes(bytes(frame, 12)?) {
        IPV4 => ipv4(packet),
        IPV6 => ipv6(packet),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<Segment<'_>> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes(bytes(packet, 2)?));
    if *packet.get(9)? != TCP {
        return None;
    }
    let addr = |at| bytes::<4>(packet, at).map(IpAddr::from);
    tcp(addr(12)?, addr(16)?, body(packet, header, total)?)
}

/// Without extension headers: between pods there are none.
fn ipv6(packet: &[u8]) -> Option<Segment<'_>> {
    let length = usize::from(u16::from_be_bytes(bytes(packet, 4)?));
    if *packet.get(6)? != TCP {
        return None;
    }
    let addr = |at| bytes::<16>(packet, at).map(IpAddr::from);
    let total = if length == 0 { 0 } else { 40 + length };
    tcp(addr(8)?, addr(24)?, body(packet, 40, total)?)
}

/// Frames are padded; a length of 0 is that of one longer than it could say.
fn body(packet: &[u8], header: usize, total: usize) -> Option<&[u8]> {
    let end = if total == 0 {
        packet.len()
    } else {
        total.min(packet.len())
    };
    packet.get(header..end)
}

fn tcp(from: IpAddr, to: IpAddr, segment: &[u8]) -> Option<Segment<'_>> {
    let port = |at| bytes(segment, at).map(u16::from_be_bytes);
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Segment {
        from: (from, port(0)?).into(),
        to: (to, port(2)?).into(),
        syn: segment.get(13)? & SYN != 0,
        payload: segment.get(header..)?,
    })
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}
