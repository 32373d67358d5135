// SPDX-License-Identifier: Apache-2.0
//! `culvert check` and `culvert version` as they are run, against an API server on loopback.

mod api_server;
mod cluster;

use std::{
    net::TcpListener,
    process::Output,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use api_server::{Answer, ApiServer, Result, list, status};
use cluster::{installed, node, own_pods, pod};

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

fn text(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams
        .map(|stream| String::from_utf8_lossy(stream))
        .concat()
}

fn passes(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
}

fn fails(output: &Output, with: &[&str]) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for expected in with {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
}

#[test]
fn all_is_well() -> Result<()> {
    let server = installed()?;
    let output = server.culvert(&["check"])?;
    passes(&output);
    let text = text(&output);
    assert!(!text.contains('×') && !text.contains('‼'), "{text}");
    assert!(!text.contains('\x1b'), "colours without a terminal");
    assert!(text.ends_with("Status check results are √\n"), "{text}");
    for line in [
        "kubernetes-api\n--------------\n√ can initialize the client\n√ can query the Kubernetes API",
        "√ issuer cert is issued by the trust anchor",
        "√ every node's agent is ready",
        "√ every opted-in pod is steered",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    let few = server.asked().len();
    assert!(few < 20, "{few} questions: {:?}", server.asked());
    Ok(())
}

#[test]
fn what_is_wrong_is_named_with_its_reason() -> Result<()> {
    let server = installed()?;
    server.lists("/api/v1/namespaces/culvert/pods", own_pods("False"));
    server.lists("/api/v1/pods", vec![pod("web", "True"), pod("db", "False")]);
    let event = json!({
        "metadata": {}, "involvedObject": {"uid": "uid-db"}, "reason": "RuntimeUnsupported",
        "message": "gVisor has its own network", "source": {"component": "culvert-agent"},
    });
    let of_db = "/api/v1/namespaces/shop/events";
    server.lists(of_db, vec![event]);
    let mut unchained = node("n2");
    let told = r#"{"cni":{"problem":"/etc/cni/net.d has no other configuration"}}"#;
    unchained["metadata"]["annotations"]["culvert.io/agent"] = told.into();
    let taint = json!([{"key": "node.culvert.io/agent-not-ready", "effect": "NoSchedule"}]);
    unchained["spec"] = json!({"taints": taint});
    server.lists("/api/v1/nodes", vec![node("n1"), unchained]);
    let output = server.culvert(&["check", "-o", "short"])?;
    fails(
        &output,
        &[
            "× every node's proxy is ready\n    node n2: pod culvert-proxy-n2: container proxy is in \
             CrashLoopBackOff, before it ended with 1 (Error): no socket of an agent (3 restarts)\n    hint: kubectl logs",
            "× the CNI plugin is chained on every node\n    node n2: /etc/cni/net.d has no other",
            "× no node has the start-up taint left over\n    node n2 has node.culvert.io/agent",
            "× every opted-in pod is steered\n    shop/db on n1: RuntimeUnsupported: gVisor has its own",
            "Status check results are ×",
        ],
    );
    assert!(!text(&output).contains('√'), "{}", text(&output));
    let asked = server.asked();
    let selected = asked
        .iter()
        .filter(|asked| asked.contains("involvedObject.uid%3Duid-db"));
    assert_eq!(selected.count(), 1, "{asked:?}");
    Ok(())
}

#[test]
fn a_proxy_that_does_not_trust_a_new_anchor_yet_is_named() -> Result<()> {
    let server = installed()?;
    let proxy = "/api/v1/namespaces/culvert/pods/culvert-proxy-n2:4191/proxy/metrics";
    let old = "culvert_proxy_trust_anchor_expiration_timestamp_seconds{anchor=\"0123\"} 1\n";
    server.answers(proxy, Answer::Text(200, old));
    let named = "× every proxy trusts these anchors\n    pod culvert-proxy-n2 does not trust 1";
    fails(&server.culvert(&["check"])?, &[named]);
    Ok(())
}

#[test]
fn programs_read_the_same() -> Result<()> {
    let server = installed()?;
    server.lists("/api/v1/pods", vec![pod("db", "False")]);
    let output = server.culvert(&["check", "--proxy", "-o", "json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["success"], false);
    let categories = report["categories"].as_array().ok_or("no categories")?;
    let names: Vec<_> = categories.iter().map(|it| &it["categoryName"]).collect();
    let expected = [
        "kubernetes-api",
        "kubernetes-nodes",
        "culvert-nodes",
        "culvert-data-plane",
        "culvert-version",
    ];
    assert_eq!(names, expected);
    let failed = &categories[3]["checks"][0];
    assert_eq!(failed["result"], "error");
    assert_eq!(failed["error"], "shop/db on n1: Steered");
    Ok(())
}

#[test]
fn a_warning_fails_nothing() -> Result<()> {
    let server = installed()?;
    let output = server.culvert(&["check", "--expected-version=9.9.9"])?;
    passes(&output);
    let text = text(&output);
    let warned = "‼ data plane is of the expected version\n    pod culvert-agent-n1 on n1 is";
    assert!(text.contains(warned), "{text}");
    Ok(())
}

#[test]
fn only_the_pods_of_one_namespace() -> Result<()> {
    let server = installed()?;
    server.lists("/api/v1/namespaces/other/pods", vec![]);
    server.lists("/api/v1/namespaces/other/events", vec![]);
    server.answers("/api/v1/pods", Answer::Hangs);
    passes(&server.culvert(&["check", "-n", "other"])?);
    Ok(())
}

#[test]
fn the_pods_of_later_pages_count() -> Result<()> {
    let server = installed()?;
    let mut first = list(vec![pod("web", "True")]);
    first["metadata"]["continue"] = "next".into();
    server.says("/api/v1/pods", first);
    let second = list(vec![pod("db", "False")]);
    server.says("/api/v1/pods?&limit=500&continue=next", second);
    fails(&server.culvert(&["check"])?, &["shop/db on n1"]);
    Ok(())
}

#[test]
fn an_api_server_that_is_away_is_not_waited_for() -> Result<()> {
    let server = ApiServer::start()?;
    let gone = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let kubeconfig = std::fs::read_to_string(server.kubeconfig())?;
    let mut kubeconfig: Value = serde_json::from_str(&kubeconfig)?;
    kubeconfig["clusters"][0]["cluster"]["server"] = format!("http://{gone}").into();
    std::fs::write(server.kubeconfig(), kubeconfig.to_string())?;
    let output = server.culvert(&["check", "--request-timeout=60s"])?;
    let refused = "× can query the Kubernetes API\n    could not query the Kubernetes API: ";
    fails(&output, &[refused, "onnection refused"]);
    Ok(())
}

#[test]
fn an_api_server_that_never_answers_is_given_up() -> Result<()> {
    let server = ApiServer::start()?;
    server.answers("/version", Answer::Hangs);
    let output = server.culvert(&["check", "--request-timeout=1s"])?;
    fails(&output, &["could not query the Kubernetes API: "]);
    let output = server.culvert(&["version", "--request-timeout=1s"])?;
    fails(
        &output,
        &["Client version:", "error: could not list pods in culvert"],
    );
    Ok(())
}

#[test]
fn what_is_not_answered_costs_its_own_check_only() -> Result<()> {
    let server = installed()?;
    server.answers("/api/v1/nodes", Answer::Hangs);
    server.answers(
        "/api/v1/namespaces/culvert/secrets/culvert-identity-issuer",
        Answer::Hangs,
    );
    let forbidden = status(
        403,
        "Forbidden",
        "pods is forbidden: User \"u\" cannot list",
    );
    server.answers("/api/v1/pods", forbidden);
    let started = Instant::now();
    let output = server.culvert(&["check", "--request-timeout=1s"])?;
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
    fails(
        &output,
        &[
            "× every node's agent is ready\n    could not list nodes: ",
            "× certificate config is valid\n    could not get Secret culvert-identity-issuer: ",
            "× every opted-in pod is steered\n    could not list pods: pods is forbidden",
            "hint: ask as somebody who may list pods",
            "√ control is ready",
        ],
    );
    Ok(())
}

#[test]
fn nothing_is_installed() -> Result<()> {
    let server = ApiServer::start()?;
    server.lists("/api/v1/nodes", vec![node("n1")]);
    let nothing = |path: &str| server.lists(path, vec![]);
    nothing("/api/v1/pods");
    nothing("/api/v1/events");
    nothing("/api/v1/namespaces");
    nothing("/api/v1/namespaces/culvert/pods");
    let output = server.culvert(&["check", "--wait=30s"])?;
    fails(
        &output,
        &[
            "could not get DaemonSet culvert-agent: there is none",
            "install it with `culvert install | kubectl apply -f -`",
            "node n1: its agent went without cleaning up; while /etc/cni/net.d/00-culvert.conflist is there",
        ],
    );
    assert!(!text(&output).contains("waiting"), "waited for nothing");
    Ok(())
}

#[test]
fn what_is_on_its_way_is_waited_for() -> Result<()> {
    let server = installed()?;
    server.lists("/api/v1/namespaces/culvert/pods", own_pods("False"));
    let mut waiting = server.command(&["check", "--wait=120s"]);
    waiting.stdout(std::process::Stdio::piped());
    let waiting = waiting.stderr(std::process::Stdio::piped()).spawn()?;
    let looks = || {
        let asked = server.asked();
        asked
            .iter()
            .filter(|asked| *asked == "GET /version")
            .count()
    };
    let end = Instant::now() + Duration::from_secs(60);
    // Progress is said from the first second on: after the second look.
    while looks() < 3 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    server.lists("/api/v1/namespaces/culvert/pods", own_pods("True"));
    let output = waiting.wait_with_output()?;
    passes(&output);
    let progress = "waiting until every node's proxy is ready: node n2: pod culvert-proxy-n2";
    assert!(text(&output).contains(progress), "{}", text(&output));
    Ok(())
}

/// An API server before the installation, whose word on each permission is `allowed`.
fn before(allowed: bool) -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.lists("/api/v1/nodes", vec![node("n1")]);
    server.lists(
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
        vec![],
    );
    let review = json!({"metadata": {}, "spec": {}, "status": {"allowed": allowed}});
    server.says(REVIEWS, review);
    Ok(server)
}

#[test]
fn a_cluster_can_take_it() -> Result<()> {
    let server = before(true)?;
    let output = server.culvert(&["check", "--pre"])?;
    passes(&output);
    let text = text(&output);
    assert!(
        text.contains("√ namespace culvert is free\n√ can create namespaces"),
        "{text}"
    );
    let asked = server.asked();
    let reviews: Vec<_> = asked
        .iter()
        .filter(|asked| asked.contains(REVIEWS))
        .collect();
    let daemon_sets = |asked: &&&String| {
        asked.contains(r#""group":"apps""#)
            && asked.contains(r#""resource":"daemonsets""#)
            && asked.contains(r#""namespace":"culvert""#)
    };
    assert_eq!(reviews.iter().filter(daemon_sets).count(), 1, "{reviews:?}");
    Ok(())
}

#[test]
fn a_cluster_can_not_take_it() -> Result<()> {
    let server = before(false)?;
    let mut old = node("n1");
    old["status"]["nodeInfo"]["kernelVersion"] = "5.4.0-1-generic".into();
    server.lists("/api/v1/nodes", vec![old]);
    server.says(
        "/apis/apps/v1/namespaces/culvert/deployments/culvert-control",
        json!({
            "metadata": {}, "spec": {"selector": {}, "template": {}},
        }),
    );
    fails(
        &server.culvert(&["check", "--pre"])?,
        &[
            "× namespace culvert is free\n    Culvert is installed in it",
            "× can create clusterroles\n    not allowed",
            "× kernels are 5.17 or later\n    node n1 runs \"5.4.0-1-generic\"",
        ],
    );
    Ok(())
}

#[test]
fn versions_are_told() -> Result<()> {
    let server = installed()?;
    let output = server.culvert(&["version"])?;
    passes(&output);
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "Client version:     {version}\nControl version:    {version} (1 pods)\n\
         Data plane version: {version} (4 pods)\n"
    );
    assert_eq!(text(&output), expected);
    let client = server.culvert(&["version", "--client", "--short"])?;
    assert_eq!(text(&client), format!("{version}\n"));
    Ok(())
}

#[test]
fn without_a_cluster_it_says_how_to_name_one() -> Result<()> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_culvert"));
    let output = command.args(["check", "--kubeconfig=/nowhere"]).output()?;
    fails(
        &output,
        &[
            "× can initialize the client\n    no cluster to ask:",
            "give --kubeconfig",
        ],
    );
    Ok(())
}
