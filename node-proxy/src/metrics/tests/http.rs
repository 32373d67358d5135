// SPDX-License-Identifier: Apache-2.0
//! Requests under Linkerd's names, labels and buckets.

use std::{net::SocketAddr, time::Duration};

use super::*;
use crate::{detect::Protocol, http::Class};

pub(super) const MS: Duration = Duration::from_millis(1);

pub(super) fn inbound(client: &str) -> HttpLeg {
    let leg = Leg {
        client_id: client.into(),
        ..Leg::new(Direction::Inbound, Tls::Mutual)
    };
    let authority = "".into();
    HttpLeg { leg, authority }
}

fn outbound() -> HttpLeg {
    let leg = Leg {
        server_id: "spiffe://cluster.local/ns/shop/sa/cart".into(),
        dst_service: "cart".into(),
        ..Leg::new(Direction::Outbound, Tls::Mutual)
    };
    HttpLeg {
        leg: leg.reaching(&workload("cart-1"), SocketAddr::from(([10, 0, 0, 7], 80))),
        authority: "cart.shop.svc.cluster.local:80".into(),
    }
}

pub(super) fn status(status: u16) -> Outcome {
    let class = match status {
        500.. => Class::Failure,
        _ => Class::Success,
    };
    Outcome {
        status: Some(status),
        class,
        grpc_status: None,
        error: "",
    }
}

fn value(lines: &[String], name: &str, labels: &[&str]) -> Option<u64> {
    (0..10).find(|value| has(lines, name, labels, *value))
}

#[test]
fn requests_have_linkerds_labels() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("web-1"));
    let series = pod.http(&outbound());
    for _ in 0..3 {
        series.request();
        series.response(&status(200), 7 * MS);
    }
    series.request();
    series.response(&status(503), 2000 * MS);
    let now = lines(&registry, "web-1");
    let leg = [
        "direction=\"outbound\"",
        "authority=\"cart.shop.svc.cluster.local:80\"",
        "namespace=\"shop\"",
        "deployment=\"cart\"",
        "workload_kind=\"deployment\"",
        "service_account=\"cart\"",
        "tls=\"true\"",
        "server_id=\"spiffe://cluster.local/ns/shop/sa/cart\"",
        "dst_namespace=\"shop\"",
        "dst_service=\"cart\"",
        "dst_pod=\"cart-1\"",
        "dst_deployment=\"cart\"",
        "dst_serviceaccount=\"cart\"",
        "target_addr=\"10.0.0.7:80\"",
        "target_port=\"80\"",
    ];
    assert!(has(&now, "request_total", &leg, 4), "{now:#?}");
    let labels = |more: &[&'static str]| [&leg[..], more].concat();
    let good = labels(&["status_code=\"200\"", "classification=\"success\""]);
    assert!(has(&now, "response_total", &good, 3), "{now:#?}");
    let bad = labels(&["status_code=\"503\"", "classification=\"failure\""]);
    assert!(has(&now, "response_total", &bad, 1), "{now:#?}");
    let none = ["grpc_status", "error=", "overflow="];
    assert!(
        !now.iter()
            .any(|line| none.iter().any(|no| line.contains(no)))
    );
}

#[test]
fn latencies_are_in_linkerds_buckets() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    let series = pod.http(&inbound("spiffe://a"));
    for ms in [1, 7, 30, 60_000] {
        series.response(&status(200), ms * MS);
    }
    let now = lines(&registry, "cart-1");
    let bucket = |le: &str| {
        let le = format!("le=\"{le}\"");
        let labels = ["status_code=\"200\"", "client_id=\"spiffe://a\"", &le];
        value(&now, "response_latency_ms_bucket", &labels)
    };
    let bounds = [
        "1", "2", "3", "4", "5", "10", "20", "30", "40", "50", "100", "200", "300", "400", "500",
        "1000", "2000", "3000", "4000", "5000", "10000", "20000", "30000", "40000", "50000",
    ];
    let counts: Vec<_> = bounds.into_iter().filter_map(bucket).collect();
    let mut expected = vec![1; 5];
    expected.extend([2, 2]);
    expected.extend([3; 18]);
    assert_eq!(counts, expected);
    assert_eq!(bucket("+Inf"), Some(4));
    let count = value(&now, "response_latency_ms_count", &["status_code=\"200\""]);
    assert_eq!(count, Some(4));
    let sum = now
        .iter()
        .find(|line| line.starts_with("response_latency_ms_sum"));
    assert!(sum.is_some_and(|line| line.ends_with(" 60038")), "{sum:?}");
    assert!(
        !now.iter()
            .any(|line| line.contains("_bucket") && line.contains("classification"))
    );
}

#[test]
fn how_a_stream_ended_is_told() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    let series = pod.http(&inbound(""));
    let end = |status, grpc_status, error, class| {
        let outcome = Outcome {
            status,
            class,
            grpc_status,
            error,
        };
        series.response(&outcome, MS);
    };
    end(Some(200), Some(0), "", Class::Success);
    end(Some(200), Some(14), "", Class::Failure);
    end(Some(200), Some(4711), "", Class::Success);
    end(Some(200), Some(4712), "", Class::Success);
    end(Some(200), None, "i/o", Class::Failure);
    end(None, None, "failfast", Class::Failure);
    let now = lines(&registry, "cart-1");
    let ended = |labels: &[&str]| value(&now, "response_total", labels);
    let grpc = |status| ended(&["status_code=\"200\"", status]);
    assert_eq!(
        grpc("classification=\"success\",grpc_status=\"0\""),
        Some(1)
    );
    assert_eq!(
        grpc("classification=\"failure\",grpc_status=\"14\""),
        Some(1)
    );
    assert_eq!(grpc("grpc_status=\"other\""), Some(2));
    assert_eq!(grpc("classification=\"failure\",error=\"i/o\""), Some(1));
    let failfast = ["classification=\"failure\"", "error=\"failfast\""];
    assert_eq!(ended(&failfast), Some(1));
    let without = |line: &&String| line.contains("failfast") && !line.contains("status_code");
    assert_eq!(now.iter().filter(without).count(), 1);
    let timed = value(&now, "response_latency_ms_count", &["status_code=\"200\""]);
    assert_eq!(timed, Some(5), "what had no response is not timed");
}

#[test]
fn what_happens_beside_requests_is_counted() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    pod.http_fault(Direction::Inbound, "unauthorized");
    pod.http_fault(Direction::Outbound, "failfast");
    let allowed = pod.http_authorized(Counter::HttpAllow, "all", Tls::Mutual, "spiffe://a");
    (0..5).for_each(|_| allowed.inc());
    pod.http_authorized(Counter::HttpDeny, "none", Tls::NoIdentity, "")
        .inc();
    pod.detected(Direction::Inbound, Some(Protocol::Http1), MS / 2);
    pod.detected(Direction::Inbound, None, 10 * MS);
    pod.detected(Direction::Outbound, Some(Protocol::Tls), MS / 2);
    pod.protocol(Protocol::Http2);
    let now = lines(&registry, "cart-1");
    let is = |name, labels: &[&str], count| {
        assert!(has(&now, name, labels, count), "{name} {labels:?} {now:#?}");
    };
    is("inbound_http_errors_total", &["error=\"unauthorized\""], 1);
    is("outbound_http_errors_total", &["error=\"failfast\""], 1);
    let client = [
        "authz_name=\"all\"",
        "tls=\"true\"",
        "client_id=\"spiffe://a\"",
    ];
    is("inbound_http_authz_allow_total", &client, 5);
    is("inbound_http_authz_deny_total", &["authz_name=\"none\""], 1);
    is(
        "inbound_tcp_detect_http_results_total",
        &["result=\"http/1\""],
        1,
    );
    is(
        "inbound_tcp_detect_http_results_total",
        &["result=\"read_timeout\""],
        1,
    );
    is(
        "outbound_tcp_detect_http_results_total",
        &["result=\"not_http\""],
        1,
    );
    let bucket = "inbound_tcp_detect_http_duration_seconds_bucket";
    is(bucket, &["le=\"0.001\""], 1);
    is(bucket, &["le=\"0.1\""], 2);
    is(
        "outbound_tcp_protocol_connections_total",
        &["protocol=\"http/2\""],
        1,
    );
}

#[test]
fn both_sides_of_a_connection_have_lives_of_their_own() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("web-1"));
    let mut server = pod.open_side(outbound().leg, Peer::Destination);
    server.meter().write.inc_by(3);
    let client = Leg::new(Direction::Outbound, Tls::NoIdentity);
    drop(pod.open_side(client, Peer::Source));
    server.broke("EPIPE".into());
    server.broke("ECONNRESET".into());
    let now = lines(&registry, "web-1");
    let dst = [
        "peer=\"dst\"",
        "deployment=\"cart\"",
        "dst_deployment=\"cart\"",
    ];
    assert!(has(&now, "tcp_open_connections", &dst, 1), "{now:#?}");
    assert!(has(&now, "tcp_write_bytes_total", &dst, 3), "{now:#?}");
    let src = ["peer=\"src\"", "tls=\"loopback\""];
    assert!(has(&now, "tcp_open_connections", &src, 0), "{now:#?}");
    drop(server);
    let now = lines(&registry, "web-1");
    assert!(has(
        &now,
        "tcp_close_total",
        &["peer=\"dst\"", "errno=\"EPIPE\""],
        1
    ));
    assert!(has(
        &now,
        "tcp_close_total",
        &["peer=\"src\"", "errno=\"\""],
        1
    ));
}

/// Prints what a request costs here: `cargo test --release … what_a_request_costs -- --nocapture`.
#[test]
fn what_a_request_costs() {
    const ROUNDS: u32 = 200_000;
    let (_registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    let series = pod.http(&inbound("spiffe://a"));
    let outcome = status(200);
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        series.request();
        series.response(std::hint::black_box(&outcome), 7 * MS);
    }
    let each = begun.elapsed() / ROUNDS;
    println!("request() and response(): {each:?}");
    assert!(each < Duration::from_micros(50), "took {each:?}");
}
