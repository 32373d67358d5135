// SPDX-License-Identifier: Apache-2.0
//! io_uring(7), as little of it as one connection needs: one request at a time.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{errno::Errno, libc};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Called;

/// Of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/io_uring.h#L255>.
const ACCEPT: u8 = 13;
const CONNECT: u8 = 16;
const SEND: u8 = 26;
const RECEIVE: u8 = 27;

const ENTRIES: u32 = 4;
const GET_EVENTS: libc::c_uint = 1;
const OFF_RINGS: libc::off_t = 0;
const OFF_ENTRIES: libc::off_t = 0x1000_0000;
/// Room for both rings of four entries.
const RINGS: usize = 4096;

/// `struct io_uring_params` up to what is used here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Params {
    head: [u32; 10],
    submit: [u32; 10],
    complete: [u32; 10],
}

/// `struct io_uring_sqe`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    operation_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}

/// A ring. Its memory is unmapped when it is dropped.
struct Ring {
    fd: OwnedFd,
    params: Params,
    rings: *mut u8,
    entries: *mut Entry,
}

/// Connects, sends and receives.
pub(super) fn client(target: SocketAddr, to: &mut Called) -> io::Result<()> {
    let mut ring = to.note("io_uring_setup", Ring::new())?;
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    let addr = SockAddr::from(target);
    to.note("connect", ring.connect(socket.as_fd(), &addr))?;
    let mut back = *b"ping";
    to.note("send", ring.transfer(SEND, socket.as_fd(), &mut back))?;
    back.fill(0);
    to.note("receive", ring.transfer(RECEIVE, socket.as_fd(), &mut back))?;
    to.say("received", &String::from_utf8_lossy(&back));
    Ok(())
}

/// Accepts one connection after the other and sends back what comes.
pub(crate) fn serve(listener: &impl AsFd) -> io::Result<()> {
    let mut ring = Ring::new()?;
    loop {
        let stream = ring.accept(listener.as_fd())?;
        let mut chunk = [0; 4096];
        loop {
            match ring.transfer(RECEIVE, stream.as_fd(), &mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    let n = usize::try_from(n).unwrap_or(0);
                    ring.transfer(SEND, stream.as_fd(), chunk.get_mut(..n).unwrap_or_default())?;
                }
            }
        }
    }
}

// === impl Ring ===

impl Ring {
    fn new() -> io::Result<Self> {
        let mut params = Params::default();
        // SAFETY: the kernel fills in the 120 bytes that the structure has.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut params) };
        let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
        // SAFETY: the kernel just made this descriptor and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let rings = map(&fd, RINGS, OFF_RINGS)?;
        let entries = map(&fd, ENTRIES as usize * size_of::<Entry>(), OFF_ENTRIES)?;
        Ok(Self {
            fd,
            params,
            rings,
            entries: entries.cast(),
        })
    }

    fn connect(&mut self, fd: BorrowedFd<'_>, to: &SockAddr) -> io::Result<i32> {
        self.call(Entry {
            opcode: CONNECT,
            fd: fd.as_raw_fd(),
            address: to.as_ptr() as u64,
            offset: u64::from(to.len()),
            ..Entry::default()
        })
    }

    fn accept(&mut self, fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let accepted = self.call(Entry {
            opcode: ACCEPT,
            fd: fd.as_raw_fd(),
            ..Entry::default()
        })?;
        // SAFETY: the kernel just made this descriptor and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
    }

    fn transfer(&mut self, opcode: u8, fd: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<i32> {
        self.call(Entry {
            opcode,
            fd: fd.as_raw_fd(),
            address: bytes.as_mut_ptr() as u64,
            length: u32::try_from(bytes.len()).map_err(io::Error::other)?,
            ..Entry::default()
        })
    }

    /// Submits one request and waits for it: what it points to outlives it.
    fn call(&mut self, entry: Entry) -> io::Result<i32> {
        let [_, submit_tail, submit_mask, _, _, _, submit_array, ..] = self.params.submit;
        let [complete_head, _, complete_mask, _, _, completions, ..] = self.params.complete;
        let tail = self.word(submit_tail).load(Ordering::Acquire);
        let slot = tail & self.word(submit_mask).load(Ordering::Relaxed);
        // SAFETY: the mask keeps the slot among the entries.
        unsafe { self.entries.add(slot as usize).write(entry) };
        self.word(submit_array + slot * 4)
            .store(slot, Ordering::Relaxed);
        self.word(submit_tail)
            .store(tail.wrapping_add(1), Ordering::Release);
        self.enter()?;
        let head = self.word(complete_head).load(Ordering::Acquire);
        let at = completions + (head & self.word(complete_mask).load(Ordering::Relaxed)) * 16;
        // The result is behind the eight bytes of user data.
        let result = self.word(at + 8).load(Ordering::Acquire).cast_signed();
        self.word(complete_head)
            .store(head.wrapping_add(1), Ordering::Release);
        match result {
            ..0 => Err(io::Error::from_raw_os_error(-result)),
            _ => Ok(result),
        }
    }

    fn enter(&self) -> io::Result<()> {
        let none = ptr::null::<libc::sigset_t>();
        // SAFETY: takes numbers and no signal mask.
        let entered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                1,
                1,
                GET_EVENTS,
                none,
                0,
            )
        };
        Ok(Errno::result(entered).map(drop)?)
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: offsets of the kernel's, within the ring's memory and aligned.
        unsafe { AtomicU32::from_ptr(self.rings.add(offset as usize).cast()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: both were mapped with these lengths, and nothing refers to them any more.
        unsafe {
            libc::munmap(self.rings.cast(), RINGS);
            libc::munmap(self.entries.cast(), ENTRIES as usize * size_of::<Entry>());
        }
    }
}

fn map(fd: &OwnedFd, length: usize, offset: libc::off_t) -> io::Result<*mut u8> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let shared = libc::MAP_SHARED | libc::MAP_POPULATE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            length,
            access,
            shared,
            fd.as_raw_fd(),
            offset,
        )
    };
    match at {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        at => Ok(at.cast()),
    }
}
