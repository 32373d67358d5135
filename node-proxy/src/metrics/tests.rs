// SPDX-License-Identifier: Apache-2.0
mod bounded;
mod http;

use culvert_api::{
    agent::Direction,
    workload::{PodUid, Workload},
};
use prometheus::TextEncoder;

use super::*;

fn workload(name: &str) -> Workload {
    Workload {
        uid: PodUid(name.into()),
        namespace: "shop".into(),
        name: name.into(),
        service_account: "cart".into(),
        owner_kind: "deployment".into(),
        owner_name: "cart".into(),
    }
}

fn rig() -> (Registry, Metrics) {
    bounded_rig(MAX_SERIES)
}

fn bounded_rig(max: usize) -> (Registry, Metrics) {
    let registry = Registry::new();
    let metrics = Metrics::bounded(&registry, max).unwrap_or_else(|e| panic!("{e}"));
    (registry, metrics)
}

fn page(registry: &Registry) -> String {
    let text = TextEncoder::new().encode_to_string(&registry.gather());
    text.unwrap_or_else(|e| panic!("{e}"))
}

/// The lines of the pod's series.
fn lines(registry: &Registry, pod: &str) -> Vec<String> {
    let text = page(registry);
    let label = format!("pod=\"{pod}\"");
    text.lines()
        .filter(|line| line.contains(&label))
        .map(str::to_owned)
        .collect()
}

fn has(lines: &[String], name: &str, labels: &[&str], value: u64) -> bool {
    let suffix = format!("}} {value}");
    lines.iter().any(|line| {
        line.starts_with(&format!("{name}{{"))
            && labels.iter().all(|label| line.contains(label))
            && line.ends_with(&suffix)
    })
}

#[test]
fn a_connection_is_counted_on_both_sides() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    let leg = Leg {
        client_id: "spiffe://cluster.local/ns/shop/sa/web".into(),
        ..Leg::new(Direction::Inbound, Tls::Mutual)
    };
    let open = pod.open(leg.clone());
    open.source().read.inc_by(7);
    open.destination().write.inc_by(7);
    let now = lines(&registry, "cart-1");
    let source = [
        "direction=\"inbound\"",
        "peer=\"src\"",
        "tls=\"true\"",
        "sa/web\"",
    ];
    assert!(has(&now, "tcp_open_total", &source, 1), "{now:#?}");
    assert!(has(&now, "tcp_open_connections", &source, 1), "{now:#?}");
    assert!(has(&now, "tcp_read_bytes_total", &source, 7), "{now:#?}");
    let destination = ["peer=\"dst\"", "tls=\"loopback\""];
    assert!(
        has(&now, "tcp_write_bytes_total", &destination, 7),
        "{now:#?}"
    );
    open.close("ECONNRESET".into());
    drop(pod.open(leg));
    let now = lines(&registry, "cart-1");
    assert!(has(&now, "tcp_open_total", &source, 2), "{now:#?}");
    assert!(has(&now, "tcp_open_connections", &source, 0), "{now:#?}");
    assert!(has(
        &now,
        "tcp_close_total",
        &["errno=\"ECONNRESET\"", "peer=\"src\""],
        1
    ));
    assert!(has(
        &now,
        "tcp_close_total",
        &["errno=\"\"", "peer=\"src\""],
        1
    ));
}

#[test]
fn faults_and_answers_of_the_policy_are_counted() {
    let (registry, metrics) = rig();
    let pod = metrics.pod(&workload("cart-1"));
    pod.fault(Direction::Outbound, Fault::GatewayLoop);
    pod.authorized(Counter::Deny, "all-authenticated", Tls::NoIdentity, "");
    let now = lines(&registry, "cart-1");
    assert!(has(
        &now,
        "outbound_tcp_errors_total",
        &["error=\"gateway loop\""],
        1
    ));
    let deny = ["authz_name=\"all-authenticated\"", "tls=\"no_identity\""];
    assert!(has(&now, "inbound_tcp_authz_deny_total", &deny, 1));
}

#[test]
fn the_series_of_a_pod_go_with_its_last_user() {
    let (registry, metrics) = rig();
    let leave_traces = |pod: &PodMetrics| {
        pod.open(Leg::new(Direction::Inbound, Tls::NoIdentity))
            .close("EPIPE".into());
        pod.fault(Direction::Inbound, Fault::Io);
        pod.authorized(Counter::Allow, "a", Tls::Mutual, "b");
    };
    let (one, again) = (
        metrics.pod(&workload("cart-1")),
        metrics.pod(&workload("cart-1")),
    );
    let other = metrics.pod(&workload("cart-2"));
    leave_traces(&one);
    leave_traces(&other);
    drop(one);
    assert!(!lines(&registry, "cart-1").is_empty());
    drop(again);
    assert_eq!(lines(&registry, "cart-1"), Vec::<String>::new());
    assert!(!lines(&registry, "cart-2").is_empty());
}

#[test]
fn limits_let_in_so_many() {
    let (process, pod) = (Arc::new(Limit::new(3)), Arc::new(Limit::new(2)));
    let gauge = prometheus::IntGauge::new("n", "n").unwrap_or_else(|e| panic!("{e}"));
    let admit = |pod: &Arc<Limit>| Admitted::new(&process, pod, &gauge);
    let (one, two) = (admit(&pod), admit(&pod));
    assert!(one.is_some() && two.is_some() && admit(&pod).is_none());
    let other = Arc::new(Limit::new(2));
    let three = admit(&other);
    assert!(three.is_some() && admit(&other).is_none());
    assert_eq!((gauge.get(), process.open()), (3, 3));
    drop((one, two, three));
    assert_eq!((gauge.get(), process.open(), pod.open()), (0, 0, 0));
}
