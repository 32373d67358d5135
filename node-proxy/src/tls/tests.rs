// SPDX-License-Identifier: Apache-2.0
use std::time::SystemTime;

use culvert_api::identity::{Identity, IdentityDomain};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::{RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{session::Opened, *};

/// A certificate authority of a mesh of its own.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a test's certificate says.
#[derive(Clone)]
pub(crate) struct Subject {
    identity: Identity,
    uris: Vec<String>,
    names: Vec<String>,
    not_after: i64,
}

pub(crate) fn domain() -> IdentityDomain {
    IdentityDomain {
        trust_domain: "cluster.local".into(),
        control_namespace: "culvert".into(),
    }
}

pub(crate) fn identity(service_account: &str) -> Identity {
    domain().identity("shop", service_account)
}

fn ok<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = ok(KeyPair::generate());
        let mut params = ok(CertificateParams::new(vec![]));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = ok(params.self_signed(&key)).der().clone();
        let issuer = Issuer::new(params, key);
        Self {
            certificate,
            issuer,
        }
    }

    fn anchors(&self) -> Arc<RootCertStore> {
        let mut anchors = RootCertStore::empty();
        ok(anchors.add(self.certificate.clone()));
        Arc::new(anchors)
    }

    fn certify(&self, subject: &Subject) -> (CertificateDer<'static>, KeyPair) {
        let key = ok(KeyPair::generate());
        let mut params = ok(CertificateParams::new(subject.names.clone()));
        for uri in &subject.uris {
            let uri = ok(uri.as_str().try_into());
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = ok(time::OffsetDateTime::from_unix_timestamp(0));
        params.not_after = ok(time::OffsetDateTime::from_unix_timestamp(subject.not_after));
        let certificate = ok(params.signed_by(&key, &self.issuer));
        (certificate.der().clone(), key)
    }

    /// Credentials of an identity of the test's domain.
    pub(crate) fn credentials(&self, service_account: &str) -> Credentials {
        self.trusting(service_account, self)
    }

    fn trusting(&self, service_account: &str, anchors: &Self) -> Credentials {
        self.chained(service_account, 0, anchors)
    }

    /// With this authority's certificate that often behind the leaf.
    fn chained(&self, service_account: &str, times: usize, anchors: &Self) -> Credentials {
        let (leaf, key) = self.certify(&Subject::new(service_account));
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut chain = vec![leaf];
        chain.extend(std::iter::repeat_n(self.certificate.clone(), times));
        ok(Credentials::new(&domain(), chain, key, anchors.anchors()))
    }
}

impl Subject {
    fn new(service_account: &str) -> Self {
        let identity = identity(service_account);
        let now = ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH));
        Self {
            uris: vec![identity.to_string()],
            names: vec![domain().server_name(&identity)],
            identity,
            not_after: i64::try_from(now.as_secs()).unwrap_or_default() + 3600,
        }
    }
}

pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = ok(TcpListener::bind("127.0.0.1:0").await);
    let dialled = TcpStream::connect(ok(listener.local_addr()));
    let (dialled, accepted) = tokio::join!(dialled, listener.accept());
    (ok(dialled), ok(accepted).0)
}

pub(crate) fn client_session(credentials: &Credentials, server: &Identity) -> Box<Session> {
    let name = ok(ServerName::try_from(domain().server_name(server)));
    let connection = rustls::client::UnbufferedClientConnection::new_with_alpn(
        credentials.client.clone(),
        name,
        Alpn::Tcp.offers(),
    );
    Box::new(Session::client(ok(connection)))
}

pub(crate) fn server_session(credentials: &Credentials) -> Box<Session> {
    let connection = rustls::server::UnbufferedServerConnection::new(credentials.server.clone());
    Box::new(Session::server(ok(connection)))
}

type Ended = Result<Handshaken, HandshakeError>;

/// A handshake over loopback, in which the client dials `expected`.
async fn shake(client: &Credentials, server: &Credentials, expected: &Identity) -> (Ended, Ended) {
    let (mut dialled, mut accepted) = sockets().await;
    let client = client_session(client, expected);
    let server = server_session(server);
    let serve = tokio::spawn(async move { handshake(server, &mut accepted, Vec::new()).await });
    let mut dialled_end = handshake(client, &mut dialled, Vec::new()).await;
    let served = ok(serve.await);
    if let Ok(done) = &mut dialled_end {
        read_tickets(done, &mut dialled).await;
    }
    (dialled_end, served)
}

/// The server has closed its socket by now, so that everything it sent is there.
async fn read_tickets(done: &mut Handshaken, tcp: &mut TcpStream) {
    let mut sealed = std::mem::take(&mut done.sealed);
    // An alert that came behind a refusal resets the connection, which is no matter here.
    let _ = tcp.read_to_end(&mut sealed).await;
    let mut plain = vec![0; sealed.len()];
    let _ = done.session.open(&mut sealed, &mut plain);
}

#[tokio::test]
async fn both_sides_know_each_other_and_resume_with_the_same_knowledge() {
    let authority = Authority::new();
    let (web, cart) = (authority.credentials("web"), authority.credentials("cart"));
    for resumed in [false, true] {
        let (client, server) = shake(&web, &cart, &identity("cart")).await;
        let (client, server) = (ok(client), ok(server));
        assert_eq!(peer(&client.session, &domain()), Ok(identity("cart")));
        assert_eq!(peer(&server.session, &domain()), Ok(identity("web")));
        assert_eq!(client.session.alpn(), Some(Alpn::Tcp.name()));
        assert_eq!(client.session.is_resumed(), resumed);
    }
}

#[tokio::test]
async fn nobody_resumes_with_other_credentials() {
    let authority = Authority::new();
    let (web, cart) = (authority.credentials("web"), authority.credentials("cart"));
    let (renewed, other) = (
        authority.credentials("cart"),
        authority.credentials("other"),
    );
    assert!(shake(&web, &cart, &identity("cart")).await.0.is_ok());
    let (client, _) = shake(&web, &renewed, &identity("cart")).await;
    assert!(!ok(client).session.is_resumed());
    let (client, server) = shake(&other, &cart, &identity("cart")).await;
    assert!(!ok(client).session.is_resumed());
    assert_eq!(peer(&ok(server).session, &domain()), Ok(identity("other")));
}

#[tokio::test]
async fn a_client_refuses_another_authority_and_another_identity() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let web = ours.credentials("web");
    let (client, server) = shake(&web, &theirs.credentials("cart"), &identity("cart")).await;
    assert!(matches!(client, Err(HandshakeError::Tls(_))), "{client:?}");
    // The server is told by an alert, not by silence.
    let told = matches!(
        server,
        Err(HandshakeError::Tls(rustls::Error::AlertReceived(_)))
    );
    assert!(told, "{server:?}");
    let (client, _) = shake(&web, &ours.credentials("other"), &identity("cart")).await;
    assert!(matches!(client, Err(HandshakeError::Tls(_))), "{client:?}");
}

#[tokio::test]
async fn a_server_refuses_a_client_of_another_authority() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let stranger = theirs.trusting("web", &ours);
    let (_, server) = shake(&stranger, &ours.credentials("cart"), &identity("cart")).await;
    let refused = matches!(
        server,
        Err(HandshakeError::Tls(rustls::Error::InvalidCertificate(_)))
    );
    assert!(refused, "{server:?}");
}

/// What a server says to a client whose chain has `times` certificates behind the leaf.
async fn said_to(times: usize) -> (HandshakeError, Result<Opened, rustls::Error>, usize) {
    let authority = Authority::new();
    let web = client_session(
        &authority.chained("web", times, &authority),
        &identity("cart"),
    );
    let server = server_session(&authority.credentials("cart"));
    let (mut dialled, mut accepted) = sockets().await;
    let serve = tokio::spawn(async move {
        let Err(error) = handshake(server, &mut accepted, Vec::new()).await else {
            panic!("a chain of {times} was taken");
        };
        // Read to the client's end, so that no reset takes the alert away.
        ok(accepted.shutdown().await);
        let _ = tokio::io::copy(&mut accepted, &mut tokio::io::sink()).await;
        error
    });
    let mut done = ok(handshake(web, &mut dialled, Vec::new()).await);
    let mut sealed = std::mem::take(&mut done.sealed);
    ok(dialled.read_to_end(&mut sealed).await);
    drop(dialled);
    let mut plain = vec![0; sealed.len()];
    let said = done.session.open(&mut sealed, &mut plain);
    (ok(serve.await), said, sealed.len())
}

#[tokio::test]
async fn a_chain_that_is_too_long_is_refused_by_its_length() {
    for times in [175, 1000] {
        let (error, said, length) = said_to(times).await;
        let HandshakeError::Tls(rustls::Error::InvalidMessage(reason)) = error else {
            panic!("{times}: {error:?}");
        };
        assert_eq!(reason, rustls::InvalidMessage::HandshakePayloadTooLarge);
        // rustls has no alert for it; RFC 8446, section 6.2, asks for none where it says SHOULD.
        let nothing = said.map_or(0, |opened| opened.written) == 0 && length < 100;
        assert!(nothing, "{times}: the client was told {length} bytes");
    }
}

#[tokio::test]
async fn a_first_byte_that_is_not_tls_is_told_apart() {
    let authority = Authority::new();
    let (mut dialled, mut accepted) = sockets().await;
    ok(accepted.write_all(b"SSH-2.0-OpenSSH\r\n").await);
    let session = client_session(&authority.credentials("web"), &identity("cart"));
    let ended = handshake(session, &mut dialled, Vec::new()).await;
    assert!(
        matches!(ended, Err(HandshakeError::NotTls { first: b'S' })),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_refusal_is_an_alert() {
    let authority = Authority::new();
    let (mut dialled, mut accepted) = sockets().await;
    ok(refuse(&mut accepted, Alert::UnrecognizedName).await);
    let session = client_session(&authority.credentials("web"), &identity("cart"));
    let ended = handshake(session, &mut dialled, Vec::new()).await;
    let expected = rustls::AlertDescription::UnrecognisedName;
    let Err(HandshakeError::Tls(rustls::Error::AlertReceived(got))) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(got, expected);
}

#[test]
fn a_leaf_names_one_identity_of_the_mesh_and_holds_now() {
    let authority = Authority::new();
    let leaf = |subject: &Subject| {
        peer::leaf(&authority.certify(subject).0, &domain()).map(|leaf| leaf.identity)
    };
    let good = Subject::new("cart");
    assert_eq!(leaf(&good), Ok(good.identity.clone()));
    let with = |change: fn(&mut Subject)| {
        let mut subject = good.clone();
        change(&mut subject);
        leaf(&subject)
    };
    assert_eq!(with(|to| to.uris.clear()), Err(PeerError::Uris { got: 0 }));
    let two = with(|to| to.uris.push("spiffe://cluster.local/ns/a/sa/b".into()));
    assert_eq!(two, Err(PeerError::Uris { got: 2 }));
    let other = with(|to| to.uris = vec!["spiffe://other/ns/shop/sa/cart".into()]);
    assert!(
        matches!(other, Err(PeerError::TrustDomain { .. })),
        "{other:?}"
    );
    let unnamed = with(|to| to.names = vec!["cart.shop.svc".into()]);
    assert!(
        matches!(unnamed, Err(PeerError::ServerName { .. })),
        "{unnamed:?}"
    );
    let over = with(|to| to.not_after = 1000);
    assert!(matches!(over, Err(PeerError::NotNow { .. })), "{over:?}");
}

#[test]
fn credentials_print_no_key() {
    let printed = format!("{:?}", Authority::new().credentials("cart"));
    assert!(printed.starts_with("Credentials { identity:"), "{printed}");
    assert!(!printed.to_lowercase().contains("key"), "{printed}");
}
