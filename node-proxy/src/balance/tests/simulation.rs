// SPDX-License-Identifier: Apache-2.0
//! Who gets what share of many requests, in simulated time.

use super::*;

/// Requests that follow each other at the same distance.
#[derive(Clone, Copy)]
struct Traffic {
    requests: u32,
    every: Duration,
}

/// Sends the traffic to endpoints that answer after what `latency` says of them: how many each got.
async fn shares(
    balancer: &Balancer,
    traffic: Traffic,
    latency: impl Fn(u8) -> Duration,
) -> HashMap<u8, u32> {
    let mut under_way: Vec<(Instant, Duration, Choice)> = Vec::new();
    let mut got = HashMap::new();
    for _ in 0..traffic.requests {
        let choice = ready(balancer).await;
        let took = latency(number(&choice));
        *got.entry(number(&choice)).or_default() += 1;
        under_way.push((Instant::now() + took, took, choice));
        under_way.sort_by_key(|(end, ..)| std::cmp::Reverse(*end));
        let next = Instant::now() + traffic.every;
        while let Some((end, took, choice)) = under_way.pop_if(|(end, ..)| *end <= next) {
            pass(end - Instant::now()).await;
            choice.answered(took);
        }
        pass(next - Instant::now()).await;
    }
    got
}

/// Around `middle`, and one in a hundred ten times that.
fn noisy(middle: Duration) -> Duration {
    let peak = if rand::random_ratio(1, 100) {
        10.0
    } else {
        1.0
    };
    middle.mul_f64(rand::random_range(0.5..1.5) * peak)
}

fn part(got: &HashMap<u8, u32>, of: u8) -> f64 {
    let all: u32 = got.values().sum();
    f64::from(got.get(&of).copied().unwrap_or_default()) / f64::from(all)
}

#[tokio::test(start_paused = true)]
async fn a_quiet_service_spreads() {
    for (every, took) in [(1000, 200), (1000, 20_000), (100, 200), (100, 2000)] {
        let balancer = balancer(1..=3);
        let (requests, every) = (6000, ms(every));
        let traffic = Traffic { requests, every };
        let got = shares(&balancer, traffic, |_| noisy(Duration::from_micros(took))).await;
        let even = (1..=3).all(|of| (0.22..0.45).contains(&part(&got, of)));
        assert!(even, "{took} µs every {every:?}: {got:?}");
    }
}

/// The median of 31 simulations: one alone may be unlucky, as an average that peaks forgets slowly.
async fn typical(simulation: impl AsyncFn() -> f64) -> f64 {
    let mut parts = Vec::new();
    for _ in 0..31 {
        parts.push(simulation().await);
    }
    parts.sort_by(f64::total_cmp);
    parts[15]
}

/// What part of the requests somebody gets who joins two busy ones.
async fn joined() -> f64 {
    let balancer = balancer(1..=2);
    let traffic = |requests| Traffic {
        requests,
        every: ms(5),
    };
    let quick = |_| noisy(Duration::from_micros(500));
    shares(&balancer, traffic(8000), quick).await;
    balancer.update(&endpoints(1..=3), false);
    part(&shares(&balancer, traffic(600), quick).await, 3)
}

/// Else a replica that was rolled would stand idle for half a minute.
#[tokio::test(start_paused = true)]
async fn who_joins_busy_ones_gets_its_part_at_once() {
    let part = typical(joined).await;
    assert!(part > 0.15, "{part}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gets_less_than_one_in_a_hundred() {
    for every in [100, 5, 1] {
        let balancer = balancer(1..=3);
        let (requests, every) = (6000, ms(every));
        let traffic = Traffic { requests, every };
        let latency = |of| noisy(ms(if of == 3 { 50 } else { 1 }));
        let got = shares(&balancer, traffic, latency).await;
        assert!(part(&got, 3) < 0.01, "every {every:?}: {got:?}");
        let even = (1..=2).all(|of| (0.35..0.65).contains(&part(&got, of)));
        assert!(even, "every {every:?}: {got:?}");
    }
}

/// Endless streams are load too, though nothing of them is slow.
#[tokio::test(start_paused = true)]
async fn long_streams_spread_exactly() {
    let balancer = balancer(1..=3);
    let mut open = Vec::new();
    for _ in 0..300 {
        let choice = ready(&balancer).await;
        choice.answered(ms(30));
        open.push(choice);
    }
    for of in 1..=3 {
        let got = open.iter().filter(|choice| number(choice) == of).count();
        assert!((90..=110).contains(&got), "{of}: {got}");
    }
}

/// Sends requests, of which `refuses` takes none; the others are tried then. How many found it.
async fn refused(balancer: &Balancer, traffic: Traffic, refuses: u8) -> u32 {
    let mut refused = 0;
    for _ in 0..traffic.requests {
        let choice = ready(balancer).await;
        if number(&choice) == refuses {
            choice.failed();
            refused += 1;
        } else {
            choice.connected(ms(1));
            choice.answered(ms(1));
        }
        drop(choice);
        pass(traffic.every).await;
    }
    refused
}

#[tokio::test(start_paused = true)]
async fn one_that_refuses_is_asked_in_vain_less_than_once_in_a_hundred() {
    let balancer = balancer(1..=3);
    let (requests, every) = (6000, ms(5));
    let traffic = Traffic { requests, every };
    let vain = refused(&balancer, traffic, 1).await;
    assert!((4..=12).contains(&vain), "{vain}");
}

/// What part of the requests somebody gets who refused all, and has answered a thousand since.
async fn recovered() -> f64 {
    let balancer = balancer(1..=3);
    let (requests, every) = (1000, ms(5));
    let traffic = Traffic { requests, every };
    refused(&balancer, traffic, 1).await;
    // It fails at 0, 0.1, 0.3, 0.7, 1.5 and 3.1 s at the earliest, and is due again by 7.1 s.
    let got = shares(&balancer, traffic, |_| ms(1)).await;
    assert!(part(&got, 1) < 0.7, "{got:?}");
    part(&shares(&balancer, traffic, |_| noisy(ms(1))).await, 1)
}

#[tokio::test(start_paused = true)]
async fn one_that_recovers_gets_its_share_when_its_back_off_is_over() {
    let part = typical(recovered).await;
    assert!(part > 0.05, "{part}");
}
