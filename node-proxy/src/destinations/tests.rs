// SPDX-License-Identifier: Apache-2.0

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

fn destinations() -> (Destinations, UnboundedReceiver<Ask>) {
    let domain = IdentityDomain {
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "culvert".to_owned(),
    };
    let (control, asked) = unbounded_channel();
    (Destinations::new(domain, control, Dirty::default()), asked)
}

fn addr(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn endpoint(last: u8, meshed: bool) -> v1::Endpoint {
    v1::Endpoint {
        address: Some(addr(last).into()),
        pod_uid: format!("uid-{last}"),
        namespace: "shop".to_owned(),
        pod: format!("cart-{last}"),
        service_account: "cart".to_owned(),
        meshed,
        ..Default::default()
    }
}

fn service(snapshot: bool, set: Vec<v1::Endpoint>, removed: &[u8]) -> v1::Destination {
    let service = v1::Service {
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        port_name: String::new(),
        snapshot,
        set,
        removed: removed.iter().map(|last| addr(*last).into()).collect(),
    };
    v1::Destination {
        destination: Some(addr(1).into()),
        kind: Some(v1::destination::Kind::Service(service)),
    }
}

fn saved(destinations: &Destinations) -> Vec<(SocketAddr, bool)> {
    let saved = destinations.save();
    let Some(Saved {
        what: SavedKind::Service { endpoints, .. },
        ..
    }) = saved.first()
    else {
        panic!("{saved:?}");
    };
    endpoints
        .iter()
        .map(|endpoint| (endpoint.addr, endpoint.meshed))
        .collect()
}

/// Asks for the service, and has it answered by `first`.
async fn resolved(
    destinations: &Destinations,
    asked: &mut UnboundedReceiver<Ask>,
    first: &v1::Destination,
) -> Arc<Resolved> {
    let answer = async {
        assert_eq!(asked.recv().await, Some(Ask::Subscribe(addr(1))));
        destinations.apply(first);
    };
    let (resolved, ()) = tokio::join!(destinations.resolve(addr(1)), answer);
    resolved.unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::test]
async fn deltas_change_a_service_that_connections_hold() {
    let (destinations, mut asked) = destinations();
    let first = service(true, vec![endpoint(2, false), endpoint(3, true)], &[]);
    let held = resolved(&destinations, &mut asked, &first).await;
    assert_eq!(saved(&destinations), [(addr(2), false), (addr(3), true)]);
    destinations.apply(&service(
        false,
        vec![endpoint(2, true), endpoint(4, true)],
        &[3],
    ));
    assert_eq!(saved(&destinations), [(addr(2), true), (addr(4), true)]);
    let again = destinations
        .resolve(addr(1))
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(Arc::ptr_eq(&held, &again));
    destinations.apply(&service(true, vec![endpoint(5, true)], &[]));
    assert_eq!(saved(&destinations), [(addr(5), true)]);
}

#[tokio::test]
async fn an_unreadable_message_changes_nothing() {
    let (destinations, mut asked) = destinations();
    let first = service(true, vec![endpoint(2, true)], &[]);
    resolved(&destinations, &mut asked, &first).await;
    let bad = v1::Endpoint {
        address: None,
        ..endpoint(3, true)
    };
    destinations.apply(&service(true, vec![bad], &[]));
    destinations.apply(&v1::Destination {
        destination: Some(addr(1).into()),
        kind: None,
    });
    destinations.apply(&v1::Destination {
        destination: None,
        kind: None,
    });
    assert_eq!(saved(&destinations), [(addr(2), true)]);
}

#[tokio::test]
async fn what_is_restored_is_known_and_asked_for_again() {
    let (destinations, mut asked) = destinations();
    let first = service(true, vec![endpoint(2, true)], &[]);
    resolved(&destinations, &mut asked, &first).await;
    let json = serde_json::to_string(&destinations.save()).unwrap_or_else(|e| panic!("{e}"));
    let (next, _asked) = self::destinations();
    next.restore(serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(saved(&next), [(addr(2), true)]);
    assert!(next.resolve(addr(1)).await.is_ok());
    assert_eq!(next.in_use(), [addr(1)]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_three_seconds() {
    let (destinations, _asked) = destinations();
    let begun = tokio::time::Instant::now();
    let unresolved = destinations.resolve(addr(1)).await;
    assert!(matches!(unresolved, Err(Unresolved::NoAnswer { .. })));
    assert_eq!(begun.elapsed().as_secs(), 3);
}
