// SPDX-License-Identifier: Apache-2.0
//! How control is reached: gRPC over TLS to an identity of its own, with this node's bearer token.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use culvert_api::{
    grpc::{
        TOKEN_METADATA,
        v1::{self, discovery_client::DiscoveryClient, identity_client::IdentityClient},
    },
    workload::PodUid,
};
use tokio::sync::{mpsc::UnboundedReceiver, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::identities::Anchors;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CERTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// A service of ten thousand endpoints takes some megabytes.
const MOST_MESSAGE: usize = 32 << 20;

/// Where control is and how this node shows who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlConfig {
    /// `host:port`.
    pub(crate) address: String,
    /// The name that control's certificate must have.
    pub(crate) server_name: String,
    /// The file with the node's token, read anew each time.
    pub(crate) token_file: PathBuf,
}

/// The client. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ControlConfig,
    anchors: watch::Receiver<Option<Arc<Anchors>>>,
    channel: Mutex<Option<(Arc<Anchors>, Channel)>>,
}

/// Control can't be called.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("there are no trust anchors to know control by")]
    NoAnchors,
    #[error("could not read the node's token {}: {error}", path.display())]
    Token { path: PathBuf, error: io::Error },
    #[error("the node's token {} holds what no header may", path.display())]
    BadToken { path: PathBuf },
    #[error("control's address {address} can't be dialled: {error}")]
    Address {
        address: String,
        error: tonic::transport::Error,
    },
}

/// Control did not sign.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertifyError {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("control refused: {}: {}", .0.code(), .0.message())]
    Refused(#[from] tonic::Status),
}

// === impl Control ===

impl Control {
    /// Connects when it is first used.
    pub(crate) fn new(
        config: ControlConfig,
        anchors: watch::Receiver<Option<Arc<Anchors>>>,
    ) -> Self {
        let inner = Inner {
            config,
            anchors,
            channel: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Opens the stream of discovery.
    pub(super) async fn watch(
        &self,
        requests: UnboundedReceiver<v1::WatchRequest>,
    ) -> Result<Streaming<v1::WatchResponse>, super::Ended> {
        let requests = UnboundedReceiverStream::new(requests);
        let request = self.authorized(Request::new(requests))?;
        let mut client =
            DiscoveryClient::new(self.channel()?).max_decoding_message_size(MOST_MESSAGE);
        Ok(client.watch(request).await?.into_inner())
    }

    /// Has a certificate signed for the identity of a pod. Returns the chain, leaf first.
    pub(crate) async fn certify(
        &self,
        pod: &PodUid,
        csr: Vec<u8>,
    ) -> Result<Vec<Vec<u8>>, CertifyError> {
        let request = v1::CertifyRequest {
            pod_uid: pod.0.clone(),
            csr,
        };
        let mut request = self.authorized(Request::new(request))?;
        request.set_timeout(CERTIFY_TIMEOUT);
        let mut client = IdentityClient::new(self.channel()?);
        Ok(client.certify(request).await?.into_inner().chain)
    }

    fn authorized<T>(&self, mut request: Request<T>) -> Result<Request<T>, Unreachable> {
        let token = self.token()?;
        request.metadata_mut().insert(TOKEN_METADATA, token);
        Ok(request)
    }

    fn token(&self) -> Result<MetadataValue<Ascii>, Unreachable> {
        let path = &self.inner.config.token_file;
        let token = std::fs::read_to_string(path).map_err(|error| Unreachable::Token {
            path: path.clone(),
            error,
        })?;
        let mut token: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| Unreachable::BadToken { path: path.clone() })?;
        token.set_sensitive(true);
        Ok(token)
    }

    /// The connection, made anew when the anchors changed.
    fn channel(&self) -> Result<Channel, Unreachable> {
        let anchors = self
            .inner
            .anchors
            .borrow()
            .clone()
            .ok_or(Unreachable::NoAnchors)?;
        let mut channel = self
            .inner
            .channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((with, channel)) = channel.as_ref()
            && Arc::ptr_eq(with, &anchors)
        {
            return Ok(channel.clone());
        }
        let made = connect(&self.inner.config, &anchors)?;
        *channel = Some((anchors, made.clone()));
        Ok(made)
    }
}

fn connect(config: &ControlConfig, anchors: &Anchors) -> Result<Channel, Unreachable> {
    let bad = |error| Unreachable::Address {
        address: config.address.clone(),
        error,
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&anchors.pem))
        .domain_name(&config.server_name);
    let endpoint = Endpoint::from_shared(format!("https://{}", config.address)).map_err(bad)?;
    Ok(endpoint
        .tls_config(tls)
        .map_err(bad)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_lazy())
}
