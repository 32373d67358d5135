// SPDX-License-Identifier: Apache-2.0
//! What peers make up does not make series without end.

use std::time::Duration;

use super::{
    http::{MS, inbound, status},
    *,
};

/// The value of a series without labels.
fn global(registry: &Registry, name: &str) -> Option<usize> {
    let text = page(registry);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok())
}

/// The sum of all samples of a family in the pod's lines.
fn sum(lines: &[String], name: &str) -> u64 {
    let of = |line: &&String| line.starts_with(&format!("{name}{{"));
    let value = |line: &String| line.rsplit(' ').next().and_then(|v| v.parse::<u64>().ok());
    lines.iter().filter(of).filter_map(value).sum()
}

fn client(n: usize) -> HttpLeg {
    inbound(&format!("spiffe://cluster.local/ns/evil/sa/{n}"))
}

#[test]
fn what_is_gauged_is_what_is_exposed() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    let series = pod.http(&client(1));
    series.request();
    series.response(&status(200), MS);
    series.response(&status(500), MS);
    drop(pod.open(client(1).leg));
    pod.fault(Direction::Inbound, Fault::Io);
    pod.authorized(Counter::Allow, "all", Tls::Mutual, "spiffe://a");
    pod.detected(Direction::Inbound, None, MS);
    let of_limits = lines(&registry, "cart-1");
    let of_limits = of_limits
        .iter()
        .filter(|line| line.starts_with("proxy_metrics"));
    let exposed = lines(&registry, "cart-1").len() - of_limits.count();
    assert_eq!(global(&registry, "proxy_metrics_series "), Some(exposed));
    let limit = global(&registry, "proxy_metrics_series_limit ");
    assert_eq!(limit, Some(MAX_SERIES));
    drop((series, pod));
    assert_eq!(global(&registry, "proxy_metrics_series "), Some(0));
}

#[test]
fn clients_beyond_the_limit_share_a_set() {
    let (registry, metrics) = bounded_rig(10_000);
    let pod = metrics.pod(&workload("cart-1"));
    for n in 0..2_000 {
        let leg = client(n);
        let series = pod.http(&leg);
        series.request();
        series.response(&status(200), MS);
        drop(pod.open(leg.leg.clone()));
        pod.authorized(Counter::Deny, "none", Tls::Mutual, &leg.leg.client_id);
    }
    let now = lines(&registry, "cart-1");
    assert!(now.len() <= 5_100, "{} lines", now.len());
    let totals = [
        "request_total",
        "response_total",
        "response_latency_ms_count",
    ];
    for name in totals.into_iter().chain(["inbound_tcp_authz_deny_total"]) {
        assert_eq!(sum(&now, name), 2_000, "{name}");
        let shared = |line: &&String| line.starts_with(name) && line.contains("overflow=\"true\"");
        assert_eq!(now.iter().filter(shared).count(), 1, "{name}");
    }
    assert_eq!(sum(&now, "tcp_open_total"), 4_000);
    let shared = ["overflow=\"true\"", "tls=\"true\"", "deployment=\"cart\""];
    let shared = now.iter().find(|line| {
        line.starts_with("response_total") && shared.iter().all(|label| line.contains(label))
    });
    assert!(
        shared.is_some_and(|line| !line.contains("evil")),
        "{shared:?}"
    );
    assert!(sum(&now, "proxy_metrics_overflow_total") > 1_000);
    let peers = metrics.pod(&workload("web-1"));
    peers.http(&client(1)).request();
    let own = lines(&registry, "web-1");
    assert!(
        !own.iter().any(|line| line.contains("overflow=\"true\"")),
        "{own:#?}"
    );
}

#[test]
fn statuses_that_a_server_makes_up_share_a_series() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    let series = pod.http(&client(1));
    for code in 100..1_000 {
        series.response(&status(code), MS);
    }
    let now = lines(&registry, "cart-1");
    assert_eq!(sum(&now, "response_total"), 900);
    assert_eq!(sum(&now, "response_latency_ms_count"), 900);
    let other = |line: &&String| {
        line.starts_with("response_total") && line.contains("status_code=\"other\"")
    };
    assert_eq!(
        now.iter().filter(other).count(),
        2,
        "failures and successes"
    );
    assert!(now.len() < 40 * 30, "{} lines", now.len());
}

#[test]
fn idle_series_go_and_those_in_use_stay() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    let held = pod.http(&client(1));
    pod.http(&client(2)).request();
    drop(pod.open(client(2).leg));
    let open = pod.open(client(3).leg);
    pod.authorized(Counter::Allow, "all", Tls::Mutual, "spiffe://gone");
    let sweep = |idle| metrics.pods().iter().for_each(|pod| pod.sweep(idle));
    sweep(Duration::from_secs(600));
    let before = lines(&registry, "cart-1");
    assert!(
        before.iter().any(|line| line.contains("evil/sa/2")),
        "{before:#?}"
    );
    sweep(Duration::ZERO);
    held.request();
    let now = lines(&registry, "cart-1");
    let gone = ["evil/sa/2", "spiffe://gone"];
    assert!(
        !now.iter()
            .any(|line| gone.iter().any(|gone| line.contains(gone))),
        "{now:#?}"
    );
    assert!(has(&now, "request_total", &["evil/sa/1"], 1), "{now:#?}");
    assert!(
        has(&now, "tcp_open_connections", &["evil/sa/3"], 1),
        "{now:#?}"
    );
    drop((held, open));
    sweep(Duration::ZERO);
    assert_eq!(global(&registry, "proxy_metrics_series "), Some(0));
}

#[test]
fn the_series_of_requests_go_with_their_pod() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    let series = pod.http(&client(1));
    series.response(&status(200), MS);
    drop(pod);
    assert_eq!(lines(&registry, "cart-1"), Vec::<String>::new());
    series.response(&status(500), MS);
    drop(series);
    assert_eq!(global(&registry, "proxy_metrics_series "), Some(0));
}
