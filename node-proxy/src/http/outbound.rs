// SPDX-License-Identifier: Apache-2.0
//! Requests out of a pod: each goes to the endpoint that fares best, over the pod's own connections.
//!
//! A request of which no application got anything is tried elsewhere. One that a server may have begun
//! to serve is only sent again when that changes nothing.

mod server;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpStream;

use self::server::{Missed, Server};
pub(super) use self::server::{broke, copy};
use super::{
    Version,
    body::{Body, Outgoing},
    conversation::Conversation,
    exchange::{Exchange, Own, Taken},
    headers,
    io::Io,
    required::Required,
    respond::{Cause, ProxyError, take_unsent},
};
use crate::{
    accept::Connection,
    balance::{Choice, Unready},
    destinations::{Endpoint, Resolved, ServiceEndpoints},
    metrics::{Fault, Peer, Tls},
    outbound::{Dialler, Streaming, leg},
    tls::Stream,
};

/// How many endpoints and connections one request is tried on.
const TRIES: usize = 5;

/// How many servers one application's connection remembers.
const SERVERS: usize = 64;

/// A connection that was dialled before it was clear that HTTP is spoken.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) dialled: Streaming,
}

/// An application's connection.
#[derive(Debug)]
struct Client {
    conversation: Arc<Conversation>,
    own: Arc<Own>,
    servers: Mutex<Vec<Arc<Server>>>,
}

/// Who is to answer.
#[derive(Debug)]
struct Target {
    server: Arc<Server>,
    choice: Option<Choice>,
}

/// An answer, and what the request holds for as long as that lasts.
type Answered = (Response<Incoming>, Taken, bool);

/// Serves an application's connection to its end.
pub(crate) async fn serve(
    connection: Connection,
    stream: Stream<TcpStream>,
    resolved: Arc<Resolved>,
    version: Version,
    ready: Option<Ready>,
) {
    let client = Arc::new(Client::new(connection, version));
    let conversation = client.conversation.clone();
    if let Some(ready) = ready {
        client.adopt(ready, &resolved).await;
    }
    let metrics = conversation.connection.pod.metrics();
    let leg = leg(Tls::Loopback, &resolved, None);
    let open = metrics.open_side(leg.clone(), Peer::Source);
    let io = Io::served(stream, open, conversation.served());
    let answer = |request| {
        let client = client.clone();
        async move { client.answer(request).await }
    };
    let error = super::server::serve(io, &conversation, answer).await;
    conversation.log(&leg, error);
}

// === impl Client ===

impl Client {
    fn new(connection: Connection, version: Version) -> Self {
        Self {
            conversation: Conversation::new(connection, version),
            own: Arc::default(),
            servers: Mutex::default(),
        }
    }

    fn connection(&self) -> &Connection {
        &self.conversation.connection
    }

    /// Keeps what was dialled already for the first request.
    async fn adopt(&self, ready: Ready, resolved: &Resolved) {
        let Ready { endpoint, dialled } = ready;
        let to = dialled.to;
        let server = self.server(endpoint.as_ref(), resolved);
        match server.open(self.connection(), dialled).await {
            Ok(sender) => server.host.keep(sender).await,
            Err(error) => {
                tracing::debug!(%error, dst = %to, "A connection broke before it was used");
            }
        }
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let mut exchange = Exchange::begin(&self.conversation, &mut request);
        match self.forward(request, &mut exchange).await {
            Ok((response, taken, is_peer)) => exchange.answered(response, taken, is_peer),
            Err(error) => exchange.failed(&error),
        }
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<Answered, ProxyError> {
        headers::check_request(&request)?;
        let own = headers::is_connection_auth(request.headers());
        let required = Required::take(request.headers_mut());
        let request = self.conversation.prepare(request, exchange);
        let (response, mut taken, is_peer) = self.send(request, required, exchange).await?;
        headers::check_response(&response, exchange.asks())?;
        let own = own || headers::is_connection_auth(response.headers());
        if own && self.conversation.version == Version::Http1 {
            taken.stay_with(&self.own);
        }
        Ok((response, taken, is_peer))
    }

    async fn send(
        &self,
        mut request: Request<Outgoing>,
        required: Option<Required>,
        exchange: &mut Exchange,
    ) -> Result<Answered, ProxyError> {
        let resolved = self.resolve().await?;
        let mut tried = Vec::new();
        let mut failed = None;
        for _ in 0..TRIES {
            let target = match self.target(&resolved, &tried).await {
                Ok(target) => target,
                Err(error) => return Err(failed.unwrap_or(error)),
            };
            exchange.goes(target.server.series.clone());
            if !self.is_required(&target.server, required.as_ref()) {
                return Err(Cause::IdentityRequired.into());
            }
            let to = target.server.to;
            match self.attempt(target, request).await {
                Ok(answered) => return Ok(answered),
                Err(Missed::Final(error)) => return Err(error),
                Err(Missed::Again {
                    error,
                    unsent,
                    elsewhere,
                }) => {
                    failed = Some(error);
                    request = *unsent;
                    tried.extend(elsewhere.then_some(to));
                }
            }
        }
        Err(failed.unwrap_or_else(|| Fault::Unexpected.into()))
    }

    /// Whether it is whom the client asked for, if it asked for anybody.
    fn is_required(&self, server: &Server, required: Option<&Required>) -> bool {
        let domain = &self.connection().proxy.domain;
        required.is_none_or(|required| required.is(domain, server.peer()))
    }

    /// Sends a request to one server.
    async fn attempt(
        &self,
        target: Target,
        request: Request<Outgoing>,
    ) -> Result<Answered, Missed> {
        let Target { server, choice } = target;
        let failed = || choice.iter().for_each(Choice::failed);
        let own = self.own.take(&server.host).await;
        let is_own = own.is_some();
        let lease = match own {
            Some(lease) => Ok(lease),
            None => server.lease(self.connection(), choice.as_ref()).await,
        };
        let mut lease = match lease {
            Ok(lease) => lease,
            Err(error) => {
                if !error.is_final() {
                    failed();
                }
                return Err(Missed::dial(&error, request));
            }
        };
        let (fresh, copy, sent) = (!lease.was_used(), server::copy(&request), Instant::now());
        match lease.send(request).await {
            Ok(mut response) => {
                if server.is_peer && take_unsent(response.headers_mut()) {
                    failed();
                    if let Some(unsent) = copy {
                        return Err(Missed::unreached(unsent));
                    }
                } else if let Some(choice) = &choice {
                    choice.answered(sent.elapsed());
                }
                let host = server.host.clone();
                let mut taken = Taken::new(choice, host, lease);
                if is_own {
                    taken.stay_with(&self.own);
                }
                Ok((response, taken, server.is_peer))
            }
            Err(error) => {
                match fresh {
                    true => failed(),
                    // A server that restarts has closed the others as well.
                    false => server.host.forget(),
                }
                Err(Missed::sent(error, copy, fresh))
            }
        }
    }

    /// Anew for each request: what was no pod of the mesh may be one by now.
    async fn resolve(&self) -> Result<Arc<Resolved>, ProxyError> {
        let connection = self.connection();
        let destinations = &connection.proxy.destinations;
        let resolved = destinations.resolve(&connection.pod.key, connection.original);
        let resolved = resolved.await;
        resolved.map_err(|_| Fault::Unresolved.into())
    }

    async fn target(
        &self,
        resolved: &Resolved,
        tried: &[SocketAddr],
    ) -> Result<Target, ProxyError> {
        let choice = match resolved {
            Resolved::Service(service) => match self.kept(service, tried) {
                Some(choice) => Some(choice),
                None => Some(service.balancer.ready(tried).await.map_err(unready)?),
            },
            // There is no other.
            _ if !tried.is_empty() => return Err(Fault::Io.into()),
            Resolved::Pod(endpoint) => {
                let server = self.server(Some(endpoint), resolved);
                return Ok(Target {
                    server,
                    choice: None,
                });
            }
            Resolved::Unknown => None,
        };
        let endpoint = choice.as_ref().map(Choice::endpoint);
        Ok(Target {
            server: self.server(endpoint, resolved),
            choice,
        })
    }

    /// The endpoint that the connection of this client alone goes to.
    fn kept(&self, service: &ServiceEndpoints, tried: &[SocketAddr]) -> Option<Choice> {
        let at = self.own.at().filter(|at| !tried.contains(at))?;
        service.balancer.at(at)
    }

    /// A server as this connection knows it, so that a request looks up nothing.
    fn server(&self, endpoint: Option<&Endpoint>, resolved: &Resolved) -> Arc<Server> {
        let dialler = Dialler::new(self.connection());
        let is_peer = endpoint.is_some_and(|endpoint| dialler.is_encrypted(endpoint));
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = servers.iter().find(|known| known.is(endpoint, is_peer));
        if let Some(known) = known {
            return known.clone();
        }
        let version = self.conversation.version;
        let server = Server::new(self.connection(), version, endpoint, is_peer, resolved);
        let server = Arc::new(server);
        if servers.len() >= SERVERS {
            servers.remove(0);
        }
        servers.push(server.clone());
        server
    }
}

fn unready(unready: Unready) -> ProxyError {
    match unready {
        Unready::FailFast => Fault::FailFast.into(),
        Unready::LoadShed => Fault::LoadShed.into(),
        Unready::Exhausted => Fault::Io.into(),
    }
}
