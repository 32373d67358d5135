// SPDX-License-Identifier: Apache-2.0
//! A request that the access log tells of, for pods that want it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_api::policy::AccessLogFormat;
use http::{HeaderValue, Request, Response, header::CONTENT_LENGTH};

use crate::{
    accept::Connection,
    access_log::{Asked, HttpEntry},
};

/// What is known of the request so far. Dropped, it is logged: when there is a head of a response, or
/// the client did not wait for one.
pub(super) struct Logged {
    connection: Arc<Connection>,
    client_id: Arc<str>,
    format: AccessLogFormat,
    asked: Asked,
    begun: Instant,
    /// How long the proxy worked on it.
    busy: Duration,
    status: Option<u16>,
    response_bytes: Option<HeaderValue>,
}

/// Runs what answers a request, and takes the time that is spent in it: Linkerd's `processing_ns`.
pub(super) async fn timed<F: Future>(logged: &mut Option<Logged>, answer: F) -> F::Output {
    let mut answer = pin!(answer);
    poll_fn(|cx| {
        let begun = logged.is_some().then(Instant::now);
        let polled = answer.as_mut().poll(cx);
        if let (Some(begun), Some(logged)) = (begun, logged.as_mut()) {
            logged.busy += begun.elapsed();
        }
        polled
    })
    .await
}

// === impl Logged ===

impl Logged {
    /// None: the pod wants no log.
    pub(super) fn begin<B>(
        connection: &Arc<Connection>,
        client_id: &Arc<str>,
        request: &Request<B>,
    ) -> Option<Self> {
        let format = connection.pod.access_log()?;
        Some(Self {
            connection: connection.clone(),
            client_id: client_id.clone(),
            format,
            asked: Asked::of(request),
            begun: Instant::now(),
            busy: Duration::ZERO,
            status: None,
            response_bytes: None,
        })
    }

    /// The response's head is there.
    pub(super) fn answered<B>(&mut self, response: &Response<B>) {
        self.status = Some(response.status().as_u16());
        self.response_bytes = response.headers().get(CONTENT_LENGTH).cloned();
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let Connection {
            proxy, pod, source, ..
        } = &*self.connection;
        let entry = HttpEntry {
            namespace: &pod.workload.namespace,
            pod: &pod.workload.name,
            client_addr: *source,
            client_id: &self.client_id,
            asked: &self.asked,
            status: self.status,
            response_bytes: self.response_bytes.as_ref(),
            total: self.begun.elapsed(),
            processing: self.busy,
        };
        proxy.access_log.log_http(self.format, &entry);
    }
}
