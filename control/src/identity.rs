// SPDX-License-Identifier: Apache-2.0
//! Certificates for the workloads of the calling node.

use std::{fmt, sync::Arc, time::Duration};

use culvert_api::{
    grpc::v1::{CertifyRequest, CertifyResponse, identity_server},
    workload::PodUid,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::{
    ca::{self, Authority, Leaf},
    index::{Pod, View},
    metrics::Metrics,
    tokens::Authenticator,
};

/// How long to wait for the object of a pod: the node may know the pod before control does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// The identity service.
pub struct Identities {
    /// Who signs now.
    pub authority: watch::Receiver<Arc<Authority>>,
    /// Tells nodes by their tokens.
    pub authenticator: Authenticator,
    /// Which pods are where.
    pub views: watch::Receiver<Arc<View>>,
    /// Where it counts.
    pub metrics: Metrics,
}

/// Why a node gets no certificate for a pod. The node is told less.
#[derive(Debug, thiserror::Error)]
enum Denied {
    #[error("no pod has this uid")]
    Unknown,
    #[error("the pod is scheduled on node {0:?}")]
    OtherNode(String),
    #[error("the pod has succeeded or failed")]
    NotLive,
    #[error(
        "the pod has no ServiceAccount, as mirror pods of a kubelet; set spec.serviceAccountName"
    )]
    NoAccount,
    /// Its node's proxy could be control, for all other nodes.
    #[error("the pod is in the namespace of control, whose pods are never meshed")]
    Ours,
    #[error("neither the pod nor its namespace is opted in")]
    NotOptedIn,
}

// === impl Identities ===

impl Identities {
    async fn answer(&self, request: Request<CertifyRequest>) -> Result<CertifyResponse, Status> {
        let caller = self.authenticator.admit(&request).await?;
        let CertifyRequest { pod_uid, csr } = request.into_inner();
        let uid = PodUid(pod_uid);
        let pod = self.pod(&uid, &caller.node).await.map_err(|error| {
            tracing::warn!(node.name = caller.node, pod.uid = %uid, %error, "Denied a certificate");
            Status::permission_denied("this node may not have a certificate for this pod")
        })?;
        self.sign(&pod, &csr)
    }

    /// Waits for the pod: its node may know that it is there, or annotated, before control does.
    async fn pod(&self, uid: &PodUid, node: &str) -> Result<Arc<Pod>, Denied> {
        let mut views = self.views.clone();
        let known = |view: &Arc<View>| view.pod(uid).is_some_and(|pod| pod.opted_in);
        let known = tokio::time::timeout(PATIENCE, views.wait_for(known)).await;
        // An error says that it did not come.
        drop(known);
        let view = Arc::clone(&views.borrow());
        let pod = view.pod(uid).ok_or(Denied::Unknown)?;
        self.check(pod, node).map(|()| Arc::clone(pod))
    }

    fn check(&self, pod: &Pod, node: &str) -> Result<(), Denied> {
        let workload = &pod.peer.workload;
        let authority = Arc::clone(&self.authority.borrow());
        if pod.peer.node != node {
            return Err(Denied::OtherNode(pod.peer.node.clone()));
        }
        if !pod.live {
            return Err(Denied::NotLive);
        }
        if workload.service_account.is_empty() {
            return Err(Denied::NoAccount);
        }
        if workload.namespace == authority.domain().control_namespace {
            return Err(Denied::Ours);
        }
        if !pod.opted_in {
            return Err(Denied::NotOptedIn);
        }
        Ok(())
    }

    fn sign(&self, pod: &Pod, csr: &[u8]) -> Result<CertifyResponse, Status> {
        let workload = &pod.peer.workload;
        let authority = Arc::clone(&self.authority.borrow());
        let domain = authority.domain();
        let identity = domain.identity(&workload.namespace, &workload.service_account);
        let names = authority
            .names(&identity)
            .map_err(|error| internal(&error))?;
        let key = ca::public_key(csr, &names).map_err(|error| {
            tracing::warn!(
                pod.uid = %workload.uid, node.name = pod.peer.node, %error, "Denied a certificate"
            );
            Status::invalid_argument(error.to_string())
        })?;
        let leaf = authority
            .certify(&key, &identity)
            .map_err(|error| internal(&error))?;
        tracing::info!(
            pod.uid = %workload.uid, pod.name = %workload, node.name = pod.peer.node, %identity,
            not_after = %leaf.not_after, "Issued a certificate"
        );
        Ok(to_wire(&leaf))
    }
}

fn internal(error: &ca::Error) -> Status {
    tracing::error!(%error, "Could not issue a certificate");
    Status::internal("control could not issue the certificate, see its log")
}

fn to_wire(leaf: &Leaf) -> CertifyResponse {
    CertifyResponse {
        chain: leaf.chain.iter().map(|der| der.to_vec()).collect(),
        not_after: leaf.not_after.unix_timestamp(),
        not_before: leaf.not_before.unix_timestamp(),
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Identities {
    async fn certify(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let answer = self.answer(request).await;
        self.metrics
            .certified(answer.as_ref().map(|_| ()).map_err(Status::code));
        answer.map(Response::new)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
