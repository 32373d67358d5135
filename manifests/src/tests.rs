// SPDX-License-Identifier: Apache-2.0

use std::{fs, time::Duration};

use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

use super::*;

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations: {linkerd.io/inject: enabled}
spec:
  nodeName: a
  hostNetwork: false
  containers:
  - name: web
    command: [sh, -c, 'sleep 1']
    resources: {requests: {cpu: 1, memory: 1.5Gi}}
    ports: [{containerPort: 80, name: http}]
    readinessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
status:
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}]
  conditions: [{type: Ready, status: 'True', lastTransitionTime: null}]
";

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    for (name, text) in files {
        write(&dir, name, text);
    }
    dir
}

fn write(dir: &TempDir, name: &str, text: &str) {
    fs::write(dir.path().join(name), text).unwrap_or_else(|e| panic!("{e}"));
}

fn remove(dir: &TempDir, name: &str) {
    fs::remove_file(dir.path().join(name)).unwrap_or_else(|e| panic!("{e}"));
}

fn loaded(files: &[(&str, &str)]) -> (Objects, Vec<Problem>) {
    load(dir(files).path()).unwrap_or_else(|e| panic!("{e}"))
}

fn only(problems: &[Problem]) -> (&str, Option<u64>, &str) {
    let [problem] = problems else {
        panic!("not one problem: {problems:?}");
    };
    let name = problem.file.file_name().and_then(|name| name.to_str());
    (name.unwrap_or_default(), problem.line, &problem.reason)
}

/// The one problem of a file that must be refused.
fn refused(text: &str) -> (Option<u64>, String) {
    let (objects, problems) = loaded(&[("a.yaml", text)]);
    assert_eq!(objects, Objects::default(), "{text}");
    let (_, line, reason) = only(&problems);
    (line, reason.to_owned())
}

fn account(name: &str) -> String {
    format!("{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}}}}}\n")
}

fn accounts(objects: &Objects) -> Vec<&str> {
    let names = objects.service_accounts.keys();
    names.map(|(_, name)| name.as_str()).collect()
}

#[test]
fn a_valid_pod_is_read_whole() {
    let (objects, problems) = loaded(&[("pod.yaml", POD)]);
    assert_eq!(problems, []);
    let key = (DEFAULT_NAMESPACE.to_owned(), "web".to_owned());
    let pod = objects
        .pods
        .get(&key)
        .unwrap_or_else(|| panic!("{objects:?}"));
    assert_eq!(pod.metadata.namespace.as_deref(), Some(DEFAULT_NAMESPACE));
    let spec = pod.spec.as_ref().unwrap_or_else(|| panic!("no spec"));
    let cpu = spec.containers[0]
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref());
    assert_eq!(cpu.map(|r| r["cpu"].0.as_str()), Some("1"));
}

#[test]
fn all_kinds_in_many_documents_a_list_and_json() {
    let many = "\
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: node-1.example, labels: {topology.kubernetes.io/zone: east}}
---
# nothing here
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  template: {metadata: {labels: {app: cart}}, spec: {containers: [{name: a}]}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ServiceAccount
  metadata: {name: cart, namespace: shop}
";
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"cart","namespace":"shop"},
        "spec":{"clusterIP":"10.96.0.1","ports":[{"port":80,"targetPort":"http"}]}}"#;
    let (objects, problems) = loaded(&[("a.yml", many), ("b.json", json), ("c.txt", "!")]);
    assert_eq!(problems, []);
    let key = ("shop".to_owned(), "cart".to_owned());
    assert!(objects.namespaces.contains_key("shop"));
    assert!(objects.nodes.contains_key("node-1.example"));
    assert!(objects.deployments.contains_key(&key));
    assert!(objects.service_accounts.contains_key(&key));
    assert!(objects.services.contains_key(&key));
}

#[test]
fn what_is_unknown_is_refused_by_name_and_line() {
    let (line, reason) = refused(&POD.replace("hostNetwork", "hostnetwork"));
    assert_eq!(line, Some(8));
    assert!(
        reason.starts_with("spec.hostnetwork: unknown field"),
        "{reason}"
    );
    let (line, reason) =
        refused(&POD.replace("  - name: web", "  - name: web\n    sidecar: {a: b}"));
    assert_eq!(line, Some(11));
    assert!(
        reason.starts_with("spec.containers[0].sidecar: unknown field"),
        "{reason}"
    );
    let (line, reason) = refused("\n\napiVersion: v1\nkind: Secret\nmetadata: {name: a}\n");
    assert_eq!(line, Some(3));
    assert!(
        reason.contains("\"Secret\" of apiVersion \"v1\""),
        "{reason}"
    );
    let (_, reason) = refused("apiVersion: v1beta1\nkind: Pod\n");
    assert!(reason.contains("v1beta1"), "{reason}");
}

#[test]
fn wrong_types_syntax_and_names_are_refused_with_their_lines() {
    let (line, reason) = refused(&POD.replace("hostNetwork: false", "hostNetwork: yes"));
    assert_eq!(line, Some(8));
    assert!(
        reason.starts_with("spec.hostNetwork: invalid type: string \"yes\""),
        "{reason}"
    );
    let (line, _) = refused(&POD.replace("  hostNetwork", " hostNetwork"));
    assert_eq!(line, Some(8));
    let (line, reason) = refused(&POD.replace("name: web\n  anno", "name: Web\n  anno"));
    assert_eq!(line, Some(4));
    assert!(reason.starts_with("metadata.name: got \"Web\""), "{reason}");
    let (line, reason) = refused(&POD.replace("nodeName: a", "nodeName: a\n  nodeName: b"));
    assert_eq!(line, Some(8), "{reason}");
    let (line, reason) = refused("a: b\n");
    assert_eq!(line, Some(1));
    assert!(reason.contains("apiVersion"), "{reason}");
    let (_, reason) = refused("just text");
    assert!(reason.contains("apiVersion"), "{reason}");
    let (line, reason) = refused("apiVersion: v1\nkind: Pod\nmetadata: {generateName: a}\n");
    assert_eq!((line, reason.contains("generateName")), (Some(3), true));
    let (line, _) = refused("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n");
    assert_eq!(line, Some(3));
}

#[test]
fn a_file_that_is_no_text_is_refused() {
    let dir = dir(&[]);
    fs::write(dir.path().join("a.yaml"), b"a: b\nc: \xff\n").unwrap_or_else(|e| panic!("{e}"));
    let (_, problems) = load(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(only(&problems), ("a.yaml", Some(2), "not UTF-8"));
    remove(&dir, "a.yaml");
    fs::create_dir(dir.path().join("d.yaml")).unwrap_or_else(|e| panic!("{e}"));
    let (_, problems) = load(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(only(&problems), ("d.yaml", None, "not a regular file"));
    assert!(load(dir.path().join("absent")).is_err());
}

#[test]
fn a_broken_file_is_refused_as_a_whole() {
    let (objects, problems) = loaded(&[
        (
            "bad.yaml",
            &format!("{}---\n{}", account("a"), account("B")),
        ),
        ("good.yaml", &account("c")),
    ]);
    assert_eq!(accounts(&objects), ["c"]);
    assert_eq!(only(&problems).1, Some(3));
}

#[test]
fn two_definitions_name_both_places() {
    let (objects, problems) = loaded(&[("a.yaml", &account("x")), ("b.yaml", &account("x"))]);
    assert_eq!(accounts(&objects), ["x"]);
    let (file, line, reason) = only(&problems);
    assert_eq!((file, line), ("b.yaml", Some(1)));
    assert!(reason.contains("ServiceAccount default/x"), "{reason}");
    assert!(reason.contains("/a.yaml"), "{reason}");
    let (line, reason) = refused(&format!("{}---\n{}", account("x"), account("x")));
    assert_eq!(
        (line, reason.contains("line 1")),
        (Some(3), true),
        "{reason}"
    );
}

#[test]
fn who_has_an_object_keeps_it_until_it_goes() {
    let dir = dir(&[("b.yaml", &account("x"))]);
    let mut store = store::Store::new(dir.path());
    let mut scan = |dir: &TempDir| {
        let scanned = store.scan(store::Freshness::Any);
        assert!(scanned.is_ok(), "{scanned:?} {dir:?}");
        let files = store.problems().into_iter().map(|problem| problem.file);
        let files: Vec<_> = files
            .map(|file| file.strip_prefix(dir).map(PathBuf::from))
            .collect();
        (store.objects(), files)
    };
    scan(&dir);
    write(
        &dir,
        "a.yaml",
        &format!("{}---\n{}", account("x"), account("y")),
    );
    let (objects, problems) = scan(&dir);
    assert_eq!(accounts(&objects), ["x"]);
    assert_eq!(problems, [Ok("a.yaml".into())]);
    remove(&dir, "b.yaml");
    let (objects, problems) = scan(&dir);
    assert_eq!(accounts(&objects), ["x", "y"]);
    assert_eq!(problems, []);
}

async fn until<T: Clone>(receiver: &mut watch::Receiver<T>, wanted: impl Fn(&T) -> bool) -> T {
    let found = timeout(
        Duration::from_secs(20),
        receiver.wait_for(|value| wanted(value)),
    )
    .await;
    let found = found.unwrap_or_else(|_| panic!("it did not come in 20 s"));
    found.unwrap_or_else(|e| panic!("{e}")).clone()
}

#[tokio::test]
async fn changes_are_seen_and_a_broken_file_keeps_its_last_good_content() {
    let dir = dir(&[("a.yaml", &account("a"))]);
    let source = Source::watch(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let (mut objects, mut problems) = (source.objects(), source.problems());
    assert_eq!(accounts(&objects.borrow_and_update()), ["a"]);
    write(&dir, "a.yaml", "a: [");
    let refused = until(&mut problems, |problems| !problems.is_empty()).await;
    assert_eq!(only(&refused).0, "a.yaml");
    assert_eq!(accounts(&objects.borrow()), ["a"]);
    write(&dir, "a.yaml", &account("b"));
    until(&mut objects, |objects| accounts(objects) == ["b"]).await;
    until(&mut problems, |problems| problems.is_empty()).await;
    write(&dir, "b.tmp", &account("c"));
    let renamed = fs::rename(dir.path().join("b.tmp"), dir.path().join("b.yaml"));
    assert!(renamed.is_ok(), "{renamed:?}");
    until(&mut objects, |objects| accounts(objects) == ["b", "c"]).await;
    remove(&dir, "a.yaml");
    until(&mut objects, |objects| accounts(objects) == ["c"]).await;
}

#[tokio::test]
async fn a_directory_that_vanishes_keeps_its_objects_until_it_is_back() {
    let outer = dir(&[]);
    let inner = outer.path().join("d");
    let make = |name: &str| {
        let made =
            fs::create_dir(&inner).and_then(|()| fs::write(inner.join("a.yaml"), account(name)));
        assert!(made.is_ok(), "{made:?}");
    };
    make("a");
    let source = Source::watch(&inner).unwrap_or_else(|e| panic!("{e}"));
    let (mut objects, mut problems) = (source.objects(), source.problems());
    let moved = fs::rename(&inner, outer.path().join("e"));
    assert!(moved.is_ok(), "{moved:?}");
    let gone = until(&mut problems, |problems| !problems.is_empty()).await;
    assert!(
        only(&gone).2.contains("what it last held stays"),
        "{gone:?}"
    );
    assert_eq!(accounts(&objects.borrow()), ["a"]);
    make("b");
    until(&mut objects, |objects| accounts(objects) == ["b"]).await;
    until(&mut problems, |problems| problems.is_empty()).await;
}

#[tokio::test]
async fn dropping_the_source_ends_its_thread() {
    let source = Source::watch(dir(&[]).path()).unwrap_or_else(|e| panic!("{e}"));
    let mut objects = source.objects();
    drop(source);
    let ended = timeout(Duration::from_secs(20), objects.changed()).await;
    assert!(matches!(ended, Ok(Err(_))), "{ended:?}");
}
