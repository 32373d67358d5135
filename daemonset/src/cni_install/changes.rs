// SPDX-License-Identifier: Apache-2.0
//! Changes in directories, by inotify as far as there is one.

use std::{io, path::Path};

use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;

/// What happens in some directories.
#[derive(Debug)]
pub struct Changes {
    inotify: Option<AsyncFd<Inotify>>,
}

// === impl Changes ===

impl Changes {
    /// Of no directory yet. A node may have run out of instances: then nothing is heard.
    pub fn new() -> Self {
        let inotify = Inotify::init().and_then(register);
        if let Err(error) = &inotify {
            tracing::warn!(
                %error,
                "Could not watch the CNI directories, which are looked at every few seconds only \
                 (fs.inotify.max_user_instances may be too low)"
            );
        }
        Self {
            inotify: inotify.ok(),
        }
    }

    /// Listens to a directory, also if it does already, or if it is another one of that name.
    pub fn listen(&mut self, dir: &Path) -> io::Result<()> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        match &self.inotify {
            Some(inotify) => inotify.get_ref().watches().add(dir, mask).map(drop),
            None => Ok(()),
        }
    }

    /// Waits for a change; what it was does not matter.
    pub async fn next(&mut self) {
        let heard = match &mut self.inotify {
            Some(inotify) => drained(inotify).await,
            None => std::future::pending().await,
        };
        if let Err(error) = heard {
            tracing::warn!(%error, "Could not hear of changes of the CNI directories");
            self.inotify = None;
        }
    }
}

fn register(inotify: Inotify) -> io::Result<AsyncFd<Inotify>> {
    // SAFETY: an `Inotify` keeps its descriptor open and the same until the `AsyncFd` drops it.
    Ok(unsafe { AsyncFd::register(inotify) }?)
}

async fn drained(inotify: &mut AsyncFd<Inotify>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut ready = inotify.readable_mut().await?;
    loop {
        match ready.get_inner_mut().read_events(&mut buffer) {
            Ok(events) => {
                if events.count() == 0 {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    ready.clear_ready();
    Ok(())
}
