// SPDX-License-Identifier: Apache-2.0
//! The series of HTTP requests and responses: `request_total`, `response_total` and
//! `response_latency_ms`, with Linkerd's labels and buckets.
//!
//! A set is looked up once per connection or endpoint. A request then finds its counters in short
//! lists that only grow, without a lock and without a label in sight; labels are put together for a
//! scrape.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    bounds::Charge,
    exposition::Page,
    families::Family,
    labels::{Labels, Leg},
    pod::{Common, PodSeries},
    sets::Idle,
    value::{Buckets, Histogram, List, Used},
};
use crate::http::Class;

/// Linkerd's (linkerd2-proxy, linkerd/metrics/src/histogram.rs and latency.rs).
static LATENCY_MS: Buckets<25> = Buckets {
    bounds: [
        1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 20_000, 30_000, 40_000, 50_000, 100_000,
        200_000, 300_000, 400_000, 500_000, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000,
        10_000_000, 20_000_000, 30_000_000, 40_000_000, 50_000_000,
    ],
    unit: 1_000,
};

/// The lines of a histogram: its buckets, `+Inf`, sum and count.
const OF_HISTOGRAM: usize = 25 + 3;

/// The most statuses of one set: servers may say any of 900.
const MAX_STATUSES: usize = 16;

/// The most ways in which responses of one status end: 17 gRPC statuses, one for all others, errors.
const MAX_ENDS: usize = 48;

/// The last gRPC status that means something (`UNAUTHENTICATED`).
const MAX_GRPC_STATUS: u16 = 16;

/// What tells the requests of a pod apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpLeg {
    pub(crate) leg: Leg,
    /// The canonical name and port of the service that was dialled (`cart.shop.svc.cluster.local:80`),
    /// outbound; never what a client says. Linkerd's queries about services expect the port.
    pub(crate) authority: Arc<str>,
}

/// The series of the requests of one [`HttpLeg`].
#[derive(Debug)]
pub(crate) struct HttpSeries {
    requests: AtomicU64,
    statuses: List<Status>,
    used: Used,
    charge: Charge,
    /// Where the rest is counted. None: here.
    beyond: Option<Beyond>,
}

/// How a response ended, or why there was none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// None: there was no response.
    pub(crate) status: Option<u16>,
    pub(crate) class: Class,
    pub(crate) grpc_status: Option<u16>,
    /// Why the stream broke off, from a closed set. Empty: it did not.
    pub(crate) error: &'static str,
}

#[derive(Debug)]
struct Beyond {
    pod: Weak<PodSeries>,
    common: Common,
}

/// The series of one status.
#[derive(Debug)]
struct Status {
    code: Code,
    /// Nothing is timed where there was no response.
    latency: Option<Histogram<25>>,
    ends: List<End>,
    _charge: Charge,
}

/// The responses that ended in one way.
#[derive(Debug)]
struct End {
    class: Class,
    grpc: Grpc,
    error: &'static str,
    count: AtomicU64,
    _charge: Charge,
}

/// A value of the label `status_code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    None,
    Of(u16),
    Other,
}

/// A value of the label `grpc_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grpc {
    None,
    Of(u16),
    Other,
}

// === impl HttpSeries ===

impl HttpSeries {
    /// How many series this is at first.
    pub(super) const SERIES: usize = 1;

    /// The series of one leg; what there is no room for is counted in what `pod` has for that.
    pub(super) fn new(charge: Charge, pod: Weak<PodSeries>, common: Common) -> Self {
        let beyond = Some(Beyond { pod, common });
        Self {
            beyond,
            ..Self::shared(charge)
        }
    }

    /// What there is no room for.
    pub(super) fn shared(charge: Charge) -> Self {
        Self {
            requests: AtomicU64::new(0),
            statuses: List::default(),
            used: Used::now(),
            charge,
            beyond: None,
        }
    }

    /// A request arrived, or went out.
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Its response ended. `latency` is from the request's head to the first of the response's body,
    /// or to its end if it has none: what Linkerd takes, so that a stream counts as soon as it flows.
    pub(crate) fn response(&self, outcome: &Outcome, latency: Duration) {
        self.used.touch();
        if self.count(outcome, latency) {
            return;
        }
        match &self.beyond {
            Some(beyond) => beyond.count(outcome, latency),
            None => self.count_other(outcome, latency),
        }
    }

    fn count(&self, outcome: &Outcome, latency: Duration) -> bool {
        let code = outcome.status.map_or(Code::None, Code::Of);
        let status = self.status(code, MAX_STATUSES);
        let end = status.and_then(|status| Some((status, self.end(status, outcome)?)));
        if let Some((status, end)) = end {
            status.took(latency);
            end.count.fetch_add(1, Ordering::Relaxed);
        }
        end.is_some()
    }

    /// Beyond the limits even of what is beyond the limits.
    fn count_other(&self, outcome: &Outcome, latency: Duration) {
        let plain = Outcome {
            grpc_status: None,
            error: "",
            ..*outcome
        };
        let status = self.status(Code::Other, MAX_STATUSES + 1);
        let end = status.and_then(|status| Some((status, self.end(status, &plain)?)));
        if let Some((status, end)) = end {
            status.took(latency);
            end.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn status(&self, code: Code, max: usize) -> Option<&Status> {
        let series = match code {
            Code::None => 0,
            Code::Of(_) | Code::Other => OF_HISTOGRAM,
        };
        self.statuses.find_or_add(
            max,
            |status| status.code == code,
            || Some(Status::new(code, self.charge(series)?)),
        )
    }

    fn end<'a>(&self, status: &'a Status, outcome: &Outcome) -> Option<&'a End> {
        status.ends.find_or_add(
            MAX_ENDS,
            |end| end.is_of(outcome),
            || Some(End::new(outcome, self.charge(1)?)),
        )
    }

    fn charge(&self, series: usize) -> Option<Charge> {
        let bound = self.charge.bound();
        match self.beyond {
            Some(_) => bound.take(series),
            None => Some(bound.take_anyway(series)),
        }
    }

    /// `labels` are all but those of responses.
    pub(super) fn expose(&self, page: &mut Page, labels: &Labels) {
        let requests = self.requests.load(Ordering::Relaxed);
        page.count(Family::Requests, labels.clone(), requests);
        for status in self.statuses.iter() {
            status.expose(page, &status.code.label(labels.clone()));
        }
    }
}

impl Idle for HttpSeries {
    fn idle(&self) -> Duration {
        self.used.idle()
    }
}

// === impl HttpLeg ===

impl HttpLeg {
    pub(super) fn labels(&self, pod: Labels) -> Labels {
        let Self { leg, authority } = self;
        let labels = pod.direction(leg.direction).with("authority", authority);
        leg.add_to(labels.always("tls", leg.tls.as_str()))
    }
}

// === impl Beyond ===

impl Beyond {
    fn count(&self, outcome: &Outcome, latency: Duration) {
        if let Some(pod) = self.pod.upgrade() {
            pod.http_beyond(self.common).response(outcome, latency);
        }
    }
}

// === impl Status ===

impl Status {
    fn new(code: Code, charge: Charge) -> Self {
        Self {
            code,
            latency: (code != Code::None).then(|| Histogram::new(&LATENCY_MS)),
            ends: List::default(),
            _charge: charge,
        }
    }

    fn took(&self, latency: Duration) {
        if let Some(histogram) = &self.latency {
            histogram.observe(latency);
        }
    }

    fn expose(&self, page: &mut Page, labels: &Labels) {
        if let Some(histogram) = &self.latency {
            page.histogram(Family::Latency, labels.clone(), histogram);
        }
        for end in self.ends.iter() {
            let count = end.count.load(Ordering::Relaxed);
            page.count(Family::Responses, end.labels(labels.clone()), count);
        }
    }
}

// === impl End ===

impl End {
    fn new(outcome: &Outcome, charge: Charge) -> Self {
        Self {
            class: outcome.class,
            grpc: Grpc::of(outcome),
            error: outcome.error,
            count: AtomicU64::new(0),
            _charge: charge,
        }
    }

    fn is_of(&self, outcome: &Outcome) -> bool {
        self.class == outcome.class && self.grpc == Grpc::of(outcome) && self.error == outcome.error
    }

    fn labels(&self, labels: Labels) -> Labels {
        let class = match self.class {
            Class::Success => "success",
            Class::Failure => "failure",
        };
        let labels = self.grpc.label(labels.always("classification", class));
        labels.with("error", self.error)
    }
}

// === impl Code ===

impl Code {
    fn label(self, labels: Labels) -> Labels {
        match self {
            Self::None => labels,
            Self::Of(code) => labels.always("status_code", &code.to_string()),
            Self::Other => labels.always("status_code", "other"),
        }
    }
}

// === impl Grpc ===

impl Grpc {
    fn of(outcome: &Outcome) -> Self {
        match outcome.grpc_status {
            None => Self::None,
            Some(status) if status <= MAX_GRPC_STATUS => Self::Of(status),
            Some(_) => Self::Other,
        }
    }

    fn label(self, labels: Labels) -> Labels {
        match self {
            Self::None => labels,
            Self::Of(status) => labels.always("grpc_status", &status.to_string()),
            Self::Other => labels.always("grpc_status", "other"),
        }
    }
}
