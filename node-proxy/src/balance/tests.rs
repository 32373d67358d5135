// SPDX-License-Identifier: Apache-2.0
use std::collections::HashMap;

use culvert_api::{
    identity::Identity,
    workload::{PodUid, Workload},
};

use super::*;

fn endpoint(last: u8) -> Endpoint {
    let name = format!("cart-{last}");
    Endpoint {
        addr: SocketAddr::from(([10, 0, 0, last], 80)),
        workload: Workload {
            uid: PodUid(name.clone()),
            namespace: "shop".into(),
            name,
            service_account: "cart".into(),
            owner_kind: "deployment".into(),
            owner_name: "cart".into(),
        },
        node: "a".into(),
        identity: Identity {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
        },
        meshed: true,
    }
}

fn balancer(endpoints: impl IntoIterator<Item = u8>) -> Balancer {
    let balancer = Balancer::default();
    balancer.update(&endpoints.into_iter().map(endpoint).collect::<Vec<_>>());
    balancer
}

fn choose(balancer: &Balancer) -> Choice {
    balancer
        .choose(&[])
        .unwrap_or_else(|| panic!("no endpoint"))
}

#[test]
fn short_connections_spread_over_equals() {
    let balancer = balancer(1..=4);
    let mut chosen: HashMap<SocketAddr, u32> = HashMap::new();
    for _ in 0..4000 {
        let choice = choose(&balancer);
        choice.connected(Duration::from_millis(2));
        *chosen.entry(choice.endpoint().addr).or_default() += 1;
    }
    assert!(
        chosen.values().all(|count| (800..1200).contains(count)),
        "{chosen:?}"
    );
}

#[test]
fn long_connections_balance_exactly_between_two() {
    let balancer = balancer(1..=2);
    let open: Vec<_> = (0..100).map(|_| choose(&balancer)).collect();
    let first = open
        .iter()
        .filter(|choice| choice.endpoint().addr.ip() == endpoint(1).addr.ip());
    let first = first.count();
    assert!((49..=51).contains(&first), "{first}");
}

#[test]
fn a_slow_endpoint_gets_few() {
    let balancer = balancer(1..=3);
    let mut slow = 0;
    for _ in 0..3000 {
        let choice = choose(&balancer);
        let is_slow = choice.endpoint().addr == endpoint(1).addr;
        slow += u32::from(is_slow);
        choice.connected(Duration::from_millis(if is_slow { 300 } else { 2 }));
    }
    assert!(slow < 30, "{slow}");
}

#[test]
fn the_failed_one_is_avoided_and_the_tried_ones_are_left_out() {
    let balancer = balancer(1..=2);
    let failed = choose(&balancer);
    failed.failed();
    let failed = failed.endpoint().addr;
    assert!((0..100).all(|_| choose(&balancer).endpoint().addr != failed));
    let other = choose(&balancer).endpoint().addr;
    let choice = balancer.choose(&[other]);
    assert_eq!(choice.map(|choice| choice.endpoint().addr), Some(failed));
    assert!(balancer.choose(&[failed, other]).is_none());
}

#[test]
fn an_update_keeps_what_is_known_of_those_that_stay() {
    let balancer = balancer([1]);
    choose(&balancer).failed();
    balancer.update(&[endpoint(1), endpoint(2)]);
    assert!((0..100).all(|_| choose(&balancer).endpoint().addr == endpoint(2).addr));
    balancer.update(&[]);
    assert!(balancer.choose(&[]).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_service_without_endpoints_is_waited_for() {
    let balancer = Arc::new(balancer([]));
    let limit = Duration::from_secs(3);
    assert!(balancer.choose_or_wait(limit).await.is_none());
    let waiting = tokio::spawn({
        let balancer = balancer.clone();
        async move { balancer.choose_or_wait(limit).await.is_some() }
    });
    tokio::task::yield_now().await;
    balancer.update(&[endpoint(1)]);
    assert!(waiting.await.is_ok_and(|chosen| chosen));
}
