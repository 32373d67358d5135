// SPDX-License-Identifier: Apache-2.0
//! Requests into a pod: they go to its application over one connection for each of the client's,
//! dialled from the client's own address.

use std::{io, sync::Arc};

use culvert_api::{identity::Identity, policy::Permit};
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpStream;

use super::{
    Version,
    body::{Body, Outgoing},
    client,
    conversation::Conversation,
    exchange::{Exchange, Taken},
    headers,
    host::{Host, Lease},
    io::Io,
    logged::{self, Logged},
    outbound::{broke, copy},
    respond::{Cause, ProxyError, UNSENT},
    server,
};
use crate::{
    accept::Connection,
    inbound::dial,
    metrics::{Counter, HttpLeg, HttpSeries, Leg, Peer, Tally},
    sockets::PooledStream,
    tls::Stream,
};

/// A client that the policy lets in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) client: Option<Identity>,
    pub(crate) leg: Leg,
    /// The policy was asked.
    pub(crate) permit: Permit,
}

/// A client's connection.
#[derive(Debug)]
struct Client {
    conversation: Arc<Conversation>,
    admitted: Admitted,
    /// What the application is told of who it is.
    id: Option<HeaderValue>,
    series: Arc<HttpSeries>,
    allowed: Arc<Tally>,
    app: Arc<Host>,
}

/// Serves a client's connection to its end, or until `revoked`. `dialled`: the application, if it was
/// dialled before it was clear that HTTP is spoken.
pub(crate) async fn serve(
    connection: Connection,
    stream: Stream<TcpStream>,
    version: Version,
    admitted: Admitted,
    dialled: Option<PooledStream>,
    revoked: impl Future<Output = ()>,
) {
    let client = Arc::new(Client::new(connection, version, admitted));
    let conversation = client.conversation.clone();
    if let Some(dialled) = dialled {
        client.adopt(dialled).await;
    }
    let metrics = conversation.connection.pod.metrics();
    let open = metrics.open_side(client.admitted.leg.clone(), Peer::Source);
    let io = Io::served(stream, open, conversation.served());
    let answer = |request| {
        let client = client.clone();
        async move { client.answer(request).await }
    };
    let error = tokio::select! {
        biased;
        () = revoked => {
            conversation.end();
            Some("the policy changed and no longer lets the client in".to_owned())
        }
        error = server::serve(io, &conversation, answer) => error,
    };
    conversation.log(&client.admitted.leg, error);
}

// === impl Client ===

impl Client {
    fn new(connection: Connection, version: Version, admitted: Admitted) -> Self {
        let conversation = Conversation::new(connection, version);
        let connection = &conversation.connection;
        let name = admitted.client.as_ref();
        let name = name.map(|id| connection.proxy.domain.server_name(id));
        let metrics = connection.pod.metrics();
        let Leg { tls, client_id, .. } = &admitted.leg;
        let rule = admitted.permit.rule();
        Self {
            allowed: metrics.http_authorized(Counter::HttpAllow, rule, *tls, client_id),
            id: name.and_then(|name| HeaderValue::try_from(name).ok()),
            series: metrics.http(&HttpLeg {
                leg: admitted.leg.clone(),
                authority: "".into(),
            }),
            app: Arc::new(Host::new(version)),
            conversation,
            admitted,
        }
    }

    /// Keeps what was dialled already for the first request.
    async fn adopt(&self, dialled: PooledStream) {
        match self.open(dialled).await {
            Ok(sender) => self.app.keep(sender).await,
            Err(error) => tracing::debug!(%error, "A connection broke before it was used"),
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        self.allowed.inc();
        let client_id = &self.admitted.leg.client_id;
        let mut logged = Logged::begin(&self.conversation.connection, client_id, &request);
        let response = logged::timed(&mut logged, self.exchange(request)).await;
        if let Some(logged) = &mut logged {
            logged.answered(&response);
        }
        response
    }

    async fn exchange(&self, mut request: Request<Incoming>) -> Response<Body> {
        let mut exchange = Exchange::begin(&self.conversation, &mut request);
        exchange.goes(self.series.clone());
        match self.forward(request, &mut exchange).await {
            Ok((response, taken)) => exchange.answered(response, taken, false),
            Err(error) => {
                let unsent = error.cause.is_unsent() && self.admitted.client.is_some();
                let mut response = exchange.failed(&error);
                if unsent {
                    let headers = response.headers_mut();
                    headers.insert(UNSENT, HeaderValue::from_static("true"));
                }
                response
            }
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<(Response<Incoming>, Taken), ProxyError> {
        headers::check_request(&request)?;
        let mut request = self.conversation.prepare(request, exchange);
        headers::set_client_id(request.headers_mut(), self.id.as_ref());
        let (response, taken) = self.send(request).await?;
        headers::check_response(&response, exchange.asks())?;
        Ok((response, taken))
    }

    /// On a connection that rested, or on a new one when the application has closed that meanwhile.
    async fn send(
        &self,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Taken), ProxyError> {
        loop {
            let mut lease = self.lease().await?;
            let used = lease.was_used();
            let copy = used.then(|| copy(&request)).flatten();
            match lease.send(request).await {
                Ok(response) => return Ok((response, Taken::new(None, self.app.clone(), lease))),
                Err(mut error) => {
                    let unsent = error.take_message().filter(|_| used);
                    let copy = copy.filter(|copy| copy.method().is_idempotent());
                    request = unsent.or(copy).ok_or_else(|| broke(error.error()))?;
                }
            }
        }
    }

    async fn lease(&self) -> Result<Lease, ProxyError> {
        if let Some(lease) = self.app.lease() {
            return Ok(lease);
        }
        let opening = self.app.opening().await;
        if let Some(lease) = opening.as_ref().and_then(|_| self.app.lease()) {
            return Ok(lease);
        }
        let dialled = dial(&self.conversation.connection, &self.admitted.permit).await;
        let dialled = dialled.map_err(|error| not_dialled(&error))?;
        let sender = self.open(dialled).await.map_err(|error| broke(&error))?;
        Ok(self.app.opened(sender))
    }

    async fn open(&self, dialled: PooledStream) -> hyper::Result<client::Sender> {
        let Conversation {
            connection,
            version,
            ..
        } = &*self.conversation;
        let leg = self.admitted.leg.clone();
        let open = connection.pod.metrics().open_side(leg, Peer::Destination);
        let io = Io::new(Stream::plain(dialled, Vec::new()), open);
        client::open(io, *version, connection).await
    }
}

fn not_dialled(error: &io::Error) -> ProxyError {
    match error.kind() {
        io::ErrorKind::TimedOut => Cause::ConnectTimeout.into(),
        _ => Cause::Refused.into(),
    }
}
