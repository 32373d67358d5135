// SPDX-License-Identifier: Apache-2.0
//! Control on Kubernetes: one replica or several, at an API server that fails by order.

mod replicas;
mod server;

use std::{fs, path::Path, time::Duration};

use culvert_api::grpc::v1::{self, watch_request, watch_response::Kind};
use culvert_control::{ca, config};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use self::server::Server;
use crate::cluster::{self, Cluster, Node, VIP, eventually, request};

const DAY: Duration = Duration::from_hours(24);

/// `{"sub":"system:serviceaccount:culvert:culvert-proxy","aud":"culvert.io/control",
/// "exp":4102444800}`, between a head and what only the API server looks at.
const TOKENS: &str = "e30.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6Y3VsdmVydDpjdWx2ZXJ0LXByb3h5IiwiYXVkIjoiY3VsdmVydC5pby9jb250cm9sIiwiZXhwIjo0MTAyNDQ0ODAwfQ.";

struct Ground {
    server: Server,
    /// The issuer that all replicas have.
    state: TempDir,
}

fn pod(name: &str, namespace: &str, node: &str, account: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "labels": {"app": "web"}, "annotations": {"culvert.io/inject": "enabled"}},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "c"}]},
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn report(pod: &str, generation: u64, steered: bool) -> watch_request::Kind {
    watch_request::Kind::Report(v1::Report {
        pod_uid: format!("uid-{pod}"),
        netns_cookie: 7,
        generation,
        steered,
    })
}

fn condition(pod: &Value) -> Option<&Value> {
    let all = pod["status"]["conditions"].as_array()?;
    all.iter().find(|it| it["type"] == "culvert.io/Meshed")
}

impl Ground {
    /// Two nodes with a proxy each, the pod `a` on the first one, and a service with its slice.
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let kept = ca::kept(&state.path().join("state"), &cluster::domain());
        assert!(kept.is_ok(), "{kept:?}");
        let server = Server::start().await;
        for node in ["n1", "n2"] {
            server.put("nodes", json!({"metadata": {"name": node}}));
            let proxy = pod(
                &format!("proxy-{node}"),
                "culvert",
                node,
                "culvert-proxy",
                "10.0.9.1",
            );
            server.put("pods", proxy);
        }
        let account = json!({"metadata": {"name": "culvert-proxy", "namespace": "culvert", "uid": "account"}});
        server.put("serviceaccounts", account);
        for name in ["shop", "culvert"] {
            server.put("namespaces", json!({"metadata": {"name": name}}));
        }
        server.put("pods", pod("a", "shop", "n1", "web", "10.0.0.1"));
        server.put("services", json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "targetPort": 8080}]},
        }));
        server.put("endpointslices", json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "namespace": "shop", "name": "a"}}],
        }));
        Self { server, state }
    }

    async fn replica(&self, name: &str) -> Cluster {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        copy(&self.state.path().join("state"), &dir.path().join("state"));
        let kubeconfig = dir.path().join("kubeconfig");
        let written = fs::write(&kubeconfig, self.server.kubeconfig());
        assert!(written.is_ok(), "{written:?}");
        let authority = ca::kept(&dir.path().join("state"), &cluster::domain());
        let config = config::Config {
            cluster: config::Cluster::Kubernetes(config::Kubernetes {
                kubeconfig: Some(kubeconfig),
                replica: name.to_owned(),
            }),
            authority: Some(authority.unwrap_or_else(|e| panic!("{e}"))),
            ..cluster::config(&dir, DAY)
        };
        let mut replica = Cluster::serve(dir, DAY, config).await;
        replica.tokens = TOKENS;
        eventually(async || replica.admin("/ready").await.0 == 200).await;
        replica
    }

    fn pod(&self) -> Value {
        self.server
            .get("pods", "shop", "a")
            .unwrap_or_else(|| panic!("no pod"))
    }

    fn says(&self, status: &str) -> bool {
        condition(&self.pod()).is_some_and(|condition| condition["status"] == status)
    }
}

fn copy(from: &Path, to: &Path) {
    let made = fs::create_dir(to);
    assert!(made.is_ok(), "{made:?}");
    for file in fs::read_dir(from).into_iter().flatten().flatten() {
        let copied = fs::copy(file.path(), to.join(file.file_name()));
        assert!(copied.is_ok(), "{copied:?}");
    }
}

/// A node that follows the service, and whether it is meshed there.
async fn follower(replica: &Cluster, node: &str) -> (Node, bool) {
    let mut node = replica.watch(node).await;
    node.subscribe(VIP).await;
    let first = node.next().await;
    let meshed = crate::meshed(&first);
    assert_eq!(meshed.len(), 1, "{first:?}");
    (node, meshed[0])
}

async fn reported(node: &mut Node) -> u64 {
    loop {
        if let Kind::Reported(reported) = node.next().await {
            return reported.generation;
        }
    }
}

#[tokio::test]
async fn a_report_is_kept_in_its_pod_and_a_restart_knows_it() {
    let ground = Ground::new().await;
    let replica = ground.replica("r1").await;
    let (mut peer, meshed) = follower(&replica, "n2").await;
    assert!(!meshed);
    let mut own = replica.watch("n1").await;
    own.send(report("a", 5, true)).await;
    assert_eq!(crate::meshed(&peer.next().await), [true]);
    assert_eq!(reported(&mut own).await, 5);
    let pod = ground.pod();
    let condition = condition(&pod).unwrap_or_else(|| panic!("{pod}"));
    assert_eq!(condition["status"], "True");
    assert_eq!(condition["reason"], "Steered");
    let message = "netns=7 generation=5 addresses=10.0.0.1";
    assert_eq!(condition["message"], message);
    assert!(condition["lastTransitionTime"].is_string(), "{condition}");
    replica.stop().await;
    let again = ground.replica("r2").await;
    let (_peer, meshed) = follower(&again, "n2").await;
    assert!(meshed, "before its node said anything");
    let writes = ground.server.count("PATCH", "/pods/a/status");
    let mut own = again.watch("n1").await;
    own.send(report("a", 6, true)).await;
    assert_eq!(reported(&mut own).await, 6);
    let all = ground.server.count("PATCH", "/pods/a/status");
    assert_eq!(all, writes, "it says so already");
    own.send(report("a", 7, false)).await;
    assert_eq!(reported(&mut own).await, 7);
    assert!(ground.says("False"));
    again.stop().await;
}

#[tokio::test]
async fn what_the_api_server_does_not_take_is_tried_again_and_told_to_nobody() {
    let ground = Ground::new().await;
    let replica = ground.replica("r1").await;
    ground.server.fail(Some(("PATCH", "/status")));
    let (mut peer, _) = follower(&replica, "n2").await;
    let mut own = replica.watch("n1").await;
    own.send(report("a", 5, true)).await;
    eventually(async || {
        let metrics = replica.admin("/metrics").await.1;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("culvert_control_keep_errors_total "));
        line.is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count >= 2))
    })
    .await;
    peer.nothing_within(Duration::from_millis(200)).await;
    let unwritten = "culvert_control_unwritten_reports";
    replica.until_metric(&format!("{unwritten} 1")).await;
    ground.server.fail(None);
    assert_eq!(crate::meshed(&peer.next().await), [true]);
    assert_eq!(reported(&mut own).await, 5);
    replica.until_metric(&format!("{unwritten} 0")).await;
    replica.stop().await;
}

/// Somebody takes the condition away, and the API server does not take it back for a while.
#[tokio::test]
async fn a_pod_whose_node_says_steered_stays_meshed_without_its_condition() {
    let ground = Ground::new().await;
    let replica = ground.replica("r1").await;
    let (mut peer, _) = follower(&replica, "n2").await;
    let mut own = replica.watch("n1").await;
    own.send(report("a", 5, true)).await;
    assert_eq!(crate::meshed(&peer.next().await), [true]);
    assert_eq!(reported(&mut own).await, 5);
    ground.server.fail(Some(("PATCH", "/status")));
    let mut pod = ground.pod();
    pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    ground.server.put("pods", pod.clone());
    replica
        .until_metric("culvert_control_unwritten_reports 1")
        .await;
    peer.nothing_within(Duration::from_millis(200)).await;
    // Kubelets change what nobody follows, too: the version that is known of is an old one then.
    pod["status"]["containerStatuses"] =
        json!([{"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 1}]);
    ground.server.put("pods", pod);
    ground.server.fail(None);
    eventually(async || ground.says("True")).await;
    replica
        .until_metric("culvert_control_unwritten_reports 0")
        .await;
    peer.nothing_within(Duration::from_millis(200)).await;
    replica.stop().await;
}

/// Everything fails: known state is served, and control is ready.
#[tokio::test]
async fn an_api_server_that_is_away_takes_nothing_away() {
    let ground = Ground::new().await;
    let replica = ground.replica("r1").await;
    let (_peer, _) = follower(&replica, "n2").await;
    for method in ["GET", "PATCH", "POST"] {
        ground.server.fail(Some((method, "/")));
        let (_again, meshed) = follower(&replica, "n2").await;
        assert!(!meshed);
        assert_eq!(replica.admin("/ready").await.0, 200);
    }
    replica.stop().await;
}

#[tokio::test]
async fn one_replica_leads() {
    let ground = Ground::new().await;
    let holder = || {
        let lease = ground.server.get("leases", "culvert", "culvert-control");
        lease.map(|lease| lease["spec"]["holderIdentity"].clone())
    };
    let first = ground.replica("r1").await;
    eventually(async || holder() == Some(json!("r1"))).await;
    let second = ground.replica("r2").await;
    assert_eq!(holder(), Some(json!("r1")));
    first.stop().await;
    eventually(async || holder() == Some(json!("r2"))).await;
    second.stop().await;
}

#[tokio::test]
async fn pods_without_an_account_get_no_certificate() {
    let ground = Ground::new().await;
    let mut mirror = pod("m", "shop", "n1", "web", "10.0.0.5");
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x");
    let mut none = pod("n", "shop", "n1", "", "10.0.0.6");
    none["spec"]["serviceAccountName"] = Value::Null;
    ground.server.put("pods", mirror);
    ground.server.put("pods", none);
    let replica = ground.replica("r1").await;
    assert!(replica.certify("n1", "uid-a", request(&[])).await.is_ok());
    for uid in ["uid-m", "uid-n"] {
        let denied = replica.certify("n1", uid, request(&[])).await;
        let code = denied.map_err(|status| status.code());
        assert_eq!(code.err(), Some(Code::PermissionDenied), "{uid}");
    }
    ground.server.delete("pods", "shop", "a");
    replica.stop().await;
}
