// SPDX-License-Identifier: Apache-2.0
//! A directory that is watched: by inotify, and every few seconds by looking, for file systems
//! and changes that inotify does not see.

use std::{
    io::{self, ErrorKind, PipeWriter},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use inotify::{Inotify, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;

use crate::{
    Objects, Problem,
    store::{Freshness, Store},
};

/// How long to wait after a change for those that come with it.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// How often to look when nothing was heard.
const POLL: Duration = Duration::from_secs(5);

/// A watched directory. Dropping it ends the watch; the receivers keep the last state.
#[derive(Debug)]
pub struct Source {
    objects: watch::Receiver<Arc<Objects>>,
    problems: watch::Receiver<Arc<Vec<Problem>>>,
    /// Closed by the drop, which the watching thread sees.
    _stop: PipeWriter,
}

struct Watcher {
    dir: PathBuf,
    store: Store,
    inotify: Inotify,
    stop: io::PipeReader,
    objects: watch::Sender<Arc<Objects>>,
    problems: watch::Sender<Arc<Vec<Problem>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    Changed,
    TimedOut,
    Stopped,
}

// === impl Source ===

impl Source {
    /// Reads the directory, and watches it on a thread of its own until dropped.
    ///
    /// Blocks for the first reading. Fails when the directory can't be read then; when it vanishes
    /// later, that is a [`Problem`] and what it last held stays.
    pub fn watch(dir: impl AsRef<Path>) -> io::Result<Self> {
        let (stop, closer) = io::pipe()?;
        let (objects, objects_rx) = watch::channel(Arc::default());
        let (problems, problems_rx) = watch::channel(Arc::default());
        let mut watcher = Watcher {
            dir: dir.as_ref().to_owned(),
            store: Store::new(dir.as_ref()),
            inotify: Inotify::init()?,
            stop,
            objects,
            problems,
        };
        watcher.listen()?;
        watcher.store.scan(Freshness::Any)?;
        watcher.publish(watcher.store.problems());
        thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || watcher.run())?;
        Ok(Self {
            objects: objects_rx,
            problems: problems_rx,
            _stop: closer,
        })
    }

    /// The objects of all good files, and the last good ones of the broken.
    pub fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.objects.clone()
    }

    /// What is refused now. Not logged here: log what is new, and count it.
    pub fn problems(&self) -> watch::Receiver<Arc<Vec<Problem>>> {
        self.problems.clone()
    }
}

// === impl Watcher ===

impl Watcher {
    fn run(mut self) {
        let mut unsettled = false;
        loop {
            let patience = if unsettled { DEBOUNCE } else { POLL };
            match self.wait(patience) {
                Woken::Stopped => return,
                Woken::TimedOut => {}
                Woken::Changed if self.settle() == Woken::Stopped => return,
                Woken::Changed => {}
            }
            unsettled = self.look();
        }
    }

    /// Scans and publishes. True: look again soon.
    fn look(&mut self) -> bool {
        // Adding a watch that is there already changes nothing, and a directory that was removed
        // and made again needs a new one.
        let scanned = self
            .listen()
            .and_then(|()| self.store.scan(Freshness::Settled));
        let mut problems = self.store.problems();
        if let Err(error) = &scanned {
            problems.push(self.gone(error));
        }
        self.publish(problems);
        scanned.unwrap_or_default()
    }

    fn listen(&self) -> io::Result<()> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        self.inotify.watches().add(&self.dir, mask).map(|_| ())
    }

    fn gone(&self, error: &io::Error) -> Problem {
        Problem {
            file: self.dir.clone(),
            line: None,
            reason: format!("could not read the directory, what it last held stays: {error}"),
        }
    }

    fn publish(&self, problems: Vec<Problem>) {
        replace(&self.objects, self.store.objects());
        replace(&self.problems, problems);
    }

    /// Waits for the changes that come together with the first one.
    fn settle(&mut self) -> Woken {
        let woken = wait(&[self.stop.as_fd()], DEBOUNCE);
        if matches!(woken, Ok(Some(_))) {
            return Woken::Stopped;
        }
        self.drain();
        Woken::Changed
    }

    /// What they are does not matter: a scan finds out.
    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(mut events) = self.inotify.read_events(&mut buffer) {
            if events.next().is_none() {
                return;
            }
        }
    }

    fn wait(&self, patience: Duration) -> Woken {
        // SAFETY: `self.inotify` owns the descriptor and outlives this borrow.
        let inotify = unsafe { BorrowedFd::borrow_raw(self.inotify.as_raw_fd()) };
        match wait(&[self.stop.as_fd(), inotify], patience) {
            Ok(Some(0)) => Woken::Stopped,
            Ok(Some(_)) => Woken::Changed,
            Ok(None) => Woken::TimedOut,
            Err(error) => {
                tracing::warn!(%error, "Could not wait for changes of the manifests");
                thread::sleep(DEBOUNCE);
                Woken::TimedOut
            }
        }
    }
}

fn replace<T: PartialEq>(sender: &watch::Sender<Arc<T>>, value: T) {
    sender.send_if_modified(|held| {
        let modified = **held != value;
        if modified {
            *held = Arc::new(value);
        }
        modified
    });
}

/// Waits until one of the descriptors has something, and says which is the first.
fn wait(fds: &[BorrowedFd<'_>], patience: Duration) -> io::Result<Option<usize>> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    let timeout = PollTimeout::try_from(patience).map_err(|_| ErrorKind::InvalidInput)?;
    match poll(&mut polled, timeout) {
        Ok(_) => Ok(polled.iter().position(|fd| fd.any().unwrap_or(true))),
        Err(nix::errno::Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
