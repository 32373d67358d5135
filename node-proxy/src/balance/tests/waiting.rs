// SPDX-License-Identifier: Apache-2.0
//! The queue and its gate.

use tokio::task::{JoinHandle, yield_now};

use super::*;

type Answer = JoinHandle<(Result<Choice, Unready>, Duration)>;

/// Requests that wait, and after how long they were answered how.
async fn wait(balancer: &Arc<Balancer>, count: usize) -> Vec<Answer> {
    let begun = Instant::now();
    let one = |_| {
        let balancer = balancer.clone();
        tokio::spawn(async move { (balancer.ready(&[]).await, begun.elapsed()) })
    };
    let waiting = (0..count).map(one).collect();
    yield_now().await;
    waiting
}

async fn answers(waiting: Vec<Answer>) -> Vec<(Result<Choice, Unready>, Duration)> {
    let mut answers = Vec::new();
    for answer in waiting {
        answers.push(answer.await.unwrap_or_else(|e| panic!("{e}")));
    }
    answers
}

fn count(answers: &[(Result<Choice, Unready>, Duration)], with: Unready, after: Duration) -> usize {
    let same = |(answer, took): &&(Result<Choice, Unready>, Duration)| {
        matches!(answer, Err(unready) if *unready == with) && *took == after
    };
    answers.iter().filter(same).count()
}

#[tokio::test(start_paused = true)]
async fn a_hundred_wait_and_the_rest_is_shed() {
    let balancer = Arc::new(balancer([]));
    let answers = answers(wait(&balancer, 200).await).await;
    assert_eq!(count(&answers, Unready::LoadShed, Duration::ZERO), 100);
    assert_eq!(count(&answers, Unready::FailFast, FAIL_FAST), 100);
}

#[tokio::test(start_paused = true)]
async fn those_that_gave_up_leave_their_places() {
    let balancer = Arc::new(balancer([]));
    let first = wait(&balancer, 100).await;
    first.iter().for_each(JoinHandle::abort);
    yield_now().await;
    let second = answers(wait(&balancer, 100).await).await;
    assert_eq!(count(&second, Unready::LoadShed, Duration::ZERO), 0);
}

#[tokio::test(start_paused = true)]
async fn all_that_wait_are_served_by_an_endpoint_that_comes() {
    let balancer = Arc::new(balancer([]));
    let waiting = wait(&balancer, 100).await;
    pass(ms(2900)).await;
    balancer.update(&endpoints([1]), false);
    let answers = answers(waiting).await;
    assert!(answers.iter().all(|(answer, _)| answer.is_ok()));
}

#[tokio::test(start_paused = true)]
async fn the_gate_shuts_three_seconds_after_the_first_found_nothing() {
    let balancer = Arc::new(balancer([]));
    let first = wait(&balancer, 1).await;
    pass(ms(2500)).await;
    let late = wait(&balancer, 1).await;
    assert_eq!(
        count(&answers(first).await, Unready::FailFast, FAIL_FAST),
        1
    );
    assert_eq!(count(&answers(late).await, Unready::FailFast, ms(500)), 1);
    pass(Duration::from_secs(100)).await;
    let shut = answers(wait(&balancer, 150).await).await;
    assert_eq!(count(&shut, Unready::FailFast, Duration::ZERO), 150);
}

#[tokio::test(start_paused = true)]
async fn the_gate_opens_when_an_endpoint_comes() {
    let balancer = Arc::new(balancer([]));
    drop(answers(wait(&balancer, 1).await).await);
    balancer.update(&endpoints([1]), false);
    assert!(matches!(at_once(&balancer, &[]).await, Some(Ok(_))));
    balancer.update(&[], false);
    let again = answers(wait(&balancer, 1).await).await;
    assert_eq!(count(&again, Unready::FailFast, FAIL_FAST), 1);
}

/// With a back-off of more than three seconds.
async fn shut(balancer: &Balancer) {
    loop {
        match balancer.ready(&[]).await {
            Ok(trial) => trial.failed(),
            Err(unready) => return assert_eq!(unready, Unready::FailFast),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trials_that_fail_do_not_put_the_gate_off() {
    let balancer = balancer([1]);
    ready(&balancer).await.failed();
    let begun = Instant::now();
    shut(&balancer).await;
    assert_eq!(begun.elapsed(), FAIL_FAST);
}

#[tokio::test(start_paused = true)]
async fn a_trial_passes_the_gate_and_its_success_opens_it() {
    let balancer = balancer([1]);
    shut(&balancer).await;
    pass(Duration::from_secs(10)).await;
    let trial = ready(&balancer).await;
    let shut = at_once(&balancer, &[]).await;
    assert!(matches!(shut, Some(Err(Unready::FailFast))), "{shut:?}");
    trial.connected(ms(1));
    assert!(matches!(at_once(&balancer, &[]).await, Some(Ok(_))));
}

/// Requests that wait for the only endpoint, which is in back-off, and the one that tries it.
async fn with_trial(balancer: &Arc<Balancer>) -> (Choice, Vec<Answer>) {
    ready(balancer).await.failed();
    let waiting = wait(balancer, 50).await;
    pass(ms(150)).await;
    for _ in 0..10 {
        yield_now().await;
    }
    let (tries, waiting): (Vec<_>, _) = waiting.into_iter().partition(JoinHandle::is_finished);
    let mut tries = answers(tries).await;
    match (tries.pop(), tries.len()) {
        (Some((Ok(trial), _)), 0) => (trial, waiting),
        (last, others) => panic!("{last:?} and {others} more"),
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_are_served_when_the_trial_succeeds() {
    let balancer = Arc::new(balancer([1]));
    let (trial, waiting) = with_trial(&balancer).await;
    trial.connected(ms(1));
    let served = answers(waiting).await;
    let at_once = |(answer, took): &(Result<_, _>, _)| answer.is_ok() && *took == ms(150);
    assert!(served.iter().all(at_once), "{served:?}");
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_hear_when_the_next_trial_is_due() {
    let balancer = Arc::new(balancer([1]));
    let (trial, waiting) = with_trial(&balancer).await;
    trial.failed();
    pass(ms(250)).await;
    for _ in 0..10 {
        yield_now().await;
    }
    let tried = waiting.iter().filter(|answer| answer.is_finished());
    assert_eq!(tried.count(), 1);
}
