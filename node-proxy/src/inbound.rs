// SPDX-License-Identifier: Apache-2.0
//! Connections into a pod: what each is ([`rule`]), whether the policy lets it in, and then the
//! application, dialled from the client's own address.
//!
//! Under a policy that wants an identity the application is not dialled before handshake and
//! authorisation are done. A connection without a byte at accept is most likely no mesh peer, because
//! those send their ClientHello with the handshake's last segment: the application is dialled and
//! nothing is waited for. A busy peer may be late all the same, so as long as neither side has said
//! anything the client's first bytes are still judged by the rule: a ClientHello for this pod is
//! never relayed.

mod connected;
mod rule;

use std::{io, sync::Arc};

use culvert_api::{
    agent::Direction,
    identity::Identity,
    policy::{Client, InboundPolicy, Permit, authorize},
};
use rustls::server::UnbufferedServerConnection;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use self::{
    connected::{Connected, requests},
    rule::{Verdict, decide},
};
use crate::{
    accept::{self, Accepted, Connection, Refused},
    app::Proxy,
    carry::Wire,
    client_hello::{self, First},
    http::{Version, inbound::Admitted},
    metrics::{Counter, Fault, Handshaking, Leg, Tls},
    pods::Pod,
    sockets::PooledStream,
    tcp,
    tls::{self, Alpn, Handshaken, Session},
};

type Policy = watch::Receiver<Arc<InboundPolicy>>;

/// Who the client is, and its bytes so far.
#[derive(Debug)]
struct Identified {
    client: Option<Identity>,
    /// The client has not said anything yet.
    silent: bool,
    tls: Tls,
    /// What the client's proxy says that it sends.
    alpn: Alpn,
    wire: Wire,
}

/// A connection that goes no further, and what it is counted as.
type Stopped = (Accepted, Leg, Refused);

/// Serves one listener until `close` turns true.
pub async fn serve(
    proxy: Arc<Proxy>,
    pod: Arc<Pod>,
    listener: TcpListener,
    close: watch::Receiver<bool>,
) {
    accept::serve(proxy, pod, Direction::Inbound, listener, close, handle).await;
}

pub(crate) async fn handle(mut accepted: Accepted) {
    // Held longer than the socket: the port is taken as long as that.
    let wire = accepted
        .connection
        .pod
        .sockets
        .wire(accepted.connection.source);
    accepted.connection.hold(wire);
    let policy = accepted.connection.pod.policy();
    let served = match identify(&mut accepted, &policy).await {
        Ok(identified) => serve_identified(accepted, identified, policy).await,
        Err(refused) => Err((accepted, unidentified(), refused)),
    };
    if let Err((accepted, leg, refused)) = served {
        accepted.refuse(&leg, &refused).await;
    }
}

/// Asks the policy. HTTP of a mesh peer is served as such; for anything else the application is
/// dialled, and the first word decides.
async fn serve_identified(
    accepted: Accepted,
    identified: Identified,
    mut policy: Policy,
) -> Result<(), Stopped> {
    let leg = identified.leg();
    let permit = match identified.authorize(&accepted, &leg, &mut policy) {
        Ok(permit) => permit,
        Err(refused) => return Err((accepted, leg, refused)),
    };
    let Identified {
        client,
        silent,
        alpn,
        wire,
        ..
    } = identified;
    let version = match alpn {
        Alpn::Http1 => Version::Http1,
        Alpn::H2 => Version::Http2,
        Alpn::Tcp => {
            let dialled = match dial(&accepted.connection, &permit).await {
                Ok(dialled) => dialled,
                Err(error) => return Err((accepted, leg, not_dialled(error))),
            };
            let connected = Connected {
                client,
                silent,
                leg,
                wire,
                dialled,
            };
            return connected.serve(accepted, policy, permit).await;
        }
    };
    let admitted = Admitted {
        client,
        leg,
        permit,
    };
    let (connection, stream) = accepted.into_stream(wire);
    requests(connection, stream, version, admitted, None, policy).await;
    Ok(())
}

/// What the client begins with, if it is the first to say something and that may be a ClientHello.
async fn late(
    accepted: &mut Accepted,
    dialled: &PooledStream,
    policy: &Policy,
) -> Option<(First, Vec<u8>)> {
    let mut policy = policy.clone();
    let byte = tokio::select! {
        biased;
        byte = tcp::peek_or_wait(&accepted.tcp) => byte,
        _ = tcp::peek_or_wait(dialled.tcp()) => return None,
        _ = policy.changed() => return None,
    };
    let until = Instant::now() + accepted.connection.proxy.config.handshake_timeout;
    match byte {
        Ok(Some(byte)) if client_hello::may_begin(byte) => {
            Some(client_hello::read(&mut accepted.tcp, until).await)
        }
        _ => None,
    }
}

fn unidentified() -> Leg {
    Leg::new(Direction::Inbound, Tls::NoIdentity)
}

async fn identify(accepted: &mut Accepted, policy: &Policy) -> Result<Identified, Refused> {
    accepted
        .connection
        .check_loop(accepted.connection.original)?;
    tcp::tune_wire(&accepted.tcp).map_err(|error| Refused::new(Fault::Io, error))?;
    let _unknown = unknown(accepted)?;
    let (first, bytes) = first(accepted, policy).await?;
    judge(accepted, &first, bytes, policy).await
}

/// Held until it is clear who the client is.
fn unknown(accepted: &Accepted) -> Result<Handshaking, Refused> {
    let handshaking = accepted
        .connection
        .pod
        .metrics()
        .handshake(accepted.connection.source.ip());
    handshaking.ok_or_else(|| {
        let reason = "too many clients have not said yet who they are";
        Refused::new(Fault::LoadShed, reason)
    })
}

async fn judge(
    accepted: &mut Accepted,
    first: &First,
    bytes: Vec<u8>,
    policy: &Policy,
) -> Result<Identified, Refused> {
    let own = accepted
        .connection
        .proxy
        .domain
        .server_name(&accepted.connection.pod.identity);
    let strict = policy.borrow().requires_identity();
    match decide(strict, first, &own, &accepted.connection.proxy.domain) {
        Verdict::Mesh => mesh(accepted, bytes).await,
        Verdict::Relay => Ok(Identified {
            client: None,
            silent: *first == First::Silence,
            tls: match first {
                First::Hello(_) => Tls::Opaque,
                _ => Tls::NoIdentity,
            },
            alpn: Alpn::Tcp,
            wire: Wire::Plain(bytes),
        }),
        Verdict::Reset => Err(not_a_peer(first)),
        Verdict::Alert(alert) => {
            // Refused all the same if the client does not take the alert.
            let _ = tls::refuse(&mut accepted.tcp, alert).await;
            Err(alerted(alert))
        }
    }
}

/// What the connection begins with. Only a policy that wants an identity waits for a first byte.
async fn first(accepted: &mut Accepted, policy: &Policy) -> Result<(First, Vec<u8>), Refused> {
    let until = Instant::now() + accepted.connection.proxy.config.handshake_timeout;
    let byte = match tcp::peek(&accepted.tcp) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            if !policy.borrow().requires_identity() {
                return Ok((First::Silence, Vec::new()));
            }
            match timeout_at(until, tcp::peek_or_wait(&accepted.tcp)).await {
                Err(_) => return Ok((First::TimedOut, Vec::new())),
                Ok(byte) => byte,
            }
        }
        known => known,
    };
    let byte = byte.map_err(|error| Refused::new(Fault::Io, error))?;
    if byte.is_some_and(client_hello::may_begin) {
        return Ok(client_hello::read(&mut accepted.tcp, until).await);
    }
    Ok((First::Other, Vec::new()))
}

async fn mesh(accepted: &mut Accepted, hello: Vec<u8>) -> Result<Identified, Refused> {
    let proxy = accepted.connection.proxy.clone();
    let credentials = proxy
        .identities
        .credentials(&accepted.connection.pod.identity)
        .await;
    let credentials = credentials.map_err(|error| Refused::new(Fault::NoCertificate, error))?;
    let connection = UnbufferedServerConnection::new(credentials.server.clone())
        .map_err(|error| Refused::new(Fault::Tls, error))?;
    let session = Box::new(Session::server(connection));
    let handshake = tls::handshake(session, &mut accepted.tcp, hello);
    let done = timeout(proxy.config.handshake_timeout, handshake)
        .await
        .map_err(|_| Refused::new(Fault::Tls, "the handshake took too long"))?
        .map_err(|error| Refused::new(Fault::Tls, error))?;
    let client = tls::peer(&done.session, &proxy.domain);
    let client = client.map_err(|error| Refused::new(Fault::PeerIdentity, error))?;
    Ok(Identified {
        client: Some(client),
        silent: false,
        tls: Tls::Mutual,
        alpn: alpn(&done)?,
        wire: Wire::Mutual(done),
    })
}

fn alpn(done: &Handshaken) -> Result<Alpn, Refused> {
    let alpn = done.session.alpn().and_then(Alpn::of);
    alpn.ok_or_else(|| {
        let reason = "the client agreed to no protocol of this release";
        Refused::new(Fault::NoApplicationProtocol, reason)
    })
}

/// Dials the application. The permit proves that the policy was asked.
pub(crate) async fn dial(connection: &Connection, _permit: &Permit) -> io::Result<PooledStream> {
    let limit = connection.proxy.config.inbound_connect_timeout;
    let (client, to) = (connection.source.ip(), connection.original);
    connection.pod.sockets.dial_from(client, to, limit).await
}

fn not_dialled(error: io::Error) -> Refused {
    Refused::new(
        Fault::Io,
        format!("could not dial the application: {error}"),
    )
}

fn not_a_peer(first: &First) -> Refused {
    match first {
        First::TimedOut => Refused::new(
            Fault::DetectionTimeout,
            "no complete ClientHello came in time",
        ),
        First::Hello(_) => Refused::new(
            Fault::IdentityRequired,
            "TLS, but not a mesh peer's, under a policy that wants an identity",
        ),
        _ => Refused::new(
            Fault::IdentityRequired,
            "not TLS, under a policy that wants an identity",
        ),
    }
}

fn alerted(alert: tls::Alert) -> Refused {
    match alert {
        tls::Alert::UnrecognizedName => Refused::new(
            Fault::UnrecognizedName,
            "the SNI names another identity of the mesh",
        ),
        tls::Alert::NoApplicationProtocol => Refused::new(
            Fault::NoApplicationProtocol,
            "the SNI names this pod, and ALPN offers no protocol of the mesh",
        ),
    }
}

// === impl Identified ===

impl Identified {
    fn leg(&self) -> Leg {
        let client = self.client.as_ref().map(ToString::to_string);
        Leg {
            client_id: client.unwrap_or_default().into(),
            ..Leg::new(Direction::Inbound, self.tls)
        }
    }

    fn client(&self) -> Client<'_> {
        let client = self.client.as_ref();
        client.map_or(Client::Unidentified, Client::Identified)
    }

    fn authorize(
        &self,
        accepted: &Accepted,
        leg: &Leg,
        policy: &mut Policy,
    ) -> Result<Permit, Refused> {
        let answer = authorize(&policy.borrow_and_update(), self.client());
        let (counter, rule) = match &answer {
            Ok(permit) => (Counter::Allow, permit.rule()),
            Err(denied) => (Counter::Deny, denied.rules.as_str()),
        };
        let metrics = accepted.connection.pod.metrics();
        metrics.authorized(counter, rule, self.tls, &leg.client_id);
        answer.map_err(|denied| Refused::new(Fault::Unauthorized, denied))
    }
}
