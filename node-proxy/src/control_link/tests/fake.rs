// SPDX-License-Identifier: Apache-2.0
//! A control plane in the test's own process: it signs, answers what the test says, and tells what
//! it was asked.

use std::{
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use culvert_api::{
    grpc::{
        VERSIONS,
        v1::{
            self,
            discovery_server::{Discovery, DiscoveryServer},
            identity_server::{Identity as Signer, IdentityServer},
        },
    },
    identity::{Identity, IdentityDomain},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use time::OffsetDateTime;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http},
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};

use super::super::{Control, ControlConfig};
use crate::identities::watch_anchors;

pub(crate) const TOKEN: &str = "of-this-node";

/// The mesh's domain of all tests.
pub(crate) fn domain() -> IdentityDomain {
    IdentityDomain {
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "culvert".to_owned(),
    }
}

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) pem: String,
    /// Its certificate in DER.
    pub(crate) der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// The control plane of one test.
pub(crate) struct FakeControl {
    pub(crate) addr: SocketAddr,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) asked: UnboundedReceiver<v1::watch_request::Kind>,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    authority: Authority,
    /// What is signed for every pod.
    identity: Mutex<Identity>,
    lifetime: Mutex<Duration>,
    asked: UnboundedSender<v1::watch_request::Kind>,
    stream: Mutex<Option<UnboundedSender<Result<v1::WatchResponse, Status>>>>,
    signed: Mutex<Vec<String>>,
}

impl Authority {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            pem: certificate.pem(),
            der: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Signs a request for `identity`.
    pub(crate) fn sign(
        &self,
        csr: Vec<u8>,
        identity: &Identity,
        lifetime: Duration,
    ) -> anyhow::Result<Vec<u8>> {
        let csr = CertificateSigningRequestDer::from(csr);
        let mut csr = CertificateSigningRequestParams::from_der(&csr)?;
        csr.params.subject_alt_names = vec![
            SanType::URI(identity.to_string().try_into()?),
            SanType::DnsName(domain().server_name(identity).try_into()?),
        ];
        csr.params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(1);
        csr.params.not_after = OffsetDateTime::now_utc() + lifetime;
        Ok(csr.signed_by(&self.issuer)?.der().to_vec())
    }

    fn tls(&self) -> anyhow::Result<ServerTlsConfig> {
        let itself = domain().identity("culvert", "culvert-control");
        let key = KeyPair::generate()?;
        let params = CertificateParams::new([domain().server_name(&itself)])?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let identity = tonic::transport::Identity::from_pem(certificate, key.serialize_pem());
        Ok(ServerTlsConfig::new().identity(identity))
    }
}

impl FakeControl {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (asked, questions) = unbounded_channel();
        let shared = Arc::new(Shared {
            authority: Authority::new()?,
            identity: Mutex::new(domain().identity("shop", "cart")),
            lifetime: Mutex::new(Duration::from_secs(3600)),
            asked,
            stream: Mutex::default(),
            signed: Mutex::default(),
        });
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("anchors.pem"), &shared.authority.pem)?;
        std::fs::File::create(dir.path().join("token"))?.write_all(TOKEN.as_bytes())?;
        let (addr, server) = serve(&shared, SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        Ok(Self {
            addr,
            dir,
            asked: questions,
            shared,
            server,
        })
    }

    /// Closes every connection and comes back under the same address.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await;
        self.server = serve(&self.shared, self.addr).await?.1;
        Ok(())
    }

    pub(crate) async fn stop(&mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
        self.hang_up();
    }

    /// Ends the open stream.
    pub(crate) fn hang_up(&self) {
        let mut stream = self.shared.stream.lock().unwrap_or_else(|e| panic!("{e}"));
        *stream = None;
    }

    /// A client with the test's anchors and token.
    pub(crate) fn client(&self) -> Control {
        let (anchors, follow) = watch_anchors(self.dir.path().join("anchors.pem"));
        tokio::spawn(follow);
        Control::new(self.config(), anchors)
    }

    pub(crate) fn config(&self) -> ControlConfig {
        let itself = domain().identity("culvert", "culvert-control");
        ControlConfig {
            address: self.addr.to_string(),
            server_name: domain().server_name(&itself),
            token_file: self.dir.path().join("token"),
        }
    }

    /// Says something on the open stream.
    pub(crate) fn say(&self, sequence: u64, kind: v1::watch_response::Kind) {
        let stream = self.shared.stream.lock().unwrap_or_else(|e| panic!("{e}"));
        let Some(stream) = stream.as_ref() else {
            panic!("no stream is open");
        };
        let kind = Some(kind);
        assert!(
            stream
                .send(Ok(v1::WatchResponse { sequence, kind }))
                .is_ok()
        );
    }

    /// The next thing that was asked, acknowledgements left out.
    pub(crate) async fn next(&mut self) -> v1::watch_request::Kind {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(10), self.asked.recv()).await;
            match next {
                Ok(Some(v1::watch_request::Kind::Ack(_))) => {}
                Ok(Some(kind)) => return kind,
                other => panic!("nothing was asked: {other:?}"),
            }
        }
    }

    /// Signs for somebody else, or for another time, from now on.
    pub(crate) fn sign_for(&self, identity: Identity, lifetime: Duration) {
        *self
            .shared
            .identity
            .lock()
            .unwrap_or_else(|e| panic!("{e}")) = identity;
        *self
            .shared
            .lifetime
            .lock()
            .unwrap_or_else(|e| panic!("{e}")) = lifetime;
    }

    /// The uids for which was signed.
    pub(crate) fn signed(&self) -> Vec<String> {
        self.shared
            .signed
            .lock()
            .unwrap_or_else(|e| panic!("{e}"))
            .clone()
    }
}

impl Drop for FakeControl {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    shared: &Arc<Shared>,
    addr: SocketAddr,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = tokio::net::TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let server = Server::builder()
        .tls_config(shared.authority.tls()?)?
        .serve_with_incoming(Services(shared.clone()), TcpIncoming::from(listener));
    let task = tokio::spawn(async {
        if let Err(error) = server.await {
            panic!("{error}");
        }
    });
    Ok((addr, task))
}

/// Both services under one address, which otherwise is what a router is for.
#[derive(Clone)]
struct Services(Arc<Shared>);

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request
            .uri()
            .path()
            .starts_with("/culvert.control.v1.Identity/")
        {
            true => IdentityServer::from_arc(self.0.clone()).call(request),
            false => DiscoveryServer::from_arc(self.0.clone()).call(request),
        }
    }
}

fn authorized<T>(request: &Request<T>) -> Result<(), Status> {
    let token = request
        .metadata()
        .get("authorization")
        .and_then(|token| token.to_str().ok());
    match token == Some(&format!("Bearer {TOKEN}")) {
        true => Ok(()),
        false => Err(Status::unauthenticated("not this node's token")),
    }
}

#[tonic::async_trait]
impl Discovery for Shared {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        authorized(&request)?;
        let mut requests = request.into_inner();
        let asked = self.asked.clone();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                if let Some(kind) = request.kind {
                    let _ = asked.send(kind);
                }
            }
        });
        let (stream, responses) = unbounded_channel();
        let kind = Some(v1::watch_response::Kind::Hello(VERSIONS.into()));
        let _ = stream.send(Ok(v1::WatchResponse { sequence: 0, kind }));
        *self.stream.lock().unwrap_or_else(|e| panic!("{e}")) = Some(stream);
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            responses,
        ))))
    }
}

#[tonic::async_trait]
impl Signer for Shared {
    async fn certify(
        &self,
        request: Request<v1::CertifyRequest>,
    ) -> Result<Response<v1::CertifyResponse>, Status> {
        authorized(&request)?;
        let v1::CertifyRequest { pod_uid, csr } = request.into_inner();
        let identity = self
            .identity
            .lock()
            .unwrap_or_else(|e| panic!("{e}"))
            .clone();
        let lifetime = *self.lifetime.lock().unwrap_or_else(|e| panic!("{e}"));
        let leaf = self.authority.sign(csr, &identity, lifetime);
        let leaf = leaf.map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.signed
            .lock()
            .unwrap_or_else(|e| panic!("{e}"))
            .push(pod_uid);
        Ok(Response::new(v1::CertifyResponse {
            chain: vec![leaf, self.authority.der.clone()],
            not_after: 0,
            not_before: 0,
        }))
    }
}
