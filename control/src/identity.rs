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
const PATIENCE: Duration = Duration::from_secs(3);

/// The identity service.
pub struct Identities {
    /// Who signs.
    pub authority: Arc<Authority>,
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
}

// === impl Identities ===

impl Identities {
    async fn answer(&self, request: Request<CertifyRequest>) -> Result<CertifyResponse, Status> {
        let caller = self.authenticator.admit(&request)?;
        let CertifyRequest { pod_uid, csr } = request.into_inner();
        let uid = PodUid(pod_uid);
        let pod = self.pod(&uid, &caller.node).await.map_err(|error| {
            tracing::warn!(node.name = caller.node, pod.uid = %uid, %error, "Denied a certificate");
            Status::permission_denied("this node may not have a certificate for this pod")
        })?;
        self.sign(&pod, &csr)
    }

    async fn pod(&self, uid: &PodUid, node: &str) -> Result<Arc<Pod>, Denied> {
        let mut views = self.views.clone();
        let known = views.wait_for(|view| view.pod(uid).is_some());
        let view = tokio::time::timeout(PATIENCE, known).await;
        let view = view
            .map_err(|_| Denied::Unknown)?
            .map_err(|_| Denied::Unknown)?;
        let pod = view.pod(uid).ok_or(Denied::Unknown)?;
        if pod.peer.node != node {
            return Err(Denied::OtherNode(pod.peer.node.clone()));
        }
        if !pod.live {
            return Err(Denied::NotLive);
        }
        Ok(Arc::clone(pod))
    }

    fn sign(&self, pod: &Pod, csr: &[u8]) -> Result<CertifyResponse, Status> {
        let workload = &pod.peer.workload;
        let domain = self.authority.domain();
        let identity = domain.identity(&workload.namespace, &workload.service_account);
        let names = self
            .authority
            .names(&identity)
            .map_err(|error| internal(&error))?;
        let key = ca::public_key(csr, &names).map_err(|error| {
            tracing::warn!(
                pod.uid = %workload.uid, node.name = pod.peer.node, %error, "Denied a certificate"
            );
            Status::invalid_argument(error.to_string())
        })?;
        let leaf = self
            .authority
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
