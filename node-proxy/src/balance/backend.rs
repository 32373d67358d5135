// SPDX-License-Identifier: Apache-2.0
//! One endpoint: how it fares, and whether it is ready.
//!
//! One that could not be dialled is not ready for a back-off. When that is over, one request at a
//! time tries it, until one succeeds.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Unit, ewma::PeakEwma, shared::Shared};
use crate::destinations::Endpoint;

/// The first back-off; each next one is twice as long. As linkerd2-proxy's outbound connections.
const BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// The most that is added to a back-off, as its part.
const JITTER: f64 = 0.1;

/// Dials that differ by less differ by the noise of a handshake: that would send all connections of a
/// quiet service to one endpoint for as long as the other's last peak takes to decay.
const DIAL_FLOOR: Duration = Duration::from_millis(10);
/// Answers that differ by less differ by who was scheduled when.
const ANSWER_FLOOR: Duration = Duration::from_millis(1);
/// Round trips of dialling whose ratio is smaller are alike.
const ALIKE: f64 = 1.25;
/// What a failed dial counts for among connections, which have no other measure.
const PENALTY: Duration = Duration::from_secs(1);

/// [`Backend::due`] of one that is ready.
const READY: u64 = 0;
/// [`Backend::due`] of one that a request tries now.
const ON_TRIAL: u64 = u64::MAX;

/// An endpoint and how it fares; kept while updates go on naming it.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) endpoint: Endpoint,
    shared: Arc<Shared>,
    /// From when on it may be tried, in nanoseconds of the balancer; or [`READY`], or [`ON_TRIAL`].
    due: AtomicU64,
    back_off: Mutex<BackOff>,
    requests: Usage,
    connections: Usage,
}

#[derive(Debug, Default)]
struct BackOff {
    failures: u32,
    /// It was removed: nothing waits for it.
    gone: bool,
}

/// What one unit of load costs there.
#[derive(Debug)]
struct Usage {
    open: AtomicU32,
    round_trip: Mutex<PeakEwma>,
}

/// What two endpoints are compared by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    open: u32,
    /// In seconds.
    round_trip: f64,
}

/// A chosen endpoint. It counts as loaded until this is dropped, when its connection ended or its
/// response's stream did.
#[derive(Debug)]
#[must_use]
pub(crate) struct Choice {
    backend: Arc<Backend>,
    unit: Unit,
    /// It is not known to be ready: this one tries.
    trial: AtomicBool,
}

// === impl Backend ===

impl Backend {
    pub(super) fn new(endpoint: Endpoint, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Self {
            endpoint,
            shared,
            due: AtomicU64::new(READY),
            back_off: Mutex::default(),
            requests: Usage::new(ANSWER_FLOOR, now),
            connections: Usage::new(DIAL_FLOOR, now),
        }
    }

    /// Expects what others do on average, and nothing worse than what nobody is known to do.
    pub(super) fn resemble(&self, others: &[Arc<Self>]) {
        let now = Instant::now();
        for unit in [Unit::Request, Unit::Connection] {
            let expected = others.iter().map(|other| other.load(unit, now).round_trip);
            let count = f64::from(u32::try_from(others.len()).unwrap_or(u32::MAX));
            let mean = expected.sum::<f64>() / count.max(1.0);
            if mean > 0.0 {
                self.usage(unit).round_trip().expect(mean);
            }
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.due.load(Ordering::Acquire) == READY
    }

    /// Whether a request may go there now.
    pub(super) fn is_open(&self, now: u64) -> bool {
        self.due.load(Ordering::Acquire) <= now
    }

    /// When the back-off is over, if one is under way.
    pub(super) fn due(&self) -> Option<u64> {
        let due = self.due.load(Ordering::Acquire);
        (due != READY && due != ON_TRIAL).then_some(due)
    }

    pub(super) fn load(&self, unit: Unit, now: Instant) -> Load {
        let usage = self.usage(unit);
        Load {
            open: usage.open.load(Ordering::Relaxed),
            round_trip: usage.round_trip().estimate(now),
        }
    }

    /// Takes it, if it is ready or nobody else tries it.
    pub(super) fn take(self: &Arc<Self>, unit: Unit, now: u64) -> Option<Choice> {
        let due = self.due.load(Ordering::Acquire);
        if due == READY {
            return Some(Choice::new(self, unit, false));
        }
        let (to, ok, failed) = (ON_TRIAL, Ordering::AcqRel, Ordering::Relaxed);
        let mine = due <= now && self.due.compare_exchange(due, to, ok, failed).is_ok();
        mine.then(|| Choice::new(self, unit, true))
    }

    /// Takes it whether it is ready or not.
    pub(super) fn take_anyway(self: &Arc<Self>, unit: Unit, now: u64) -> Choice {
        let taken = self.take(unit, now);
        taken.unwrap_or_else(|| Choice::new(self, unit, false))
    }

    /// It was removed. What is under way there goes on.
    pub(super) fn retire(&self) {
        let mut back_off = self.lock();
        back_off.gone = true;
        self.shared.removed(self.is_ready());
    }

    /// It was dialled.
    fn succeeded(&self) {
        if self.is_ready() {
            return;
        }
        let mut back_off = self.lock();
        back_off.failures = 0;
        let was = self.due.swap(READY, Ordering::AcqRel);
        if was != READY && !back_off.gone {
            self.shared.became_ready();
        }
    }

    /// It could not be dialled. What was dialled before that was known says nothing new.
    fn failed(&self, trial: bool) {
        let mut back_off = self.lock();
        let due = self.due.load(Ordering::Acquire);
        if due != READY && !(trial && due == ON_TRIAL) {
            return;
        }
        let wait = back_off.next();
        self.postpone(wait);
        if due == READY && !back_off.gone {
            self.shared.became_pending();
        }
        self.shared.say_changed();
    }

    /// Whoever tried it gave up before there was a result.
    fn untried(&self) {
        let _back_off = self.lock();
        if self.due.load(Ordering::Acquire) == ON_TRIAL {
            self.postpone(Duration::ZERO);
            self.shared.say_changed();
        }
    }

    fn postpone(&self, wait: Duration) {
        let due = self.shared.nanos(Instant::now() + wait);
        self.due.store(due.max(READY + 1), Ordering::Release);
    }

    fn usage(&self, unit: Unit) -> &Usage {
        match unit {
            Unit::Request => &self.requests,
            Unit::Connection => &self.connections,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BackOff> {
        self.back_off.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl BackOff ===

impl BackOff {
    fn next(&mut self) -> Duration {
        let doubled = BACK_OFF.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        let base = doubled.min(LONGEST_BACK_OFF);
        let jitter = base.mul_f64(rand::random_range(0.0..=JITTER));
        (base + jitter).min(LONGEST_BACK_OFF)
    }
}

// === impl Usage ===

impl Usage {
    fn new(floor: Duration, now: Instant) -> Self {
        Self {
            open: AtomicU32::new(0),
            round_trip: Mutex::new(PeakEwma::new(floor, now)),
        }
    }

    fn observe(&self, took: Duration) {
        self.round_trip().observe(took, Instant::now());
    }

    fn round_trip(&self) -> MutexGuard<'_, PeakEwma> {
        let round_trip = self.round_trip.lock();
        round_trip.unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Load ===

impl Load {
    /// Whether `other` is the better choice for `unit`.
    pub(super) fn yields_to(self, other: Self, unit: Unit) -> bool {
        if unit == Unit::Connection && self.is_like(other) {
            return other.open < self.open;
        }
        other.value() < self.value()
    }

    fn is_like(self, other: Self) -> bool {
        let ratio = self.round_trip / other.round_trip;
        (1.0 / ALIKE..=ALIKE).contains(&ratio)
    }

    fn value(self) -> f64 {
        self.round_trip * (f64::from(self.open) + 1.0)
    }
}

// === impl Choice ===

impl Choice {
    fn new(backend: &Arc<Backend>, unit: Unit, trial: bool) -> Self {
        backend.usage(unit).open.fetch_add(1, Ordering::Relaxed);
        Self {
            backend: Arc::clone(backend),
            unit,
            trial: AtomicBool::new(trial),
        }
    }

    /// What was chosen.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.backend.endpoint
    }

    /// Dialling it took this long: it is ready.
    pub(crate) fn connected(&self, took: Duration) {
        self.backend.connections.observe(took);
        self.trial.store(false, Ordering::Relaxed);
        self.backend.succeeded();
    }

    /// Its response's head came so long after the request was sent.
    ///
    /// That makes an endpoint ready only if this request was to try it: what is answered on a
    /// connection of before does not say that another one could be dialled.
    pub(crate) fn answered(&self, took: Duration) {
        self.backend.requests.observe(took);
        if self.trial.swap(false, Ordering::Relaxed) {
            self.backend.succeeded();
        }
    }

    /// It could not be dialled: it is not ready for a back-off.
    pub(crate) fn failed(&self) {
        self.backend.connections.observe(PENALTY);
        let trial = self.trial.swap(false, Ordering::Relaxed);
        self.backend.failed(trial);
    }

    /// Whether it is still worth dialling: not once another request found that it can't be.
    pub(crate) fn is_open(&self) -> bool {
        self.is_trial() || self.backend.is_ready()
    }

    /// Whether it was not known to be ready.
    pub(super) fn is_trial(&self) -> bool {
        self.trial.load(Ordering::Relaxed)
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        let usage = self.backend.usage(self.unit);
        usage.open.fetch_sub(1, Ordering::Relaxed);
        if self.is_trial() {
            self.backend.untried();
        }
    }
}
