// SPDX-License-Identifier: Apache-2.0
//! One node's stream.

use std::{collections::BTreeMap, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use culvert_api::{
    grpc::{
        VERSIONS,
        v1::{
            self, WatchRequest, WatchResponse, watch_request::Kind as Request, watch_response::Kind,
        },
    },
    version::Versions,
    workload::{NetnsCookie, PodUid},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tonic::{Status, Streaming};

use super::{Shared, progress::Place, subscriptions::Subscriptions};
use crate::{
    index::{Applied, Refused, Report, Reporter, View},
    metrics::{Metrics, Share},
    server::until,
    tokens::Caller,
};

/// How many messages wait for the node to read them.
pub(super) const QUEUE: usize = 256;

/// How long the node may leave the queue full.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the node may take for its first message.
const HELLO: Duration = Duration::from_secs(10);

/// How long a node may take to ask for something after both Hellos, before it is taken to follow
/// nothing.
const ASK: Duration = Duration::from_millis(500);

/// The sequence of what control says unasked at the beginning: Hello, and who signs.
const GREETING: u64 = 2;

/// How many reports may wait at once, for their pods' objects or for other nodes.
const MAX_REPORTS: usize = 4096;

/// Where a stream's messages go, and at last why it ended.
pub(super) struct Outbound {
    pub(super) messages: mpsc::Sender<WatchResponse>,
    pub(super) end: oneshot::Sender<Status>,
}

struct Stream {
    shared: Shared,
    caller: Caller,
    view: Arc<View>,
    views: watch::Receiver<Arc<View>>,
    subscriptions: Subscriptions,
    subscribed: Share,
    /// Reports of pods whose objects are not there yet.
    early: BTreeMap<PodUid, Report>,
    /// Reports that are older than those of another stream that lives.
    outdated: BTreeMap<PodUid, Report>,
    /// Changes when a stream ended.
    ended: watch::Receiver<()>,
    issuer: watch::Receiver<Vec<u8>>,
    /// What its reports are known by while it lives; to be dropped before its place is.
    token: Arc<()>,
    reported: (mpsc::Sender<v1::Reported>, mpsc::Receiver<v1::Reported>),
    place: Place,
    messages: mpsc::Sender<WatchResponse>,
    sequence: u64,
    /// The node may not know yet what it asked for first, which streams before this one told it.
    behind: bool,
    patience: Duration,
    over_limit: bool,
}

/// Serves a stream until it ends.
pub(super) async fn serve(
    shared: Shared,
    caller: Caller,
    mut inbound: Streaming<WatchRequest>,
    outbound: Outbound,
) {
    let node = caller.node.clone();
    let served = async {
        let version = hello(&caller, &mut inbound, &shared.metrics).await?;
        let mut share = Share::of(&shared.metrics.streams);
        share.set(1);
        tracing::info!(node.name = node, version, "A node began to watch");
        let mut stream = Stream::new(shared, caller, outbound.messages);
        stream.run(inbound).await
    };
    match served.await {
        Ok(()) => tracing::info!(node.name = node, "A node stopped watching"),
        Err(status) => {
            tracing::warn!(node.name = node, error = %status, "A node's stream ended");
            // The node may be gone already.
            let _ = outbound.end.send(status);
        }
    }
}

/// The version that the proxy is spoken with.
async fn hello(
    caller: &Caller,
    inbound: &mut Streaming<WatchRequest>,
    metrics: &Metrics,
) -> Result<u32, Status> {
    let first = timeout(HELLO, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello in 10 s"))??;
    let Some(Request::Hello(hello)) = first.and_then(|first| first.kind) else {
        return Err(Status::invalid_argument("the first message is not Hello"));
    };
    let version = VERSIONS.agree(Versions::from(&hello)).map_err(|error| {
        metrics.version_mismatches.inc();
        Status::failed_precondition(error.to_string())
    })?;
    if hello.node == caller.node {
        return Ok(version);
    }
    metrics.impostors.inc();
    tracing::warn!(
        node.name = caller.node,
        hello.node,
        "A node claimed to be another"
    );
    Err(Status::permission_denied("the token is another node's"))
}

// === impl Stream ===

impl Stream {
    fn new(shared: Shared, caller: Caller, messages: mpsc::Sender<WatchResponse>) -> Self {
        let mut views = shared.views.clone();
        let view = Arc::clone(&views.borrow_and_update());
        let ended = shared.streams.ended();
        let place = shared.streams.enter(&caller.node);
        let issuer = shared.issuer.clone();
        Self {
            issuer,
            subscribed: Share::of(&shared.metrics.subscriptions),
            shared,
            caller,
            view,
            views,
            subscriptions: Subscriptions::default(),
            early: BTreeMap::new(),
            outdated: BTreeMap::new(),
            ended,
            token: Arc::default(),
            reported: mpsc::channel(MAX_REPORTS),
            place,
            messages,
            sequence: 0,
            behind: true,
            patience: PATIENCE,
            over_limit: false,
        }
    }

    async fn run(&mut self, mut inbound: Streaming<WatchRequest>) -> Result<(), Status> {
        self.send(Kind::Hello(VERSIONS.into())).await?;
        self.say_issuer().await?;
        let mut stopping = pin!(until(self.shared.stopping.clone()));
        let mut ask = pin!(sleep(ASK));
        let cut = Arc::clone(&self.place.cut);
        loop {
            tokio::select! {
                message = inbound.message() => match message? {
                    Some(message) => self.received(message).await?,
                    None => return Ok(()),
                },
                Ok(()) = self.views.changed() => self.catch_up().await?,
                Ok(()) = self.issuer.changed() => self.say_issuer().await?,
                Ok(()) = self.ended.changed() => self.report_outdated()?,
                () = &mut ask, if !ask.is_elapsed() => {
                    if self.sequence == GREETING {
                        self.caught_up();
                    }
                }
                Some(reported) = self.reported.1.recv() => {
                    self.send(Kind::Reported(reported)).await?;
                }
                () = self.caller.revoked() => {
                    return Err(Status::unauthenticated("the token is no longer valid"));
                }
                () = cut.notified() => {
                    return Err(Status::aborted("newer streams of this node took its place"));
                }
                () = &mut stopping => {
                    return Err(Status::unavailable("control is stopping"));
                }
            }
        }
    }

    async fn say_issuer(&mut self) -> Result<(), Status> {
        let fingerprint = self.issuer.borrow_and_update().clone();
        self.send(Kind::Issuer(v1::Issuer { fingerprint })).await
    }

    async fn received(&mut self, message: WatchRequest) -> Result<(), Status> {
        match message.kind {
            Some(Request::Hello(_)) => Err(Status::invalid_argument("a second Hello")),
            Some(Request::Subscribe(v1::Subscribe { destination })) => {
                self.subscribe(address(destination.as_ref())?).await
            }
            Some(Request::Unsubscribe(v1::Unsubscribe { destination })) => {
                self.subscriptions
                    .unsubscribe(address(destination.as_ref())?);
                self.subscribed.set(self.subscriptions.len());
                Ok(())
            }
            Some(Request::SubscribePolicy(v1::SubscribePolicy { pod_uid })) => {
                self.subscribe_policy(PodUid(pod_uid)).await
            }
            Some(Request::UnsubscribePolicy(v1::UnsubscribePolicy { pod_uid })) => {
                self.subscriptions.unsubscribe_policy(&PodUid(pod_uid));
                self.subscribed.set(self.subscriptions.len());
                Ok(())
            }
            Some(Request::Report(report)) => {
                self.report(from_wire(report, Reporter::of(&self.token)))
            }
            Some(Request::Ack(v1::Ack { sequence })) => {
                self.acknowledged(sequence);
                Ok(())
            }
            None => {
                tracing::debug!("A node of a later release said what this one does not know");
                Ok(())
            }
        }
    }

    /// A proxy says all that it wants before it acknowledges an answer: the first one comes when
    /// everything was asked.
    fn acknowledged(&mut self, sequence: u64) {
        if sequence > GREETING {
            self.caught_up();
        }
        self.place.acknowledged(sequence);
    }

    /// The node knows all once it acknowledged what was sent so far.
    fn caught_up(&mut self) {
        if std::mem::take(&mut self.behind) {
            let sent = Some(self.sequence).filter(|sent| *sent > GREETING);
            self.place.told(self.view.version, sent);
        }
    }

    async fn subscribe(&mut self, address: SocketAddr) -> Result<(), Status> {
        if self.is_full() {
            return Ok(());
        }
        let message = self
            .subscriptions
            .subscribe(address, &self.caller.node, &self.view);
        self.subscribed.set(self.subscriptions.len());
        self.send(message).await
    }

    async fn subscribe_policy(&mut self, uid: PodUid) -> Result<(), Status> {
        if self.is_full() {
            return Ok(());
        }
        if let Some(pod) = self
            .view
            .pod(&uid)
            .filter(|pod| pod.peer.node != self.caller.node)
        {
            tracing::warn!(
                node.name = self.caller.node, pod.uid = %uid, pod.node = pod.peer.node,
                "A node asked for the policy of another node's pod; it gets no answer"
            );
        }
        let message = self
            .subscriptions
            .subscribe_policy(uid, &self.caller.node, &self.view);
        self.subscribed.set(self.subscriptions.len());
        match message {
            Some(message) => self.send(message).await,
            None => Ok(()),
        }
    }

    fn is_full(&mut self) -> bool {
        let full = self.subscriptions.len() >= self.shared.max_subscriptions;
        if full {
            self.shared.metrics.subscriptions_refused.inc();
        }
        if full && !self.over_limit {
            tracing::warn!(
                node.name = self.caller.node,
                limit = self.shared.max_subscriptions,
                "A node has all the subscriptions that it may have; further ones get no answer"
            );
        }
        self.over_limit = full;
        full
    }

    /// Applies a report, and answers it when the other nodes know it.
    fn report(&mut self, report: Report) -> Result<(), Status> {
        let result = self.shared.apply(&self.caller.node, &report);
        self.shared.metrics.reported(&result);
        self.early.remove(&report.uid);
        self.outdated.remove(&report.uid);
        match result {
            Ok(applied) => self.answer(report, applied),
            Err(Refused::UnknownPod { .. }) => {
                tracing::info!(pod.uid = %report.uid, "A report waits for its pod's object");
                keep(&mut self.early, report)
            }
            Err(Refused::Stale(error)) if error.elsewhere => {
                tracing::warn!(pod.uid = %report.uid, %error, "An old report waits for the end of the newer one's stream");
                keep(&mut self.outdated, report)
            }
            Err(refused) => {
                self.log(&report, &refused);
                Ok(())
            }
        }
    }

    fn log(&self, report: &Report, refused: &Refused) {
        match refused {
            Refused::Stale(error) => {
                tracing::warn!(pod.uid = %report.uid, %error, "Ignored an old report");
            }
            error => {
                tracing::warn!(node.name = self.caller.node, %error, "Refused a report");
            }
        }
    }

    /// A stream ended: what it said outdates nothing any more.
    fn report_outdated(&mut self) -> Result<(), Status> {
        self.ended.borrow_and_update();
        std::mem::take(&mut self.outdated)
            .into_values()
            .try_for_each(|report| self.report(report))
    }

    fn answer(&self, report: Report, applied: Applied) -> Result<(), Status> {
        // Reserved now, so that answers that nobody reads yet are bounded.
        let sender = self.reported.0.clone();
        let permit = sender.try_reserve_owned();
        let permit = permit.map_err(|_| Status::resource_exhausted("too many open reports"))?;
        let shared = self.shared.clone();
        let ended = self.reported.0.clone();
        tokio::spawn(async move {
            let laggards = tokio::select! {
                laggards = shared.told(&report.uid, applied.revision) => laggards,
                () = ended.closed() => return,
            };
            if laggards > 0 {
                shared.metrics.laggards.inc_by(count(laggards));
                tracing::warn!(pod.uid = %report.uid, laggards, "Nodes did not acknowledge a report");
            }
            permit.send(v1::Reported {
                pod_uid: report.uid.0,
                netns_cookie: report.cookie.0,
                generation: report.generation,
            });
        });
        Ok(())
    }

    async fn catch_up(&mut self) -> Result<(), Status> {
        self.view = Arc::clone(&self.views.borrow_and_update());
        let messages = self.subscriptions.catch_up(&self.caller.node, &self.view);
        let told = !messages.is_empty();
        for message in messages {
            self.send(message).await?;
        }
        if !self.behind {
            let last = told.then_some(self.sequence);
            self.place.told(self.view.version, last);
        }
        let (ready, early) = std::mem::take(&mut self.early)
            .into_iter()
            .partition(|(uid, _)| self.view.pod(uid).is_some());
        self.early = early;
        let ready: BTreeMap<_, _> = ready;
        ready
            .into_values()
            .try_for_each(|report| self.report(report))
    }

    async fn send(&mut self, kind: Kind) -> Result<(), Status> {
        self.shared.metrics.sent(&kind);
        self.sequence += 1;
        let message = WatchResponse {
            sequence: self.sequence,
            kind: Some(kind),
        };
        match timeout(self.patience, self.messages.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the node is gone")),
            Err(_) => Err(Status::resource_exhausted("the node did not read for 20 s")),
        }
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn keep(waiting: &mut BTreeMap<PodUid, Report>, report: Report) -> Result<(), Status> {
    if waiting.len() >= MAX_REPORTS {
        return Err(Status::resource_exhausted("too many reports wait"));
    }
    waiting.insert(report.uid.clone(), report);
    Ok(())
}

fn address(address: Option<&v1::Address>) -> Result<SocketAddr, Status> {
    let address = address.ok_or_else(|| Status::invalid_argument("no address"))?;
    let address = SocketAddr::try_from(address);
    let address = address.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn from_wire(report: v1::Report, reporter: Reporter) -> Report {
    Report {
        uid: PodUid(report.pod_uid),
        cookie: NetnsCookie(report.netns_cookie),
        generation: report.generation,
        steered: report.steered,
        reporter,
    }
}

#[cfg(test)]
mod tests;
