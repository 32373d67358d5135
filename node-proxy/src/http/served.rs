// SPDX-License-Identifier: Apache-2.0
//! How long a client may take with a head, and how it is left.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Sleep, sleep},
};

use super::Version;

/// How long the head of an HTTP/1 request may take from its first byte on. The wait for a next
/// request has no limit: clients let their connections rest for as long as their servers do.
pub(super) const HEAD: Duration = Duration::from_secs(10);

/// How long, and for how many bytes more, a client is listened to after the last word: a socket that
/// is closed with unread bytes resets the client, which then may not have read its answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// Whether a request is being served on a connection: there are clones of the first, which are also
/// counted.
#[derive(Debug, Default)]
pub(super) struct Busy(Arc<AtomicU64>);

/// How many bytes a client has sent, and has got.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Served {
    traffic: Arc<Traffic>,
    busy: Busy,
    version: Version,
    /// The first bytes of a head were read.
    begun: bool,
    /// How often it had become busy by then: a head that was served since was complete. hyper does
    /// not read meanwhile.
    cloned: u64,
    timer: Option<Pin<Box<Sleep>>>,
    lingered: usize,
}

// === impl Traffic ===

impl Traffic {
    /// Received, and sent.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }
}

// === impl Busy ===

impl Clone for Busy {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Relaxed);
        Self(self.0.clone())
    }
}

impl Busy {
    fn cloned(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// The connection has one, and who serves it.
    fn is_busy(&self) -> bool {
        Arc::strong_count(&self.0) > 2
    }
}

// === impl Served ===

impl Served {
    pub(super) fn new(traffic: &Arc<Traffic>, busy: &Busy, version: Version) -> Self {
        Self {
            traffic: traffic.clone(),
            busy: busy.clone(),
            version,
            begun: false,
            cloned: 0,
            timer: None,
            lingered: 0,
        }
    }

    pub(super) fn written(&self, count: usize) {
        self.traffic.sent.fetch_add(count as u64, Relaxed);
    }

    pub(super) fn read(&mut self, count: usize) {
        self.traffic.received.fetch_add(count as u64, Relaxed);
        self.look();
        if count > 0 && !self.busy.is_busy() && self.version == Version::Http1 {
            self.begun = true;
        }
    }

    /// Ready when a head takes too long.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.look();
        if !self.begun {
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(HEAD)));
        timer.as_mut().poll(cx)
    }

    /// Ready when the client has gone, or has had its time.
    pub(super) fn poll_linger(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.begun = false;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut bytes = [0; 4 << 10];
        while self.lingered < LINGER_BYTES {
            let mut room = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut *from).poll_read(cx, &mut room));
            match room.filled().len() {
                _ if read.is_err() => break,
                0 => break,
                count => self.lingered += count,
            }
        }
        Poll::Ready(())
    }

    /// Forgets a head that was served.
    fn look(&mut self) {
        let cloned = self.busy.cloned();
        if cloned != self.cloned || self.busy.is_busy() {
            self.cloned = cloned;
            self.begun = false;
            self.timer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    async fn is_late(served: &mut Served) -> bool {
        // The timer begins with the first look.
        let late =
            |served: &mut Served| std::future::poll_fn(|cx| served.poll_late(cx)).now_or_never();
        let _ = late(served);
        tokio::time::sleep(2 * HEAD).await;
        late(served).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_head_that_was_begun_is_late() {
        let busy = Busy::default();
        let mut served = Served::new(&Arc::default(), &busy, Version::Http1);
        assert!(!is_late(&mut served).await, "nothing was said");
        served.read(1);
        assert!(is_late(&mut served).await, "half a head was said");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_between_requests_is_no_head() {
        let busy = Busy::default();
        let mut served = Served::new(&Arc::default(), &busy, Version::Http1);
        served.read(100);
        // Served from begin to end while nothing was read.
        drop(busy.clone());
        assert!(!is_late(&mut served).await, "at rest");
        served.read(1);
        assert!(is_late(&mut served).await, "half of the next head was said");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_no_head() {
        let busy = Busy::default();
        let mut served = Served::new(&Arc::default(), &busy, Version::Http1);
        served.read(100);
        let _request = busy.clone();
        served.read(100);
        assert!(!is_late(&mut served).await);
    }
}
