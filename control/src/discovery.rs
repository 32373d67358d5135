// SPDX-License-Identifier: Apache-2.0
//! Destinations and policies, on demand: one stream per node.

mod kept;
mod progress;
mod stream;
mod subscriptions;

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
};

use culvert_api::{
    grpc::v1::{WatchRequest, WatchResponse, discovery_server},
    workload::PodUid,
};
use futures_util::{Stream, StreamExt, future, stream::BoxStream};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub use self::kept::Kept;
use self::progress::{PATIENCE, Streams, Wanted};
use crate::{
    index::{Applied, Index, Refused, Report, View},
    kubernetes::Nodes,
    metrics::Metrics,
    tokens::Authenticator,
};

/// How many destinations and policies one stream of a node may follow.
pub const MAX_SUBSCRIPTIONS: usize = 100_000;

/// The discovery service.
pub struct Discovery {
    shared: Shared,
}

/// What the nodes know of what they were told.
#[derive(Clone)]
pub struct Acknowledged(Shared);

/// What the discovery service is made of.
pub struct Parts {
    /// The index that it serves.
    pub index: Arc<Mutex<Index>>,
    /// Which reports are kept, so that a restart knows them.
    pub kept: Kept,
    /// Becomes true when control stops.
    pub stopping: watch::Receiver<bool>,
    /// Tells nodes by their tokens.
    pub authenticator: Authenticator,
    /// Where it counts.
    pub metrics: Metrics,
    /// How many destinations and policies one stream of a node may follow.
    pub max_subscriptions: usize,
    /// Who signs certificates, by the SHA-256 of its certificate.
    pub issuer: watch::Receiver<Vec<u8>>,
}

/// What all streams share.
#[derive(Clone)]
struct Shared {
    index: Arc<Mutex<Index>>,
    views: watch::Receiver<Arc<View>>,
    kept: Kept,
    stopping: watch::Receiver<bool>,
    streams: Streams,
    authenticator: Authenticator,
    metrics: Metrics,
    max_subscriptions: usize,
    issuer: watch::Receiver<Vec<u8>>,
}

// === impl Discovery ===

impl Discovery {
    /// A service without streams.
    pub fn new(parts: Parts) -> Self {
        let views = Index::lock(&parts.index).view();
        let shared = Shared {
            index: parts.index,
            views,
            kept: parts.kept,
            stopping: parts.stopping,
            streams: Streams::default(),
            authenticator: parts.authenticator,
            metrics: parts.metrics,
            max_subscriptions: parts.max_subscriptions,
            issuer: parts.issuer,
        };
        Self { shared }
    }

    /// What the nodes know of what they were told.
    pub fn acknowledged(&self) -> Acknowledged {
        Acknowledged(self.shared.clone())
    }
}

impl Acknowledged {
    /// Waits until the nodes at the streams know all that there was up to a version of the view,
    /// however long that takes: who asks does not wait for ever.
    pub(crate) async fn known(&self, version: u64) {
        let mut known = pin!(self.0.streams.all_known(version));
        if timeout(PATIENCE, &mut known).await.is_err() {
            tracing::warn!(version, "Nodes do not acknowledge what changed");
            known.await;
        }
    }

    /// The nodes that know all that there was up to a version of the view, and those that don't yet
    /// or were lost lately.
    pub(crate) fn nodes(&self, version: u64) -> Nodes {
        self.0.streams.nodes(version)
    }
}

impl fmt::Debug for Acknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acknowledged").finish_non_exhaustive()
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl discovery_server::Discovery for Discovery {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.shared.authenticator.admit(&request).await?;
        let (messages, receiver) = mpsc::channel(stream::QUEUE);
        let (end, ended) = oneshot::channel();
        let outbound = stream::Outbound { messages, end };
        tokio::spawn(stream::serve(
            self.shared.clone(),
            caller,
            request.into_inner(),
            outbound,
        ));
        Ok(Response::new(until(receiver, ended).boxed()))
    }
}

/// All messages that were queued, and then why there are no more, if that is an error.
fn until(
    messages: mpsc::Receiver<WatchResponse>,
    ended: oneshot::Receiver<Status>,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send {
    let end = futures_util::stream::once(ended);
    let end = end.filter_map(|end| future::ready(end.ok().map(Err)));
    ReceiverStream::new(messages).map(Ok).chain(end)
}

// === impl Shared ===

impl Shared {
    fn apply(&self, node: &str, report: &Report) -> Result<Applied, Refused> {
        self.index().report(node, report)
    }

    /// Waits until the report of a pod is kept, and the nodes know what it says. Answers how many
    /// don't, with other replicas of control.
    async fn told(&self, uid: &PodUid, revision: u64) -> usize {
        self.kept.kept(uid, revision).await;
        let (version, object) = {
            let index = self.index();
            (index.version_of(uid), index.object_version_of(uid))
        };
        let view = Arc::clone(&self.views.borrow());
        let wanted = Wanted {
            version,
            object,
            nodes: &self.authenticator.nodes(&view),
            dials: &|node| view.has_pods(node),
        };
        let (_waiting, elsewhere) = self.kept.elsewhere();
        self.streams.known(&wanted, elsewhere).await
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        Index::lock(&self.index)
    }
}
