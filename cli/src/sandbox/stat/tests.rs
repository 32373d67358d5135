// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::sandbox::{layout::Name, scrape::parse};

fn pod(name: &str, deployment: Option<&str>, meshed: bool) -> PodView {
    PodView {
        namespace: "shop".into(),
        name: name.into(),
        deployment: deployment.map(Into::into),
        service_account: "web".into(),
        phase: "Running".into(),
        meshed,
        ..PodView::default()
    }
}

fn args(resource: &str, output: StatFormat) -> args::Stat {
    args::Stat {
        resource: resource.parse().unwrap_or_else(|e| panic!("{e}")),
        namespace: None,
        time_window: Duration::ZERO,
        output,
        target: args::Target {
            name: "x".parse::<Name>().unwrap_or_else(|e| panic!("{e}")),
        },
    }
}

fn status() -> Status {
    Status {
        pods: vec![
            pod("web-1", Some("web"), true),
            pod("web-2", Some("web"), false),
            pod("alone", None, true),
        ],
        ..Status::default()
    }
}

fn look() -> Look {
    let of = |pod: &str, kind: &str, name: &str| {
        format!(
            "direction=\"inbound\",namespace=\"shop\",pod=\"{pod}\",workload_kind=\"{kind}\",\
             workload_name=\"{name}\",service_account=\"web\""
        )
    };
    let (web, alone) = (
        of("web-1", "deployment", "web"),
        of("alone", "pod", "alone"),
    );
    let text = format!(
        "response_total{{{web},classification=\"success\"}} 30\n\
         response_total{{{web},classification=\"failure\"}} 10\n\
         response_latency_ms_bucket{{{web},le=\"10\"}} 40\n\
         response_latency_ms_bucket{{{web},le=\"+Inf\"}} 40\n\
         tcp_open_connections{{{web},peer=\"src\"}} 3\n\
         tcp_open_connections{{{web},peer=\"dst\"}} 3\n\
         tcp_read_bytes_total{{{alone},peer=\"src\"}} 500\n\
         tcp_open_connections{{{},peer=\"src\"}} 9\n\
         response_total{{direction=\"outbound\",namespace=\"shop\",pod=\"web-1\"}} 7\n",
        of("gone", "deployment", "gone")
    );
    Look {
        samples: parse(&text),
        seconds: 10.0,
    }
}

fn shown(resource: &str, output: StatFormat) -> String {
    let args = args(resource, output);
    let rows = rows(&args, &status(), &look());
    table(&args, &rows, 10.0).render(false)
}

#[test]
fn the_columns_are_those_of_linkerd() {
    let expected = "NAMESPACE   NAME         MESHED   SUCCESS      RPS   LATENCY_P50   LATENCY_P95   LATENCY_P99   TCP_CONN\n\
                    shop        deploy/web      1/2    75.00%   4.0rps           5ms          10ms          10ms          3\n\
                    shop        po/alone        1/1         -        -             -             -             -          0\n";
    assert_eq!(shown("all", StatFormat::Table), expected);
}

#[test]
fn pods_have_a_status_and_wide_tables_bytes() {
    let expected = "NAMESPACE   NAME    STATUS    MESHED   SUCCESS   RPS   LATENCY_P50   LATENCY_P95   LATENCY_P99   TCP_CONN   READ_BYTES/SEC   WRITE_BYTES/SEC\n\
                    shop        alone   Running      1/1         -     -             -             -             -          0          50.0B/s            0.0B/s\n";
    assert_eq!(shown("po/alone", StatFormat::Wide), expected);
}

#[test]
fn programs_get_numbers() {
    let args = args("sa", StatFormat::Json);
    let rows = rows(&args, &status(), &look());
    let json = serde_json::to_value(lines(&rows, 10.0)).unwrap_or_default();
    let expected = serde_json::json!([{
        "namespace": "shop", "kind": "serviceaccount", "name": "web", "meshed": "2/3",
        "success": 0.75, "rps": 4.0,
        "latency_ms_p50": 5.0, "latency_ms_p95": 9.5, "latency_ms_p99": 9.9,
        "tcp_open_connections": 12, "tcp_read_bytes_rate": 50.0, "tcp_write_bytes_rate": 0.0,
    }]);
    assert_eq!(json, expected);
}

#[test]
fn kinds_are_named_as_kubectl_names_them() {
    let parsed = |text: &str| text.parse::<Resource>();
    assert_eq!(parsed("deploy/web"), parsed("deployments/web"));
    assert_eq!(parsed("po"), parsed("pods"));
    assert!(parsed("all/web").is_err() && parsed("svc").is_err());
    assert!(shown("deploy/other", StatFormat::Table).lines().count() == 1);
}
