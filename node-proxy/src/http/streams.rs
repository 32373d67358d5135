// SPDX-License-Identifier: Apache-2.0
//! An HTTP/2 connection and its streams as one task: they wake each other for every frame, and between
//! tasks each of these would be a hop to another worker.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU8,
            Ordering::{AcqRel, Acquire},
        },
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered, task::AtomicWaker};
use hyper::rt::Executor;

use super::server::Tasks;

/// How often a connection and its streams are looked at before other tasks have their turn.
const ROUNDS: usize = 8;

/// Streams of a connection, and what else hyper runs for it. A panic of one costs that one only.
#[derive(Clone)]
pub(super) struct Streams {
    tasks: Tasks,
    begun: Arc<Mutex<Vec<Stream>>>,
}

/// Whether it came to its end without a panic.
type Stream = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Wakes the task, unless that runs and will look again anyway.
#[derive(Debug, Default)]
struct Alarm {
    state: AtomicU8,
    task: AtomicWaker,
}

const ASLEEP: u8 = 0;
const RUNNING: u8 = 1;
const WOKEN: u8 = 2;

// === impl Streams ===

impl Streams {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self {
            tasks,
            begun: Arc::default(),
        }
    }

    /// Runs `connection`, whose executor this is, and what it has begun, until all of that has ended.
    pub(super) async fn run<T>(self, connection: impl Future<Output = T>) -> T {
        let mut connection = pin!(connection.fuse());
        let mut running = FuturesUnordered::new();
        let mut ended = None;
        let look = |cx: &mut Context<'_>| {
            if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                ended = Some(end);
            }
            self.poll_streams(&mut running, cx);
            match running.is_empty() {
                true => ended.take().map_or(Poll::Pending, Poll::Ready),
                false => Poll::Pending,
            }
        };
        Alarm::default().watch(look).await
    }

    /// Looks once at each that has something to do.
    fn poll_streams(&self, running: &mut FuturesUnordered<Stream>, cx: &mut Context<'_>) {
        loop {
            running.extend(self.begun());
            match running.poll_next_unpin(cx) {
                Poll::Ready(Some(true)) => {}
                Poll::Ready(Some(false)) => self.tasks.panicked(),
                // Looking may have begun others.
                Poll::Ready(None) | Poll::Pending if self.is_begun() => {}
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }

    fn begun(&self) -> Vec<Stream> {
        std::mem::take(&mut *self.lock())
    }

    fn is_begun(&self) -> bool {
        !self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stream>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
{
    fn execute(&self, stream: F) {
        let stream = AssertUnwindSafe(stream.map(drop)).catch_unwind();
        let stream = Box::pin(stream.map(|ended| ended.is_ok()));
        self.lock().push(stream);
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Streams")
    }
}

// === impl Alarm ===

impl Alarm {
    /// Looks again as long as looking itself has woken anything, so that this costs no turn.
    async fn watch<T>(self, mut look: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        let alarm = Arc::new(self);
        let waker = Waker::from(alarm.clone());
        poll_fn(|cx| {
            alarm.task.register(cx.waker());
            for _ in 0..ROUNDS {
                alarm.state.swap(RUNNING, AcqRel);
                if let Poll::Ready(end) = look(&mut Context::from_waker(&waker)) {
                    return Poll::Ready(end);
                }
                let slept = alarm
                    .state
                    .compare_exchange(RUNNING, ASLEEP, AcqRel, Acquire);
                if slept.is_ok() {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, AcqRel) == ASLEEP {
            self.task.wake();
        }
    }
}
