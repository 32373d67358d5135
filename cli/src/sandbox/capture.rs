// SPDX-License-Identifier: Apache-2.0
//! Watching every byte on a link, as `tcpdump` does, and searching it.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, UNIX_EPOCH},
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::Netns;

mod packet;
pub mod search;

pub use self::search::{Beginnings, Findings, Search};

/// How long a reader may not notice that it is to stop.
const TICK: Duration = Duration::from_millis(100);

/// Segmentation is left to the receiver of a veth: a frame may be longer than the link's MTU.
const LONGEST_FRAME: usize = 256 << 10;

/// What the kernel keeps for a reader that is late, in bytes.
const BUFFER: usize = 64 << 20;

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<io::Result<Findings>>,
}

/// Writes frames for `wireshark` (<https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>).
struct Pcap {
    file: BufWriter<File>,
}

// === impl Capture ===

impl Capture {
    /// Begins to capture on one interface of a namespace, or on all of them.
    pub fn start(
        netns: &Netns,
        interface: Option<&str>,
        pcap: Option<PathBuf>,
        search: Search,
    ) -> io::Result<Self> {
        let interface = interface.map(str::to_owned);
        let socket = netns.run(move || open(interface.as_deref()))?;
        let pcap = pcap.map(Pcap::create).transpose()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = thread::Builder::new().name("capture".into());
        let reader = reader.spawn(move || read(socket, pcap, search, &stopped))?;
        Ok(Self { stop, reader })
    }

    /// Ends the capture: what was found.
    pub fn stop(self) -> io::Result<Findings> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| Err(io::Error::other("the capture panicked"));
        self.reader.join().unwrap_or_else(panicked)
    }
}

/// A packet socket first takes from every interface, so it is made deaf until it is bound.
fn open(interface: Option<&str>) -> io::Result<Socket> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    force_receive_buffer(&socket)?;
    socket.set_read_timeout(Some(TICK))?;
    let index = match interface {
        Some(name) => nix::net::if_::if_nametoindex(name)?,
        None => 0,
    };
    bind(
        &socket,
        all,
        i32::try_from(index).map_err(io::Error::other)?,
    )?;
    Ok(socket)
}

fn force_receive_buffer(socket: &Socket) -> io::Result<()> {
    let size = BUFFER as libc::c_int;
    // SAFETY: the option takes one int, which lives until the call returns.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    nix::Error::result(set).map(drop).map_err(Into::into)
}

fn bind(socket: &Socket, protocol: u16, index: i32) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as u16;
    addr.sll_protocol = protocol;
    addr.sll_ifindex = index;
    let length = size_of_val(&addr) as libc::socklen_t;
    // SAFETY: the address is a sockaddr_ll of the length given, and lives until the call returns.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), length) };
    nix::Error::result(bound).map(drop).map_err(Into::into)
}

fn read(
    mut socket: Socket,
    mut pcap: Option<Pcap>,
    mut search: Search,
    stop: &AtomicBool,
) -> io::Result<Findings> {
    let mut frame = vec![0; LONGEST_FRAME];
    let mut stopping = false;
    loop {
        if !stopping && stop.load(Ordering::Relaxed) {
            // What the kernel keeps already is still to be read.
            socket.set_nonblocking(true)?;
            stopping = true;
        }
        let length = match socket.read(&mut frame) {
            Ok(length) => length,
            Err(error) if stopping && error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(error),
        };
        search.frame(&frame[..length]);
        if let Some(pcap) = &mut pcap {
            pcap.write(&frame[..length])?;
        }
    }
    if let Some(mut pcap) = pcap {
        pcap.file.flush()?;
    }
    Ok(search.finish(dropped(&socket)?))
}

/// ENETDOWN: an interface was removed.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
        || error.raw_os_error() == Some(libc::ENETDOWN)
}

/// How many frames the kernel had no room for: of those nothing is known.
fn dropped(socket: &Socket) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the value.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    nix::Error::result(got)?;
    Ok(stats.tp_drops)
}

// === impl Pcap ===

impl Pcap {
    fn create(path: PathBuf) -> io::Result<Self> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let mut file = BufWriter::new(File::create(path)?);
        let ethernet = 1_u32;
        for word in [
            0xa1b2_c3d4,
            0x0004_0002,
            0,
            0,
            LONGEST_FRAME as u32,
            ethernet,
        ] {
            file.write_all(&word.to_ne_bytes())?;
        }
        Ok(Self { file })
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        let length = frame.len() as u32;
        for word in [now.as_secs() as u32, now.subsec_micros(), length, length] {
            self.file.write_all(&word.to_ne_bytes())?;
        }
        self.file.write_all(frame)
    }
}

#[cfg(test)]
mod tests;
