// SPDX-License-Identifier: Apache-2.0
//! One pod's metrics.

use std::{
    net::IpAddr,
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use culvert_api::agent::Direction;

use super::{
    Metrics,
    bounds::Bound,
    exposition::Page,
    families::Family,
    fault::Fault,
    handshakes::{Handshakes, Handshaking},
    http::{HttpLeg, HttpSeries},
    labels::{Labels, Leg, Peer, PodLabels, Tls},
    limit::{Admitted, Dialling, Limit},
    sets::Sets,
    tally::{self, Counter, Detection, Tally},
    transport::{OpenLeg, OpenSide, Side},
};
use crate::{
    descriptors::{self, Use},
    detect::Protocol,
};

/// The metrics of one enrolled pod. Its series go with the last of these.
#[derive(Debug)]
pub struct PodMetrics {
    metrics: Metrics,
    series: Arc<PodSeries>,
    limit: Arc<Limit>,
    handshakes: Arc<Handshakes>,
}

/// What remains to be told of a leg for which there is no room.
pub(super) type Common = (Direction, Tls);

/// The series of one set of pod labels.
#[derive(Debug)]
pub(super) struct PodSeries {
    labels: PodLabels,
    bound: Arc<Bound>,
    sides: Sets<(Leg, Peer), (Common, Peer), Side>,
    http: Sets<HttpLeg, Common, HttpSeries>,
    tallies: Sets<(Counter, Vec<String>), Counter, Tally>,
    inbound: OnceLock<Detection>,
    outbound: OnceLock<Detection>,
    overflows: AtomicU64,
}

// === impl PodMetrics ===

impl PodMetrics {
    pub(super) fn new(metrics: Metrics, series: Arc<PodSeries>, max_connections: usize) -> Self {
        let gauge = metrics.0.globals.handshakes.clone();
        Self {
            handshakes: Arc::new(Handshakes::new(gauge)),
            metrics,
            series,
            limit: Arc::new(Limit::new(max_connections)),
        }
    }

    /// One more connection, unless this pod or this process has too many, or descriptors are scarce.
    pub(crate) fn admit(&self, accepted: &impl AsFd) -> Option<Admitted> {
        let shared = &self.metrics.0;
        // What is owed is a greedy pod's more than anyone's, and in part open already, as its spare sockets.
        let (for_a, owed) = match self.limit.open() > shared.limit.open() / 2 {
            true => (Use::GreedyConnection, self.owed()),
            false => (Use::Connection, 0),
        };
        if !descriptors::suffice(accepted, owed, for_a) {
            shared.scarce();
            return None;
        }
        Admitted::new(&shared.limit, &self.limit, &shared.globals.connections)
    }

    /// One more client that is not known yet, unless this pod has too many, or too many of its address.
    pub(crate) fn handshake(&self, from: IpAddr) -> Option<Handshaking> {
        self.handshakes.begin(from)
    }

    /// A connection will need a second descriptor, until this is dropped.
    pub(crate) fn dialling(&self) -> Dialling {
        Dialling::new(&self.metrics.0.dialling)
    }

    /// How many connections of all pods will need a second descriptor.
    pub(crate) fn owed(&self) -> usize {
        self.metrics.0.dialling.load(Ordering::Relaxed)
    }

    /// How many connections of this pod are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.limit.open()
    }

    /// A connection was opened.
    pub(crate) fn open(&self, leg: Leg) -> OpenLeg {
        let source = self.open_side(leg.clone(), Peer::Source);
        OpenLeg::new(source, self.open_side(leg, Peer::Destination))
    }

    /// One side of a connection was opened: the two have lives of their own where requests are
    /// forwarded. `peer` is who is at its other end.
    pub(crate) fn open_side(&self, leg: Leg, peer: Peer) -> OpenSide {
        OpenSide::new(self.series.side(leg, peer))
    }

    /// A connection was refused or broken off.
    pub(crate) fn fault(&self, direction: Direction, fault: Fault) {
        let counter = match direction {
            Direction::Inbound => Counter::InboundErrors,
            Direction::Outbound => Counter::OutboundErrors,
        };
        self.count(counter, &[fault.as_str()]);
    }

    /// The policy was asked, or changed its mind.
    pub(crate) fn authorized(&self, answer: Counter, rule: &str, tls: Tls, client_id: &str) {
        self.count(answer, &[rule, tls.as_str(), client_id]);
    }

    /// The series of requests, to be kept by what serves or sends them.
    pub(crate) fn http(&self, leg: &HttpLeg) -> Arc<HttpSeries> {
        self.series.http(leg)
    }

    /// The proxy itself answered a request, or broke it off. `error` is of a closed set.
    pub(crate) fn http_fault(&self, direction: Direction, error: &'static str) {
        let counter = match direction {
            Direction::Inbound => Counter::InboundHttpErrors,
            Direction::Outbound => Counter::OutboundHttpErrors,
        };
        self.count(counter, &[error]);
    }

    /// What requests that `rule` allows, or rules refuse, are counted with: one for a connection.
    /// `answer` is [`Counter::HttpAllow`] or [`Counter::HttpDeny`].
    pub(crate) fn http_authorized(
        &self,
        answer: Counter,
        rule: &str,
        tls: Tls,
        client_id: &str,
    ) -> Arc<Tally> {
        self.series.tally(answer, &[rule, tls.as_str(), client_id])
    }

    /// It is clear what a connection speaks, or (none) that it says nothing for now.
    pub(crate) fn detected(
        &self,
        direction: Direction,
        protocol: Option<Protocol>,
        took: Duration,
    ) {
        let counter = match direction {
            Direction::Inbound => Counter::InboundDetected,
            Direction::Outbound => Counter::OutboundDetected,
        };
        self.count(counter, &[tally::detected(protocol)]);
        self.series.detection(direction).took(took);
    }

    /// An outbound connection is served as this.
    pub(crate) fn protocol(&self, protocol: Protocol) {
        self.count(Counter::OutboundProtocol, &[tally::protocol(protocol)]);
    }

    fn count(&self, counter: Counter, values: &[&str]) {
        self.series.tally(counter, values).inc();
    }
}

impl Drop for PodMetrics {
    fn drop(&mut self) {
        self.metrics.release(&self.series);
    }
}

// === impl PodSeries ===

impl PodSeries {
    pub(super) fn new(labels: PodLabels, bound: Arc<Bound>) -> Self {
        Self {
            labels,
            bound,
            sides: Sets::default(),
            http: Sets::default(),
            tallies: Sets::default(),
            inbound: OnceLock::new(),
            outbound: OnceLock::new(),
            overflows: AtomicU64::new(0),
        }
    }

    pub(super) fn labels(&self) -> &PodLabels {
        &self.labels
    }

    /// Removes what nobody used for `idle`.
    pub(super) fn sweep(&self, idle: Duration) {
        self.sides.sweep(idle);
        self.http.sweep(idle);
        self.tallies.sweep(idle);
    }

    fn side(&self, leg: Leg, peer: Peer) -> Arc<Side> {
        let common = ((leg.direction, leg.tls), peer);
        let made = || Some(Side::new(self.bound.take(Side::SERIES)?));
        self.sides.get(&(leg, peer), made).unwrap_or_else(|| {
            self.overflowed();
            let anyway = || Side::new(self.bound.take_anyway(Side::SERIES));
            self.sides.beyond(common, anyway)
        })
    }

    fn http(self: &Arc<Self>, leg: &HttpLeg) -> Arc<HttpSeries> {
        let common = (leg.leg.direction, leg.leg.tls);
        let made = || {
            let charge = self.bound.take(HttpSeries::SERIES)?;
            Some(HttpSeries::new(charge, Arc::downgrade(self), common))
        };
        let set = self.http.get(leg, made);
        set.unwrap_or_else(|| self.http_beyond(common))
    }

    /// What counts the requests and responses for which there is no room.
    pub(super) fn http_beyond(&self, common: Common) -> Arc<HttpSeries> {
        self.overflowed();
        let anyway = || HttpSeries::shared(self.bound.take_anyway(HttpSeries::SERIES));
        self.http.beyond(common, anyway)
    }

    fn tally(&self, counter: Counter, values: &[&str]) -> Arc<Tally> {
        let key = (counter, values.iter().copied().map(str::to_owned).collect());
        let charge = || match counter.is_open() {
            true => self.bound.take(1),
            false => Some(self.bound.take_anyway(1)),
        };
        let tally = self.tallies.get(&key, || Some(Tally::new(charge()?)));
        tally.unwrap_or_else(|| {
            self.overflowed();
            let anyway = || Tally::new(self.bound.take_anyway(1));
            self.tallies.beyond(counter, anyway)
        })
    }

    fn detection(&self, direction: Direction) -> &Detection {
        let detection = match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        };
        detection.get_or_init(|| Detection::new(self.bound.take_anyway(Detection::SERIES)))
    }

    fn overflowed(&self) {
        self.overflows.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts everything on the page.
    pub(super) fn expose(&self, page: &mut Page) {
        let labels = self.labels.labels();
        self.expose_sides(page, &labels);
        self.expose_http(page, &labels);
        self.expose_tallies(page, &labels);
        let detections = [
            (Direction::Inbound, self.inbound.get()),
            (Direction::Outbound, self.outbound.get()),
        ];
        for (direction, detection) in detections {
            if let Some(detection) = detection {
                detection.expose(page, direction, labels.clone());
            }
        }
        let overflows = self.overflows.load(Ordering::Relaxed);
        page.count(Family::Overflow, labels, overflows);
    }

    fn expose_sides(&self, page: &mut Page, labels: &Labels) {
        let (of, beyond) = self.sides.all();
        for ((leg, peer), side) in of {
            side.expose(page, labels.clone(), &leg, peer);
        }
        for (((direction, tls), peer), side) in beyond {
            let leg = Leg::new(direction, tls);
            side.expose(page, labels.clone().overflow(), &leg, peer);
        }
    }

    fn expose_http(&self, page: &mut Page, labels: &Labels) {
        let (of, beyond) = self.http.all();
        for (leg, series) in of {
            series.expose(page, &leg.labels(labels.clone()));
        }
        for ((direction, tls), series) in beyond {
            let authority = Arc::default();
            let leg = Leg::new(direction, tls);
            let leg = HttpLeg { leg, authority };
            series.expose(page, &leg.labels(labels.clone().overflow()));
        }
    }

    fn expose_tallies(&self, page: &mut Page, labels: &Labels) {
        let (of, beyond) = self.tallies.all();
        for ((counter, values), tally) in of {
            tally.expose(page, counter, labels.clone(), &values);
        }
        for (counter, tally) in beyond {
            tally.expose(page, counter, labels.clone().overflow(), &[]);
        }
    }
}
