// SPDX-License-Identifier: Apache-2.0
//! The accept loop of both directions: every connection has a task of its own, whose panic costs
//! that connection only.

use std::{
    future::Future, io, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration,
};

use culvert_api::agent::Direction;
use futures_util::FutureExt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

use crate::{
    access_log::{self, Entry},
    app::Proxy,
    carry::Wire,
    metrics::{Admitted, Dialling, Fault, Leg},
    pods::Pod,
    sockets::WireGuard,
    tcp,
    tls::Stream,
};

/// How long accepting rests after it failed: most often for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection that was accepted from a pod's listener.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) connection: Connection,
    pub(crate) tcp: TcpStream,
    /// Held while the other leg is still to come.
    pub(crate) dialling: Option<Dialling>,
}

/// Whose a connection is. It counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) direction: Direction,
    /// Who dialled.
    pub(crate) source: SocketAddr,
    /// What was dialled: steering changes no address.
    pub(crate) original: SocketAddr,
    started: Instant,
    _admitted: Admitted,
    /// The client's port, kept from the pod's own dials.
    _wire: Option<WireGuard>,
}

/// A connection that is not carried any further.
#[derive(Debug, thiserror::Error)]
#[error("{fault}: {reason}")]
pub(crate) struct Refused {
    pub(crate) fault: Fault,
    pub(crate) reason: String,
}

/// What is told of a connection when it ended.
#[derive(Debug)]
pub(crate) struct Summary<'a> {
    pub(crate) leg: &'a Leg,
    /// Where it went.
    pub(crate) dst: Option<SocketAddr>,
    /// The pod that `dst` is.
    pub(crate) endpoint: Option<&'a str>,
    /// Bytes from the side that dialled, and to it.
    pub(crate) bytes: (u64, u64),
    pub(crate) error: Option<String>,
}

/// Serves `listener` with `handle` until `close` turns true. Connections that are open by then go on.
pub(crate) async fn serve<F, Fut>(
    proxy: Arc<Proxy>,
    pod: Arc<Pod>,
    direction: Direction,
    listener: TcpListener,
    mut close: watch::Receiver<bool>,
    handle: F,
) where
    F: Fn(Accepted) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = closed(&mut close) => return,
            accepted = listener.accept() => admit(&proxy, &pod, direction, accepted),
        };
        let failed = accepted.is_err();
        match accepted {
            Ok(Some(accepted)) => spawn(&proxy, &pod, direction, handle(accepted)),
            Ok(None) => {}
            Err(error) => {
                // Said once, not twenty times a second.
                if !failing {
                    tracing::warn!(%error, pod.name = %pod.workload, "Could not accept connections");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        failing = failed;
    }
}

async fn closed(close: &mut watch::Receiver<bool>) {
    // A sender that is gone closes nothing less.
    let _ = close.wait_for(|close| *close).await;
}

fn spawn(
    proxy: &Arc<Proxy>,
    pod: &Arc<Pod>,
    direction: Direction,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let (proxy, pod) = (proxy.clone(), pod.clone());
    tokio::spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            proxy.metrics.panicked();
            pod.metrics().fault(direction, Fault::Unexpected);
        }
    });
}

/// Only what concerns the listener is an error: a connection that is already gone is no news.
fn admit(
    proxy: &Arc<Proxy>,
    pod: &Arc<Pod>,
    direction: Direction,
    accepted: io::Result<(TcpStream, SocketAddr)>,
) -> io::Result<Option<Accepted>> {
    let (tcp, source) = match accepted {
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Ok(None),
        other => other?,
    };
    let Ok(original) = tcp.local_addr() else {
        return Ok(None);
    };
    let Some(admitted) = pod.metrics().admit(&tcp) else {
        pod.metrics().fault(direction, Fault::LoadShed);
        tcp::reset(tcp);
        return Ok(None);
    };
    // From here on: a proxy that is killed while it dials must not look like an empty answer.
    tcp::abort_on_close(&tcp, true);
    let dialling = (direction == Direction::Outbound).then(|| pod.metrics().dialling());
    let connection = Connection {
        proxy: proxy.clone(),
        pod: pod.clone(),
        direction,
        source: tcp::canonical(source),
        original: tcp::canonical(original),
        started: Instant::now(),
        _admitted: admitted,
        _wire: None,
    };
    Ok(Some(Accepted {
        connection,
        tcp,
        dialling,
    }))
}

// === impl Accepted ===

impl Accepted {
    /// As if steering had brought the connection here on its way to `original`.
    #[cfg(test)]
    pub(crate) fn for_tests(
        proxy: &Arc<Proxy>,
        pod: &Arc<Pod>,
        direction: Direction,
        accepted: (TcpStream, SocketAddr),
        original: SocketAddr,
    ) -> Self {
        let admitted = admit(proxy, pod, direction, Ok(accepted));
        let admitted = admitted.unwrap_or_else(|e| panic!("{e}"));
        let mut admitted = admitted.unwrap_or_else(|| panic!("not admitted"));
        admitted.connection.original = original;
        admitted
    }

    /// Its parts again.
    pub(crate) fn again(connection: Connection, tcp: TcpStream) -> Self {
        Self {
            connection,
            tcp,
            dialling: None,
        }
    }

    /// To be read and written as one stream, `wire` being what was read so far.
    pub(crate) fn into_stream(self, wire: Wire) -> (Connection, Stream<TcpStream>) {
        (self.connection, wire.into_stream(self.tcp))
    }

    /// Counts and logs a refusal, and answers with RST, behind an alert if one was written.
    pub(crate) async fn refuse(self, leg: &Leg, refused: &Refused) {
        let connection = &self.connection;
        let metrics = connection.pod.metrics();
        metrics.fault(connection.direction, refused.fault);
        connection.log(&Summary {
            leg,
            dst: None,
            endpoint: None,
            bytes: (0, 0),
            error: Some(refused.to_string()),
        });
        tcp::drained(&self.tcp).await;
        tcp::reset(self.tcp);
    }
}

// === impl Connection ===

impl Connection {
    /// Holds the client's port for as long as the connection.
    pub(crate) fn hold(&mut self, wire: WireGuard) {
        self._wire = Some(wire);
    }

    /// Refuses what would come back to this proxy, and go round until there are no descriptors left.
    pub(crate) fn check_loop(&self, to: SocketAddr) -> Result<(), Refused> {
        if self.pod.is_own_listener(to) {
            let reason = format!("{to} is loopback or one of the proxy's own listeners");
            return Err(Refused::new(Fault::GatewayLoop, reason));
        }
        Ok(())
    }

    /// Logs the connection, now that it ended.
    pub(crate) fn log(&self, summary: &Summary<'_>) {
        if let Some(error) = &summary.error {
            tracing::debug!(
                %error,
                pod.name = %self.pod.workload,
                direction = ?self.direction,
                src = %self.source,
                dst = %self.original,
                "A connection failed"
            );
        }
        if self.proxy.access_log.is_on() {
            self.proxy.access_log.log(self.entry(summary));
        }
    }

    fn entry<'a>(&'a self, summary: &'a Summary<'a>) -> Entry<'a> {
        Entry {
            timestamp: access_log::now(),
            direction: self.direction,
            namespace: &self.pod.workload.namespace,
            pod: &self.pod.workload.name,
            src: self.source,
            dst: summary.dst,
            original_dst: self.original,
            endpoint: summary.endpoint,
            tls: summary.leg.tls.as_str(),
            client_id: &summary.leg.client_id,
            server_id: &summary.leg.server_id,
            rx_bytes: summary.bytes.0,
            tx_bytes: summary.bytes.1,
            duration_ms: access_log::millis(self.started.elapsed()),
            error: summary.error.clone(),
            dropped: 0,
        }
    }
}

// === impl Refused ===

impl Refused {
    pub(crate) fn new(fault: Fault, reason: impl ToString) -> Self {
        Self {
            fault,
            reason: reason.to_string(),
        }
    }
}
