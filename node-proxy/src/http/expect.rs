// SPDX-License-Identifier: Apache-2.0
//! `Expect: 100-continue` (RFC 9110, 10.1.1): the client's body waits in the client until the server
//! itself has said that it wants it, or has not in a second.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, StatusCode, header::EXPECT};
use tokio::{
    sync::{oneshot, watch},
    time::{Sleep, sleep},
};

use super::body::Outgoing;

/// How long a server that does not know 100 is waited for, as curl does.
const PATIENCE: Duration = Duration::from_secs(1);

/// A body that waits. Whether it is wanted.
pub(super) struct Held(Pin<Box<dyn Future<Output = bool> + Send + Sync>>);

/// Kept until the answer has ended: a body that the server does not want breaks off then.
#[derive(Debug)]
pub(super) struct Expected(
    #[expect(dead_code, reason = "it is heard when this is dropped")] oneshot::Sender<()>,
);

/// Holds the body of a request that expects it.
pub(super) fn hold(request: &mut Request<Outgoing>) -> Option<Expected> {
    let expects = request.headers().get(EXPECT);
    if !expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return None;
    }
    let (said, hear) = watch::channel(false);
    hyper::ext::on_informational(request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            said.send_replace(true);
        }
    });
    let (expected, ended) = oneshot::channel();
    let held = Held::new(hear, sleep(PATIENCE), ended);
    request.body_mut().hold(held);
    Some(Expected(expected))
}

impl Held {
    fn new(mut said: watch::Receiver<bool>, patience: Sleep, ended: oneshot::Receiver<()>) -> Self {
        Self(Box::pin(async move {
            let refused = tokio::select! {
                // A sender that is gone has heard the final response. To poll the client's body now
                // would tell the client to send it.
                heard = said.wait_for(|said| *said) => heard.is_err(),
                () = patience => false,
            };
            if refused {
                let _ = ended.await;
            }
            !refused
        }))
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.0.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}
