// SPDX-License-Identifier: Apache-2.0
//! What is counted.

use prometheus::{Registry, TextEncoder};

use super::*;

struct Rig {
    registry: Registry,
    metrics: BalancerMetrics,
}

impl Rig {
    fn new() -> Self {
        let registry = Registry::new();
        let metrics = BalancerMetrics::register(&registry);
        let metrics = metrics.unwrap_or_else(|e| panic!("{e}"));
        Self { registry, metrics }
    }

    fn balancer(&self) -> Balancer {
        let service = ServicePort {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            port: 80,
        };
        let balancer = Balancer::measured(self.metrics.clone(), service);
        balancer.update(&endpoints(1..=3), true);
        balancer
    }

    fn text(&self) -> String {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        text.unwrap_or_else(|e| panic!("{e}"))
    }

    /// The value of the only series of `name` with `label`.
    fn value(&self, name: &str, label: &str) -> f64 {
        let text = self.text();
        let start = format!("{name}{{");
        let mut values = text
            .lines()
            .filter(|line| line.starts_with(&start) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok());
        let value = values.next();
        assert_eq!(values.next(), None, "{text}");
        value.unwrap_or_else(|| panic!("no {name} with {label} in\n{text}"))
    }

    fn assert(&self, values: &[(&str, &str, f64)]) {
        for (name, label, expected) in values {
            let got = self.value(&format!("outbound_http_balancer_{name}"), label);
            assert!((got - expected).abs() < 1e-9, "{name} {label}: {got}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_and_updates_are_counted() {
    let rig = Rig::new();
    let balancer = rig.balancer();
    let choice = ready(&balancer).await;
    choice.failed();
    rig.assert(&[
        ("endpoints", "endpoint_state=\"ready\"", 2.0),
        ("endpoints", "endpoint_state=\"pending\"", 1.0),
        ("p2c_endpoints", "", 3.0),
        ("p2c_updates_total", "op=\"Reset\"", 1.0),
    ]);
    choice.connected(ms(1));
    rig.assert(&[("endpoints", "endpoint_state=\"ready\"", 3.0)]);
    choice.failed();
    let left = (1..=3).filter(|of| *of != number(&choice));
    balancer.update(&endpoints(left.chain([4, 5])), false);
    rig.assert(&[
        ("endpoints", "endpoint_state=\"ready\"", 4.0),
        ("endpoints", "endpoint_state=\"pending\"", 0.0),
        ("p2c_endpoints", "", 4.0),
        ("p2c_updates_total", "op=\"Reset\"", 1.0),
        ("p2c_updates_total", "op=\"Add\"", 2.0),
        ("p2c_updates_total", "op=\"Remove\"", 1.0),
    ]);
    choice.connected(ms(1));
    rig.assert(&[("endpoints", "endpoint_state=\"ready\"", 4.0)]);
    let same: Vec<_> = endpoints(1..=5);
    balancer.update(&same, false);
    balancer.update(&same, false);
    rig.assert(&[("p2c_updates_total", "op=\"Add\"", 3.0)]);
}

#[tokio::test(start_paused = true)]
async fn the_queue_and_its_gate_are_counted() {
    let rig = Rig::new();
    let balancer = rig.balancer();
    drop(ready(&balancer).await);
    rig.assert(&[
        ("queue_requests_total", "", 1.0),
        ("queue_length", "", 0.0),
        ("queue_latency_seconds_bucket", "le=\"0.0005\"", 1.0),
        ("queue_gate_open_total", "", 1.0),
        ("queue_gate_shut_total", "", 0.0),
        ("queue_gate_shut_time_seconds", "", 0.0),
        ("queue_gate_timeout_seconds", "", 3.0),
    ]);
    assert!(rig.value("outbound_http_balancer_queue_gate_open_time_seconds", "") > 1e9);
    balancer.update(&[], true);
    let shut = async { balancer.ready(&[]).await.err() };
    let look = async { rig.assert(&[("queue_length", "", 1.0)]) };
    let (shut, ()) = tokio::join!(shut, look);
    assert_eq!(shut, Some(Unready::FailFast));
    rig.assert(&[
        ("queue_requests_total", "", 2.0),
        ("queue_length", "", 0.0),
        ("queue_latency_seconds_bucket", "le=\"1\"", 1.0),
        ("queue_latency_seconds_bucket", "le=\"+Inf\"", 2.0),
        ("queue_gate_shut_total", "", 1.0),
        ("queue_gate_open_time_seconds", "", 0.0),
    ]);
    let refused = balancer.ready(&[]).await.err();
    assert_eq!(refused, Some(Unready::FailFast));
    rig.assert(&[("queue_requests_total", "", 2.0)]);
    balancer.update(&endpoints([1]), false);
    rig.assert(&[("queue_gate_open_total", "", 2.0)]);
}

#[tokio::test(start_paused = true)]
async fn series_name_the_service_and_go_with_its_last_balancer() {
    let rig = Rig::new();
    let (one, other) = (rig.balancer(), rig.balancer());
    assert!(!rig.text().contains("cart"), "{}", rig.text());
    drop((ready(&one).await, ready(&other).await));
    let labels = "{backend_group=\"core\",backend_kind=\"Service\",backend_name=\"cart\",\
                  backend_namespace=\"shop\",backend_port=\"80\",backend_section_name=\"\",\
                  parent_group=\"core\",parent_kind=\"Service\",parent_name=\"cart\",\
                  parent_namespace=\"shop\",parent_port=\"80\",parent_section_name=\"\"}";
    rig.assert(&[("p2c_endpoints", labels, 6.0)]);
    assert!(!rig.text().contains("outbound_tcp_balancer_p2c_endpoints{"));
    drop(one.ready_connection(&[]).await);
    assert!(rig.value("outbound_tcp_balancer_p2c_endpoints", labels) > 2.0);
    drop(one);
    rig.assert(&[("p2c_endpoints", labels, 3.0)]);
    drop(other);
    assert!(!rig.text().contains("cart"), "{}", rig.text());
}
