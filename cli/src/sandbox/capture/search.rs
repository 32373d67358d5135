// SPDX-License-Identifier: Apache-2.0
//! What is looked for in captured frames.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;

use super::packet::{Segment, segment};

/// The content type of a TLS handshake record, and the major version of every TLS
/// (<https://www.rfc-editor.org/rfc/rfc8446#section-5.1>).
const TLS_HANDSHAKE: [u8; 2] = [22, 3];

/// Looks for markers in every frame, and at how every TCP stream begins.
#[derive(Debug)]
pub struct Search {
    markers: Vec<Vec<u8>>,
    streams: HashMap<(SocketAddr, SocketAddr), Stream>,
    findings: Findings,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// How many frames were seen.
    pub frames: u64,
    /// How many bytes they had.
    pub bytes: u64,
    /// How many frames the kernel had no room for.
    pub dropped: u32,
    /// In how many frames, or across how many segments, each marker was.
    pub found: Vec<u64>,
    /// How the streams began that were seen from their SYN.
    pub streams: BTreeMap<Peers, Beginnings>,
}

/// The addresses of the two ends of one direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peers {
    /// From whom.
    pub from: IpAddr,
    /// To whom.
    pub to: IpAddr,
}

/// How streams began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Beginnings {
    /// With a TLS handshake.
    pub tls: u64,
    /// With anything else.
    pub other: u64,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Stream {
    /// The end of what was last seen: a marker may be in two segments.
    tail: Vec<u8>,
    /// The first bytes are still to come.
    fresh: bool,
}

// === impl Search ===

impl Search {
    /// Looks for these.
    pub fn new(markers: &[&str]) -> Self {
        let markers: Vec<_> = markers
            .iter()
            .map(|marker| marker.as_bytes().to_vec())
            .collect();
        let found = vec![0; markers.len()];
        Self {
            markers,
            streams: HashMap::new(),
            findings: Findings {
                found,
                ..Findings::default()
            },
        }
    }

    /// Looks at a frame.
    pub fn frame(&mut self, frame: &[u8]) {
        self.findings.frames += 1;
        self.findings.bytes += frame.len() as u64;
        let segment = segment(frame);
        let joined = segment
            .map(|segment| self.follow(&segment))
            .unwrap_or_default();
        for (marker, found) in self.markers.iter().zip(&mut self.findings.found) {
            *found += u64::from(contains(frame, marker) || contains(&joined, marker));
        }
    }

    /// The bytes around the seam with the segment before.
    fn follow(&mut self, segment: &Segment<'_>) -> Vec<u8> {
        let stream = self.streams.entry((segment.from, segment.to)).or_default();
        if segment.syn {
            *stream = Stream {
                fresh: true,
                ..Stream::default()
            };
        }
        if segment.payload.is_empty() {
            return Vec::new();
        }
        if std::mem::take(&mut stream.fresh) {
            let peers = Peers {
                from: segment.from.ip(),
                to: segment.to.ip(),
            };
            let beginnings = self.findings.streams.entry(peers).or_default();
            match segment.payload.starts_with(&TLS_HANDSHAKE) {
                true => beginnings.tls += 1,
                false => beginnings.other += 1,
            }
        }
        let seam = self.markers.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let mut joined = std::mem::take(&mut stream.tail);
        joined.extend(segment.payload.iter().take(seam));
        let end = segment.payload.len().saturating_sub(seam);
        stream.tail = segment.payload[end..].to_vec();
        joined
    }

    /// Ends the search.
    pub fn finish(mut self, dropped: u32) -> Findings {
        self.findings.dropped = dropped;
        self.findings
    }
}

fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    let Some((first, rest)) = marker.split_first() else {
        return false;
    };
    let mut starts = bytes.iter().enumerate().filter(|(_, byte)| *byte == first);
    starts.any(|(at, _)| bytes[at + 1..].starts_with(rest))
}
