// SPDX-License-Identifier: Apache-2.0
//! Connections out of a pod: what was dialled, which endpoint that is to be, and a leg to it.
//!
//! This release carries every connection as an opaque stream (`culvert/tcp`): it dials without
//! waiting for the application's first bytes, so that no protocol stalls, whoever speaks first.
//! Protocol detection and layer 7 come on top of it later.
//!
//! A meshed endpoint is dialled with mutual TLS or not at all.

mod dial;

use std::{sync::Arc, time::Duration};

use culvert_api::agent::Direction;
use tokio::{net::TcpListener, sync::watch, time::Instant};

use self::dial::{DialError, Dialled, Dialler};
use crate::{
    accept::{self, Accepted, Refused},
    app::Proxy,
    balance::Choice,
    carry::{Carried, carry},
    destinations::{Endpoint, Resolved, ServiceEndpoints},
    metrics::{Fault, Leg, Tls},
    pods::Pod,
    tcp,
};

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
    let routed = unless_reset(&accepted, route(&accepted, &resolved)).await;
    accepted.dialling = None;
    match routed {
        Ok(routed) => routed.carry(accepted, &resolved).await,
        Err(refused) => {
            let leg = leg(Tls::NoIdentity, &resolved, None);
            accepted.refuse(&leg, &refused).await;
        }
    }
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
    accepted.check_loop(accepted.original)?;
    tcp::tune_local(&accepted.tcp).map_err(|error| Refused::new(Fault::Io, error))?;
    let destinations = &accepted.proxy.destinations;
    let resolved = destinations.resolve(&accepted.pod.key, accepted.original);
    let resolved = resolved.await;
    resolved.map_err(|error| Refused::new(Fault::Unresolved, error))
}

async fn route(accepted: &Accepted, resolved: &Resolved) -> Result<Routed, Refused> {
    let dialler = Dialler::new(accepted);
    match resolved {
        Resolved::Service(service) => balance(&dialler, service).await,
        Resolved::Pod(endpoint) => {
            let dialled = dialler.endpoint(endpoint).await?;
            Ok(Routed {
                dialled,
                endpoint: Some(endpoint.clone()),
                choice: None,
            })
        }
        Resolved::Unknown => Ok(Routed {
            dialled: dialler.plain(accepted.original).await?,
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
        match dialler.endpoint(&endpoint).await {
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

fn leg(tls: Tls, resolved: &Resolved, endpoint: Option<&Endpoint>) -> Leg {
    let mut leg = Leg::new(Direction::Outbound, tls);
    if let Some(endpoint) = endpoint {
        leg.dst_namespace = endpoint.workload.namespace.as_str().into();
        leg.dst_pod = endpoint.workload.name.as_str().into();
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
    async fn carry(self, accepted: Accepted, resolved: &Resolved) {
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
