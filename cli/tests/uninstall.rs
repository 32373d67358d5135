// SPDX-License-Identifier: Apache-2.0
//! `culvert uninstall` as it is run, against an API server on loopback.

#[path = "check/api_server.rs"]
#[expect(dead_code, reason = "what only `culvert check` needs")]
mod api_server;

use std::process::Output;

use serde_json::{Value, json};

use api_server::{Answer, ApiServer, Result, list, status};

const NAMESPACE: &str = "/api/v1/namespaces/culvert";
const DAEMONSETS: &str = "/apis/apps/v1/namespaces/culvert/daemonsets";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn objects(output: &Output) -> Result<Vec<Value>> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    let read: Vec<Value> = serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout)?)?;
    Ok(read.into_iter().filter(Value::is_object).collect())
}

fn object(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "culvert", "labels": {
        "app.kubernetes.io/managed-by": "culvert", "culvert.io/control-plane-ns": "culvert",
    }}})
}

#[test]
fn the_agents_may_go_first_and_alone() -> Result<()> {
    let server = ApiServer::start()?;
    server.lists(
        DAEMONSETS,
        vec![object("culvert-proxy"), object("culvert-agent")],
    );
    server.lists(
        "/apis/apps/v1/namespaces/culvert/deployments",
        vec![object("culvert-control")],
    );
    let names = |output: &Output| -> Result<Vec<String>> {
        let names = objects(output)?
            .into_iter()
            .map(|o| o["metadata"]["name"].to_string());
        Ok(names.collect())
    };
    let first = server.culvert(&["uninstall", "--manifests"])?;
    assert_eq!(names(&first)?, ["\"culvert-agent\""]);
    assert!(stderr(&first).contains("--cascade=foreground"));
    server.lists(DAEMONSETS, vec![object("culvert-proxy")]);
    let rest = server.culvert(&["uninstall", "--manifests"])?;
    assert_eq!(names(&rest)?, ["\"culvert-proxy\"", "\"culvert-control\""]);
    assert!(server.asked().iter().all(|asked| asked.starts_with("GET ")));
    Ok(())
}

#[test]
fn agents_that_do_not_end_keep_all_the_rest() -> Result<()> {
    let server = ApiServer::start()?;
    server.lists(
        DAEMONSETS,
        vec![object("culvert-agent"), object("culvert-proxy")],
    );
    server.says(
        &format!("{DAEMONSETS}/culvert-agent"),
        object("culvert-agent"),
    );
    server.lists(&format!("{NAMESPACE}/pods"), Vec::new());
    let agents = format!("{NAMESPACE}/pods?&labelSelector=culvert.io%2Fcomponent%3Dagent");
    server.lists(
        &agents,
        vec![json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n7", "containers": []}})],
    );
    let output = server.culvert(&["uninstall", "--yes", "--timeout", "1s"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("the agents of node n7 have not ended after 1s"),
        "{}",
        stderr(&output)
    );
    let deleted: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.starts_with("DELETE "))
        .collect();
    assert_eq!(deleted.len(), 1, "{deleted:?}");
    assert!(
        deleted[0].contains("/daemonsets/culvert-agent") && deleted[0].contains("Foreground"),
        "{deleted:?}"
    );
    Ok(())
}

#[test]
fn where_nothing_is_nothing_is_to_do() -> Result<()> {
    let output = ApiServer::start()?.culvert(&["uninstall"])?;
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stderr(&output).contains("Nothing of Culvert"),
        "{}",
        stderr(&output)
    );
    Ok(())
}

#[test]
fn nodes_that_their_agents_did_not_clean_are_named() -> Result<()> {
    let server = ApiServer::start()?;
    server.lists(DAEMONSETS, vec![object("culvert-proxy")]);
    server.lists(&format!("{NAMESPACE}/pods"), Vec::new());
    server.lists("/api/v1/pods", Vec::new());
    let annotations =
        json!({"culvert.io/agent": "{\"cni\": {\"conflist\": \"/x/00-culvert.conflist\"}}"});
    let nodes = vec![
        json!({"metadata": {"name": "n8", "annotations": annotations}}),
        json!({"metadata": {"name": "n9"}}),
    ];
    server.lists("/api/v1/nodes", nodes);
    let output = server.culvert(&["uninstall", "--yes"])?;
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("node n8: /x/00-culvert.conflist") && !text.contains("n9"),
        "{text}"
    );
    Ok(())
}

/// A namespace that `culvert install` made, or labelled, in which there are these Secrets and Certificates of others.
fn with_strangers(secrets: &[&str], certificates: &[&str]) -> Result<ApiServer> {
    let server = ApiServer::start()?;
    let labels = json!({"culvert.io/control-plane-ns": "culvert"});
    let namespace = json!({"metadata": {"name": "culvert", "labels": labels}});
    server.lists("/api/v1/namespaces", vec![namespace]);
    server.lists(DAEMONSETS, vec![object("culvert-proxy")]);
    server.lists("/api/v1/pods", Vec::new());
    server.lists("/api/v1/nodes", Vec::new());
    let group = |name: &str, version: &str| {
        let version = json!({"groupVersion": version, "version": "v1"});
        json!({"name": name, "versions": [version], "preferredVersion": version})
    };
    let groups = vec![
        group("apps", "apps/v1"),
        group("cert-manager.io", "cert-manager.io/v1"),
    ];
    server.says("/apis", json!({"groups": groups}));
    server.says("/api/v1", kinds("v1", &[("secrets", "Secret")]));
    server.says(
        "/apis/apps/v1",
        kinds("apps/v1", &[("daemonsets", "DaemonSet")]),
    );
    let certificate = kinds("cert-manager.io/v1", &[("certificates", "Certificate")]);
    server.says("/apis/cert-manager.io/v1", certificate);
    let ours = object("culvert-identity-issuer");
    let others = |names: &[&str]| -> Vec<Value> {
        names
            .iter()
            .map(|name| json!({"metadata": {"name": name, "uid": name}}))
            .collect()
    };
    let all = [vec![ours.clone()], others(secrets)].concat();
    server.lists(&format!("{NAMESPACE}/secrets"), all);
    let labelled = "?&labelSelector=culvert.io%2Fcontrol-plane-ns%3Dculvert";
    server.lists(&format!("{NAMESPACE}/secrets{labelled}"), vec![ours]);
    server.lists(
        "/apis/cert-manager.io/v1/namespaces/culvert/certificates",
        others(certificates),
    );
    // As if it were gone at once.
    server.answers(&format!("DELETE {NAMESPACE}"), Answer::Says(200, json!({})));
    server.answers(
        &format!("PATCH {NAMESPACE}"),
        Answer::Says(200, object("culvert")),
    );
    Ok(server)
}

fn kinds(version: &str, all: &[(&str, &str)]) -> Value {
    let resource = |(name, kind): &(&str, &str)| json!({"name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["list", "delete"]});
    let all: Vec<_> = all.iter().map(resource).collect();
    json!({"kind": "APIResourceList", "groupVersion": version, "resources": all})
}

fn changed(server: &ApiServer) -> Vec<String> {
    let asked = server.asked().into_iter();
    asked.filter(|asked| !asked.starts_with("GET ")).collect()
}

fn is_deleted(server: &ApiServer) -> bool {
    let namespace = format!("DELETE {NAMESPACE}?");
    changed(server)
        .iter()
        .any(|asked| asked.starts_with(&namespace))
}

#[test]
fn a_namespace_that_holds_nothing_else_goes() -> Result<()> {
    let server = with_strangers(&[], &[])?;
    let output = server.culvert(&["uninstall", "--yes"])?;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(is_deleted(&server), "{:?}", changed(&server));
    Ok(())
}

#[test]
fn a_namespace_with_things_of_others_stays() -> Result<()> {
    for (secrets, certificates) in [(&["trust-anchor-key"][..], &[][..]), (&[], &["issuer"])] {
        let server = with_strangers(secrets, certificates)?;
        let output = server.culvert(&["uninstall", "--yes"])?;
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(!is_deleted(&server), "{:?}", changed(&server));
        let named = secrets.iter().map(|name| format!("Secret {name}"));
        let mut named = named.chain(
            certificates
                .iter()
                .map(|name| format!("Certificate {name}")),
        );
        let stays = "Namespace culvert stays, since not all that is in it is Culvert's: ";
        assert!(
            named.all(|named| text.contains(&format!("{stays}{named}"))),
            "{text}"
        );
        let deleted = |name: &str| {
            let asked = format!("DELETE {NAMESPACE}/secrets/{name}?");
            changed(&server).iter().any(|it| it.starts_with(&asked))
        };
        assert!(deleted("culvert-identity-issuer") && !deleted("trust-anchor-key"));
        // Who looks next finds no installation.
        let unlabelled = format!("PATCH {NAMESPACE}?");
        let changed = changed(&server);
        let patch = changed.iter().find(|asked| asked.starts_with(&unlabelled));
        assert!(
            patch.is_some_and(|it| it.contains(r#""culvert.io/control-plane-ns":null"#)),
            "{changed:?}"
        );
        let manifests = objects(&server.culvert(&["uninstall", "--manifests"])?)?;
        assert!(
            manifests.iter().all(|it| it["kind"] != "Namespace"),
            "{manifests:?}"
        );
    }
    Ok(())
}

#[test]
fn what_comes_while_the_rest_goes_keeps_the_namespace_too() -> Result<()> {
    let server = with_strangers(&[], &[])?;
    let late = json!({"metadata": {"name": "late", "uid": "late"}});
    let lists = [Vec::new(), vec![late]].map(|items| Answer::Says(200, list(items)));
    let certificates = "/apis/cert-manager.io/v1/namespaces/culvert/certificates";
    server.answers_each(certificates, lists);
    let output = server.culvert(&["uninstall", "--yes"])?;
    assert!(
        stderr(&output).contains("Certificate late"),
        "{}",
        stderr(&output)
    );
    assert!(!is_deleted(&server));
    Ok(())
}

#[test]
fn what_can_not_be_looked_at_keeps_the_namespace() -> Result<()> {
    let refusals = [
        ("/apis", "kinds that could not be listed"),
        (
            "/apis/cert-manager.io/v1",
            "kinds of cert-manager.io/v1 that could not be listed",
        ),
        (
            "/apis/cert-manager.io/v1/namespaces/culvert/certificates",
            "certificates that could not be listed",
        ),
    ];
    for (path, said) in refusals {
        let server = with_strangers(&[], &[])?;
        server.answers(path, status(403, "Forbidden", "you may not"));
        let output = server.culvert(&["uninstall", "--yes"])?;
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        assert!(!is_deleted(&server), "{path}");
    }
    Ok(())
}

#[test]
fn nothing_goes_before_somebody_agreed() -> Result<()> {
    let server = with_strangers(&["key"], &[])?;
    let asked = server.culvert(&["uninstall"])?;
    assert_eq!(asked.status.code(), Some(64));
    assert!(stderr(&asked).contains("wants --yes"), "{}", stderr(&asked));
    let dry = server.culvert(&["uninstall", "--dry-run"])?;
    assert_eq!(dry.status.code(), Some(0));
    for said in [stderr(&asked), String::from_utf8(dry.stdout)?] {
        for expected in [
            "Culvert is to go from cluster http://127.0.0.1:",
            "(context c), namespace culvert",
            "\n  DaemonSet culvert-proxy\n",
            "stays, since not all that is in it is Culvert's: Secret key",
        ] {
            assert!(said.contains(expected), "no {expected:?} in\n{said}");
        }
        assert!(!said.contains("\n  Namespace culvert"), "{said}");
    }
    assert_eq!(changed(&server), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_node_that_its_kubelet_writes_to_loses_its_taint_all_the_same() -> Result<()> {
    let server = ApiServer::start()?;
    server.lists(DAEMONSETS, vec![object("culvert-proxy")]);
    server.lists("/api/v1/pods", Vec::new());
    let node = |version: &str| {
        let taints = json!([{"key": "node.culvert.io/agent-not-ready", "effect": "NoSchedule"}]);
        json!({"metadata": {"name": "n1", "resourceVersion": version}, "spec": {"taints": taints}})
    };
    server.lists("/api/v1/nodes", vec![node("1")]);
    server.says("/api/v1/nodes/n1", node("2"));
    let conflict = status(409, "Conflict", "the object has been modified");
    let patched = Answer::Says(200, node("3"));
    server.answers_each("PATCH /api/v1/nodes/n1", [conflict, patched]);
    let output = server.culvert(&["uninstall", "--yes"])?;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let changed = changed(&server);
    let patches: Vec<_> = changed
        .iter()
        .filter(|it| it.starts_with("PATCH /api/v1/nodes/n1"))
        .collect();
    assert_eq!(patches.len(), 2, "{patches:?}");
    assert!(
        patches[1].contains(r#""resourceVersion":"2""#),
        "{patches:?}"
    );
    assert!(stderr(&output).contains("nodes (1)"), "{}", stderr(&output));
    Ok(())
}
