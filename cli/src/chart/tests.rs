// SPDX-License-Identifier: Apache-2.0

use std::{collections::BTreeSet, fs, path::Path};

use super::*;

fn given() -> Value {
    let mut values = defaults();
    let identity = json!({"identity": {"trustAnchorsPEM": "anchor\n", "issuer": {"certificatePEM": "issuer\n", "keyPEM": "key\n"}}});
    values::merge(&mut values, &identity);
    values
}

fn rendered(more: &Value) -> Vec<Manifest> {
    let mut values = given();
    values::merge(&mut values, more);
    let release = Release {
        namespace: "culvert".to_owned(),
        kubernetes: "v1.30.1".to_owned(),
    };
    render(&values, &release).unwrap_or_else(|e| panic!("{e}"))
}

fn find<'a>(manifests: &'a [Manifest], kind: &str, name: &str) -> &'a Value {
    let found = manifests
        .iter()
        .find(|m| m.kind() == kind && m.object["metadata"]["name"] == name);
    &found.unwrap_or_else(|| panic!("no {kind} {name}")).object
}

#[test]
fn every_file_of_the_chart_is_embedded() -> std::io::Result<()> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemonset/chart");
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(chart.join("templates"))? {
        files.insert(format!("templates/{}", entry?.file_name().display()));
    }
    files.remove("templates/NOTES.txt");
    let embedded = TEMPLATES.iter().map(|(name, _)| (*name).to_owned());
    assert_eq!(embedded.collect::<BTreeSet<_>>(), files);
    let chart = yaml::read(&fs::read_to_string(chart.join("Chart.yaml"))?);
    assert_eq!(
        chart.map(|chart| chart["appVersion"].clone()),
        Ok(VERSION.into())
    );
    Ok(())
}

#[test]
fn the_schema_is_of_the_part_that_is_understood_and_knows_every_value() {
    fn walk(schema: &Value, path: &str) {
        let known = [
            "type",
            "properties",
            "additionalProperties",
            "items",
            "enum",
            "minimum",
            "$schema",
            "title",
        ];
        let Value::Object(fields) = schema else {
            return;
        };
        for key in fields.keys() {
            assert!(known.contains(&key.as_str()), "{path}: {key}");
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            walk(schema, &format!("{path}.{name}"));
        }
        walk(&schema["additionalProperties"], path);
        walk(&schema["items"], path);
    }
    walk(&schema(), "");
    assert_eq!(
        schema::mistakes(&defaults(), &schema()),
        Vec::<String>::new()
    );
    assert_eq!(
        schema::mistakes(&high_availability(), &schema()),
        Vec::<String>::new()
    );
    let properties = schema()["properties"]
        .as_object()
        .map_or(0, serde_json::Map::len);
    assert_eq!(
        defaults().as_object().map(serde_json::Map::len),
        Some(properties)
    );
}

#[test]
fn what_is_made_first_comes_first() {
    let kinds: Vec<_> = rendered(&json!({}))
        .iter()
        .map(|m| m.kind().to_owned())
        .collect();
    assert_eq!(kinds.first().map(String::as_str), Some("Namespace"));
    assert_eq!(kinds.last().map(String::as_str), Some("Deployment"));
    assert!(
        kinds.iter().all(|kind| ORDER.contains(&kind.as_str())),
        "{kinds:?}"
    );
}

#[test]
fn only_the_agent_has_privileges_and_those_by_name() {
    let manifests = rendered(&json!({}));
    let pod = |kind, name| &find(&manifests, kind, name)["spec"]["template"]["spec"];
    for (kind, name) in [
        ("Deployment", "culvert-control"),
        ("DaemonSet", "culvert-proxy"),
    ] {
        let pod = pod(kind, name);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{name}"
        );
        assert_eq!(pod["hostNetwork"], Value::Null, "{name}");
        let container = &pod["containers"][0]["securityContext"];
        let tight = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
        assert_eq!(container, &tight, "{name}");
    }
    assert_eq!(
        pod("DaemonSet", "culvert-proxy")["automountServiceAccountToken"],
        false
    );
    let agent = &pod("DaemonSet", "culvert-agent")["containers"][0]["securityContext"];
    assert_eq!(agent["privileged"], false);
    assert_eq!(agent["capabilities"]["drop"], json!(["ALL"]));
    let named = agent["capabilities"]["add"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert!(
        named.contains(&"BPF".into()) && !named.contains(&"ALL".into()),
        "{named:?}"
    );
}

#[test]
fn an_agent_knows_how_long_it_has_and_by_what_its_node_is_selected() {
    let all = rendered(
        &json!({"agent": {"terminationGracePeriodSeconds": 45, "nodeSelector": {"pool": "a"}}}),
    );
    let pod = &find(&all, "DaemonSet", "culvert-agent")["spec"]["template"]["spec"];
    assert_eq!(pod["terminationGracePeriodSeconds"], 45);
    let env = pod["containers"][0]["env"].as_array();
    let grace = json!({"name": "CULVERT_GRACE_PERIOD", "value": "45"});
    assert!(
        env.is_some_and(|env| env.contains(&grace)),
        "{}",
        pod["containers"][0]
    );
    // It compares labels only when it is told to end.
    assert_eq!(pod["nodeSelector"]["pool"], "a");
    assert!(pod["affinity"].is_null());
    // What it asks for then.
    let can = |kind: &str, group: &str, resource: &str| {
        let rules = find(&all, kind, "culvert-agent")["rules"].as_array();
        rules.into_iter().flatten().any(|rule| {
            let has = |field: &str, value: &str| {
                rule[field]
                    .as_array()
                    .is_some_and(|all| all.contains(&json!(value)))
            };
            has("apiGroups", group) && has("resources", resource) && has("verbs", "get")
        })
    };
    assert!(can("Role", "apps", "daemonsets"));
    assert!(can("ClusterRole", "", "nodes") && can("ClusterRole", "", "namespaces"));
}

#[test]
fn nothing_has_a_cpu_limit_and_everything_requests() {
    for manifest in rendered(&high_availability()) {
        for container in manifest.object["spec"]["template"]["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
        {
            assert_eq!(container["resources"]["limits"]["cpu"], Value::Null);
            assert_ne!(container["resources"]["requests"]["memory"], Value::Null);
            assert_eq!(
                container["terminationMessagePolicy"],
                "FallbackToLogsOnError"
            );
        }
    }
}

#[test]
fn the_issuers_key_is_in_the_secret_alone() {
    let manifests = rendered(&json!({"identity": {"issuer": {"keyPEM": "SECRET-KEY"}}}));
    let holders: Vec<_> = manifests
        .iter()
        .filter(|m| m.text.contains("SECRET-KEY") || m.text.contains("U0VDUkVULUtFWQ=="))
        .map(Manifest::kind)
        .collect();
    assert_eq!(holders, ["Secret"]);
}

#[test]
fn what_others_keep_is_not_made() {
    let manifests =
        rendered(&json!({"identity": {"external": {"issuer": true, "trustRoots": true}}}));
    assert!(
        manifests
            .iter()
            .all(|m| m.kind() != "Secret" && m.kind() != "ConfigMap")
    );
}

#[test]
fn the_address_of_control_is_given_or_follows() {
    let address = |values| {
        let manifests = rendered(&values);
        let proxy = find(&manifests, "DaemonSet", "culvert-proxy");
        proxy["spec"]["template"]["spec"]["containers"][0]["args"][0].clone()
    };
    assert_eq!(
        address(json!({})),
        "--control=culvert-control.culvert.svc.cluster.local:8086"
    );
    assert_eq!(
        address(json!({"control": {"clusterIP": "10.96.0.86"}})),
        "--control=10.96.0.86:8086"
    );
    assert_eq!(
        address(json!({"control": {"clusterIP": "fd00::86"}})),
        "--control=[fd00::86]:8086"
    );
    assert_eq!(
        address(json!({"control": {"address": "c:1"}})),
        "--control=c:1"
    );
}

#[test]
fn each_platform_brings_its_paths_and_an_unknown_one_is_refused() {
    let path = |values: Value, volume: &str| {
        let manifests = rendered(&values);
        let agent = find(&manifests, "DaemonSet", "culvert-agent");
        let volumes = agent["spec"]["template"]["spec"]["volumes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let found = volumes.into_iter().find(|v| v["name"] == volume);
        found.map(|v| {
            v["hostPath"]["path"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
    };
    let k3s = json!({"platform": "k3s"});
    assert_eq!(
        path(k3s.clone(), "cni-net").as_deref(),
        Some("/var/lib/rancher/k3s/agent/etc/cni/net.d")
    );
    assert_eq!(path(k3s, "cri").as_deref(), Some("/run/k3s/containerd"));
    let own = json!({"platform": "gke", "paths": {"cniNetDir": "/x"}});
    assert_eq!(path(own.clone(), "cni-net").as_deref(), Some("/x"));
    assert_eq!(
        path(own, "cni-bin").as_deref(),
        Some("/home/kubernetes/bin")
    );
    let mut values = given();
    values::merge(&mut values, &json!({"platform": "k4s"}));
    let release = Release {
        namespace: "culvert".to_owned(),
        kubernetes: KUBERNETES.to_owned(),
    };
    let refused = render(&values, &release)
        .map(|_| ())
        .map_err(|e| e.to_string());
    assert!(refused.is_err_and(|e| e.contains("agent.yaml:") && e.contains("k4s")));
}

#[test]
fn what_an_old_kubernetes_lacks_is_left_out() {
    let with = |kubernetes: &str| {
        let mut values = given();
        values::merge(&mut values, &high_availability());
        let release = Release {
            namespace: "culvert".to_owned(),
            kubernetes: kubernetes.to_owned(),
        };
        print(&render(&values, &release).unwrap_or_else(|e| panic!("{e}")))
    };
    let old = with("v1.20.2");
    for newer in [
        "maxSurge: 1\n      maxUnavailable: 0",
        "PodDisruptionBudget",
        "appArmorProfile",
    ] {
        assert!(!old.contains(newer), "{newer}");
        assert!(with("v1.30.0-rc.1+k3s1").contains(newer), "{newer}");
    }
    assert!(old.contains("container.apparmor.security.beta.kubernetes.io/agent: unconfined"));
}
