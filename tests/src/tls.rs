// SPDX-License-Identifier: Apache-2.0
//! TLS peers that are not Culvert: certificates of any authority and identity, clients that say
//! what they want, and a server that pretends to be another pod.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use culvert_api::identity::IdentityDomain;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection,
    SignatureScheme, Stream, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};

use nix::{errno::Errno, libc};
use socket2::{Domain, Socket, Type};

use crate::{manifests::NAMESPACE, netns::Netns, sandbox::Sandbox};

pub mod forge;
pub mod hello;
pub mod insider;

/// The ALPN name of a raw stream between two proxies.
pub const CULVERT_TCP: &[u8] = b"culvert/tcp";
/// Of requests over HTTP/1.1.
pub const CULVERT_HTTP1: &[u8] = b"culvert/http1";
/// Of requests over HTTP/2.
pub const CULVERT_H2: &[u8] = b"culvert/h2";

const PATIENCE: Duration = Duration::from_secs(5);

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
}

/// A certificate with its chain and key.
#[derive(Debug)]
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// What a client says.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The SNI.
    pub server_name: String,
    /// The ALPN names.
    pub alpn: Vec<Vec<u8>>,
    /// What is sent after the handshake.
    pub payload: Vec<u8>,
}

/// How a client's connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// These bytes came back through TLS.
    Answered(Vec<u8>),
    /// The server sent an alert, or the connection ended before anything came back.
    Refused(String),
}

/// What a pretender of a server got to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overheard {
    /// Whether a handshake was completed.
    pub handshake: bool,
    /// The application's bytes.
    pub plaintext: Vec<u8>,
    /// The first bytes on the wire.
    pub first: Vec<u8>,
    /// What the client's refusal was, if it said one.
    pub end: String,
}

/// The identities of a sandbox.
pub fn domain() -> IdentityDomain {
    IdentityDomain {
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "culvert".to_owned(),
    }
}

/// The name that the proxy of a pod's ServiceAccount answers to.
pub fn server_name(account: &str) -> String {
    domain().server_name(&domain().identity(NAMESPACE, account))
}

fn leaf_params(account: &str) -> anyhow::Result<CertificateParams> {
    let identity = domain().identity(NAMESPACE, account);
    let mut params = CertificateParams::new(vec![domain().server_name(&identity)])?;
    let uri = SanType::URI(identity.to_string().try_into()?);
    params.subject_alt_names.push(uri);
    Ok(params)
}

// === impl Authority ===

impl Authority {
    /// One that nobody trusts.
    pub fn unknown() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        let chain = vec![issuer.der().clone()];
        let key = KeyPair::try_from(issuer.key().serialized_der())?;
        let issuer = Issuer::from_ca_cert_der(&chain[0], key)?;
        Ok(Self { issuer, chain })
    }

    /// A new one, which is kept in a directory. [`Authority::kept`] reads it again.
    pub fn make(dir: &Path) -> anyhow::Result<String> {
        let mut params = CertificateParams::new(Vec::new())?;
        // Else every certificate of rcgen's would seem to be issued by it.
        let name = rcgen::DnType::CommonName;
        params.distinguished_name.push(name, "attackers");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::create_dir_all(dir)?;
        fs::write(dir.join("issuer.crt"), issuer.pem())?;
        fs::write(dir.join("issuer.key"), issuer.key().serialize_pem())?;
        Ok(issuer.pem())
    }

    /// What [`Authority::make`] kept.
    pub fn kept(dir: &Path) -> anyhow::Result<Self> {
        Self::of_files(&dir.join("issuer.crt"), &dir.join("issuer.key"))
    }

    /// The sandbox's own, whose key only control should have.
    pub fn of_sandbox(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let dir = sandbox.root().join("control");
        Self::of_files(&dir.join("issuer.crt"), &dir.join("issuer.key"))
    }

    fn of_files(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        let pem = read(certificate)?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>()?;
        let key = KeyPair::from_pem(&String::from_utf8(read(key)?)?)?;
        let first = chain.first().context("no certificate in issuer.crt")?;
        let issuer = Issuer::from_ca_cert_der(first, key)?;
        Ok(Self { issuer, chain })
    }

    /// Signs for a ServiceAccount.
    pub fn sign(&self, account: &str) -> anyhow::Result<Credentials> {
        self.issue(leaf_params(account)?, &KeyPair::generate()?)
    }

    fn issue(&self, params: CertificateParams, key: &KeyPair) -> anyhow::Result<Credentials> {
        let leaf = params.signed_by(key, &self.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.chain.iter().cloned());
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| anyhow!("{e}"))?;
        Ok(Credentials { chain, key })
    }
}

// === impl Credentials ===

impl Credentials {
    fn resolver(self) -> anyhow::Result<SingleCertAndKey> {
        let provider = aws_lc_rs::default_provider();
        let key = provider.key_provider.load_private_key(self.key)?;
        Ok(SingleCertAndKey::from(CertifiedKey::new(self.chain, key)))
    }
}

// === impl Hello ===

impl Hello {
    /// What the proxy of a client says to a pod of this ServiceAccount.
    pub fn mesh(account: &str, payload: &[u8]) -> Self {
        Self {
            server_name: server_name(account),
            alpn: vec![CULVERT_TCP.to_vec()],
            payload: payload.to_vec(),
        }
    }
}

/// Connects from inside a namespace, says hello, and waits for as many bytes as were sent.
pub fn connect(
    netns: &Netns,
    addr: SocketAddr,
    hello: &Hello,
    credentials: Option<Credentials>,
) -> anyhow::Result<Ending> {
    connect_with(netns, addr, hello, credentials, |hello| vec![hello])
}

/// The same, with a ClientHello that is changed or cut into pieces, each sent by itself.
pub fn connect_with(
    netns: &Netns,
    addr: SocketAddr,
    hello: &Hello,
    credentials: Option<Credentials>,
    pieces: impl FnOnce(Vec<u8>) -> Vec<Vec<u8>>,
) -> anyhow::Result<Ending> {
    let config = client_config(hello, credentials)?;
    let stream = netns.run(move || dial(addr))?;
    match talk(stream, config, hello, pieces) {
        Ok(answer) => Ok(Ending::Answered(answer)),
        Err(error) => Ok(Ending::Refused(error.to_string())),
    }
}

/// As a mesh's proxy dials: the ClientHello comes with the handshake's last segment, because the
/// kernel holds an empty one back for a moment.
pub fn dial(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    let seconds: libc::c_int = 1;
    // SAFETY: the kernel reads an int from a pointer to an int of that size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(set)?;
    socket.connect_timeout(&addr.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A session over a connection, for whatever is said in it.
pub fn session(
    mut stream: TcpStream,
    hello: &Hello,
    own: Credentials,
) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from(hello.server_name.clone())?;
    let mut connection = ClientConnection::new(client_config(hello, Some(own))?, name)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

fn talk(
    mut stream: TcpStream,
    config: Arc<ClientConfig>,
    hello: &Hello,
    pieces: impl FnOnce(Vec<u8>) -> Vec<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let name = ServerName::try_from(hello.server_name.clone()).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut first = Vec::new();
    connection.write_tls(&mut first)?;
    for piece in pieces(first) {
        stream.write_all(&piece)?;
    }
    let mut tls = Stream::new(&mut connection, &mut stream);
    tls.write_all(&hello.payload)?;
    let mut answer = vec![0; hello.payload.len()];
    tls.read_exact(&mut answer)?;
    Ok(answer)
}

/// A client that takes any server, because the servers are what is tested.
fn client_config(hello: &Hello, own: Option<Credentials>) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match own {
        // Not `with_client_auth_cert`, which looks whether key and certificate belong together.
        Some(own) => builder.with_client_cert_resolver(Arc::new(own.resolver()?)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols.clone_from(&hello.alpn);
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// Listens inside a namespace and serves one connection as if it were the proxy of another pod.
/// Without credentials it is a plaintext server.
pub fn pretend(
    netns: &Netns,
    addr: SocketAddr,
    credentials: Option<Credentials>,
) -> anyhow::Result<std::thread::JoinHandle<anyhow::Result<Overheard>>> {
    let listener = netns.run(move || Ok(TcpListener::bind(addr)?))?;
    let config = credentials.map(server_config).transpose()?;
    netns.spawn(move || {
        let mut stream = accept(&listener)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut first = [0; 64];
        let n = stream.peek(&mut first)?;
        let mut overheard = Overheard {
            first: first[..n].to_vec(),
            ..Overheard::default()
        };
        // However it ends, what was overheard until then counts.
        let end = match config {
            Some(config) => overhear_tls(&mut stream, config, &mut overheard),
            None => answer_plainly(&mut stream),
        };
        overheard.end = end.err().map(|e| e.to_string()).unwrap_or_default();
        Ok(overheard)
    })
}

/// Waits for a connection.
pub fn accept(listener: &TcpListener) -> anyhow::Result<TcpStream> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::try_from(PATIENCE)?)?;
    anyhow::ensure!(
        ready > 0,
        "nobody connected to the pretender in {PATIENCE:?}"
    );
    Ok(listener.accept()?.0)
}

fn answer_plainly(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"220 plaintext\n")?;
    io::copy(stream, &mut io::sink())?;
    Ok(())
}

fn overhear_tls(
    stream: &mut TcpStream,
    config: Arc<ServerConfig>,
    overheard: &mut Overheard,
) -> io::Result<()> {
    let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(stream)?;
    }
    overheard.handshake = true;
    Stream::new(&mut connection, stream).read_to_end(&mut overheard.plaintext)?;
    Ok(())
}

fn server_config(own: Credentials) -> anyhow::Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(own.resolver()?));
    config.alpn_protocols = vec![CULVERT_TCP.to_vec()];
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// With one cipher suite, so that an [`insider`] knows how its secrets are used.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    })
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
