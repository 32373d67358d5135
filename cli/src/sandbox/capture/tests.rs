// SPDX-License-Identifier: Apache-2.0
use std::net::{TcpListener, TcpStream};

use super::{
    packet::{Segment, segment},
    search::Peers,
    *,
};
use crate::sandbox::{links, netns};

/// An Ethernet frame with IPv4 and TCP, padded as short ones are.
fn frame(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((40 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([
        0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0,
    ]);
    frame.extend(payload);
    frame.resize(frame.len().max(60), b'#');
    frame
}

const SYN: u8 = 2;
const ACK: u8 = 16;

fn search(frames: &[Vec<u8>]) -> Findings {
    let mut search = Search::new(&["SECRET", "OTHER"]);
    for frame in frames {
        search.frame(frame);
    }
    search.finish(0)
}

#[test]
fn segments_are_read_without_padding() {
    let frame = frame(SYN, b"ab");
    let expected = Segment {
        from: ([10, 0, 0, 1], 40000).into(),
        to: ([10, 0, 0, 2], 80).into(),
        syn: true,
        payload: b"ab",
    };
    assert_eq!(segment(&frame), Some(expected));
    for length in 0..frame.len() {
        // None of them may panic.
        let _ = segment(&frame[..length]);
    }
}

#[test]
fn a_marker_is_found_within_and_across_segments() {
    let whole = search(&[frame(ACK, b"xxSECRETxx")]);
    assert_eq!(whole.found, [1, 0]);
    let split = search(&[frame(ACK, b"xxSEC"), frame(ACK, b"RETxx")]);
    assert_eq!(split.found, [1, 0]);
    let apart = search(&[frame(ACK, b"xxSEC"), frame(ACK, b"-RETxx")]);
    assert_eq!(apart.found, [0, 0]);
}

#[test]
fn streams_are_judged_by_their_first_bytes() {
    let tls = [
        frame(SYN, b""),
        frame(ACK, b""),
        frame(ACK, &[22, 3, 1, 0]),
        frame(ACK, b"x"),
    ];
    let plain = [frame(SYN, b""), frame(ACK, b"GET /")];
    let unknown = [frame(ACK, b"GET /")];
    let frames = [&unknown[..], &tls, &plain].concat();
    let (from, to) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let streams = search(&frames).streams;
    let beginnings = streams
        .get(&Peers { from, to })
        .copied()
        .unwrap_or_default();
    assert_eq!((beginnings.tls, beginnings.other), (1, 1));
}

#[test]
fn a_capture_sees_what_passes_on_an_interface() {
    let name = format!("cvt-{}-capture", std::process::id());
    let netns = Netns::create(&name).unwrap_or_else(|e| panic!("{e}"));
    let up = links::task(async |links| links.up("lo").await);
    links::inside(&netns, up).unwrap_or_else(|e| panic!("{e}"));
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let pcap = dir.path().join("lo.pcap");
    let search = Search::new(&["SECRET"]);
    let capture = Capture::start(&netns, Some("lo"), Some(pcap.clone()), search);
    let capture = capture.unwrap_or_else(|e| panic!("{e}"));
    let talked = netns.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        client.write_all(b"a SECRET line")?;
        let mut got = [0; 13];
        listener.accept()?.0.read_exact(&mut got)
    });
    assert!(talked.is_ok());
    let findings = capture.stop().unwrap_or_else(|e| panic!("{e}"));
    netns::remove(&name).unwrap_or_else(|e| panic!("{e}"));
    assert!(findings.found[0] >= 1, "{findings:?}");
    assert_eq!(findings.dropped, 0);
    let written = std::fs::read(pcap).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(&written[..4], 0xa1b2_c3d4_u32.to_ne_bytes());
    assert!(written.windows(6).any(|window| window == b"SECRET"));
}
