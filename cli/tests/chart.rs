// SPDX-License-Identifier: Apache-2.0
//! `culvert install` prints what Helm would make of the same chart and values. Helm is played by Go's own text/template with
//! sprig, both from Debian (`scripts/setup test`), in `helm/main.go`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const CASES: &[(&str, &str)] = &[
    ("the defaults", "{}"),
    ("high availability", "control: {replicas: 3, spread: true}"),
    (
        "nothing of its own authority",
        "identity: {external: {issuer: true, trustRoots: true}, issuer: {certificatePEM: '', keyPEM: ''}, trustAnchorsPEM: ''}",
    ),
    (
        "GKE",
        "platform: gke\nlabels: {team: a b, 'x.y/z': '1'}\npodAnnotations: {note: 'yes: \"quoted\"'}",
    ),
    ("OpenShift", "platform: openshift\nagent: {appArmor: ''}"),
    (
        "IPv6",
        "listen: '[::]'\ncontrol: {clusterIP: 'fd00::86', disruptionBudget: false}\nclusterDomain: a.example",
    ),
    (
        "everything",
        "image: {registry: r.example/c, tag: v1, pullPolicy: Always, pullSecrets: [a, b]}\n\
         platform: microk8s\npaths: {cniBinDir: /x/bin, criSocket: /run/x/y.sock, netnsDir: /n}\n\
         log: {level: 'debug,h2=info', format: json}\nprometheus: {annotations: false}\n\
         control: {address: 'c:1', args: ['--a=1', '-b'], nodeSelector: {a: 'true', b: '1'}, tolerations: []}\n\
         agent: {maxUnavailable: 10%, args: [--x], seLinuxOptions: {type: t, level: 's0:c1'}, terminationGracePeriodSeconds: 7}\n\
         proxy: {surge: false, drainSeconds: 0, accessLog: json, maxUnavailable: 2, args: ['--y=z: 1']}\n",
    ),
];

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemonset/chart")
}

#[test]
fn helm_would_render_the_same() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let helm = build_helm(dir.path())?;
    let values = dir.path().join("values.yaml");
    let authority = dir.path().join("authority.yaml");
    fs::write(
        &authority,
        "identity: {trustAnchorsPEM: \"-----A\\nb+/=\\n-----\\n\", issuer: {certificatePEM: \"c\\n\", keyPEM: \"k\\n\"}}\n",
    )?;
    for version in ["v1.20.2", "v1.28.0", "v1.35.1"] {
        for (name, text) in CASES {
            fs::write(&values, text)?;
            let ours = ours(version, &[&authority, &values])?;
            let theirs = theirs(&helm, version, &[&authority, &values])?;
            compare(&ours, &theirs).with_context(|| format!("{name}, Kubernetes {version}"))?;
        }
    }
    Ok(())
}

/// Object by object, so that a failure names the first that differs.
fn compare(ours: &[Value], theirs: &[Value]) -> Result<()> {
    let id = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    for their in theirs {
        let our = ours.iter().find(|our| id(our) == id(their));
        ensure!(our == Some(their), "ours: {our:#?}\nHelm's: {their:#?}");
    }
    ensure!(
        ours.len() == theirs.len(),
        "{} objects, Helm has {}",
        ours.len(),
        theirs.len()
    );
    ensure!(ours.len() > 14, "only {} objects", ours.len());
    Ok(())
}

/// Without the ConfigMap that keeps the user's values, which Helm keeps in a Secret of its own.
fn ours(version: &str, files: &[&Path]) -> Result<Vec<Value>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.args(["install", "--ignore-cluster", "--kube-version", version]);
    for file in files {
        command.arg("--values").arg(file);
    }
    let mut objects = objects(&command.output()?)?;
    let before = objects.len();
    objects.retain(|object| object["metadata"]["name"] != "culvert-config");
    ensure!(before == objects.len() + 1, "no ConfigMap culvert-config");
    Ok(objects)
}

fn theirs(helm: &Path, version: &str, files: &[&Path]) -> Result<Vec<Value>> {
    let mut command = Command::new(helm);
    command.arg(chart()).args(["culvert", "culvert", version]);
    objects(&command.args(files).output()?)
}

fn objects(output: &Output) -> Result<Vec<Value>> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{stderr}");
    let text = std::str::from_utf8(&output.stdout)?;
    let read: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(read.into_iter().filter(Value::is_object).collect())
}

/// Debian's Go finds Debian's packages of Go sources in a GOPATH.
fn build_helm(dir: &Path) -> Result<PathBuf> {
    let helm = dir.join("helm");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&helm)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/helm"))
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env_remove("GOFLAGS")
        .output()
        .context("go: run scripts/setup test")?;
    let stderr = String::from_utf8_lossy(&built.stderr);
    ensure!(
        built.status.success(),
        "go build: {stderr} (run scripts/setup test)"
    );
    Ok(helm)
}
