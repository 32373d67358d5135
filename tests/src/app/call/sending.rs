// SPDX-License-Identifier: Apache-2.0
//! Ways to send, receive and end.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use nix::{
    fcntl::{SpliceFFlags, splice as splice_some},
    sys::{memfd, sendfile::sendfile as send_some},
    unistd::pipe,
};
use socket2::{Protocol, SockRef};

use super::{Call, Called, PAUSE, connected, socket};

const MUCH: usize = 1 << 20;
/// What fits into a pipe.
const PIPE: usize = 1 << 16;

pub(super) fn sendfile(call: &Call, to: &mut Called) -> io::Result<()> {
    let mut file = File::from(memfd::memfd_create("sent", memfd::MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&much())?;
    let stream = connected(call, to)?;
    compared(&stream, to, || {
        let mut at = 0;
        while at < MUCH as i64 {
            send_some(&stream, &file, Some(&mut at), MUCH)?;
        }
        Ok(())
    })
}

pub(super) fn splice(call: &Call, to: &mut Called) -> io::Result<()> {
    let stream = connected(call, to)?;
    let (there, back) = (pipe()?, pipe()?);
    let (mut there_in, mut back_out) = (File::from(there.1), File::from(back.0));
    let much = much();
    let mut got = vec![0; MUCH];
    let moved = much
        .chunks(PIPE)
        .zip(got.chunks_mut(PIPE))
        .try_for_each(|(sent, got)| {
            there_in.write_all(sent)?;
            all(&there.0, &stream, sent.len())?;
            all(&stream, &back.1, sent.len())?;
            back_out.read_exact(got)
        });
    to.note("splice", moved)?;
    to.say("the same came back", &(got == much).to_string());
    Ok(())
}

fn all(from: &impl AsFd, to: &impl AsFd, length: usize) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        match splice_some(from, None, to, None, left, SpliceFFlags::empty())? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n,
        }
    }
    Ok(())
}

/// Sends, and reads back beside it.
fn compared(
    stream: &TcpStream,
    to: &mut Called,
    send: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let mut got = vec![0; MUCH];
    let (sent, read) = thread::scope(|scope| {
        let reader = scope.spawn(|| (&mut &*stream).read_exact(&mut got));
        let sent = send();
        let read = reader
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        (sent, read)
    });
    to.note("send", sent)?;
    to.note("receive", read)?;
    to.say("the same came back", &(got == much()).to_string());
    Ok(())
}

/// With a server that reads urgent bytes where they are (SO_OOBINLINE).
pub(super) fn urgent(call: &Call, to: &mut Called) -> io::Result<()> {
    let mut stream = connected(call, to)?;
    let mut got = String::new();
    for (bytes, urgent) in [("ab", false), ("!", true), ("cd", false)] {
        let sent = match urgent {
            true => SockRef::from(&stream)
                .send_out_of_band(bytes.as_bytes())
                .map(drop),
            false => stream.write_all(bytes.as_bytes()),
        };
        to.note("send", sent)?;
        // Each on its own: a second urgent pointer would overrule the first.
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut back = vec![0; bytes.len()];
        to.note("receive", stream.read_exact(&mut back))?;
        got.push_str(&String::from_utf8_lossy(&back));
    }
    to.say("received", &got);
    Ok(())
}

pub(super) fn send_after_fin(call: &Call, to: &mut Called) -> io::Result<()> {
    let mut stream = connected(call, to)?;
    to.note("send", stream.write_all(b"x"))?;
    let end = to.note("receive", io::copy(&mut stream, &mut io::sink()))?;
    to.say("bytes before FIN", &end.to_string());
    to.note("send", stream.write_all(&much()))?;
    to.note("shutdown", stream.shutdown(Shutdown::Write))
}

pub(super) fn reset_midway(call: &Call, to: &mut Called) -> io::Result<()> {
    let mut stream = connected(call, to)?;
    to.note("receive", stream.read_exact(&mut [0; PIPE]))?;
    to.note(
        "SO_LINGER",
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
    )
}

pub(super) fn slow_reader(call: &Call, to: &mut Called) -> io::Result<()> {
    let socket = socket(call, Protocol::TCP)?;
    socket.set_recv_buffer_size(1)?;
    to.note("connect", socket.connect(&call.target.into()))?;
    thread::sleep(PAUSE);
    let mut stream = TcpStream::from(socket);
    let got = to.note("receive", io::copy(&mut stream, &mut io::sink()))?;
    to.say("bytes", &got.to_string());
    Ok(())
}

fn much() -> Vec<u8> {
    (0..MUCH).map(|n| (n % 251) as u8).collect()
}
