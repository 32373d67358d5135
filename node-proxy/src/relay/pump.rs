// SPDX-License-Identifier: Apache-2.0
//! The two directions of a connection. Each writes what it has, then ends or reads more.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use super::{Broken, Ends, Meters, chunk::Chunk};
use crate::{
    buffer::{Buffer, Intake, Size},
    tcp,
    tls::{MAX_FRAGMENT, RECORD_OVERHEAD, Session},
};

/// How many reads one direction makes before the other has its turn.
const BURST: usize = 16;

/// Both directions.
#[derive(Debug)]
pub(super) struct Pumps<'a> {
    app: (ReadHalf<'a>, WriteHalf<'a>),
    wire: (ReadHalf<'a>, WriteHalf<'a>),
    session: Option<Box<Session>>,
    intake: Intake,
    /// The intake holds bytes that were never looked at.
    unopened: bool,
    /// From the application to the wire.
    up: Pump,
    /// From the wire to the application.
    down: Pump,
    meters: Meters,
    broken: Option<Broken>,
    unconfirmed: bool,
}

#[derive(Debug, Default)]
struct Pump {
    chunk: Option<Chunk>,
    size: Size,
    phase: Phase,
    moved: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Everything was read; FIN follows what is still to be written.
    Ending,
    /// FIN is written; the wire said close_notify, its own FIN is still to come.
    Lingering,
    Ended,
}

/// Why a direction stopped before its end.
enum Halt {
    /// Its source failed: nothing more comes from there or is taken there.
    Source(Broken),
    /// Its sink failed: what the sink sent before is still to be read.
    Sink(Broken),
}

// === impl Pumps ===

impl<'a> Pumps<'a> {
    pub(super) fn new(ends: &'a mut Ends<'_>, meters: Meters) -> Self {
        let (plain, sealed) = (mem::take(&mut ends.plain), mem::take(&mut ends.sealed));
        let early = mem::take(&mut ends.early);
        let mut down = Pump::default();
        if !ends.counted {
            meters.wire.read.inc_by(plain.len() as u64);
            meters.app.read.inc_by(early.len() as u64);
        }
        down.chunk = Chunk::early(plain);
        if ends
            .session
            .as_ref()
            .is_some_and(|session| session.peer_closed())
        {
            // A short request and its end came with the handshake's last flight.
            down.phase = Phase::Ending;
        }
        let mut pumps = Self {
            app: ends.app.split(),
            wire: ends.wire.split(),
            session: ends.session.take(),
            unopened: !sealed.is_empty(),
            intake: Intake::new(&sealed),
            up: Pump::default(),
            down,
            meters,
            broken: None,
            unconfirmed: false,
        };
        pumps.send_early(early);
        pumps
    }

    /// What the application said before the relay began.
    fn send_early(&mut self, early: Vec<u8>) {
        let Some(session) = &mut self.session else {
            self.up.chunk = Chunk::early(early);
            return;
        };
        if early.is_empty() {
            return;
        }
        let records = early.len().div_ceil(MAX_FRAGMENT);
        let mut out = vec![0; early.len() + records * RECORD_OVERHEAD];
        match session.seal(self.intake.filled(), &early, &mut out) {
            Ok(length) => {
                out.truncate(length);
                let mut control = session.take_control();
                control.append(&mut out);
                self.up.chunk = Some(Chunk::joined(control, early.len()));
            }
            Err(error) => self.broken = Some(Broken::Tls(error)),
        }
    }

    /// Bytes that went to the wire.
    pub(super) fn up(&self) -> u64 {
        self.up.moved
    }

    /// Bytes that went to the application.
    pub(super) fn down(&self) -> u64 {
        self.down.moved
    }

    /// Whether one end has said its last.
    pub(super) fn is_half_open(&self) -> bool {
        self.up.phase != Phase::Open || self.down.phase != Phase::Open
    }

    /// Whether only the last words of a broken side are still carried.
    pub(super) fn is_breaking(&self) -> bool {
        self.broken.is_some()
    }

    /// What broke.
    pub(super) fn take_broken(&mut self) -> Option<Broken> {
        self.broken.take()
    }

    /// Whether something was written to the wire that it has perhaps not acknowledged.
    pub(super) fn unconfirmed(&mut self) -> &mut bool {
        &mut self.unconfirmed
    }

    /// The wire's socket.
    pub(super) fn wire(&self) -> &TcpStream {
        self.wire.0.as_ref()
    }

    /// What was reset after its FIN, while the other direction goes on: nobody reads from it any
    /// more, so nobody is told.
    pub(super) fn lost(&self) -> Option<Broken> {
        let app =
            (self.up.phase == Phase::Ended && self.down.writes()).then(|| self.app.0.as_ref());
        let wire = (self.down.phase == Phase::Ended && self.up.writes()).then(|| self.wire());
        let app = app.and_then(tcp::lost).map(Broken::App);
        app.or_else(|| wire.and_then(tcp::lost).map(Broken::Wire))
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        // Down first: what it makes TLS say is written by up.
        let down = self.poll_down(cx);
        let down = self.halted(down);
        let up = self.poll_up(cx);
        let up = self.halted(up);
        match (up, down) {
            (Poll::Ready(Err(broken)), _) | (_, Poll::Ready(Err(broken))) => {
                Poll::Ready(Err(self.broken.take().unwrap_or(broken)))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                Poll::Ready(self.broken.take().map_or(Ok(()), Err))
            }
            _ => Poll::Pending,
        }
    }

    /// A direction whose sink failed is over; the other one goes on with what is left to read.
    fn halted(&mut self, polled: Poll<Result<(), Halt>>) -> Poll<Result<(), Broken>> {
        polled.map(|result| match result {
            Ok(()) => Ok(()),
            Err(Halt::Source(broken)) => Err(broken),
            Err(Halt::Sink(broken)) => match self.broken.replace(broken) {
                // Both sinks failed.
                Some(first) => Err(first),
                None => Ok(()),
            },
        })
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt>> {
        for _ in 0..BURST {
            ready!(self.poll_flush_up(cx))?;
            match self.up.phase {
                Phase::Open => ready!(self.poll_read_app(cx))?,
                Phase::Ending => {
                    let end = ready!(Pin::new(&mut self.wire.1).poll_shutdown(cx));
                    self.up.phase = Phase::Ended;
                    end.map_err(|error| Halt::Sink(Broken::Wire(error)))?;
                }
                Phase::Lingering | Phase::Ended => return Poll::Ready(Ok(())),
            }
        }
        again(cx)
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt>> {
        for _ in 0..BURST {
            ready!(self.poll_flush_down(cx))?;
            match self.down.phase {
                Phase::Open => ready!(self.poll_read_wire(cx))?,
                Phase::Ending => {
                    let end = ready!(Pin::new(&mut self.app.1).poll_shutdown(cx));
                    self.down.phase = self.after_fin();
                    end.map_err(|error| Halt::Sink(Broken::App(error)))?;
                }
                Phase::Lingering => ready!(self.poll_linger(cx))?,
                Phase::Ended => return Poll::Ready(Ok(())),
            }
        }
        again(cx)
    }

    fn poll_flush_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt>> {
        loop {
            let written = ready!(self.up.poll_flush(&mut self.wire.1, cx));
            let written = written.map_err(|error| Halt::Sink(Broken::Wire(error)))?;
            self.meters.wire.write.inc_by(written as u64);
            self.unconfirmed |= written > 0;
            self.up.chunk = self.control();
            if self.up.chunk.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_flush_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt>> {
        let written = ready!(self.down.poll_flush(&mut self.app.1, cx));
        let written = written.map_err(|error| Halt::Sink(Broken::App(error)))?;
        self.meters.app.write.inc_by(written as u64);
        Poll::Ready(Ok(()))
    }

    /// What TLS has to say, which has no place behind a close_notify.
    fn control(&mut self) -> Option<Chunk> {
        let open = self.up.phase == Phase::Open;
        let control = self.session.as_mut().map(|session| session.take_control());
        control.filter(|_| open).and_then(Chunk::control)
    }

    fn poll_read_app(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt>> {
        let read = ready!(poll_read(&mut self.app.0, self.up.size, cx));
        let read = read.map_err(|error| Halt::Source(Broken::App(error)))?;
        let Some((buffer, count)) = read else {
            return Poll::Ready(self.end_up());
        };
        self.meters.app.read.inc_by(count as u64);
        self.up.size = Size::after(count);
        self.up.chunk = Some(self.seal(buffer, count)?);
        Poll::Ready(Ok(()))
    }

    /// The application sent FIN; or, if it was reset before, its error was reported already.
    fn end_up(&mut self) -> Result<(), Halt> {
        if self.broken.is_some() {
            self.up.phase = Phase::Ended;
            return Ok(());
        }
        self.up.phase = Phase::Ending;
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        let mut out = Buffer::take(Size::Small);
        let length = session
            .close(self.intake.filled(), &mut out)
            .map_err(forged)?;
        self.up.chunk = Some(chunk(session.take_control(), out, length, 0));
        Ok(())
    }

    fn seal(&mut self, plain: Buffer, count: usize) -> Result<Chunk, Halt> {
        let Some(session) = &mut self.session else {
            return Ok(Chunk::new(plain, count, count));
        };
        let mut out = Buffer::take(plain.size());
        debug_assert!(out.len() > count + RECORD_OVERHEAD);
        let plain = plain.get(..count).unwrap_or_default();
        let length = session.seal(self.intake.filled(), plain, &mut out);
        let length = length.map_err(forged)?;
        Ok(chunk(session.take_control(), out, length, count))
    }

    fn poll_read_wire(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt>> {
        if self.session.is_some() {
            return self.poll_read_records(cx);
        }
        let read = ready!(poll_read(&mut self.wire.0, self.down.size, cx));
        match read.map_err(|error| Halt::Source(Broken::Wire(error)))? {
            Some((buffer, count)) => {
                self.meters.wire.read.inc_by(count as u64);
                self.down.size = Size::after(count);
                self.down.chunk = Some(Chunk::new(buffer, count, count));
            }
            None => self.end_down(),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read_records(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt>> {
        if !mem::take(&mut self.unopened) {
            let read = ready!(self.intake.poll_read(&mut self.wire.0, cx, self.down.size));
            let read = read.map_err(|error| Halt::Source(Broken::Wire(error)))?;
            if read == 0 {
                return Poll::Ready(Err(Halt::Source(Broken::Truncated)));
            }
            self.down.size = Size::after(read);
        }
        Poll::Ready(self.open(cx))
    }

    fn open(&mut self, cx: &mut Context<'_>) -> Result<(), Halt> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        let mut plain = Buffer::take(Size::holding(self.intake.len()));
        let opened = match session.open(self.intake.filled(), &mut plain) {
            Ok(opened) => opened,
            Err(error) => {
                self.alert(cx);
                return Err(forged(error));
            }
        };
        let closed = session.peer_closed();
        self.intake.discard(opened.consumed);
        self.meters.wire.read.inc_by(opened.written as u64);
        if opened.written > 0 {
            self.down.chunk = Some(Chunk::new(plain, opened.written, opened.written));
        }
        if closed {
            self.intake = Intake::default();
            self.end_down();
        }
        Ok(())
    }

    /// Says what was wrong, if the wire takes it now.
    fn alert(&mut self, cx: &mut Context<'_>) {
        let Some(session) = &mut self.session else {
            return;
        };
        let alert = session.last_words(self.intake.filled());
        if self.up.chunk.is_none() && self.up.phase == Phase::Open {
            let _ = Pin::new(&mut self.wire.1).poll_write(cx, &alert);
        }
    }

    fn end_down(&mut self) {
        self.down.phase = if self.broken.is_some() {
            Phase::Ended
        } else {
            Phase::Ending
        };
    }

    fn after_fin(&self) -> Phase {
        match self.session {
            Some(_) => Phase::Lingering,
            None => Phase::Ended,
        }
    }

    /// Waits for the wire's FIN, so that the socket is closed on both sides when it is used again.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt>> {
        let read = ready!(poll_read(&mut self.wire.0, Size::Small, cx));
        let read = read.map_err(|error| Halt::Source(Broken::Wire(error)))?;
        if read.is_none() {
            self.down.phase = Phase::Ended;
        }
        Poll::Ready(Ok(()))
    }
}

// === impl Pump ===

impl Pump {
    /// Whether its sink has not got its FIN yet.
    fn writes(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Ending)
    }

    /// Writes the chunk, if there is one, and answers its payload.
    fn poll_flush(
        &mut self,
        to: &mut WriteHalf<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Some(chunk) = &mut self.chunk else {
            return Poll::Ready(Ok(0));
        };
        let written = ready!(chunk.poll_write(to, cx));
        self.chunk = None;
        if written.is_err() {
            self.phase = Phase::Ended;
        }
        self.moved += *written.as_ref().unwrap_or(&0) as u64;
        Poll::Ready(written)
    }
}

/// Reads once. `None`: FIN.
fn poll_read(
    from: &mut ReadHalf<'_>,
    size: Size,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<(Buffer, usize)>>> {
    // Before memory is taken for it.
    ready!(from.as_ref().poll_read_ready(cx))?;
    let mut buffer = Buffer::take(size);
    let room = buffer.get_mut(..size.read()).unwrap_or_default();
    let mut room = ReadBuf::new(room);
    ready!(Pin::new(from).poll_read(cx, &mut room))?;
    let count = room.filled().len();
    Poll::Ready(Ok((count > 0).then_some((buffer, count))))
}

/// What TLS has to say goes before what was encrypted after it.
fn chunk(mut control: Vec<u8>, out: Buffer, length: usize, payload: usize) -> Chunk {
    if control.is_empty() {
        return Chunk::new(out, length, payload);
    }
    control.extend_from_slice(out.get(..length).unwrap_or_default());
    Chunk::joined(control, payload)
}

fn forged(error: rustls::Error) -> Halt {
    Halt::Source(Broken::Tls(error))
}

fn again<T>(cx: &Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}
