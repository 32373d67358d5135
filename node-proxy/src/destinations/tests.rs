// SPDX-License-Identifier: Apache-2.0

mod hints;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{entry::CONFIRM, saved::SavedKind, table::POD_LIMIT, *};
use crate::fixture::key;

fn destinations() -> (Destinations, UnboundedReceiver<Ask>) {
    let domain = IdentityDomain {
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "culvert".to_owned(),
    };
    let (control, asked) = unbounded_channel();
    let metrics = DestinationMetrics::register(&prometheus::Registry::new());
    let metrics = metrics.unwrap_or_else(|e| panic!("{e}"));
    let dirty = Dirty::default();
    (Destinations::new(domain, control, dirty, metrics), asked)
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
        ..Default::default()
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
    let pod = key();
    let (resolved, ()) = tokio::join!(destinations.resolve(&pod, addr(1)), answer);
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
        .resolve(&key(), addr(1))
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
    assert!(next.resolve(&key(), addr(1)).await.is_ok());
    assert_eq!(next.in_use(), [addr(1)]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_three_seconds() {
    let (destinations, _asked) = destinations();
    let begun = tokio::time::Instant::now();
    let unresolved = destinations.resolve(&key(), addr(1)).await;
    assert!(matches!(unresolved, Err(Unresolved::NoAnswer { .. })));
    assert_eq!(begun.elapsed().as_secs(), 3);
}

fn unknown(at: SocketAddr) -> v1::Destination {
    v1::Destination {
        destination: Some(at.into()),
        kind: Some(v1::destination::Kind::Unknown(v1::Unknown::default())),
    }
}

/// A proxy that begins with what was saved of a service with one endpoint.
fn restored(meshed: bool) -> (Destinations, UnboundedReceiver<Ask>) {
    let (first, _asked) = destinations();
    let entry = first.entry(&key(), addr(1));
    drop(entry.unwrap_or_else(|e| panic!("{e}")));
    first.apply(&service(true, vec![endpoint(2, meshed)], &[]));
    let next = destinations();
    next.0.restore(first.save());
    next
}

#[tokio::test(start_paused = true)]
async fn what_was_not_meshed_waits_for_controls_word() {
    let (destinations, _asked) = restored(false);
    let begun = tokio::time::Instant::now();
    let soon = CONFIRM / 4;
    let answer = async {
        tokio::time::sleep(soon).await;
        // Of another subscription: no answer.
        destinations.apply(&service(false, vec![endpoint(3, false)], &[]));
        tokio::time::sleep(soon).await;
        destinations.apply(&service(true, vec![endpoint(2, true)], &[]));
    };
    let resolve = async {
        let resolved = destinations.resolve(&key(), addr(1)).await;
        (resolved.is_ok(), begun.elapsed().as_millis())
    };
    let (resolved, ()) = tokio::join!(resolve, answer);
    assert_eq!(resolved, (true, (2 * soon).as_millis()));
    assert_eq!(saved(&destinations), [(addr(2), true)]);
}

#[tokio::test(start_paused = true)]
async fn with_control_away_what_was_not_meshed_is_waited_for_once_and_what_was_not_at_all() {
    for (meshed, wait) in [(true, Duration::ZERO), (false, CONFIRM)] {
        let (destinations, _asked) = restored(meshed);
        for wait in [wait, Duration::ZERO] {
            let begun = tokio::time::Instant::now();
            let resolved = destinations.resolve(&key(), addr(1)).await;
            assert!(matches!(resolved.as_deref(), Ok(Resolved::Service(_))));
            assert_eq!(begun.elapsed().as_millis(), wait.as_millis());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_saved_as_unknown_may_be_meshed_by_now() {
    let (destinations, _asked) = destinations();
    let json = r#"[{"destination": "10.0.0.1:80", "kind": "unknown"}]"#;
    destinations.restore(serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}")));
    let (pod, answer) = (key(), service(true, vec![endpoint(2, true)], &[]));
    let answer = async { destinations.apply(&answer) };
    let (resolved, ()) = tokio::join!(destinations.resolve(&pod, addr(1)), answer);
    assert!(matches!(resolved.as_deref(), Ok(Resolved::Service(_))));
}

fn many(of: u8, n: u16) -> SocketAddr {
    let [high, low] = n.to_be_bytes();
    SocketAddr::from(([172, of, high, low], 80))
}

fn pod(n: u8) -> WorkloadKey {
    let mut pod = key();
    pod.cookie.0 = n.into();
    pod
}

/// Dials `count` addresses for a pod. Held, they are still waited for.
fn dial(destinations: &Destinations, of: u8, count: usize) -> Vec<Arc<Entry>> {
    let numbers = (0..=u16::MAX).take(count);
    let entries = numbers.map(|n| destinations.entry(&pod(of), many(of, n)));
    let entries: Result<_, _> = entries.collect();
    entries.unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::test]
async fn a_pod_that_dials_many_crowds_out_its_own() {
    let (destinations, mut asked) = destinations();
    let first = service(true, vec![endpoint(2, true)], &[]);
    let held = resolved(&destinations, &mut asked, &first).await;
    let other = dial(&destinations, 2, 1);
    other.iter().for_each(|entry| entry.touch(Duration::ZERO));
    drop(other);
    drop(dial(&destinations, 1, POD_LIMIT));
    destinations.apply(&unknown(many(1, 0)));
    let scanned = destinations.in_use().len();
    for n in 0..2 * POD_LIMIT {
        let n = u16::try_from(n).unwrap_or_default();
        let entry = destinations.entry(&pod(1), many(3, n));
        drop(entry.unwrap_or_else(|e| panic!("{e}")));
    }
    assert!(destinations.in_use().len() <= scanned);
    for kept in [addr(1), many(2, 0)] {
        assert!(destinations.find(kept).is_some(), "{kept}");
    }
    let mut unsubscribed = 0;
    while let Ok(ask) = asked.try_recv() {
        unsubscribed += u64::from(matches!(ask, Ask::Unsubscribe(_)));
    }
    let evicted = destinations.inner.metrics.evicted.get();
    assert!(evicted >= POD_LIMIT as u64 && evicted == unsubscribed);
    drop(held);
}

#[tokio::test]
async fn what_is_waited_for_stays_and_only_its_pod_is_refused() {
    let (destinations, _asked) = destinations();
    let held = dial(&destinations, 1, POD_LIMIT);
    let one_more = many(3, 0);
    let refused = destinations.resolve(&pod(1), one_more).await;
    let limit = POD_LIMIT;
    let destination = one_more;
    let expected = Unresolved::TooMany { destination, limit };
    assert_eq!(refused.err(), Some(expected));
    assert_eq!(destinations.inner.metrics.refused.get(), 1);
    assert!(destinations.entry(&pod(2), one_more).is_ok());
    drop(held);
}

#[tokio::test]
async fn services_and_what_was_used_lately_go_last() {
    let (destinations, mut asked) = destinations();
    let first = service(true, vec![endpoint(2, true)], &[]);
    drop(resolved(&destinations, &mut asked, &first).await);
    // Of the same pod as the service.
    let numbered = dial(&destinations, 7, POD_LIMIT - 1);
    for (n, entry) in (1..).zip(&numbered) {
        entry.touch(Duration::from_secs(n));
    }
    drop(numbered);
    let service = destinations.find(addr(1));
    service.iter().for_each(|entry| entry.touch(Duration::ZERO));
    drop(service);
    let one_more = destinations.entry(&key(), many(8, 0));
    assert!(one_more.is_ok());
    let gone = |n| destinations.find(many(7, n)).is_none();
    assert!(gone(0) && !gone(u16::try_from(POD_LIMIT).unwrap_or_default() - 2));
    assert!(destinations.find(addr(1)).is_some());
}

#[tokio::test]
async fn all_pods_together_are_limited_too() {
    let (destinations, _asked) = destinations();
    let pods = u8::try_from(LIMIT / POD_LIMIT).unwrap_or_default();
    for of in 0..=pods {
        drop(dial(&destinations, of, POD_LIMIT));
        assert!(destinations.in_use().len() <= LIMIT);
    }
}

#[tokio::test]
async fn what_nobody_answered_for_is_not_saved() {
    let (destinations, _asked) = destinations();
    drop(dial(&destinations, 1, 2));
    destinations.apply(&unknown(many(1, 0)));
    let saved: Vec<_> = destinations
        .save()
        .into_iter()
        .map(|saved| saved.destination)
        .collect();
    assert_eq!(saved, [many(1, 0)]);
}

#[tokio::test]
async fn what_requests_are_balanced_by_is_not_forgotten() {
    let (destinations, mut asked) = destinations();
    let first = service(true, vec![endpoint(2, true)], &[]);
    let held = resolved(&destinations, &mut asked, &first).await;
    destinations.forget_unused_since(Duration::MAX);
    assert_eq!(destinations.in_use(), [addr(1)]);
    drop(held);
    destinations.forget_unused_since(Duration::MAX);
    assert!(destinations.in_use().is_empty());
}

/// Its addresses may be somebody else's by now.
#[tokio::test(start_paused = true)]
async fn who_holds_a_service_that_is_gone_finds_no_endpoint_in_it() {
    let (destinations, mut asked) = destinations();
    let first = service(true, vec![endpoint(2, true)], &[]);
    let held = resolved(&destinations, &mut asked, &first).await;
    let Resolved::Service(service) = &*held else {
        panic!("{held:?}");
    };
    assert!(service.balancer.ready(&[]).await.is_ok());
    destinations.apply(&unknown(addr(1)));
    let unready = service.balancer.ready(&[]).await.err();
    assert_eq!(unready, Some(crate::balance::Unready::FailFast));
}

#[tokio::test]
async fn a_services_series_go_with_its_entry() {
    let registry = prometheus::Registry::new();
    let (mut destinations, mut asked) = destinations();
    let metrics = DestinationMetrics::register(&registry);
    let inner = Arc::get_mut(&mut destinations.inner).unwrap_or_else(|| panic!("shared"));
    inner.metrics = metrics.unwrap_or_else(|e| panic!("{e}"));
    let series = || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
        let text = text.unwrap_or_else(|e| panic!("{e}"));
        let of = |line: &&str| line.contains("backend_name=\"cart\"");
        text.lines().filter(of).count()
    };
    let first = service(true, vec![endpoint(2, true)], &[]);
    let held = resolved(&destinations, &mut asked, &first).await;
    assert_eq!(series(), 0);
    let Resolved::Service(service) = &*held else {
        panic!("{held:?}");
    };
    drop(service.balancer.ready(&[]).await);
    assert!(series() > 10);
    drop(held);
    destinations.forget_unused_since(Duration::MAX);
    assert_eq!(series(), 0);
}
