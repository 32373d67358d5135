// SPDX-License-Identifier: Apache-2.0
//! What the programs say of themselves, with the `debug` option: aya-log to tracing.

use std::{
    os::fd::{AsFd, OwnedFd},
    thread::{self, JoinHandle},
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::Error;

/// A thread that reads the programs' ring buffer until this is dropped.
#[derive(Debug)]
pub(crate) struct LogReader {
    // Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

struct ToTracing;

// === impl LogReader ===

impl LogReader {
    pub(crate) fn start(object: &mut Ebpf) -> Result<Self, Error> {
        let logger = EbpfLogger::init_with_logger(object, ToTracing)
            .map_err(Error::kernel("open the programs' log"))?;
        let (stopped, stop) =
            nix::unistd::pipe().map_err(Error::kernel("make a pipe to end the log reader by"))?;
        let thread = thread::Builder::new()
            .name("ebpf-log".to_owned())
            .spawn(move || read(logger, &stopped))
            .map_err(Error::kernel("start the log reader"))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::warn!("The reader of the eBPF programs' log had panicked");
        }
    }
}

fn read(mut logger: EbpfLogger<ToTracing>, stopped: &OwnedFd) {
    loop {
        let mut fds = [
            PollFd::new(logger.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "Stopped reading the eBPF programs' log");
                return;
            }
        }
        let stop = fds[1].any().unwrap_or(true);
        logger.flush();
        if stop {
            return;
        }
    }
}

// === impl ToTracing ===

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(
            target: "culvert_ebpf",
            program = record.target(),
            line = record.line(),
            "{}",
            record.args()
        );
    }

    fn flush(&self) {}
}
