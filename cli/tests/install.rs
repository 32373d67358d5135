// SPDX-License-Identifier: Apache-2.0
//! `culvert install`, `upgrade` and `uninstall` as they are run, against an API server on loopback.

#[path = "check/api_server.rs"]
#[expect(dead_code, reason = "what only `culvert check` needs")]
mod api_server;

use std::{fs, os::unix::fs::PermissionsExt, process::Output};

use serde_json::{Value, json};

use api_server::{ApiServer, Result, status};

const NAMESPACE: &str = "/api/v1/namespaces/culvert";
const CONTROL: &str = "/apis/apps/v1/namespaces/culvert/deployments/culvert-control";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn objects(output: &Output) -> Result<Vec<Value>> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    let read: Vec<Value> = serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout)?)?;
    Ok(read.into_iter().filter(Value::is_object).collect())
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects
        .iter()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// A cluster that an earlier `culvert install` was applied to.
fn installed(values: &str) -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.says(CONTROL, json!({"metadata": {"name": "culvert-control"}}));
    let config = json!({"metadata": {}, "data": {"version": "0.0.9", "values": values}});
    server.says(&format!("{NAMESPACE}/configmaps/culvert-config"), config);
    let roots = json!({"metadata": {}, "data": {"ca-bundle.crt": "OLD ANCHOR\n"}});
    server.says(
        &format!("{NAMESPACE}/configmaps/culvert-identity-trust-roots"),
        roots,
    );
    let issuer =
        json!({"metadata": {}, "data": {"crt.pem": "T0xEIENFUlQ=", "key.pem": "T0xEIEtFWQ=="}});
    server.says(
        &format!("{NAMESPACE}/secrets/culvert-identity-issuer"),
        issuer,
    );
    Ok(server)
}

#[test]
fn an_install_goes_by_the_clusters_version_and_changes_nothing() -> Result<()> {
    let server = ApiServer::start()?;
    let new = objects(&server.culvert(&["install"])?)?;
    let proxy = find(&new, "DaemonSet", "culvert-proxy");
    assert_eq!(
        proxy["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"],
        1
    );
    server.says(
        "/version",
        json!({"major": "1", "minor": "20", "gitVersion": "v1.20.2"}),
    );
    let old = objects(&server.culvert(&["install"])?)?;
    let proxy = find(&old, "DaemonSet", "culvert-proxy");
    assert_eq!(
        proxy["spec"]["updateStrategy"]["rollingUpdate"],
        json!({"maxUnavailable": 1})
    );
    assert!(server.asked().iter().all(|asked| asked.starts_with("GET ")));
    Ok(())
}

#[test]
fn each_install_makes_an_authority_of_its_own() -> Result<()> {
    let install = || objects(&ApiServer::start()?.culvert(&["install"])?);
    let (one, two) = (install()?, install()?);
    let key = |objects: &[Value]| {
        find(objects, "Secret", "culvert-identity-issuer")["data"]["tls.key"].clone()
    };
    assert!(key(&one).is_string() && key(&one) != key(&two));
    Ok(())
}

#[test]
fn a_second_install_is_refused() -> Result<()> {
    let output = installed("{}")?.culvert(&["install"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("use `culvert upgrade`"),
        "{}",
        stderr(&output)
    );
    assert!(output.stdout.is_empty());
    Ok(())
}

#[test]
fn the_anchors_key_is_kept_in_a_private_file_if_asked_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("anchor.key");
    let path = file.display().to_string();
    let keep = ["install", "--keep-trust-anchor-key", path.as_str()];
    let server = ApiServer::start()?;
    let output = server.culvert(&keep)?;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let key = fs::read_to_string(&file)?;
    assert!(key.contains("PRIVATE KEY"));
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    assert!(!String::from_utf8_lossy(&output.stdout).contains(key.lines().nth(1).unwrap_or("?")));
    assert_eq!(
        server.culvert(&keep)?.status.code(),
        Some(1),
        "it was overwritten"
    );
    Ok(())
}

#[test]
fn an_upgrade_keeps_the_authority_and_the_users_values() -> Result<()> {
    let server = installed("control: {replicas: 2}\nproxy: {drainSeconds: 7}\n")?;
    let upgraded = objects(&server.culvert(&["upgrade", "--set", "proxy.drainSeconds=9"])?)?;
    assert_eq!(secrets(&upgraded), 0, "a Secret that stays as it is");
    let roots = &find(&upgraded, "ConfigMap", "culvert-identity-trust-roots")["data"];
    assert_eq!(roots["ca-bundle.crt"], "OLD ANCHOR\n");
    assert_eq!(
        find(&upgraded, "Deployment", "culvert-control")["spec"]["replicas"],
        2
    );
    let kept = &find(&upgraded, "ConfigMap", "culvert-config")["data"]["values"];
    assert_eq!(kept, "control:\n  replicas: 2\nproxy:\n  drainSeconds: 9\n");
    let reset = objects(&server.culvert(&["upgrade", "--reset-values"])?)?;
    assert_eq!(
        find(&reset, "Deployment", "culvert-control")["spec"]["replicas"],
        1
    );
    Ok(())
}

fn secrets(objects: &[Value]) -> usize {
    objects.iter().filter(|it| it["kind"] == "Secret").count()
}

#[test]
fn an_issuer_that_is_given_goes_into_the_secret_of_the_type_that_is_there() -> Result<()> {
    let server = installed("{}")?;
    let path = format!("{NAMESPACE}/secrets/culvert-identity-issuer");
    let data = json!({"crt.pem": "T0xEIENFUlQ=", "key.pem": "T0xEIEtFWQ=="});
    server.says(
        &path,
        json!({"metadata": {}, "type": "linkerd.io/tls", "data": data}),
    );
    let dir = tempfile::tempdir()?;
    let file = |name: &str| -> Result<String> {
        let path = dir.path().join(name);
        fs::write(&path, name)?;
        Ok(path.display().to_string())
    };
    let (certificate, key) = (file("cert")?, file("key")?);
    let given = [
        "upgrade",
        "--identity-issuer-certificate-file",
        &certificate,
        "--identity-issuer-key-file",
        &key,
    ];
    let upgraded = objects(&server.culvert(&given)?)?;
    let secret = find(&upgraded, "Secret", "culvert-identity-issuer");
    assert_eq!(secret["type"], "linkerd.io/tls");
    assert_eq!(secret["data"]["tls.key"], "a2V5");
    let kept = objects(&server.culvert(&["upgrade"])?)?;
    assert_eq!(secrets(&kept), 0);
    Ok(())
}

#[test]
fn an_upgrade_never_makes_another_authority() -> Result<()> {
    let server = installed("{}")?;
    server.answers(
        &format!("{NAMESPACE}/secrets/culvert-identity-issuer"),
        status(404, "NotFound", "gone"),
    );
    let output = server.culvert(&["upgrade"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("Secret culvert/culvert-identity-issuer is gone"),
        "{}",
        stderr(&output)
    );
    assert!(output.stdout.is_empty());
    Ok(())
}

#[test]
fn what_is_not_installed_is_not_upgraded() -> Result<()> {
    let output = ApiServer::start()?.culvert(&["upgrade"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("there is no ConfigMap culvert/culvert-config"),
        "{}",
        stderr(&output)
    );
    Ok(())
}

#[test]
fn a_cluster_that_does_not_answer_is_named_with_the_way_round() -> Result<()> {
    let server = ApiServer::start()?;
    server.answers(CONTROL, status(403, "Forbidden", "you may not"));
    let output = server.culvert(&["install"])?;
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("you may not") && text.contains("--ignore-cluster"),
        "{text}"
    );
    Ok(())
}
