// SPDX-License-Identifier: Apache-2.0
//! Nodes that the cluster vouches for: the token is bound to the proxy's pod, and the pod is on
//! the node.

use std::{fmt, sync::Arc, time::SystemTime};

use culvert_api::workload::PodUid;
use culvert_manifests::Objects;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::Status;

use super::{
    Caller, Hash, Standing,
    answers::{Answers, FRESH, Known},
    claims::{Claims, Hopeless},
    hash_of, no_token,
    refusals::Refusals,
    review::{Denied, Expected, Proof, Reviews, Unanswered},
};
use crate::{
    identity::PATIENCE,
    index::{Index, Pod, View},
    metrics::Metrics,
};

/// How far clocks may be apart: a token that ends sooner is no longer asked of.
const SKEW: std::time::Duration = std::time::Duration::from_secs(60);

/// How long until a token of an open stream that was denied is asked of once more.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// The same, where the token's pod is not known. An API server vouches for the token of a pod that
/// is gone up to 10 s longer,
/// <https://github.com/kubernetes/kubernetes/blob/v1.33.0/pkg/kubeapiserver/options/authentication.go>.
const SOON: std::time::Duration = std::time::Duration::from_secs(20);

/// Tells nodes by the tokens of their proxies' pods.
pub(super) struct Reviewer {
    reviews: Reviews,
    objects: watch::Receiver<Arc<Objects>>,
    views: watch::Receiver<Arc<View>>,
    answers: Answers,
    refusals: Refusals,
    metrics: Metrics,
}

/// A token that was good, followed while its stream is open.
#[derive(Debug)]
pub(super) struct Followed {
    reviewer: Arc<Reviewer>,
    token: Token,
    revoked: Option<JoinHandle<()>>,
}

/// A token with what is known of it. Never printed.
#[derive(Clone)]
struct Token {
    text: Arc<str>,
    hash: Hash,
    expires: SystemTime,
    proof: Arc<Proof>,
    node: String,
}

/// What the API server vouches for.
enum Vouched {
    /// It just said so.
    Now(Arc<Proof>),
    /// It said so up to [`FRESH`] ago, or longer while it is away.
    Before(Arc<Proof>),
}

/// Who calls is not known. The caller is told less.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it shows no token")]
    NoToken,
    #[error("the token is of no use: {0}")]
    Hopeless(#[from] Hopeless),
    #[error("the token is not good: {0}")]
    Denied(#[from] Denied),
    #[error("could not have the token reviewed: {0}")]
    Unanswered(#[from] Unanswered),
    #[error("its pod {0} is not known yet")]
    UnknownPod(PodUid),
    #[error("its pod {0} is gone")]
    PodGone(PodUid),
    #[error("its pod {pod} is no proxy's: {reason}")]
    NotTheProxy { pod: PodUid, reason: &'static str },
    #[error("its pod is on node {scheduled:?}, but the token says {claimed:?}")]
    OtherNode { scheduled: String, claimed: String },
}

// === impl Reviewer ===

impl Reviewer {
    pub(super) fn new(
        client: kube::Client,
        index: &Index,
        expected: Expected,
        metrics: Metrics,
    ) -> Self {
        Self {
            objects: index.objects(),
            reviews: Reviews::new(client, expected),
            views: index.view(),
            answers: Answers::default(),
            refusals: Refusals::new(metrics.clone()),
            metrics,
        }
    }

    /// The nodes that have a live proxy.
    pub(super) fn nodes(&self, view: &View) -> Vec<String> {
        let Expected {
            namespace,
            service_account,
            ..
        } = self.reviews.expected();
        view.nodes_of(namespace, service_account)
    }

    /// Who shows this token.
    pub(super) async fn caller(self: &Arc<Self>, text: Option<String>) -> Result<Caller, Status> {
        match self.admitted(text).await {
            Ok(token) => Ok(Caller {
                node: token.node.clone(),
                standing: Standing::Followed(Followed {
                    reviewer: Arc::clone(self),
                    token,
                    revoked: None,
                }),
            }),
            Err(error) => {
                self.refusals.note(error.reason(), &error);
                Err(error.status())
            }
        }
    }

    async fn admitted(&self, text: Option<String>) -> Result<Token, Refused> {
        let text = text.ok_or(Refused::NoToken)?;
        let expected = self.reviews.expected();
        let (subject, now) = (expected.username(), SystemTime::now());
        let claims = Claims::of(&text, &subject, &expected.audience, now)?;
        let (hash, expires) = (hash_of(&text), claims.expires());
        let proof = match self.proof(&text, hash, expires).await? {
            Vouched::Now(proof) => proof,
            Vouched::Before(proof) => self.again(proof, &text, hash, expires).await?,
        };
        let node = self.node(&proof).await?;
        if self.is_known(&proof) {
            self.answers.meet(&hash);
        }
        Ok(Token {
            text: text.into(),
            hash,
            expires,
            proof,
            node,
        })
    }

    /// What the API server vouches for, now or lately; while it is away also what it did before.
    async fn proof(&self, text: &str, hash: Hash, expires: SystemTime) -> Result<Vouched, Refused> {
        let _asking = match self.answers.of(&hash) {
            Known::Good(proof) => return Ok(Vouched::Before(proof)),
            Known::Denied(denied) => return Err(denied.into()),
            Known::Stale(_) | Known::Nothing => self.answers.ask(&hash).await,
        };
        match self.answers.of(&hash) {
            Known::Good(proof) => Ok(Vouched::Before(proof)),
            Known::Denied(denied) => Err(denied.into()),
            Known::Stale(proof) => match self.review(text, hash, expires, true).await {
                Err(Refused::Unanswered(error)) => {
                    tracing::debug!(%error, "The token was good before, and counts");
                    self.answers.put_off(&hash);
                    Ok(Vouched::Before(proof))
                }
                answered => answered.map(Vouched::Now),
            },
            Known::Nothing => {
                let answered = self.review(text, hash, expires, false).await;
                answered.map(Vouched::Now)
            }
        }
    }

    /// What was vouched for before counts while its pod is known. A pod that is not known may be
    /// ahead of the view, and then its token is good now; or it is gone.
    async fn again(
        &self,
        before: Arc<Proof>,
        text: &str,
        hash: Hash,
        expires: SystemTime,
    ) -> Result<Arc<Proof>, Refused> {
        if self.is_known(&before) {
            return Ok(before);
        }
        if self.answers.met(&hash) {
            return Err(Refused::PodGone(before.uid.clone()));
        }
        let _asking = self.answers.ask(&hash).await;
        if self.is_known(&before) {
            return Ok(before);
        }
        self.review(text, hash, expires, true).await
    }

    async fn review(
        &self,
        text: &str,
        hash: Hash,
        expires: SystemTime,
        known: bool,
    ) -> Result<Arc<Proof>, Refused> {
        let answer = self.reviews.ask(text, known).await;
        self.metrics.token_reviewed(match &answer {
            Ok(Ok(_)) => "authenticated",
            Ok(Err(_)) => "denied",
            Err(_) => "failed",
        });
        match answer? {
            Ok(proof) => {
                let proof = Arc::new(proof);
                self.answers.good(hash, Arc::clone(&proof), expires);
                Ok(proof)
            }
            Err(denied) => {
                self.answers.denied(hash, denied.clone());
                Err(denied.into())
            }
        }
    }

    /// Where the pod of a token is: what the API server says and what its object says must agree.
    async fn node(&self, proof: &Proof) -> Result<String, Refused> {
        let mut views = self.views.clone();
        let scheduled = |view: &Arc<View>| self.pod(view, proof).is_some();
        let pod = match &proof.node {
            Some(_) => self.pod(&views.borrow_and_update(), proof),
            None => match timeout(PATIENCE, views.wait_for(scheduled)).await {
                Ok(Ok(view)) => self.pod(&view, proof),
                Ok(Err(_)) | Err(_) => None,
            },
        };
        match (pod, proof.node.clone()) {
            (Some(pod), claimed) => self.node_of(&pod, proof, claimed),
            (None, Some(claimed)) => Ok(claimed),
            (None, None) => Err(Refused::UnknownPod(proof.uid.clone())),
        }
    }

    fn is_known(&self, proof: &Proof) -> bool {
        self.pod(&self.views.borrow(), proof).is_some()
    }

    /// The pod of a token, once it is known to be on a node.
    fn pod(&self, view: &View, proof: &Proof) -> Option<Arc<Pod>> {
        let pod = view.pod(&proof.uid)?;
        (!pod.peer.node.is_empty()).then(|| Arc::clone(pod))
    }

    fn node_of(
        &self,
        pod: &Pod,
        proof: &Proof,
        claimed: Option<String>,
    ) -> Result<String, Refused> {
        let (expected, workload) = (self.reviews.expected(), &pod.peer.workload);
        let not = |reason| Refused::NotTheProxy {
            pod: proof.uid.clone(),
            reason,
        };
        if workload.name != proof.pod {
            return Err(not("it has another name"));
        }
        let account = (&workload.namespace, &workload.service_account);
        if account != (&expected.namespace, &expected.service_account) {
            return Err(not("it has another ServiceAccount"));
        }
        if !pod.live {
            return Err(not("it has ended"));
        }
        let scheduled = pod.peer.node.clone();
        match claimed {
            Some(claimed) if claimed != scheduled => Err(Refused::OtherNode { scheduled, claimed }),
            Some(_) | None => Ok(scheduled),
        }
    }

    /// Waits until the token's pod, or its ServiceAccount, is gone.
    async fn revoked(self: Arc<Self>, token: Token) {
        tokio::select! {
            () = self.left(&token) => {
                tracing::info!(node.name = token.node, pod.uid = %token.proof.uid, "The pod of a token has left");
            }
            denied = self.denied(&token) => {
                tracing::warn!(node.name = token.node, reason = denied, "A token counts no more");
            }
        }
    }

    async fn left(&self, token: &Token) {
        let mut views = self.views.clone();
        let there = |view: &Arc<View>| self.pod(view, &token.proof).is_some();
        let gone = |view: &Arc<View>| {
            let pod = self.pod(view, &token.proof);
            pod.is_none_or(|pod| {
                self.node_of(&pod, &token.proof, None).ok().as_ref() != Some(&token.node)
            })
        };
        let left = async {
            views.wait_for(there).await?;
            views.wait_for(gone).await.map(drop)
        };
        if left.await.is_err() {
            // Nobody follows the cluster any more: control is stopping.
            std::future::pending::<()>().await;
        }
    }

    /// Asks again and again; who gets no answer goes on asking.
    async fn denied(&self, token: &Token) -> String {
        let mut denied_before = false;
        loop {
            let wait = match denied_before {
                true => AGAIN,
                false if !self.is_known(&token.proof) => SOON,
                false => FRESH,
            };
            sleep(wait.mul_f64(rand_factor(&token.hash))).await;
            match self.still_good(token).await {
                Err(reason) if denied_before => return reason,
                still => denied_before = still.is_err(),
            }
        }
    }

    /// A token that has ended can't be reviewed, and the stream goes on: then its ServiceAccount
    /// must still be the same, and the pod is followed anyway.
    async fn still_good(&self, token: &Token) -> Result<(), String> {
        if token.expires > SystemTime::now() + SKEW {
            let review = self.review(&token.text, token.hash, token.expires, true);
            return match review.await {
                Err(Refused::Denied(denied)) => Err(denied.to_string()),
                Ok(_) | Err(_) => Ok(()),
            };
        }
        self.account_of(&token.proof).map_err(str::to_owned)
    }

    fn account_of(&self, proof: &Proof) -> Result<(), &'static str> {
        let expected = self.reviews.expected();
        let key = (expected.namespace.clone(), expected.service_account.clone());
        let objects = self.objects.borrow();
        let account = objects.service_accounts.get(&key);
        let now = account.ok_or("its ServiceAccount is gone")?;
        match (&now.metadata.uid, &proof.account) {
            (Some(now), Some(then)) if now != then => Err("its ServiceAccount is another one"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviewer")
            .field("expected", self.reviews.expected())
            .finish_non_exhaustive()
    }
}

/// From 0.75 to 1, so that the streams of a restarted control do not all ask at once.
fn rand_factor(hash: &Hash) -> f64 {
    1.0 - f64::from(hash[0]) / 1024.0
}

// === impl Followed ===

impl Followed {
    /// Waits until the token no longer counts. A task waits, which goes on where this is dropped.
    pub(super) async fn revoked(&mut self) {
        let revoked = self.revoked.get_or_insert_with(|| {
            let reviewer = Arc::clone(&self.reviewer);
            tokio::spawn(reviewer.revoked(self.token.clone()))
        });
        if revoked.await.is_err() {
            // Control is stopping.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(revoked) = &self.revoked {
            revoked.abort();
        }
    }
}

// === impl Token ===

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("node", &self.node)
            .field("pod", &self.proof.pod)
            .finish_non_exhaustive()
    }
}

// === impl Refused ===

impl Refused {
    /// For the metric.
    fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::Hopeless(_) => "hopeless",
            Self::Denied(_) => "denied",
            Self::Unanswered(_) => "unanswered",
            Self::UnknownPod(_) => "unknown-pod",
            Self::PodGone(_) => "pod-gone",
            Self::NotTheProxy { .. } => "not-the-proxy",
            Self::OtherNode { .. } => "other-node",
        }
    }

    fn status(&self) -> Status {
        match self {
            Self::NoToken => no_token(),
            Self::Unanswered(_) => Status::unavailable("control could not have the token reviewed"),
            Self::UnknownPod(_) => Status::unavailable("control does not know the token's pod yet"),
            Self::Hopeless(_) | Self::Denied(_) => Status::unauthenticated(
                "expected a token of the proxy's ServiceAccount for control",
            ),
            Self::NotTheProxy { .. } | Self::OtherNode { .. } | Self::PodGone(_) => {
                Status::unauthenticated("the token's pod is not a proxy on its node")
            }
        }
    }
}
