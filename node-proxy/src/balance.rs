// SPDX-License-Identifier: Apache-2.0
//! Chooses among a service's endpoints, per request or per opaque connection: the better of two random
//! ones that are ready (P2C) by peak-EWMA, Linkerd's balancer.
//!
//! An endpoint's load is its round-trip estimate times one more than what is open to it from this
//! node: requests until their response's stream ended, or connections. A round trip of a request is
//! the time to the response's head. Of an opaque stream nothing but the dialling can be timed,
//! handshake included: that is another estimate, and a noisy one, so between round trips that are
//! alike only the open connections count. See [`ewma`] for the estimate.
//!
//! While no endpoint is ready requests wait, in a bounded queue and not for long ([`queue`]). An
//! opaque connection does not wait for one in back-off: the application hears at once that nobody
//! listens there.

mod backend;
mod ewma;
mod metrics;
mod queue;
mod shared;

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use self::{
    backend::Backend,
    metrics::Measured,
    queue::{FAIL_FAST, Queue},
    shared::Shared,
};
pub(crate) use self::{
    backend::Choice,
    metrics::{BalancerMetrics, ServicePort},
};
use crate::destinations::Endpoint;

/// How often a choice is made again that somebody else came before.
const ATTEMPTS: usize = 3;

/// The endpoints of one service, and how they fare.
#[derive(Debug)]
pub struct Balancer {
    backends: ArcSwap<Vec<Arc<Backend>>>,
    shared: Arc<Shared>,
    /// Held by who changes the endpoints.
    updating: Mutex<()>,
}

/// There is no endpoint for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unready {
    /// None has been ready for three seconds.
    FailFast,
    /// Too many requests wait for one.
    LoadShed,
    /// Every one was tried.
    Exhausted,
}

/// What is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unit {
    Request,
    Connection,
}

/// What there is to choose from.
#[derive(Debug)]
enum Pick {
    Chosen(Choice),
    /// None is ready now; one may be then.
    Wait(Option<Instant>),
    Exhausted,
}

/// Who asks for an endpoint, and when.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    unit: Unit,
    tried: &'a [SocketAddr],
    now: Instant,
    /// `now` in the balancer's own time.
    nanos: u64,
}

/// How an update changes the endpoints.
#[derive(Debug)]
struct Change<'a> {
    /// Those of before that were not found again.
    old: HashMap<SocketAddr, &'a Arc<Backend>>,
    added: u64,
    /// As many of `old` have another at their address.
    replaced: u64,
}

// === impl Balancer ===

impl Balancer {
    /// One that counts as `service`.
    pub(crate) fn measured(metrics: BalancerMetrics, service: ServicePort) -> Self {
        Self::with(Some(Measured::new(metrics, service)))
    }

    fn with(measured: Option<Measured>) -> Self {
        Self {
            backends: ArcSwap::default(),
            shared: Arc::new(Shared::new(measured)),
            updating: Mutex::default(),
        }
    }

    /// Replaces the endpoints; one that stays keeps its estimates and its back-off. `snapshot`:
    /// discovery said which there are, else what changed.
    pub fn update(&self, endpoints: &[Endpoint], snapshot: bool) {
        let updating = self.updating.lock();
        let _updating = updating.unwrap_or_else(PoisonError::into_inner);
        let before = self.backends.load_full();
        let mut change = Change::of(&before);
        let now = endpoints.iter().map(|endpoint| change.take(endpoint));
        let now = now.map(|kept| kept.unwrap_or_else(|new| self.add(new, &before)));
        self.backends.store(Arc::new(now.collect()));
        change.gone().for_each(|gone| gone.retire());
        self.tell(&change, snapshot);
    }

    /// Who joins others is taken for one of them: 30 ms beside answers of one would keep it idle for
    /// half a minute.
    fn add(&self, endpoint: &Endpoint, others: &[Arc<Backend>]) -> Arc<Backend> {
        self.shared.added();
        let backend = Backend::new(endpoint.clone(), self.shared.clone());
        backend.resemble(others);
        Arc::new(backend)
    }

    fn tell(&self, change: &Change<'_>, snapshot: bool) {
        if change.added == 0 && change.gone().next().is_none() {
            return;
        }
        self.shared
            .updated(snapshot, change.added, change.removed());
        if change.added > 0 {
            self.shared.open();
        } else {
            self.shared.say_changed();
        }
    }

    /// Chooses an endpoint that is ready and none of `tried` for a request. Waits for one, at most
    /// three seconds.
    pub(crate) async fn ready(&self, tried: &[SocketAddr]) -> Result<Choice, Unready> {
        self.choose_for(Unit::Request, tried).await
    }

    /// The endpoint at `addr`, for a request that goes on a connection that stands.
    pub(crate) fn at(&self, addr: SocketAddr) -> Option<Choice> {
        let backends = self.backends.load();
        let backend = backends.iter().find(|it| it.endpoint.addr == addr)?;
        self.shared.queue(Unit::Request).passed();
        let now = self.shared.nanos(Instant::now());
        Some(backend.take_anyway(Unit::Request, now))
    }

    /// Chooses an endpoint that is none of `tried` for an opaque connection: one that is ready if
    /// there is one. Waits while there is none at all, at most three seconds.
    pub(crate) async fn ready_connection(&self, tried: &[SocketAddr]) -> Result<Choice, Unready> {
        self.choose_for(Unit::Connection, tried).await
    }

    /// Chooses an endpoint that is none of `tried` for an opaque connection, without waiting.
    pub(crate) fn choose(&self, tried: &[SocketAddr]) -> Option<Choice> {
        match self.pick(&self.asked(Unit::Connection, tried)) {
            Pick::Chosen(choice) => Some(choice),
            Pick::Wait(_) | Pick::Exhausted => None,
        }
    }

    /// As [`Self::ready_connection`], which never waits longer than `limit`.
    pub(crate) async fn choose_or_wait(&self, limit: Duration) -> Option<Choice> {
        debug_assert!(limit >= FAIL_FAST, "{limit:?} is less than the queue's");
        self.ready_connection(&[]).await.ok()
    }

    async fn choose_for(&self, unit: Unit, tried: &[SocketAddr]) -> Result<Choice, Unready> {
        let queue = self.shared.queue(unit);
        match self.pick(&self.asked(unit, tried)) {
            Pick::Chosen(choice) => {
                queue.passed();
                Ok(choice)
            }
            Pick::Exhausted => Err(Unready::Exhausted),
            Pick::Wait(_) => self.wait(queue, unit, tried).await,
        }
    }

    async fn wait(
        &self,
        queue: &Queue,
        unit: Unit,
        tried: &[SocketAddr],
    ) -> Result<Choice, Unready> {
        let begun = Instant::now();
        let _place = queue.enter(begun)?;
        loop {
            // Before it is looked, so that no change is missed.
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let asked = self.asked(unit, tried);
            let due = match self.pick(&asked) {
                Pick::Chosen(choice) => return Ok(choice),
                Pick::Exhausted => return Err(Unready::Exhausted),
                Pick::Wait(due) => due,
            };
            let limit = self.limit(queue, &asked, begun)?;
            let until = due.map_or(limit, |due| due.min(limit));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Until when one waits. Where another request would find an endpoint this is this one's affair,
    /// and else the gate's.
    fn limit(&self, queue: &Queue, asked: &Asked<'_>, begun: Instant) -> Result<Instant, Unready> {
        let backends = self.backends.load();
        if !asked.tried.is_empty() && backends.iter().any(|backend| backend.is_ready()) {
            let limit = begun + FAIL_FAST;
            return (asked.now < limit)
                .then_some(limit)
                .ok_or(Unready::Exhausted);
        }
        queue.shuts(asked.now)
    }

    fn asked<'a>(&self, unit: Unit, tried: &'a [SocketAddr]) -> Asked<'a> {
        let now = Instant::now();
        let nanos = self.shared.nanos(now);
        Asked {
            unit,
            tried,
            now,
            nanos,
        }
    }

    fn pick(&self, asked: &Asked<'_>) -> Pick {
        let backends = self.backends.load();
        let chosen = asked.pair(&backends).or_else(|| asked.search(&backends));
        if let Some(choice) = chosen.or_else(|| asked.any(&backends)) {
            if !choice.is_trial() {
                self.shared.queue(asked.unit).open();
            }
            return Pick::Chosen(choice);
        }
        let left = backends.iter().filter(|left| asked.is_untried(left));
        if !backends.is_empty() && left.clone().next().is_none() {
            return Pick::Exhausted;
        }
        let due = left.filter_map(|backend| backend.due()).min();
        Pick::Wait(due.map(|due| self.shared.instant(due)))
    }
}

impl Default for Balancer {
    /// One that counts nowhere.
    fn default() -> Self {
        Self::with(None)
    }
}

// === impl Asked ===

impl Asked<'_> {
    /// The better of two random ones, if both may be chosen: nearly always, and no other is looked at.
    fn pair(&self, backends: &[Arc<Backend>]) -> Option<Choice> {
        let (one, other) = two(backends.len())?;
        let (one, other) = (backends.get(one)?, backends.get(other)?);
        let both = self.may_be(one) && self.may_be(other);
        both.then(|| self.better(one, other)).flatten()
    }

    /// The better of two random ones of all that may be chosen. That is as likely for each two as
    /// [`Self::pair`] is.
    fn search(&self, backends: &[Arc<Backend>]) -> Option<Choice> {
        let open = || backends.iter().filter(|backend| self.may_be(backend));
        // Somebody else may have taken one meanwhile, or found that it is not ready.
        for _ in 0..ATTEMPTS {
            let (one, other) = two(open().count())?;
            let (one, other) = (open().nth(one), open().nth(other));
            if let Some(choice) = one
                .zip(other)
                .and_then(|(one, other)| self.better(one, other))
            {
                return Some(choice);
            }
        }
        None
    }

    /// For a connection that does not wait: the better of two that are not ready.
    fn any(&self, backends: &[Arc<Backend>]) -> Option<Choice> {
        if self.unit != Unit::Connection {
            return None;
        }
        let left = || backends.iter().filter(|left| self.is_untried(left));
        let (one, other) = two(left().count())?;
        let better = self.lesser(left().nth(one)?, left().nth(other)?);
        Some(better.take_anyway(self.unit, self.nanos))
    }

    fn better(&self, one: &Arc<Backend>, other: &Arc<Backend>) -> Option<Choice> {
        self.lesser(one, other).take(self.unit, self.nanos)
    }

    /// The one with less load.
    fn lesser<'b>(&self, one: &'b Arc<Backend>, other: &'b Arc<Backend>) -> &'b Arc<Backend> {
        if Arc::ptr_eq(one, other) {
            return one;
        }
        let load = |backend: &Backend| backend.load(self.unit, self.now);
        let swap = load(one).yields_to(load(other), self.unit);
        if swap { other } else { one }
    }

    fn may_be(&self, backend: &Backend) -> bool {
        backend.is_open(self.nanos) && self.is_untried(backend)
    }

    fn is_untried(&self, backend: &Backend) -> bool {
        !self.tried.contains(&backend.endpoint.addr)
    }
}

/// Two different indices below `count`; the same one twice if there is only one.
fn two(count: usize) -> Option<(usize, usize)> {
    match count {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let one = rand::random_range(0..count);
            let other = rand::random_range(0..count - 1);
            Some((one, other + usize::from(other >= one)))
        }
    }
}

// === impl Change ===

impl<'a> Change<'a> {
    fn of(before: &'a [Arc<Backend>]) -> Self {
        let old = before.iter().map(|old| (old.endpoint.addr, old));
        Self {
            old: old.collect(),
            added: 0,
            replaced: 0,
        }
    }

    /// What is known of `endpoint`, or that it is new.
    fn take<'e>(&mut self, endpoint: &'e Endpoint) -> Result<Arc<Backend>, &'e Endpoint> {
        match self.old.entry(endpoint.addr) {
            Entry::Occupied(old) if old.get().endpoint == *endpoint => Ok(Arc::clone(old.remove())),
            old => {
                self.added += 1;
                self.replaced += u64::from(matches!(old, Entry::Occupied(_)));
                Err(endpoint)
            }
        }
    }

    /// Those that are not named any more, and those that are others now.
    fn gone(&self) -> impl Iterator<Item = &'a Arc<Backend>> {
        self.old.values().copied()
    }

    fn removed(&self) -> u64 {
        self.old.len() as u64 - self.replaced
    }
}

#[cfg(test)]
mod tests;
