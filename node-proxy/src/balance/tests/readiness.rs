// SPDX-License-Identifier: Apache-2.0
//! Which endpoints are ready: back-off, trials and updates.

use super::*;

/// Lets the only endpoint's back-off pass and tries it: how long it was.
async fn back_off(balancer: &Balancer) -> (Duration, Choice) {
    let begun = Instant::now();
    let trial = balancer.ready(&[]).await;
    let trial = trial.unwrap_or_else(|unready| panic!("{unready:?} after {:?}", begun.elapsed()));
    (begun.elapsed(), trial)
}

fn assert_step(wait: Duration, step: u64) {
    // A timer's millisecond more.
    let most = ms(step) + ms(step) / 10 + ms(1);
    assert!(wait >= ms(step) && wait <= most, "{wait:?} of {step} ms");
}

#[tokio::test(start_paused = true)]
async fn a_back_off_doubles_and_is_reset_by_a_success() {
    let balancer = balancer([1]);
    let mut choice = ready(&balancer).await;
    for step in [100, 200, 400, 800] {
        choice.failed();
        let wait;
        (wait, choice) = back_off(&balancer).await;
        assert_step(wait, step);
    }
    choice.connected(ms(1));
    ready(&balancer).await.failed();
    let (wait, _choice) = back_off(&balancer).await;
    assert_step(wait, 100);
}

#[tokio::test(start_paused = true)]
async fn a_back_off_is_a_minute_at_most() {
    let balancer = balancer([1]);
    ready(&balancer).await.failed();
    for _ in 0..20 {
        pass(Duration::from_secs(60)).await;
        let trial = at_once(&balancer, &[]).await;
        let trial = trial.unwrap_or_else(|| panic!("longer than a minute"));
        trial.unwrap_or_else(|e| panic!("{e:?}")).failed();
        pass(ms(99)).await;
        assert!(!matches!(at_once(&balancer, &[]).await, Some(Ok(_))));
    }
}

/// Those that were dialled before that was known.
#[tokio::test(start_paused = true)]
async fn many_failures_at_once_are_one() {
    let balancer = balancer([1]);
    let mut choices = Vec::new();
    for _ in 0..50 {
        choices.push(ready(&balancer).await);
    }
    assert!(choices.iter().all(Choice::is_open));
    choices.iter().for_each(Choice::failed);
    assert!(!choices.iter().any(Choice::is_open));
    let (wait, trial) = back_off(&balancer).await;
    assert_step(wait, 100);
    assert!(trial.is_open());
}

#[tokio::test(start_paused = true)]
async fn one_request_at_a_time_tries_it_again() {
    let balancer = balancer([1]);
    ready(&balancer).await.failed();
    pass(ms(200)).await;
    let trial = ready(&balancer).await;
    assert!(at_once(&balancer, &[]).await.is_none());
    // Given up before there was a result.
    drop(trial);
    let trial = ready(&balancer).await;
    assert!(at_once(&balancer, &[]).await.is_none());
    trial.answered(ms(1));
    let (one, other) = (ready(&balancer).await, ready(&balancer).await);
    assert_eq!((number(&one), number(&other)), (1, 1));
}

/// One that closed its listener still answers on the connections that it has.
#[tokio::test(start_paused = true)]
async fn what_an_old_connection_answers_makes_nothing_ready() {
    let balancer = balancer([1]);
    let (old, new) = (ready(&balancer).await, ready(&balancer).await);
    new.failed();
    old.answered(ms(1));
    assert!(at_once(&balancer, &[]).await.is_none());
    old.connected(ms(1));
    assert!(at_once(&balancer, &[]).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn tried_ones_are_left_out_until_all_are() {
    let balancer = balancer(1..=3);
    let mut tried = Vec::new();
    while let Some(Ok(choice)) = at_once(&balancer, &tried).await {
        assert!(!tried.contains(&choice.endpoint().addr));
        tried.push(choice.endpoint().addr);
    }
    assert_eq!(tried.len(), 3);
    let none = balancer.ready(&tried).await;
    assert_eq!(none.err(), Some(Unready::Exhausted));
    balancer.update(&endpoints(1..=4), false);
    let fresh = balancer.ready(&tried).await;
    assert_eq!(fresh.map(|fresh| number(&fresh)), Ok(4));
}

/// The others serve: that is no reason to shut the gate.
#[tokio::test(start_paused = true)]
async fn a_second_try_waits_for_what_is_left() {
    let balancer = balancer(1..=2);
    let choice = ready(&balancer).await;
    choice.failed();
    let failed = choice.endpoint().addr;
    let other = ready(&balancer).await.endpoint().addr;
    let begun = Instant::now();
    let trial = balancer.ready(&[other]).await;
    let held = trial.unwrap_or_else(|unready| panic!("{unready:?}"));
    assert_eq!(held.endpoint().addr, failed);
    assert_step(begun.elapsed(), 100);
    let begun = Instant::now();
    let none = balancer.ready(&[other]).await;
    assert_eq!(none.err(), Some(Unready::Exhausted));
    assert_eq!(begun.elapsed(), FAIL_FAST);
    assert!(matches!(at_once(&balancer, &[]).await, Some(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn an_update_keeps_the_back_off_of_those_that_stay() {
    let balancer = balancer([1]);
    let failed = ready(&balancer).await;
    failed.failed();
    balancer.update(&endpoints([1, 2]), false);
    for _ in 0..100 {
        assert_eq!(number(&ready(&balancer).await), 2);
    }
    balancer.update(&endpoints([1]), true);
    assert!(at_once(&balancer, &[]).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_update_keeps_the_estimates_of_those_that_stay() {
    let balancer = balancer([1]);
    ready(&balancer).await.answered(ms(500));
    balancer.update(&endpoints([1, 2]), false);
    for _ in 0..100 {
        assert_eq!(number(&ready(&balancer).await), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_joins_the_mesh_is_a_new_one() {
    let balancer = balancer([1]);
    ready(&balancer).await.failed();
    let plain = Endpoint {
        meshed: false,
        ..endpoint(1)
    };
    balancer.update(&[plain], false);
    let choice = at_once(&balancer, &[]).await;
    assert!(choice.is_some_and(|choice| choice.is_ok_and(|choice| !choice.endpoint().meshed)));
}

#[tokio::test(start_paused = true)]
async fn a_removed_endpoint_takes_nothing_new() {
    let balancer = balancer([1, 2]);
    let mut choice = ready(&balancer).await;
    while number(&choice) != 1 {
        choice = ready(&balancer).await;
    }
    balancer.update(&endpoints([2]), false);
    for _ in 0..100 {
        assert_eq!(number(&ready(&balancer).await), 2);
    }
    // What is under way there ends, however it ends, and says nothing of the others.
    choice.failed();
    choice.connected(ms(1));
    choice.answered(ms(1));
    drop(choice);
    assert_eq!(number(&ready(&balancer).await), 2);
}
