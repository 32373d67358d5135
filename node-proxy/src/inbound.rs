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

use self::rule::{Verdict, decide};
use crate::{
    accept::{self, Accepted, Refused},
    app::Proxy,
    carry::{Carried, Wire, carry},
    client_hello::{self, First},
    metrics::{Counter, Fault, Handshaking, Leg, Tls},
    pods::Pod,
    sockets::PooledStream,
    tcp,
    tls::{self, ALPN_TCP, Handshaken, Session},
};

type Policy = watch::Receiver<Arc<InboundPolicy>>;

/// Who the client is, and its bytes so far.
#[derive(Debug)]
struct Identified {
    client: Option<Identity>,
    /// The client has not said anything yet.
    silent: bool,
    tls: Tls,
    wire: Wire,
}

/// A client that was let in, and the application that it reached.
#[derive(Debug)]
struct Connected {
    identified: Identified,
    leg: Leg,
    dialled: PooledStream,
}

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
    let pod = accepted.pod.clone();
    let _wire = pod.sockets.wire(accepted.source);
    let mut policy = accepted.pod.policy();
    match connect(&mut accepted, &mut policy).await {
        Ok(connected) => connected.carry(accepted, policy).await,
        Err((leg, refused)) => accepted.refuse(&leg, &refused).await,
    }
}

async fn connect(
    accepted: &mut Accepted,
    policy: &mut Policy,
) -> Result<Connected, (Leg, Refused)> {
    let identified = identify(accepted, policy).await.map_err(unidentified)?;
    let mut connected = identified.connect(accepted, policy).await?;
    if !connected.identified.silent {
        return Ok(connected);
    }
    let Some((first, bytes)) = late(accepted, &connected.dialled, policy).await else {
        return Ok(connected);
    };
    match judge(accepted, &first, bytes, policy).await {
        Ok(identified) if identified.client.is_none() => {
            connected.leg = identified.leg();
            connected.identified = identified;
            Ok(connected)
        }
        Ok(identified) => {
            connected.dialled.reset();
            identified.connect(accepted, policy).await
        }
        Err(refused) => {
            connected.dialled.reset();
            Err(unidentified(refused))
        }
    }
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
    let until = Instant::now() + accepted.proxy.config.handshake_timeout;
    match byte {
        Ok(Some(byte)) if client_hello::may_begin(byte) => {
            Some(client_hello::read(&mut accepted.tcp, until).await)
        }
        _ => None,
    }
}

fn unidentified(refused: Refused) -> (Leg, Refused) {
    (Leg::new(Direction::Inbound, Tls::NoIdentity), refused)
}

async fn identify(accepted: &mut Accepted, policy: &Policy) -> Result<Identified, Refused> {
    accepted.check_loop(accepted.original)?;
    tcp::tune_wire(&accepted.tcp).map_err(|error| Refused::new(Fault::Io, error))?;
    let _unknown = unknown(accepted)?;
    let (first, bytes) = first(accepted, policy).await?;
    judge(accepted, &first, bytes, policy).await
}

/// Held until it is clear who the client is.
fn unknown(accepted: &Accepted) -> Result<Handshaking, Refused> {
    let handshaking = accepted.pod.metrics().handshake(accepted.source.ip());
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
    let own = accepted.proxy.domain.server_name(&accepted.pod.identity);
    let strict = policy.borrow().requires_identity();
    match decide(strict, first, &own, &accepted.proxy.domain) {
        Verdict::Mesh => mesh(accepted, bytes).await,
        Verdict::Relay => Ok(Identified {
            client: None,
            silent: *first == First::Silence,
            tls: match first {
                First::Hello(_) => Tls::Opaque,
                _ => Tls::NoIdentity,
            },
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
    let until = Instant::now() + accepted.proxy.config.handshake_timeout;
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
    let proxy = accepted.proxy.clone();
    let credentials = proxy.identities.credentials(&accepted.pod.identity).await;
    let credentials = credentials.map_err(|error| Refused::new(Fault::NoCertificate, error))?;
    let connection = UnbufferedServerConnection::new(credentials.server.clone())
        .map_err(|error| Refused::new(Fault::Tls, error))?;
    let session = Box::new(Session::server(connection));
    let handshake = tls::handshake(session, &mut accepted.tcp, hello);
    let done = timeout(proxy.config.handshake_timeout, handshake)
        .await
        .map_err(|_| Refused::new(Fault::Tls, "the handshake took too long"))?
        .map_err(|error| Refused::new(Fault::Tls, error))?;
    Ok(Identified {
        client: Some(client(&done, &proxy)?),
        silent: false,
        tls: Tls::Mutual,
        wire: Wire::Mutual(done),
    })
}

fn client(done: &Handshaken, proxy: &Proxy) -> Result<Identity, Refused> {
    if done.session.alpn() != Some(ALPN_TCP) {
        let reason = "the client agreed to no protocol of this release";
        return Err(Refused::new(Fault::NoApplicationProtocol, reason));
    }
    tls::peer(&done.session, &proxy.domain)
        .map_err(|error| Refused::new(Fault::PeerIdentity, error))
}

/// Dials the application. The permit proves that the policy was asked.
async fn dial(accepted: &Accepted, _permit: &Permit) -> Result<PooledStream, Refused> {
    let limit = accepted.proxy.config.inbound_connect_timeout;
    let (client, to) = (accepted.source.ip(), accepted.original);
    let dialled = accepted.pod.sockets.dial_from(client, to, limit).await;
    dialled.map_err(|error| Refused::new(Fault::Io, format!("could not dial {to}: {error}")))
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
        let metrics = accepted.pod.metrics();
        metrics.authorized(counter, rule, self.tls, &leg.client_id);
        answer.map_err(|denied| Refused::new(Fault::Unauthorized, denied))
    }

    /// Asks the policy, and dials the application.
    async fn connect(
        self,
        accepted: &Accepted,
        policy: &mut Policy,
    ) -> Result<Connected, (Leg, Refused)> {
        let leg = self.leg();
        let dialled = match self.authorize(accepted, &leg, policy) {
            Ok(permit) => dial(accepted, &permit).await,
            Err(refused) => Err(refused),
        };
        match dialled {
            Ok(dialled) => Ok(Connected {
                identified: self,
                leg,
                dialled,
            }),
            Err(refused) => Err((leg, refused)),
        }
    }
}

// === impl Connected ===

impl Connected {
    async fn carry(self, accepted: Accepted, policy: Policy) {
        let pod = accepted.pod.clone();
        let Identified {
            client, tls, wire, ..
        } = self.identified;
        let dst = accepted.original;
        let revoked = async {
            let rules = revoked(policy, client.as_ref()).await;
            let client_id = client.as_ref().map(ToString::to_string);
            let client_id = client_id.unwrap_or_default();
            pod.metrics()
                .authorized(Counter::Terminate, &rules, tls, &client_id);
        };
        let carried = Carried {
            accepted,
            dialled: self.dialled,
            leg: self.leg,
            wire,
            dst,
            endpoint: None,
        };
        carry(carried, revoked).await;
    }
}

/// Ready when the policy has changed so that it no longer lets the client in, with the names of the
/// rules that it has now.
async fn revoked(mut policy: Policy, client: Option<&Identity>) -> String {
    let client = client.map_or(Client::Unidentified, Client::Identified);
    loop {
        if policy.changed().await.is_err() {
            // The pod is gone; its connections go on as they are.
            std::future::pending::<()>().await;
        }
        if let Err(denied) = authorize(&policy.borrow_and_update(), client) {
            return denied.rules;
        }
    }
}
