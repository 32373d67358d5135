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
        Self::only(netns, b"")
    }

    /// Keeps the packets that hold these bytes only, so that it may take long.
    pub fn only(netns: &Netns, bytes: &[u8]) -> anyhow::Result<Self> {
        let socket = netns.run(|| Ok(open()?))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, wanted) = (Arc::clone(&stop), bytes.to_owned());
        let thread = netns.spawn(move || take(socket, &stopped, &wanted))?;
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

fn take(mut socket: Socket, stop: &AtomicBool, wanted: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match socket.read(&mut buffer) {
            Ok(n) if holds(&buffer[..n], wanted) => packets.push(buffer[..n].to_vec()),
            Ok(_) => {}
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
        let of = |packet: &&Vec<u8>| holds(packet, bytes);
        self.packets.iter().filter(of).count()
    }

    /// Only what an address sent or was sent by TCP over IPv4: the kubelet's probes are not.
    pub fn of(mut self, peer: IpAddr) -> Self {
        self.packets.retain(|packet| {
            let flow = segment(packet).map(|segment| segment.flow);
            flow.is_some_and(|flow| flow.from.ip() == peer || flow.to.ip() == peer)
        });
        self
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

fn holds(packet: &[u8], bytes: &[u8]) -> bool {
    bytes.is_empty() || packet.windows(bytes.len()).any(|window| window == bytes)
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

/// Without IPv6's extension headers: between pods there are none.
fn segment(packet: &[u8]) -> Option<Segment<'_>> {
    const TCP: u8 = 6;
    let ip = packet.get(ETHERNET..)?;
    match packet.get(12..14)? {
        [0x08, 0x00] if *ip.get(9)? == TCP => {
            let total = usize::from(u16_at(ip, 2)?);
            let addr = |at| Some(IpAddr::from(bytes_at::<4>(ip, at)?));
            let tcp = ip.get(usize::from(ip[0] & 15) * 4..total)?;
            payload(tcp, addr(12)?, addr(16)?)
        }
        [0x86, 0xdd] if *ip.get(6)? == TCP => {
            let total = 40 + usize::from(u16_at(ip, 4)?);
            let addr = |at| Some(IpAddr::from(bytes_at::<16>(ip, at)?));
            payload(ip.get(40..total)?, addr(8)?, addr(24)?)
        }
        _ => None,
    }
}

fn payload(tcp: &[u8], from: IpAddr, to: IpAddr) -> Option<Segment<'_>> {
    let payload = tcp.get(usize::from(*tcp.get(12)? >> 4) * 4..)?;
    let flow = Flow {
        from: SocketAddr::new(from, u16_at(tcp, 0)?),
        to: SocketAddr::new(to, u16_at(tcp, 2)?),
    };
    let sequence = u32::from_be_bytes(bytes_at(tcp, 4)?);
    (!payload.is_empty()).then_some(Segment {
        flow,
        sequence,
        payload,
    })
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes_at(bytes, at)?))
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
