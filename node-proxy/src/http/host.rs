// SPDX-License-Identifier: Apache-2.0
//! The connections to one server for one pod: HTTP/1 ones that rest between requests, and HTTP/2
//! ones that many requests share.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};

use super::{
    Version,
    body::Outgoing,
    client::{Allowed, Sender},
};

/// How long a connection rests before it is closed, as in Linkerd: less than servers let theirs rest,
/// and not long after its pod has gone, when nobody is left to answer a farewell.
const IDLE: Duration = Duration::from_secs(3);

/// The oldest that a connection gets, within a tenth: a certificate that was renewed is shown then.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// How many HTTP/1 connections may rest.
const MAX_IDLE: usize = 1_000;

/// How many requests share an HTTP/2 connection before another is opened: what their windows let a
/// peer send fits the connection's own.
const MAX_STREAMS: usize = 100;

/// Connections to one server.
#[derive(Debug)]
pub(crate) struct Host {
    version: Version,
    resting: Mutex<Vec<Resting>>,
    shared: Mutex<Vec<Shared>>,
    /// Held by who opens an HTTP/2 connection, so that those who come meanwhile share it.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Resting {
    sender: http1::SendRequest<Outgoing>,
    since: Instant,
    expires: Instant,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Outgoing>,
    /// As many more of them as there are requests on it.
    users: Arc<()>,
    allowed: Allowed,
    used: Instant,
    expires: Instant,
}

/// A connection, or a share of one, for one request.
#[derive(Debug)]
pub(crate) enum Lease {
    Http1 {
        sender: http1::SendRequest<Outgoing>,
        expires: Instant,
        /// It has carried a request before.
        used: bool,
    },
    Http2 {
        sender: http2::SendRequest<Outgoing>,
        _user: Arc<()>,
        used: bool,
    },
}

// === impl Host ===

impl Host {
    pub(super) fn new(version: Version) -> Self {
        Self {
            version,
            resting: Mutex::default(),
            shared: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// One that is open already.
    pub(super) fn lease(&self) -> Option<Lease> {
        match self.version {
            Version::Http1 => self.rested(),
            Version::Http2 => self.share(),
        }
    }

    /// To be held while an HTTP/2 connection is opened; look for one again then.
    pub(super) async fn opening(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match self.version {
            Version::Http1 => None,
            Version::Http2 => Some(self.opening.lock().await),
        }
    }

    /// Takes in a connection that was just opened.
    pub(super) fn opened(&self, sender: Sender) -> Lease {
        let expires = Instant::now() + MAX_AGE.mul_f64(rand::random_range(0.9..1.0));
        match sender {
            Sender::Http1(sender) => Lease::Http1 {
                sender,
                expires,
                used: false,
            },
            Sender::Http2(sender, allowed) => {
                let users = Arc::new(());
                let lease = Lease::Http2 {
                    sender: sender.clone(),
                    _user: users.clone(),
                    used: false,
                };
                lock(&self.shared).push(Shared {
                    sender,
                    users,
                    allowed,
                    used: Instant::now(),
                    expires,
                });
                lease
            }
        }
    }

    /// Takes in a connection that nothing was sent on, once it can be sent on.
    pub(super) async fn keep(&self, sender: Sender) {
        let mut lease = self.opened(sender);
        if lease.is_ready().await {
            self.release(lease);
        }
    }

    /// A request is done. hyper itself knows whether the connection takes another.
    pub(super) fn release(&self, lease: Lease) {
        let Lease::Http1 {
            sender, expires, ..
        } = lease
        else {
            return;
        };
        let since = Instant::now();
        if sender.is_closed() || since >= expires {
            return;
        }
        let mut resting = lock(&self.resting);
        if resting.len() < MAX_IDLE {
            resting.push(Resting {
                sender,
                since,
                expires,
            });
        }
    }

    /// Closes what rests.
    pub(super) fn forget(&self) {
        lock(&self.resting).clear();
    }

    /// Closes what has rested too long. Answers whether anything is left.
    pub(super) fn trim(&self, now: Instant) -> bool {
        let mut resting = lock(&self.resting);
        resting.retain(|it| {
            !it.sender.is_closed() && now.duration_since(it.since) < IDLE && now < it.expires
        });
        let mut shared = lock(&self.shared);
        shared.retain_mut(|it| it.is_kept(now));
        !resting.is_empty() || !shared.is_empty()
    }

    /// The one that was used last: the others may go. One whose last request is still being sent, or
    /// whose task has not heard yet that the answer was read, is left alone.
    fn rested(&self) -> Option<Lease> {
        let mut resting = lock(&self.resting);
        let now = Instant::now();
        let ready = |it: &Resting| it.sender.is_ready() && now.duration_since(it.since) < IDLE;
        let at = resting.iter().rposition(ready)?;
        let Resting {
            sender, expires, ..
        } = resting.remove(at);
        Some(Lease::Http1 {
            sender,
            expires,
            used: true,
        })
    }

    fn share(&self) -> Option<Lease> {
        let mut shared = lock(&self.shared);
        shared.retain(|it| !it.sender.is_closed());
        let now = Instant::now();
        let fits = |it: &&mut Shared| now < it.expires && it.has_room();
        let one = shared.iter_mut().find(fits)?;
        one.used = now;
        Some(Lease::Http2 {
            sender: one.sender.clone(),
            _user: one.users.clone(),
            used: true,
        })
    }
}

// === impl Shared ===

impl Shared {
    fn users(&self) -> usize {
        Arc::strong_count(&self.users) - 1
    }

    /// Whether one more may be sent: beyond what the server allows it would wait in hyper, for as long
    /// as the others' streams last.
    fn has_room(&self) -> bool {
        let users = self.users();
        users == 0 || (users < MAX_STREAMS && users < self.allowed.count())
    }

    /// One that expired goes on until its last request is done.
    fn is_kept(&mut self, now: Instant) -> bool {
        let busy = self.users() > 0;
        if busy {
            self.used = now;
        }
        let fresh = now < self.expires && now.duration_since(self.used) < IDLE;
        !self.sender.is_closed() && (busy || fresh)
    }
}

// === impl Lease ===

impl Lease {
    /// Whether the connection may have been closed by the server just now.
    pub(super) fn was_used(&self) -> bool {
        match self {
            Self::Http1 { used, .. } | Self::Http2 { used, .. } => *used,
        }
    }

    /// Waits until what it carried is over. Whether it takes another request.
    pub(super) async fn is_ready(&mut self) -> bool {
        match self {
            Self::Http1 { sender, used, .. } => {
                *used = true;
                sender.ready().await.is_ok()
            }
            Self::Http2 { sender, .. } => !sender.is_closed(),
        }
    }

    /// Sends a request. What was not sent at all comes back with the error.
    pub(super) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Outgoing>>> {
        match self {
            Self::Http1 {
                sender, expires, ..
            } => {
                let response = sender.try_send_request(request).await?;
                if response.version() == http::Version::HTTP_10 {
                    // hyper would go on in that version.
                    *expires = Instant::now();
                }
                Ok(response)
            }
            Self::Http2 { sender, .. } => sender.try_send_request(request).await,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
