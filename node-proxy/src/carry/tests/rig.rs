// SPDX-License-Identifier: Apache-2.0
//! Two pods and a proxy in one network namespace. Without steering the test says what was dialled.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use culvert_api::{
    agent::{Direction, Family, SocketKind, SocketPool},
    grpc::v1,
    identity::Identity,
    policy::InboundPolicy,
    workload::{NetnsCookie, PodUid, Workload, WorkloadKey},
};
use prometheus::TextEncoder;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::{
    accept::Accepted,
    fixture::Fixture,
    inbound, outbound,
    pods::Pod,
    sockets::tests::pod::{Range, TestPod, in_pod},
    tls::Credentials,
};

/// The service that applications dial.
pub(crate) const SERVICE: &str = "10.96.0.10:80";
/// Where the inbound listener of `cart` is, to which sk_lookup would bring a connection.
pub(crate) const MESHED: &str = "10.1.0.2:9000";
/// Where the application of `cart` listens.
pub(crate) const APP: &str = "10.1.0.2:8080";
/// Nobody answers here.
pub(crate) const SILENT: [&str; 3] = ["10.1.0.97:80", "10.1.0.98:80", "10.1.0.99:80"];
/// Nobody listens here.
pub(crate) const DEAD: &str = "10.1.0.2:9";

/// What the tests of the data path need.
pub(crate) struct Rig {
    pub(crate) fixture: Fixture,
    pub(crate) web: Arc<Pod>,
    pub(crate) cart: Arc<Pod>,
    /// The application of `cart`.
    pub(crate) app: TcpListener,
    _pod: TestPod,
}

pub(crate) fn ok<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    ok(text.parse())
}

/// Runs `test` under `policy` of `cart`.
pub(crate) fn rig<F>(policy: InboundPolicy, test: impl FnOnce(Rig) -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    in_pod(Range::Widened, async move |pod| {
        test(Rig::new(pod, policy).await).await;
        io::Result::Ok(())
    });
}

impl Rig {
    async fn new(pod: TestPod, policy: InboundPolicy) -> Self {
        let fixture = ok(Fixture::start().await);
        for kind in [SocketKind::OutboundLeg, SocketKind::InboundDial] {
            let family = Family::V4;
            ok(pod.give(SocketPool { kind, family }, 40));
        }
        let (v4, second) = (pod.v4, pod.second);
        // A second address makes the proxy bind the one that the application chose.
        let web = vec![second, IpAddr::from([10, 1, 0, 9])];
        let made = |name: &str, addresses, policy| made(&fixture, &pod, name, addresses, policy);
        Self {
            web: made("web", web, InboundPolicy::strict()),
            cart: made("cart", vec![v4], policy),
            app: ok(TcpListener::bind(APP).await),
            fixture,
            _pod: pod,
        }
    }

    /// The identity's credentials, signed by this test's control.
    pub(crate) async fn credentials(&self, pod: &Pod) -> Arc<Credentials> {
        let hour = Duration::from_secs(3600);
        self.fixture.control.sign_for(pod.identity.clone(), hour);
        self.fixture.proxy.identities.hold(&pod.identity, &pod.key);
        ok(self
            .fixture
            .proxy
            .identities
            .credentials(&pod.identity)
            .await)
    }

    /// Tells what `SERVICE` is.
    pub(crate) fn resolve(&self, endpoints: &[(&str, &Identity, bool)]) {
        let endpoints = endpoints
            .iter()
            .map(|(at, identity, meshed)| endpoint(at, identity, *meshed));
        let saved = json!([{
            "destination": SERVICE,
            "kind": "service",
            "namespace": "shop",
            "name": "cart",
            "endpoints": endpoints.collect::<Vec<_>>(),
        }]);
        self.fixture
            .proxy
            .destinations
            .restore(ok(serde_json::from_value(saved)));
    }

    /// Control does not know `at`.
    pub(crate) fn answer_unknown(&self, at: &str) {
        let answer = v1::Destination {
            destination: Some(addr(at).into()),
            kind: Some(v1::destination::Kind::Unknown(v1::Unknown::default())),
        };
        self.fixture.proxy.destinations.apply(&answer);
    }

    /// Serves `MESHED` as the inbound listener of `cart`.
    pub(crate) async fn serve_inbound(&self) {
        let listener = ok(TcpListener::bind(MESHED).await);
        let (proxy, pod) = (self.fixture.proxy.clone(), self.cart.clone());
        tokio::spawn(async move {
            while let Ok(accepted) = listener.accept().await {
                let (direction, to) = (Direction::Inbound, addr(APP));
                let accepted = Accepted::for_tests(&proxy, &pod, direction, accepted, to);
                tokio::spawn(inbound::handle(accepted));
            }
        });
    }

    /// A connection of `web`'s application to `to`, through its outbound listener.
    pub(crate) async fn dial_out(&self, to: &str) -> TcpStream {
        let (dialled, accepted) = self.out(to).await;
        tokio::spawn(outbound::handle(accepted));
        dialled
    }

    /// As [`Rig::dial_out`], for a proxy that has not looked at it yet.
    pub(crate) async fn out(&self, to: &str) -> (TcpStream, Accepted) {
        let listener = ok(TcpListener::bind("10.1.0.2:0").await);
        let dialled = self.connect(ok(listener.local_addr()));
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        let (proxy, pod) = (&self.fixture.proxy, &self.web);
        let accepted = Accepted::for_tests(proxy, pod, Direction::Outbound, ok(accepted), addr(to));
        (dialled, accepted)
    }

    /// A connection of an unmeshed client to `cart`.
    pub(crate) async fn dial_in(&self) -> TcpStream {
        self.connect(addr(MESHED)).await
    }

    async fn connect(&self, to: SocketAddr) -> TcpStream {
        let socket = ok(TcpSocket::new_v4());
        ok(socket.bind(addr("10.1.0.3:0")));
        ok(socket.connect(to).await)
    }

    /// The application's next connection.
    pub(crate) async fn accepted(&self) -> (TcpStream, SocketAddr) {
        let limit = Duration::from_secs(5);
        ok(ok(tokio::time::timeout(limit, self.app.accept()).await))
    }

    /// Whether nobody has dialled the application.
    pub(crate) async fn is_undisturbed(&self) -> bool {
        let soon = Duration::from_millis(50);
        tokio::time::timeout(soon, self.app.accept()).await.is_err()
    }

    /// Asserts that a series with all of `labels` has this value.
    pub(crate) fn assert_metric(&self, name: &str, labels: &[(&str, &str)], value: u64) {
        let text = ok(TextEncoder::new().encode_to_string(&self.fixture.registry.gather()));
        let of_name: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")))
            .collect();
        let has = |line: &str| {
            let label =
                |(name, value): &(&str, &str)| line.contains(&format!("{name}=\"{value}\""));
            labels.iter().all(label) && line.ends_with(&format!(" {value}"))
        };
        let found = of_name.iter().any(|line| has(line));
        assert!(
            found,
            "no {name} with {labels:?} is {value} in {of_name:#?}"
        );
    }
}

/// Reads until the end, however it comes.
pub(crate) async fn read_to_end(tcp: &mut TcpStream) -> (Vec<u8>, io::Result<usize>) {
    let mut bytes = Vec::new();
    let read = tcp.read_to_end(&mut bytes);
    let end = tokio::time::timeout(Duration::from_secs(10), read).await;
    (bytes, ok(end))
}

/// Asserts that the connection is reset and brings nothing before.
pub(crate) async fn assert_reset(tcp: &mut TcpStream) {
    let (bytes, end) = read_to_end(tcp).await;
    let reset = matches!(&end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset);
    assert!(reset && bytes.is_empty(), "{end:?} after {bytes:?}");
}

/// Asserts that each hears what the other says.
pub(crate) async fn assert_echo(near: &mut TcpStream, far: &mut TcpStream) {
    assert_hears(near, far).await;
    assert_hears(far, near).await;
}

async fn assert_hears(from: &mut TcpStream, to: &mut TcpStream) {
    ok(from.write_all(b"hello").await);
    let mut got = [0; 5];
    ok(to.read_exact(&mut got).await);
    assert_eq!(&got, b"hello");
}

fn made(
    fixture: &Fixture,
    pod: &TestPod,
    name: &str,
    addresses: Vec<IpAddr>,
    policy: InboundPolicy,
) -> Arc<Pod> {
    let workload = workload(name);
    let identity = fixture.proxy.domain.identity("shop", name);
    let metrics = fixture.proxy.metrics.pod(&workload);
    let sockets = pod.sockets.clone();
    let key = WorkloadKey {
        uid: workload.uid.clone(),
        cookie: NetnsCookie(1),
    };
    let mut pod = Pod::for_tests(workload, identity, addresses, sockets, metrics, policy);
    pod.key = key;
    Arc::new(pod)
}

fn workload(name: &str) -> Workload {
    Workload {
        uid: PodUid(format!("uid-{name}")),
        namespace: "shop".into(),
        name: format!("{name}-1"),
        service_account: name.into(),
        owner_kind: "deployment".into(),
        owner_name: name.into(),
    }
}

fn endpoint(at: &str, identity: &Identity, meshed: bool) -> Value {
    let mut workload = workload(&identity.service_account);
    workload.uid = PodUid(at.into());
    json!({
        "addr": at,
        "workload": workload,
        "node": "node-1",
        "identity": identity,
        "meshed": meshed,
    })
}

/// A ClientHello of an application's own TLS, or of one that pretends.
pub(crate) fn client_hello(name: &str, protocol: &[u8]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = ok(config.with_safe_default_protocol_versions());
    let mut config = config
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ok(rustls::pki_types::ServerName::try_from(name.to_owned()));
    let mut client = ok(rustls::ClientConnection::new(Arc::new(config), name));
    let mut hello = Vec::new();
    ok(client.write_tls(&mut hello));
    hello
}
