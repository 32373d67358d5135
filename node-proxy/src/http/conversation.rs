// SPDX-License-Identifier: Apache-2.0
//! One client's connection: what its requests have in common.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Request;
use hyper::body::Incoming;
use tokio::task::JoinSet;

use super::{
    Version,
    body::Outgoing,
    exchange::Exchange,
    expect, headers,
    served::{Busy, Served, Traffic},
    target,
};
use crate::{
    accept::{Connection, Summary},
    metrics::Leg,
};

/// What the requests of one connection have in common.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) connection: Arc<Connection>,
    pub(super) version: Version,
    pub(super) busy: Busy,
    traffic: Arc<Traffic>,
    tunnels: Mutex<JoinSet<()>>,
}

impl Conversation {
    pub(super) fn new(connection: Connection, version: Version) -> Arc<Self> {
        Arc::new(Self {
            connection: Arc::new(connection),
            version,
            busy: Busy::default(),
            traffic: Arc::default(),
            tunnels: Mutex::default(),
        })
    }

    /// Logs the connection, now that it ended.
    pub(super) fn log(&self, leg: &Leg, error: Option<String>) {
        self.connection.log(&Summary {
            leg,
            dst: None,
            endpoint: None,
            bytes: self.traffic.bytes(),
            error,
        });
    }

    /// What is expected of the client.
    pub(super) fn served(&self) -> Served {
        Served::new(&self.traffic, &self.busy, self.version)
    }

    /// A request as it goes on: without what was meant for this hop, or for a proxy to say.
    pub(super) fn prepare(
        &self,
        request: Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Request<Outgoing> {
        let (mut head, body) = request.into_parts();
        headers::align_host(head.version, &head.uri, &mut head.headers);
        headers::strip_forgeable(&mut head.headers);
        headers::prepare_request(&mut head.headers, exchange.asks());
        target::prepare(&mut head, self.connection.original);
        let patience = self.connection.proxy.config.body_timeout;
        let patience = (self.version == Version::Http1).then_some(patience);
        let body = Outgoing::new(body, self.version, self.busy.clone(), patience);
        let mut request = Request::from_parts(head, body);
        exchange.expects(expect::hold(&mut request));
        request
    }

    /// Runs what the connection became.
    pub(super) fn tunnel(&self, tunnel: impl Future<Output = ()> + Send + 'static) {
        let mut tunnels = self.lock();
        while tunnels.try_join_next().is_some() {}
        tunnels.spawn(tunnel);
    }

    /// Waits until no tunnel is left.
    pub(super) async fn finish(&self) {
        let tunnels = std::mem::take(&mut *self.lock());
        tunnels.join_all().await;
    }

    /// Ends the tunnels with RST.
    pub(super) fn end(&self) {
        self.lock().abort_all();
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
