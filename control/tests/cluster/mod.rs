// SPDX-License-Identifier: Apache-2.0
//! A control plane on loopback, and nodes.

mod files;

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use culvert_api::grpc::{
    VERSIONS,
    v1::{
        self, CertifyResponse, WatchRequest, WatchResponse, discovery_client::DiscoveryClient,
        identity_client::IdentityClient, watch_request::Kind as Ask, watch_response::Kind,
    },
};
use culvert_control::{app, config::Config};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use self::files::write_tokens;
pub use self::files::{config, domain};

pub const VIP: &str = "10.96.0.1:80";
pub const MAX_SUBSCRIPTIONS: usize = 20;

const NAME: &str = "culvert-control.culvert.serviceaccount.identity.culvert.cluster.local";
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    dir: TempDir,
    /// What the token of a node begins with.
    pub tokens: &'static str,
    lifetime: Duration,
    grpc: SocketAddr,
    admin: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<anyhow::Result<()>>,
}

pub struct Node {
    ask: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    last: u64,
}

pub fn account_pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{app: web}}, annotations: {{culvert.io/inject: enabled}}}}
spec: {{nodeName: {node}, serviceAccountName: web, containers: [{{name: web}}]}}
status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}
"
    )
}

pub fn account_service() -> &'static str {
    "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"
}

pub fn address(text: &str) -> v1::Address {
    text.parse::<SocketAddr>()
        .unwrap_or_else(|e| panic!("{e}"))
        .into()
}

/// A request for a certificate, with these URIs as names.
pub fn request(uris: &[&str]) -> Vec<u8> {
    let name = |uri: &&str| SanType::URI((*uri).try_into().unwrap_or_else(|e| panic!("{e}")));
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(name).collect();
    let key = KeyPair::generate().unwrap_or_else(|e| panic!("{e}"));
    let request = params
        .serialize_request(&key)
        .unwrap_or_else(|e| panic!("{e}"));
    request.der().to_vec()
}

/// The chain is of the workload `web`, and who trusts the cluster's anchors accepts it.
pub fn verify(cluster: &Cluster, chain: &[Vec<u8>]) {
    let chain: Vec<_> = chain
        .iter()
        .map(|der| CertificateDer::from(der.clone()))
        .collect();
    let verifier = WebPkiServerVerifier::builder_with_provider(cluster.roots().into(), provider());
    let verifier = verifier.build().unwrap_or_else(|e| panic!("{e}"));
    let name = "web.shop.serviceaccount.identity.culvert.cluster.local";
    let name = ServerName::try_from(name).unwrap_or_else(|e| panic!("{e}"));
    let now = UnixTime::now();
    let verified = verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now);
    assert!(verified.is_ok(), "{verified:?}");
}

pub async fn eventually(mut is: impl AsyncFnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(waited.await.is_ok(), "it did not come in 20 s");
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with_lifetime(Duration::from_hours(24)).await
    }

    pub async fn with_lifetime(lifetime: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        fs::create_dir(dir.path().join("manifests")).unwrap_or_else(|e| panic!("{e}"));
        Self::run(dir, lifetime).await
    }

    pub async fn without_manifests() -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        Self::run(dir, Duration::from_hours(24)).await
    }

    /// With the state and the manifests of a recorded release.
    pub async fn of_release(release: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        for (from, to) in [("manifests", "manifests"), ("control", "state")] {
            let to = dir.path().join(to);
            fs::create_dir(&to).unwrap_or_else(|e| panic!("{e}"));
            for file in fs::read_dir(release.join("state").join(from))
                .into_iter()
                .flatten()
            {
                let file = file.unwrap_or_else(|e| panic!("{e}"));
                let copied = fs::copy(file.path(), to.join(file.file_name()));
                copied.unwrap_or_else(|e| panic!("{e}"));
            }
        }
        Self::run(dir, Duration::from_hours(24)).await
    }

    async fn run(dir: TempDir, lifetime: Duration) -> Self {
        write_tokens(&dir, &["n1", "n2"]);
        let config = config(&dir, lifetime);
        Self::serve(dir, lifetime, config).await
    }

    pub async fn serve(dir: TempDir, lifetime: Duration, config: Config) -> Self {
        let bound = app::build(config).await.unwrap_or_else(|e| panic!("{e:#}"));
        let grpc = bound.address().unwrap_or_else(|e| panic!("{e}"));
        let admin = bound.admin_address().unwrap_or_else(|e| panic!("{e}"));
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(bound.serve(async {
            // An error says that the test is over.
            let _ = stopped.await;
        }));
        Self {
            dir,
            tokens: "",
            lifetime,
            grpc,
            admin,
            stop,
            served,
        }
    }

    pub async fn stop(self) {
        self.end().await;
    }

    pub async fn restart(self) -> Self {
        let lifetime = self.lifetime;
        Self::run(self.end().await, lifetime).await
    }

    async fn end(self) -> TempDir {
        assert!(self.stop.send(()).is_ok(), "control ended before");
        let served = timeout(PATIENCE, self.served).await;
        assert!(matches!(served, Ok(Ok(Ok(())))), "{served:?}");
        self.dir
    }

    pub fn make_manifests(&self) {
        fs::create_dir(self.dir.path().join("manifests")).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Replaces a manifest, as the sandbox does.
    pub fn write(&self, name: &str, text: &str) {
        let dir = self.dir.path().join("manifests");
        let new = dir.join(format!("{name}.new"));
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, dir.join(name)));
        assert!(written.is_ok(), "{written:?}");
    }

    pub fn remove(&self, name: &str) {
        let removed = fs::remove_file(self.dir.path().join("manifests").join(name));
        assert!(removed.is_ok(), "{removed:?}");
    }

    pub fn tokens(&self, nodes: &[&str]) {
        write_tokens(&self.dir, nodes);
    }

    pub async fn admin(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin)
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let written = stream.write_all(request.as_bytes()).await;
        assert!(written.is_ok(), "{written:?}");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer).await;
        assert!(read.is_ok(), "{read:?}");
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned());
        (status.unwrap_or_default(), body.unwrap_or_default())
    }

    pub async fn until_metric(&self, line: &str) {
        eventually(async || {
            self.admin("/metrics")
                .await
                .1
                .lines()
                .any(|found| found == line)
        })
        .await;
    }

    pub async fn watch(&self, node: &str) -> Node {
        let mut hello = v1::Hello::from(VERSIONS);
        node.clone_into(&mut hello.node);
        let begun = self
            .try_watch(&format!("{}token-{node}", self.tokens), hello)
            .await;
        let mut node = begun.unwrap_or_else(|status| panic!("{status}"));
        assert!(matches!(node.next().await, Kind::Hello(_)));
        assert!(matches!(node.next().await, Kind::Issuer(_)));
        node
    }

    /// Why a stream is refused, at once or after its first message.
    pub async fn refused(&self, token: &str, hello: v1::Hello) -> Status {
        match self.try_watch(token, hello).await {
            Err(status) => status,
            Ok(mut node) => match node.answers.message().await {
                Err(status) => status,
                Ok(answer) => panic!("not refused: {answer:?}"),
            },
        }
    }

    async fn try_watch(&self, token: &str, hello: v1::Hello) -> Result<Node, Status> {
        let (ask, asked) = mpsc::channel(64);
        let hello = WatchRequest {
            kind: Some(Ask::Hello(hello)),
        };
        assert!(ask.send(hello).await.is_ok());
        let mut client = DiscoveryClient::new(self.channel().await);
        let answers = client
            .watch(bearer(token, ReceiverStream::new(asked)))
            .await?;
        let answers = answers.into_inner();
        Ok(Node {
            ask,
            answers,
            last: 0,
        })
    }

    pub async fn certify(
        &self,
        node: &str,
        uid: &str,
        csr: Vec<u8>,
    ) -> Result<CertifyResponse, Status> {
        let pod_uid = uid.to_owned();
        let request = bearer(
            &format!("{}token-{node}", self.tokens),
            v1::CertifyRequest { pod_uid, csr },
        );
        let mut client = IdentityClient::new(self.channel().await);
        client
            .certify(request)
            .await
            .map(tonic::Response::into_inner)
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = self.endpoint();
        endpoint.connect().await.unwrap_or_else(|e| panic!("{e}"))
    }

    fn endpoint(&self) -> Endpoint {
        let anchors = Certificate::from_pem(self.anchors());
        let tls = ClientTlsConfig::new()
            .ca_certificate(anchors)
            .domain_name(NAME);
        let endpoint = Endpoint::from_shared(format!("https://{}", self.grpc));
        let endpoint = endpoint.and_then(|endpoint| endpoint.tls_config(tls));
        endpoint.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Whether a peer at this address, of loopback, gets through TLS and to HTTP/2.
    pub async fn admits(&self, address: [u8; 4]) -> bool {
        let endpoint = self.endpoint().local_address(Some(address.into()));
        endpoint.connect().await.is_ok()
    }

    /// Replaces a file of control's state.
    pub fn write_state(&self, name: &str, text: &str) {
        let path = self.dir.path().join("state").join(name);
        fs::write(path, text).unwrap_or_else(|e| panic!("{e}"));
    }

    pub fn anchors(&self) -> Vec<u8> {
        let path = self.dir.path().join("state/trust-anchors.pem");
        fs::read(path).unwrap_or_else(|e| panic!("{e}"))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for anchor in CertificateDer::pem_slice_iter(&self.anchors()) {
            let added = roots.add(anchor.unwrap_or_else(|e| panic!("{e}")));
            assert!(added.is_ok(), "{added:?}");
        }
        roots
    }

    /// A connection that says nothing.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.grpc)
            .await
            .unwrap_or_else(|e| panic!("{e}"))
    }

    /// Says what is no TLS, and is hung up on.
    pub async fn babble(&self) {
        let mut stream = self.connect().await;
        let written = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(written.is_ok(), "{written:?}");
        // A reset is as good as an end.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }

    /// The leaf that control shows.
    pub async fn serving_certificate(&self) -> CertificateDer<'static> {
        let stream = self.handshake().await;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        chain[0].clone().into_owned()
    }

    /// A TLS connection that says nothing.
    pub async fn handshake(&self) -> TlsStream<TcpStream> {
        let tls = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap_or_else(|e| panic!("{e}"))
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        let name = ServerName::try_from(NAME).unwrap_or_else(|e| panic!("{e}"));
        let connector = TlsConnector::from(Arc::new(tls));
        let stream = connector.connect(name, self.connect().await).await;
        stream.unwrap_or_else(|e| panic!("{e}"))
    }
}

pub fn bearer<T>(token: &str, message: T) -> Request<T> {
    let value = MetadataValue::try_from(format!("Bearer {token}"));
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("authorization", value.unwrap_or_else(|e| panic!("{e}")));
    request
}

impl Node {
    pub async fn send(&self, kind: Ask) {
        let sent = self.ask.send(WatchRequest { kind: Some(kind) }).await;
        assert!(sent.is_ok(), "control ended the stream");
    }

    pub async fn subscribe(&self, destination: &str) {
        let destination = Some(address(destination));
        self.send(Ask::Subscribe(v1::Subscribe { destination }))
            .await;
    }

    pub async fn next(&mut self) -> Kind {
        let kind = self.next_unacknowledged().await;
        self.acknowledge().await;
        kind
    }

    pub async fn next_unacknowledged(&mut self) -> Kind {
        let answer = timeout(PATIENCE, self.answers.message()).await;
        let Ok(Ok(Some(WatchResponse {
            sequence,
            kind: Some(kind),
        }))) = answer
        else {
            panic!("no answer: {answer:?}");
        };
        assert_eq!(sequence, self.last + 1);
        self.last = sequence;
        kind
    }

    pub async fn acknowledge(&self) {
        let sequence = self.last;
        self.send(Ask::Ack(v1::Ack { sequence })).await;
    }

    pub async fn nothing_within(&mut self, time: Duration) {
        let answer = timeout(time, self.answers.message()).await;
        assert!(answer.is_err(), "{answer:?}");
    }

    pub async fn ended(&mut self) -> Code {
        let answer = timeout(PATIENCE, self.answers.message()).await;
        match answer {
            Ok(Err(status)) => status.code(),
            other => panic!("not ended: {other:?}"),
        }
    }
}
