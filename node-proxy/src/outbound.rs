// SPDX-License-Identifier: Apache-2.0
//! Connections out of a pod: what was dialled, what is spoken, and who is to answer it.
//!
//! HTTP is served here and sent on a request at a time ([`crate::http::outbound`]). Everything else is
//! an opaque stream with one endpoint. Who says nothing for ten milliseconds may be waiting for the
//! server's first word: an endpoint is dialled, and HTTP that comes before either side has said
//! anything is still served as such.
//!
//! A meshed endpoint is dialled with mutual TLS or not at all.

mod dial;

use std::{io, sync::Arc, time::Duration};

use culvert_api::{agent::Direction, protocol::Hint};
use tokio::{io::AsyncReadExt, net::TcpListener, sync::watch, time::Instant};

use self::dial::Dialled;
pub(crate) use self::dial::{DialError, Dialler, Streaming};
use crate::{
    accept::{self, Accepted, Refused},
    app::Proxy,
    balance::Choice,
    carry::{Carried, Wire, carry},
    destinations::{Endpoint, Resolved, ServiceEndpoints},
    detect::{Detected, LATE_PREFACE, Protocol, detect, is_settings},
    http::{self, Version},
    metrics::{Fault, Leg, Tls},
    pods::Pod,
    sockets::PooledStream,
    tcp,
    tls::{Alpn, Stream},
};

/// How long the application's first bytes are waited for before an endpoint is dialled without them.
const SILENCE: Duration = Duration::from_millis(10);

/// How much of an endpoint's first word is read: one that it has said decides.
const FIRST_WORD: usize = 512;

/// How long a connection to a service without endpoints waits for one, as in Linkerd.
const FAIL_FAST: Duration = Duration::from_secs(3);

/// How many different endpoints of a service one connection tries.
const ENDPOINTS: usize = 3;

/// A leg, and how it came to be.
#[derive(Debug)]
struct Routed {
    dialled: Dialled,
    endpoint: Option<Endpoint>,
    /// Counts as load on the endpoint while it is held.
    choice: Option<Choice>,
}

/// What came first over a connection that both sides were silent on.
#[derive(Debug)]
struct Spoken {
    app: Detected,
    endpoint: Vec<u8>,
}

/// Serves one listener until `close` turns true.
pub async fn serve(
    proxy: Arc<Proxy>,
    pod: Arc<Pod>,
    listener: TcpListener,
    close: watch::Receiver<bool>,
) {
    accept::serve(proxy, pod, Direction::Outbound, listener, close, handle).await;
}

pub(crate) async fn handle(mut accepted: Accepted) {
    let resolved = match unless_reset(&accepted, resolve(&accepted)).await {
        Ok(resolved) => resolved,
        Err(refused) => {
            let leg = Leg::new(Direction::Outbound, Tls::NoIdentity);
            return accepted.refuse(&leg, &refused).await;
        }
    };
    match first(&mut accepted, &resolved).await {
        Ok(detected) => match detected.protocol.and_then(Version::of) {
            Some(version) => requests(accepted, resolved, version, detected.bytes, None).await,
            None => opaque(accepted, resolved, detected).await,
        },
        Err(refused) => {
            let leg = leg(Tls::NoIdentity, &resolved, None);
            accepted.refuse(&leg, &refused).await;
        }
    }
}

/// What the application begins with, where that is not known from the destination.
async fn first(accepted: &mut Accepted, resolved: &Resolved) -> Result<Detected, Refused> {
    let known = |protocol| Detected {
        protocol: Some(protocol),
        bytes: Vec::new(),
    };
    let connection = &accepted.connection;
    let metrics = connection.pod.metrics();
    let detected = match resolved.hint(connection.original.port()) {
        Hint::Opaque => known(Protocol::Opaque),
        Hint::Http1 => known(Protocol::Http1),
        Hint::Http2 => known(Protocol::Http2),
        Hint::Detect => {
            let begun = Instant::now();
            let detected = detect(&mut accepted.tcp, Some(SILENCE)).await;
            let detected = detected.map_err(|error| Refused::new(Fault::Io, error))?;
            metrics.detected(Direction::Outbound, detected.protocol, begun.elapsed());
            detected
        }
    };
    if let Some(protocol) = detected.protocol {
        metrics.protocol(protocol);
    }
    Ok(detected)
}

async fn requests(
    accepted: Accepted,
    resolved: Arc<Resolved>,
    version: Version,
    early: Vec<u8>,
    dialled: Option<http::outbound::Ready>,
) {
    // Not taken apart here: what is left over would be held to the end.
    let (connection, stream) = accepted.into_stream(Wire::Plain(early));
    let served = http::outbound::serve(connection, stream, resolved, version, dialled);
    // On the heap: a stream of bytes would carry its room to the end.
    Box::pin(served).await;
}

async fn opaque(mut accepted: Accepted, resolved: Arc<Resolved>, detected: Detected) {
    let routed = unless_reset(&accepted, route(&accepted, &resolved)).await;
    accepted.dialling = None;
    match routed {
        Ok(routed) if detected.protocol.is_none() => late(accepted, resolved, routed).await,
        Ok(routed) => routed.carry(accepted, &resolved, detected.bytes).await,
        Err(refused) => {
            let leg = leg(Tls::NoIdentity, &resolved, None);
            accepted.refuse(&leg, &refused).await;
        }
    }
}

/// Neither side has said anything yet: the first word decides.
async fn late(mut accepted: Accepted, resolved: Arc<Resolved>, mut routed: Routed) {
    let mut dialled = routed.dialled.into_stream();
    let spoken = match first_word(&mut accepted, &mut dialled.stream).await {
        Ok(spoken) => spoken,
        Err(error) => {
            dialled.stream.into_parts(&[]).0.reset();
            let leg = leg(dialled.tls, &resolved, routed.endpoint.as_ref());
            let refused = Refused::new(Fault::of(&error), error);
            return accepted.refuse(&leg, &refused).await;
        }
    };
    let Spoken { app, endpoint } = spoken;
    let metrics = accepted.connection.pod.metrics();
    metrics.protocol(app.protocol.unwrap_or(Protocol::Opaque));
    match app.protocol.and_then(Version::of) {
        Some(version) => {
            drop(routed.choice);
            let ready = http::outbound::Ready {
                endpoint: routed.endpoint,
                dialled: dialled.after(&endpoint),
            };
            requests(accepted, resolved, version, app.bytes, Some(ready)).await;
        }
        None => {
            routed.dialled = dialled.into_dialled(&endpoint);
            routed.carry(accepted, &resolved, app.bytes).await;
        }
    }
}

/// What the first of the two said, or that it has ended.
async fn first_word(
    accepted: &mut Accepted,
    wire: &mut Stream<PooledStream>,
) -> io::Result<Spoken> {
    // On the heap: the connection's future would carry it to its end.
    let mut word = vec![0; FIRST_WORD];
    let read = tokio::select! {
        biased;
        byte = tcp::peek_or_wait(&accepted.tcp) => match byte? {
            Some(_) => None,
            None => Some(0),
        },
        read = wire.read(&mut word) => Some(read?),
    };
    word.truncate(read.unwrap_or_default());
    let app = match read {
        None => detect(&mut accepted.tcp, Some(SILENCE)).await?,
        Some(_) if is_settings(&word) => detect(&mut accepted.tcp, Some(LATE_PREFACE)).await?,
        Some(_) => Detected::default(),
    };
    Ok(Spoken {
        app,
        endpoint: word,
    })
}

/// Nothing is dialled any more for an application that gave up.
async fn unless_reset<T>(
    accepted: &Accepted,
    doing: impl Future<Output = Result<T, Refused>>,
) -> Result<T, Refused> {
    tokio::select! {
        biased;
        done = doing => done,
        error = tcp::was_reset(&accepted.tcp) => {
            let reason = format!("the application gave up before its connection stood: {error}");
            Err(Refused::new(Fault::Io, reason))
        }
    }
}

async fn resolve(accepted: &Accepted) -> Result<Arc<Resolved>, Refused> {
    let connection = &accepted.connection;
    connection.check_loop(connection.original)?;
    tcp::tune_local(&accepted.tcp).map_err(|error| Refused::new(Fault::Io, error))?;
    let destinations = &connection.proxy.destinations;
    let resolved = destinations.resolve(&connection.pod.key, connection.original);
    let resolved = resolved.await;
    resolved.map_err(|error| Refused::new(Fault::Unresolved, error))
}

async fn route(accepted: &Accepted, resolved: &Resolved) -> Result<Routed, Refused> {
    let dialler = Dialler::new(&accepted.connection);
    match resolved {
        Resolved::Service(service) => balance(&dialler, service).await,
        Resolved::Pod(endpoint) => {
            let dialled = dialler.endpoint(endpoint, Alpn::Tcp).await?;
            Ok(Routed {
                dialled,
                endpoint: Some(endpoint.clone()),
                choice: None,
            })
        }
        Resolved::Unknown => Ok(Routed {
            dialled: dialler.plain(accepted.connection.original).await?,
            endpoint: None,
            choice: None,
        }),
    }
}

/// Dials endpoints of `service` until one answers. One that fails looks slow for a while.
async fn balance(dialler: &Dialler<'_>, service: &ServiceEndpoints) -> Result<Routed, Refused> {
    let mut tried = Vec::new();
    let mut next = service.balancer.choose_or_wait(FAIL_FAST).await;
    let mut failed = None;
    while let Some(choice) = next {
        let (endpoint, start) = (choice.endpoint().clone(), Instant::now());
        match dialler.endpoint(&endpoint, Alpn::Tcp).await {
            Ok(dialled) => {
                choice.connected(start.elapsed());
                return Ok(Routed {
                    dialled,
                    endpoint: Some(endpoint),
                    choice: Some(choice),
                });
            }
            Err(error) if error.is_final() => return Err(error.into()),
            Err(error) => {
                choice.failed();
                failed = Some(error);
            }
        }
        tried.push(endpoint.addr);
        let more = tried.len() < ENDPOINTS;
        next = service.balancer.choose(&tried).filter(|_| more);
    }
    Err(failed.map_or_else(|| no_endpoint(service), Refused::from))
}

fn no_endpoint(service: &ServiceEndpoints) -> Refused {
    let ServiceEndpoints {
        namespace, name, ..
    } = service;
    let reason = format!("{namespace}/{name} has had no endpoint for {FAIL_FAST:?}");
    Refused::new(Fault::FailFast, reason)
}

pub(crate) fn leg(tls: Tls, resolved: &Resolved, endpoint: Option<&Endpoint>) -> Leg {
    let mut leg = Leg::new(Direction::Outbound, tls);
    if let Some(endpoint) = endpoint {
        leg = leg.reaching(&endpoint.workload, endpoint.addr);
        if tls == Tls::Mutual {
            leg.server_id = endpoint.identity.to_string().into();
        }
    }
    if let Resolved::Service(service) = resolved {
        leg.dst_namespace = service.namespace.as_str().into();
        leg.dst_service = service.name.as_str().into();
    }
    leg
}

// === impl Routed ===

impl Routed {
    async fn carry(self, accepted: Accepted, resolved: &Resolved, early: Vec<u8>) {
        let Dialled {
            stream,
            tls,
            to,
            wire,
        } = self.dialled;
        let endpoint = self.endpoint.as_ref();
        let carried = Carried {
            accepted,
            dialled: stream,
            leg: leg(tls, resolved, endpoint),
            wire,
            early,
            dst: to,
            endpoint: endpoint.map(|endpoint| endpoint.workload.to_string()),
        };
        carry(carried, std::future::pending()).await;
        drop(self.choice);
    }
}

// === impl Refused ===

impl From<DialError> for Refused {
    fn from(error: DialError) -> Self {
        Self::new(error.fault(), error)
    }
}
