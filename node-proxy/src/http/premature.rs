// SPDX-License-Identifier: Apache-2.0
//! Streams that a client takes back before they were answered, again and again (CVE-2023-44487): h2
//! counts those alone that it has not handed over yet, and each of the others is work all the same.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use tokio::sync::Notify;

/// How many are suffered at least, as in Envoy (`overload.premature_reset_total_stream_count`).
const SUFFERED: u32 = 500;

/// The streams of one connection that are over.
#[derive(Debug, Default)]
pub(super) struct Premature {
    answered: AtomicU32,
    taken_back: AtomicU32,
    enough: Notify,
}

/// A stream. Dropped before it was answered, it counts as taken back.
#[derive(Debug)]
pub(super) struct Asked(Option<Arc<Premature>>);

// === impl Premature ===

impl Premature {
    /// A request has come.
    pub(super) fn asked(self: &Arc<Self>) -> Asked {
        Asked(Some(self.clone()))
    }

    /// Waits until the connection deserves to end: most of its requests were taken back.
    pub(super) async fn enough(&self) {
        self.enough.notified().await;
    }

    fn took_back(&self) {
        let taken_back = self.taken_back.fetch_add(1, Relaxed) + 1;
        if taken_back >= SUFFERED && taken_back > self.answered.load(Relaxed) {
            self.enough.notify_one();
        }
    }
}

// === impl Asked ===

impl Asked {
    /// The head of the answer is there.
    pub(super) fn answered(mut self) {
        if let Some(of) = self.0.take() {
            of.answered.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(of) = self.0.take() {
            of.took_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_enough(of: &Premature) -> bool {
        of.enough().now_or_never().is_some()
    }

    #[test]
    fn a_client_that_takes_most_of_it_back_is_too_much() {
        let of = Arc::new(Premature::default());
        for _ in 0..SUFFERED - 1 {
            drop(of.asked());
        }
        assert!(!is_enough(&of));
        drop(of.asked());
        assert!(is_enough(&of));
    }

    #[test]
    fn a_client_that_waits_for_most_of_its_answers_is_not() {
        let of = Arc::new(Premature::default());
        for _ in 0..10 * SUFFERED {
            of.asked().answered();
            drop(of.asked());
        }
        assert!(!is_enough(&of));
        drop(of.asked());
        assert!(is_enough(&of));
    }
}
