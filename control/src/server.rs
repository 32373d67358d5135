// SPDX-License-Identifier: Apache-2.0
//! The gRPC server.

use std::{
    convert::Infallible,
    io,
    task::{Context, Poll},
    time::Duration,
};

use culvert_api::grpc::v1::{
    discovery_server::{self, DiscoveryServer},
    identity_server::{self, IdentityServer},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    transport::Server,
};

use crate::{accept::Connection, discovery::Discovery, identity::Identities};

/// The longest message of a node, in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// How many requests a connection may have open: a stream, and certificates.
const MAX_REQUESTS: u32 = 128;

/// How often to ask whether an idle node is there, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long to wait for the nodes to take note that control stops.
const GRACE: Duration = Duration::from_secs(3);

#[derive(Clone)]
struct Router {
    discovery: DiscoveryServer<Discovery>,
    identity: IdentityServer<Identities>,
}

/// Serves until `stopping` becomes true.
pub(crate) async fn serve(
    connections: mpsc::Receiver<io::Result<Connection>>,
    discovery: Discovery,
    identities: Identities,
    stopping: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let router = Router {
        discovery: DiscoveryServer::new(discovery).max_decoding_message_size(MAX_MESSAGE),
        identity: IdentityServer::new(identities).max_decoding_message_size(MAX_MESSAGE),
    };
    let connections = ReceiverStream::new(connections);
    let stopped = until(stopping.clone());
    let served = Server::builder()
        .max_concurrent_streams(MAX_REQUESTS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .serve_with_incoming_shutdown(router, connections, stopped);
    let too_late = async {
        until(stopping).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = served => served,
        () = too_late => Ok(()),
    }
}

/// Waits for the end.
pub(crate) async fn until(mut stopping: watch::Receiver<bool>) {
    // An error says that whoever could stop it is gone, which is the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

// === impl Router ===

impl Service<http::Request<Body>> for Router {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path().split('/').nth(1) {
            Some(discovery_server::SERVICE_NAME) => self.discovery.call(request),
            Some(identity_server::SERVICE_NAME) => self.identity.call(request),
            _ => {
                let status = Status::unimplemented("no such service");
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}
