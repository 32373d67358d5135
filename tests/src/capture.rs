// SPDX-License-Identifier: Apache-2.0
//! What passes through a network namespace, captured by AF_PACKET on all of its interfaces.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{anyhow, ensure};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

const TICK: Duration = Duration::from_millis(50);
const RECEIVE_BUFFER: usize = 32 << 20;
const ETHERNET: usize = 14;

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Vec<Vec<u8>>>>,
}

/// What was captured.
#[derive(Debug)]
pub struct Captured {
    packets: Vec<Vec<u8>>,
}

/// One direction of one TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Who sent.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

struct Segment<'a> {
    flow: Flow,
    sequence: u32,
    payload: &'a [u8],
}

// === impl Capture ===

impl Capture {
    /// Starts in a namespace; returns when packets are being taken.
    pub fn start(netns: &Netns) -> anyhow::Result<Self> {
        let socket = netns.run(|| Ok(open()?))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = netns.spawn(move || take(socket, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends when no packet has come for a moment.
    pub fn stop(self) -> anyhow::Result<Captured> {
        self.stop.store(true, Ordering::Relaxed);
        let packets = self
            .thread
            .join()
            .map_err(|_| anyhow!("the capture panicked"))??;
        Ok(Captured { packets })
    }
}

fn open() -> io::Result<Socket> {
    let all = i32::from((libc::ETH_P_ALL as u16).to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

fn take(mut socket: Socket, stop: &AtomicBool) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match socket.read(&mut buffer) {
            Ok(n) => packets.push(buffer[..n].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(packets);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

// === impl Captured ===

impl Captured {
    /// How many packets hold these bytes.
    pub fn count(&self, bytes: &[u8]) -> usize {
        let holds = |packet: &&Vec<u8>| packet.windows(bytes.len()).any(|window| window == bytes);
        self.packets.iter().filter(holds).count()
    }

    /// The bytes that each flow from or to a port of an address carried, as far as they are whole.
    pub fn streams(&self, ip: IpAddr, port: u16) -> BTreeMap<Flow, Vec<u8>> {
        let server = SocketAddr::new(ip, port);
        let mut segments: BTreeMap<Flow, BTreeMap<u32, &[u8]>> = BTreeMap::new();
        for segment in self.packets.iter().filter_map(|packet| segment(packet)) {
            if segment.flow.from == server || segment.flow.to == server {
                let flow = segments.entry(segment.flow).or_default();
                flow.insert(segment.sequence, segment.payload);
            }
        }
        let whole = segments
            .into_iter()
            .map(|(flow, segments)| (flow, join(segments)));
        whole.filter(|(_, bytes)| !bytes.is_empty()).collect()
    }

    /// Fails unless everything from and to a port of an address was TLS records, and some was.
    pub fn tls_only(&self, ip: IpAddr, port: u16) -> anyhow::Result<()> {
        let streams = self.streams(ip, port);
        ensure!(!streams.is_empty(), "nothing to {ip}:{port} was captured");
        for (flow, bytes) in streams {
            let begin = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            ensure!(is_tls(&bytes), "{flow:?} is not TLS: {begin:?}");
        }
        Ok(())
    }
}

/// Captured on several interfaces, a segment comes several times. Sequence numbers of one
/// connection of a test are too close to wrap, but they may start anywhere.
fn join(segments: BTreeMap<u32, &[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = None;
    for (sequence, payload) in segments {
        if next.is_some_and(|next| next != sequence) {
            break;
        }
        bytes.extend_from_slice(payload);
        next = Some(sequence.wrapping_add(u32::try_from(payload.len()).unwrap_or(0)));
    }
    bytes
}

fn segment(packet: &[u8]) -> Option<Segment<'_>> {
    let ip = packet.get(ETHERNET..)?;
    let is_ipv4_tcp = packet.get(12..14)? == [8, 0] && *ip.get(9)? == 6;
    if !is_ipv4_tcp {
        return None;
    }
    let total = usize::from(u16_at(ip, 2)?);
    let tcp = ip.get(usize::from(ip[0] & 15) * 4..total)?;
    let payload = tcp.get(usize::from(*tcp.get(12)? >> 4) * 4..)?;
    let addr = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    let flow = Flow {
        from: SocketAddr::new(addr(12)?, u16_at(tcp, 0)?),
        to: SocketAddr::new(addr(16)?, u16_at(tcp, 2)?),
    };
    let sequence = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
    (!payload.is_empty()).then_some(Segment {
        flow,
        sequence,
        payload,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Records of the types 20 to 23 and versions 3.x, one after the other; the last may be cut.
fn is_tls(mut bytes: &[u8]) -> bool {
    while let [kind, major, _, high, low, rest @ ..] = bytes {
        if !(20..=23).contains(kind) || *major != 3 {
            return false;
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        bytes = rest.get(length..).unwrap_or_default();
    }
    bytes.first().is_none_or(|kind| (20..=23).contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_from_plaintext() {
        assert!(is_tls(&[22, 3, 1, 0, 2, 9, 9, 23, 3, 3, 0, 9, 1]));
        assert!(!is_tls(b"GET / HTTP/1.1\r\n"));
        assert!(!is_tls(&[
            22, 3, 1, 0, 2, 9, 9, b'G', b'E', b'T', b' ', b'/', b' '
        ]));
    }

    #[test]
    fn a_gap_ends_a_stream() {
        let segments = BTreeMap::from([(10, &b"abc"[..]), (13, b"de"), (20, b"x")]);
        assert_eq!(join(segments), b"abcde");
    }
}
