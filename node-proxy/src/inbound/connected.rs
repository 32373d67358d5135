// SPDX-License-Identifier: Apache-2.0
//! Clients that were let in, and the application that they reached: the first word decides whether it
//! is HTTP.

use std::io;

use culvert_api::{
    agent::Direction,
    identity::Identity,
    policy::{Client, Permit, authorize},
    protocol::Hint,
};
use tokio::{net::TcpStream, time::Instant};

use super::{Policy, Stopped, judge, late, serve_identified, unidentified};
use crate::{
    accept::{Accepted, Connection, Refused},
    carry::{Carried, Wire, carry},
    detect::{Detected, Detection, LATE_PREFACE, is_settings},
    http::{self, Version, inbound::Admitted},
    metrics::{Counter, Fault, Leg},
    sockets::PooledStream,
    tcp,
    tls::Stream,
};

/// A client that was let in, its bytes so far, and the application that it reached.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) client: Option<Identity>,
    pub(super) silent: bool,
    pub(super) leg: Leg,
    pub(super) wire: Wire,
    pub(super) dialled: PooledStream,
}

// === impl Connected ===

impl Connected {
    pub(super) async fn serve(
        mut self,
        mut accepted: Accepted,
        policy: Policy,
        permit: Permit,
    ) -> Result<(), Stopped> {
        if self.silent
            && let Some((first, bytes)) = late(&mut accepted, &self.dialled, &policy).await
        {
            match judge(&mut accepted, &first, bytes, &policy).await {
                Ok(identified) if identified.client.is_none() => {
                    self.leg = identified.leg();
                    self.wire = identified.wire;
                }
                Ok(identified) => {
                    self.dialled.reset();
                    return Box::pin(serve_identified(accepted, identified, policy)).await;
                }
                Err(refused) => {
                    self.dialled.reset();
                    return Err((accepted, unidentified(), refused));
                }
            }
        }
        self.serve_word(accepted, policy, permit).await
    }

    async fn serve_word(
        self,
        accepted: Accepted,
        policy: Policy,
        permit: Permit,
    ) -> Result<(), Stopped> {
        let port = accepted.connection.original.port();
        let hint = policy.borrow().protocol(port);
        let known = match hint {
            Hint::Detect => return self.serve_detected(accepted, policy, permit).await,
            Hint::Opaque => None,
            Hint::Http1 => Some(Version::Http1),
            Hint::Http2 => Some(Version::Http2),
        };
        self.serve_as(known, accepted, policy, permit).await;
        Ok(())
    }

    async fn serve_detected(
        mut self,
        accepted: Accepted,
        policy: Policy,
        permit: Permit,
    ) -> Result<(), Stopped> {
        let (connection, mut stream) = accepted.into_stream(self.wire);
        let begun = Instant::now();
        let word = first_word(&mut stream, &self.dialled, &policy).await;
        let (protocol, bytes) = match word {
            Ok(detected) => (Ok(detected.protocol), detected.bytes),
            Err(error) => (Err(error), Vec::new()),
        };
        let (tcp, wire) = stream.into_parts(&bytes);
        let accepted = Accepted::again(connection, tcp);
        let protocol = match protocol {
            Ok(protocol) => protocol,
            Err(error) => {
                self.dialled.reset();
                return Err((accepted, self.leg, Refused::new(Fault::of(&error), error)));
            }
        };
        let metrics = accepted.connection.pod.metrics();
        metrics.detected(Direction::Inbound, protocol, begun.elapsed());
        self.wire = wire;
        let version = protocol.and_then(Version::of);
        self.serve_as(version, accepted, policy, permit).await;
        Ok(())
    }

    async fn serve_as(
        self,
        version: Option<Version>,
        accepted: Accepted,
        policy: Policy,
        permit: Permit,
    ) {
        let Some(version) = version else {
            return self.carry(accepted, policy).await;
        };
        let admitted = Admitted {
            client: self.client,
            leg: self.leg,
            permit,
        };
        let (connection, stream) = accepted.into_stream(self.wire);
        let dialled = Some(self.dialled);
        requests(connection, stream, version, admitted, dialled, policy).await;
    }

    async fn carry(self, accepted: Accepted, policy: Policy) {
        let connection = &accepted.connection;
        let (pod, dst) = (connection.pod.clone(), connection.original);
        let (leg, client) = (self.leg.clone(), self.client);
        let revoked = async {
            let rules = revoked(policy, client.as_ref()).await;
            let metrics = pod.metrics();
            metrics.authorized(Counter::Terminate, &rules, leg.tls, &leg.client_id);
        };
        let carried = Carried {
            accepted,
            dialled: self.dialled,
            leg: self.leg,
            wire: self.wire,
            early: Vec::new(),
            dst,
            endpoint: None,
        };
        carry(carried, revoked).await;
    }
}

/// Serves HTTP until the connection ends, or the policy no longer lets the client in.
pub(super) async fn requests(
    connection: Connection,
    stream: Stream<TcpStream>,
    version: Version,
    admitted: Admitted,
    dialled: Option<PooledStream>,
    policy: Policy,
) {
    let (pod, leg, client) = (
        connection.pod.clone(),
        admitted.leg.clone(),
        admitted.client.clone(),
    );
    let revoked = async {
        let rules = revoked(policy, client.as_ref()).await;
        let metrics = pod.metrics();
        metrics.authorized(Counter::Terminate, &rules, leg.tls, &leg.client_id);
    };
    let served = http::inbound::serve(connection, stream, version, admitted, dialled, revoked);
    // On the heap: a stream of bytes would carry its room to the end.
    Box::pin(served).await;
}

/// What the client says first, unless the application does: then, or when the policy changed, it is
/// carried as bytes.
async fn first_word(
    stream: &mut Stream<TcpStream>,
    dialled: &PooledStream,
    policy: &Policy,
) -> io::Result<Detected> {
    let (mut detection, mut policy) = (Detection::default(), policy.clone());
    let mut protocol = tokio::select! {
        biased;
        protocol = detection.read(stream, None) => protocol?,
        said = tcp::peek_or_wait(dialled.tcp()) => said.map(|_| None)?,
        _ = policy.changed() => None,
    };
    if protocol.is_none() && greets_in_http2(dialled.tcp())? {
        protocol = detection.read(stream, Some(LATE_PREFACE)).await?;
    }
    Ok(Detected {
        protocol,
        bytes: detection.into_bytes(),
    })
}

/// Whether the application has begun HTTP/2, for which its client does not wait.
fn greets_in_http2(app: &TcpStream) -> io::Result<bool> {
    let mut word = [0; 9];
    match tcp::peek_into(app, &mut word) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        word => Ok(is_settings(word?)),
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
