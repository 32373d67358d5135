// SPDX-License-Identifier: Apache-2.0
//! Opaque connections, which do not wait for an endpoint in back-off.

use super::*;

async fn choose(balancer: &Balancer) -> Choice {
    let choice = balancer.ready_connection(&[]).await;
    choice.unwrap_or_else(|unready| panic!("{unready:?}"))
}

#[tokio::test]
async fn short_connections_spread_over_equals() {
    let balancer = balancer(1..=4);
    let mut chosen: HashMap<SocketAddr, u32> = HashMap::new();
    for _ in 0..4000 {
        let choice = choose(&balancer).await;
        choice.connected(ms(2));
        *chosen.entry(choice.endpoint().addr).or_default() += 1;
    }
    assert!(
        chosen.values().all(|count| (800..1200).contains(count)),
        "{chosen:?}"
    );
}

#[tokio::test]
async fn long_connections_balance_exactly_between_two() {
    let balancer = balancer(1..=2);
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(choose(&balancer).await);
    }
    let first = open.iter().filter(|choice| number(choice) == 1).count();
    assert!((49..=51).contains(&first), "{first}");
}

#[tokio::test]
async fn a_slow_endpoint_gets_few() {
    let balancer = balancer(1..=3);
    let mut slow = 0;
    for _ in 0..3000 {
        let choice = choose(&balancer).await;
        let is_slow = number(&choice) == 1;
        slow += u32::from(is_slow);
        choice.connected(ms(if is_slow { 300 } else { 2 }));
    }
    assert!(slow < 30, "{slow}");
}

#[tokio::test(start_paused = true)]
async fn the_failed_one_is_avoided_and_the_tried_ones_are_left_out() {
    let balancer = balancer(1..=2);
    let failed = choose(&balancer).await;
    failed.failed();
    let failed = failed.endpoint().addr;
    for _ in 0..100 {
        let other = choose(&balancer).await;
        assert_ne!(other.endpoint().addr, failed);
        other.connected(ms(2));
    }
    let other = choose(&balancer).await.endpoint().addr;
    let choice = balancer.ready_connection(&[other]).await;
    let choice = choice.map(|choice| choice.endpoint().addr);
    assert_eq!(choice, Ok(failed));
    let none = balancer.ready_connection(&[failed, other]).await;
    assert_eq!(none.err(), Some(Unready::Exhausted));
}

/// The application hears at once that nobody listens.
#[tokio::test(start_paused = true)]
async fn the_only_one_is_dialled_again_at_once() {
    let balancer = balancer([1]);
    let begun = Instant::now();
    for _ in 0..5 {
        choose(&balancer).await.failed();
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_service_without_endpoints_is_waited_for() {
    let balancer = Arc::new(balancer([]));
    let waiting = tokio::spawn({
        let balancer = balancer.clone();
        async move { balancer.ready_connection(&[]).await.is_ok() }
    });
    tokio::task::yield_now().await;
    balancer.update(&endpoints([1]), false);
    assert!(waiting.await.is_ok_and(|chosen| chosen));
    balancer.update(&[], true);
    let begun = Instant::now();
    let none = balancer.ready_connection(&[]).await;
    assert_eq!(none.err(), Some(Unready::FailFast));
    assert_eq!(begun.elapsed(), FAIL_FAST);
}

/// A long connection says nothing of requests, and the other way round.
#[tokio::test(start_paused = true)]
async fn connections_and_requests_are_balanced_apart() {
    let balancer = balancer(1..=2);
    let mut open = Vec::new();
    for _ in 0..10 {
        let choice = choose(&balancer).await;
        choice.connected(ms(900));
        open.push(choice);
    }
    let mut first = 0;
    for _ in 0..1000 {
        first += u32::from(number(&ready(&balancer).await) == 1);
    }
    assert!((400..600).contains(&first), "{first}");
}

/// It neither waits for the request that tries the endpoint nor ends its trial.
#[tokio::test(start_paused = true)]
async fn a_connection_does_not_meddle_with_a_trial() {
    let balancer = balancer([1]);
    ready(&balancer).await.failed();
    pass(ms(200)).await;
    let trial = ready(&balancer).await;
    drop(choose(&balancer).await);
    assert!(at_once(&balancer, &[]).await.is_none());
    drop(trial);
    assert!(at_once(&balancer, &[]).await.is_some());
}
