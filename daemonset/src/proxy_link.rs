// SPDX-License-Identifier: Apache-2.0
//! The socket that proxies connect to. More than one may be connected: while one is replaced by
//! its successor, each gets everything.

mod budget;
mod connection;
pub mod hub;
mod pending;

use std::{
    convert::Infallible, fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc,
    time::Duration,
};

use culvert_api::agent::{MAX_FDS, MAX_MESSAGE};
use culvert_runtime::seqpacket::{Channel, Listener};
use tokio::sync::{Semaphore, SemaphorePermit};

use self::hub::Hub;
use crate::metrics::Metrics;

/// An upgrade needs two; each one that connects is given sockets of every pod.
const MAX_PROXIES: usize = 8;

/// The bound socket.
#[derive(Debug)]
pub struct ProxyLink {
    listener: Listener,
    hub: Hub,
    metrics: Metrics,
    /// Who may connect.
    uid: u32,
    /// Taken before the hello: those that say none have no place beside the others either.
    places: Semaphore,
}

/// A connection is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the peer runs as uid {got}, expected {expected}, which is --proxy-uid")]
    Uid { got: u32, expected: u32 },
    #[error("{MAX_PROXIES} proxies are connected already")]
    TooMany,
    #[error(transparent)]
    Handshake(#[from] connection::Refused),
}

// === impl ProxyLink ===

impl ProxyLink {
    /// Binds the socket. Anyone may connect; who is not the proxy's user is refused.
    pub fn bind(path: &Path, uid: u32, hub: Hub, metrics: Metrics) -> io::Result<Self> {
        let listener = Listener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        Ok(Self {
            listener,
            hub,
            metrics,
            uid,
            places: Semaphore::new(MAX_PROXIES),
        })
    }

    /// Serves until the task is dropped.
    pub async fn serve(self) -> Infallible {
        let this = Arc::new(self);
        loop {
            match this.listener.accept(MAX_MESSAGE, MAX_FDS).await {
                Ok((channel, peer)) => {
                    tokio::spawn(Arc::clone(&this).connection(channel, peer.uid()));
                }
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a proxy's connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, channel: Channel, uid: u32) {
        match self.admit(&channel, uid).await {
            Ok((_place, version)) => {
                connection::serve(channel, version, &self.hub, &self.metrics).await;
            }
            Err(refused) => {
                let refusals = &self.metrics.proxies_refused;
                refusals.with_label_values(&[refused.label()]).inc();
                tracing::warn!(error = %refused, "Refused a connection to the proxies' socket");
            }
        }
    }

    /// Its place, and the version that it is spoken with.
    async fn admit(
        &self,
        channel: &Channel,
        got: u32,
    ) -> Result<(SemaphorePermit<'_>, u32), Refused> {
        let expected = self.uid;
        if got != expected {
            return Err(Refused::Uid { got, expected });
        }
        let place = self.places.try_acquire().map_err(|_| Refused::TooMany)?;
        let version = connection::greet(channel, self.hub.node()).await?;
        Ok((place, version))
    }
}

// === impl Refused ===

impl Refused {
    const fn label(&self) -> &'static str {
        match self {
            Self::Uid { .. } => "uid",
            Self::TooMany => "too_many",
            Self::Handshake(connection::Refused::Version(_)) => "version",
            Self::Handshake(_) => "handshake",
        }
    }
}
