// SPDX-License-Identifier: Apache-2.0
//! The watches against a small API server.

mod server;

use std::{future::Future, sync::Arc, time::Duration};

use culvert_manifests::{NamespacedName, Objects};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use self::server::{Instead, NAMESPACES, NODES, PODS, SLICES, Server};
use crate::{
    Scope, Source,
    reflector::Timing,
    status::{Kind, Status},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn timing() -> Timing {
    Timing {
        wait: (Duration::from_millis(20), Duration::from_millis(100)),
        ..Timing::default()
    }
}

fn watch(server: &Server, scope: &Scope) -> Source {
    Source::watch_with(server.client(), scope, timing())
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("it took longer than {PATIENCE:?}"))
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    })
}

fn labelled(name: &str, label: &str) -> Value {
    let mut pod = pod(name);
    pod["metadata"]["labels"] = json!({"l": label});
    pod
}

fn key(name: &str) -> NamespacedName {
    ("shop".to_owned(), name.to_owned())
}

fn label(objects: &Objects, name: &str) -> Option<String> {
    let pod = objects.pods.get(&key(name))?;
    pod.metadata.labels.as_ref()?.get("l").cloned()
}

/// Waits until the objects are so.
async fn until(source: &Source, so: impl Fn(&Objects) -> bool) -> Arc<Objects> {
    let mut objects = source.objects();
    let found = in_time(objects.wait_for(|objects| so(objects))).await;
    Arc::clone(&found.unwrap_or_else(|e| panic!("{e}")))
}

/// Waits until the watch of pods is so.
async fn pods_until(source: &Source, so: impl Fn(&Kind) -> bool) -> Kind {
    let mut status: watch::Receiver<Status> = source.status();
    let found = in_time(status.wait_for(|status| so(&status.kinds["Pod"]))).await;
    found.unwrap_or_else(|e| panic!("{e}")).kinds["Pod"].clone()
}

async fn watched(source: &Source, server: &Server) {
    in_time(source.synced()).await;
    in_time(async {
        while server.requests(PODS, true).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn all_kinds_are_listed_then_followed() {
    let server = Server::start().await;
    server.put(NAMESPACES, json!({"metadata": {"name": "shop"}}));
    server.put(NODES, json!({"metadata": {"name": "n1"}}));
    server.put(PODS, labelled("web", "1"));
    let slice = json!({"metadata": {"name": "web-1", "namespace": "shop"}, "addressType": "IPv4", "endpoints": []});
    server.put(SLICES, slice);
    let source = watch(&server, &Scope::Cluster);
    assert_eq!(source.objects().borrow().endpoint_slices, Some([].into()));
    in_time(source.synced()).await;
    let first = Arc::clone(&source.objects().borrow());
    assert!(first.namespaces.contains_key("shop") && first.nodes.contains_key("n1"));
    let slices = first.endpoint_slices.as_ref();
    assert!(slices.is_some_and(|slices| slices.contains_key(&key("web-1"))));
    assert_eq!(label(&first, "web").as_deref(), Some("1"));

    server.put(PODS, pod("other"));
    server.put(PODS, labelled("web", "2"));
    let changed = until(&source, |it| label(it, "web").as_deref() == Some("2")).await;
    assert!(changed.pods.contains_key(&key("other")));
    assert!(
        Arc::ptr_eq(&first.nodes["n1"], &changed.nodes["n1"]),
        "it is shared"
    );
    server.delete(PODS, "shop/other");
    let gone = until(&source, |it| it.pods.len() == 1).await;
    assert_eq!(label(&gone, "web").as_deref(), Some("2"));
}

#[tokio::test]
async fn nothing_is_told_before_the_slowest_list() {
    let server = Server::start().await;
    server.put(PODS, pod("web"));
    server.instead_of_list(NODES, &[Instead::Late(Duration::from_millis(400))]);
    let source = watch(&server, &Scope::Cluster);
    pods_until(&source, |pods| pods.listed).await;
    assert!(!source.status().borrow().synced());
    server.put(PODS, pod("late"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(source.objects().borrow().pods.is_empty());
    in_time(source.synced()).await;
    assert_eq!(source.objects().borrow().pods.len(), 2);
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let server = Server::start().await;
    (0..1200).for_each(|nth| server.put(PODS, pod(&format!("p{nth}"))));
    let source = watch(&server, &Scope::Cluster);
    in_time(source.synced()).await;
    assert_eq!(source.objects().borrow().pods.len(), 1200);
    let lists = server.requests(PODS, false);
    assert_eq!(lists.len(), 3, "{lists:?}");
    assert!(
        lists.iter().all(|list| list.contains("limit=500")),
        "{lists:?}"
    );
}

#[tokio::test]
async fn a_list_that_expires_between_pages_begins_again() {
    let server = Server::start().await;
    (0..600).for_each(|nth| server.put(PODS, pod(&format!("p{nth}"))));
    let first_page = Instead::Late(Duration::ZERO);
    server.instead_of_list(PODS, &[first_page, Instead::Code(410)]);
    let source = watch(&server, &Scope::Cluster);
    in_time(source.synced()).await;
    assert_eq!(source.objects().borrow().pods.len(), 600);
    assert_eq!(server.requests(PODS, false).len(), 4);
}

/// What was deleted while the watch had expired is gone, and what is the same is still shared.
async fn expired(instead: Instead) {
    let mut server = Server::start().await;
    server.put(PODS, pod("stays"));
    server.put(PODS, pod("goes"));
    let source = watch(&server, &Scope::Cluster);
    watched(&source, &server).await;
    let before = Arc::clone(&source.objects().borrow());
    server.stop().await;
    server.delete(PODS, "shop/goes");
    server.put(PODS, pod("comes"));
    server.forget();
    server.instead_of_watch(PODS, &[instead]);
    server.start_again().await;
    let after = until(&source, |it| it.pods.contains_key(&key("comes"))).await;
    assert!(!after.pods.contains_key(&key("goes")));
    assert!(Arc::ptr_eq(
        &before.pods[&key("stays")],
        &after.pods[&key("stays")]
    ));
    let status = pods_until(&source, |pods| pods.failing_since.is_none()).await;
    assert_eq!((status.lists, status.error), (2, None));
    assert_eq!(source.status().borrow().kinds["Node"].lists, 1);
}

#[tokio::test]
async fn an_expired_watch_is_begun_with_a_list() {
    expired(Instead::Gone).await;
}

#[tokio::test]
async fn a_watch_that_can_not_begin_at_its_version_is_begun_with_a_list() {
    expired(Instead::Code(410)).await;
}

#[tokio::test]
async fn a_restart_of_the_server_costs_nothing_that_is_known() {
    let mut server = Server::start().await;
    server.put(PODS, labelled("web", "1"));
    let source = watch(&server, &Scope::Cluster);
    watched(&source, &server).await;
    server.put(PODS, pod("other"));
    until(&source, |it| it.pods.len() == 2).await;
    server.stop().await;
    let down = pods_until(&source, |pods| pods.failures > 2).await;
    assert!(down.failing_since.is_some() && down.listed);
    let error = down.error.unwrap_or_default();
    assert!(error.contains("refused"), "{error}");
    assert_eq!(
        label(&source.objects().borrow(), "web").as_deref(),
        Some("1")
    );
    server.put(PODS, labelled("web", "2"));
    server.start_again().await;
    until(&source, |it| label(it, "web").as_deref() == Some("2")).await;
    let up = pods_until(&source, |pods| pods.failing_since.is_none()).await;
    assert_eq!((up.lists, up.error), (1, None));
    let watches = server.requests(PODS, true);
    let last = watches.last().map(String::as_str).unwrap_or_default();
    assert!(
        last.contains("resourceVersion=2"),
        "from where it was: {watches:?}"
    );
}

#[tokio::test]
async fn errors_are_named_and_retried_and_cost_the_other_kinds_nothing() {
    let server = Server::start().await;
    server.put(PODS, pod("web"));
    // 503 is tried again at once, four times in all; 500 and 403 are failures.
    let busy = [Instead::Code(503), Instead::Code(503)];
    let broken = [Instead::Code(500), Instead::Code(403)];
    let long = Instead::Late(Duration::from_millis(200));
    server.instead_of_list(PODS, &[&busy[..], &broken[..], &[long]].concat());
    let source = watch(&server, &Scope::Cluster);
    let failing = pods_until(&source, |pods| pods.failures == 2).await;
    let error = failing.error.unwrap_or_default();
    assert_eq!(error, "the API server answered 403: by order");
    in_time(source.synced()).await;
    let pods = pods_until(&source, |pods| pods.failing_since.is_none()).await;
    assert_eq!(pods.failures, 2);
    assert_eq!(source.status().borrow().kinds["Service"].failures, 0);
}

#[tokio::test]
async fn a_list_that_stalls_is_asked_for_again() {
    let server = Server::start().await;
    server.put(PODS, pod("web"));
    server.instead_of_list(PODS, &[Instead::Late(PATIENCE * 10)]);
    let list = Duration::from_millis(300);
    let timing = Timing { list, ..timing() };
    let source = Source::watch_with(server.client(), &Scope::Cluster, timing);
    let stalled = pods_until(&source, |pods| pods.failures == 1).await;
    let error = stalled.error.unwrap_or_default();
    assert_eq!(error, "got nothing from the API server for 300ms");
    until(&source, |it| it.pods.len() == 1).await;
}

#[tokio::test]
async fn a_watch_that_nothing_comes_from_is_begun_again() {
    let server = Server::start().await;
    let timing = Timing {
        watch: 0..1,
        margin: Duration::from_millis(200),
        ..timing()
    };
    let source = Source::watch_with(server.client(), &Scope::Cluster, timing);
    watched(&source, &server).await;
    pods_until(&source, |pods| pods.failures > 2).await;
    assert!(server.requests(PODS, true).len() > 2);
    server.put(PODS, pod("web"));
    until(&source, |it| it.pods.len() == 1).await;
}

/// They wait 5 s for each other.
#[test]
fn replicas_of_control_are_back_before_others_give_them_up() {
    let longest = |scope| Timing::of(&scope).wait.1;
    assert!(longest(Scope::Cluster) <= Duration::from_secs(3));
    assert_eq!(longest(Scope::Node("n1".into())), Timing::default().wait.1);
}

#[tokio::test]
async fn a_server_that_ends_watches_at_once_is_not_asked_in_a_loop() {
    let server = Server::start().await;
    server.instead_of_watch(PODS, &vec![Instead::Nothing; 1000]);
    let wait = (Duration::from_millis(100), Duration::from_secs(1));
    let timing = Timing { wait, ..timing() };
    let source = Source::watch_with(server.client(), &Scope::Cluster, timing);
    watched(&source, &server).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = server.requests(PODS, true).len();
    assert!((2..20).contains(&asked), "{asked}");
    let error = pods_until(&source, |pods| pods.error.is_some()).await.error;
    assert_eq!(
        error.as_deref(),
        Some("the API server ended the watch at once")
    );
    server.instead_of_watch(PODS, &[]);
    server.put(PODS, pod("web"));
    until(&source, |it| it.pods.len() == 1).await;
    pods_until(&source, |pods| pods.failing_since.is_none()).await;
}

#[tokio::test]
async fn an_object_that_can_not_be_read_costs_only_itself() {
    let mut bad = labelled("bad", "2");
    bad["spec"]["containers"] = json!("none");
    let server = Server::start().await;
    server.put(PODS, labelled("bad", "1"));
    server.put(PODS, pod("good"));
    let mut never = bad.clone();
    never["metadata"]["name"] = json!("never");
    server.put(PODS, never);
    let source = watch(&server, &Scope::Cluster);
    watched(&source, &server).await;
    assert_eq!(source.objects().borrow().pods.len(), 2);
    let reason = source.status().borrow().kinds["Pod"].unreadable["shop/never"].clone();
    assert!(reason.contains("invalid type: string"), "{reason}");

    server.put(PODS, bad);
    server.put(PODS, pod("next"));
    let objects = until(&source, |it| it.pods.contains_key(&key("next"))).await;
    assert_eq!(
        label(&objects, "bad").as_deref(),
        Some("1"),
        "it stays as it was"
    );
    let unreadable = pods_until(&source, |pods| pods.unreadable.len() == 2).await;
    assert_eq!((unreadable.lists, unreadable.failures), (1, 0));
    server.instead_of_watch(PODS, &[Instead::Gone]);
    server.put(PODS, labelled("bad", "3"));
    server.delete(PODS, "shop/never");
    until(&source, |it| label(it, "bad").as_deref() == Some("3")).await;
    pods_until(&source, |pods| pods.unreadable.is_empty()).await;
}

#[tokio::test]
async fn a_list_with_an_unreadable_object_keeps_what_it_was() {
    let mut server = Server::start().await;
    server.put(PODS, labelled("bad", "1"));
    let source = watch(&server, &Scope::Cluster);
    watched(&source, &server).await;
    server.stop().await;
    let mut bad = labelled("bad", "2");
    bad["spec"]["containers"] = json!("none");
    server.put(PODS, bad);
    server.put(PODS, pod("next"));
    server.instead_of_watch(PODS, &[Instead::Gone]);
    server.start_again().await;
    let objects = until(&source, |it| it.pods.contains_key(&key("next"))).await;
    assert_eq!(label(&objects, "bad").as_deref(), Some("1"));
    pods_until(&source, |pods| pods.unreadable.contains_key("shop/bad")).await;
}

#[tokio::test]
async fn what_nobody_reads_wakes_nobody() {
    let server = Server::start().await;
    let mut busy = pod("web");
    busy["status"] = json!({"phase": "Running"});
    server.put(PODS, busy.clone());
    let source = watch(&server, &Scope::Cluster);
    watched(&source, &server).await;
    let mut objects = source.objects();
    objects.mark_unchanged();
    for nth in 0..5 {
        busy["metadata"]["managedFields"] = json!([{"manager": nth.to_string()}]);
        busy["status"]["containerStatuses"] = json!([]);
        server.put(PODS, busy.clone());
    }
    // Long enough for it to be told, were it told.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!objects.has_changed().unwrap_or(true));
    server.put(PODS, labelled("web", "1"));
    in_time(objects.changed())
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    let label = label(&objects.borrow_and_update(), "web");
    assert_eq!(label.as_deref(), Some("1"), "the first that is told");
}

#[tokio::test]
async fn many_changes_are_told_together() {
    let server = Server::start().await;
    let source = watch(&server, &Scope::Cluster);
    watched(&source, &server).await;
    let mut objects = source.objects();
    objects.mark_unchanged();
    let (mut told, begun) = (0_u32, std::time::Instant::now());
    (0..1000).for_each(|nth| server.put(PODS, pod(&format!("p{nth}"))));
    while objects.borrow_and_update().pods.len() < 1000 {
        in_time(objects.changed())
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        told += 1;
    }
    let most = 2 + begun.elapsed().as_millis() / 50;
    assert!(u128::from(told) <= most, "{told} in {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_node_asks_for_what_is_its_own_from_the_cache() {
    let server = Server::start().await;
    let mut elsewhere = pod("elsewhere");
    elsewhere["spec"]["nodeName"] = json!("n2");
    server.put(PODS, pod("here"));
    server.put(PODS, elsewhere.clone());
    for name in ["n1", "n2"] {
        server.put(NODES, json!({"metadata": {"name": name}}));
    }
    server.instead_of_list(NAMESPACES, &vec![Instead::Code(504); 4]);
    let source = watch(&server, &Scope::Node("n1".into()));
    watched(&source, &server).await;
    let objects = Arc::clone(&source.objects().borrow());
    assert_eq!(objects.pods.keys().collect::<Vec<_>>(), [&key("here")]);
    assert_eq!(objects.nodes.keys().collect::<Vec<_>>(), ["n1"]);
    assert_eq!(objects.endpoint_slices, None);
    let lists = server.requests(PODS, false);
    let all = [
        "fieldSelector=spec.nodeName%3Dn1",
        "resourceVersion=0",
        "NotOlderThan",
    ];
    assert!(all.iter().all(|part| lists[0].contains(part)), "{lists:?}");
    let namespaces = server.requests(NAMESPACES, false);
    let last = namespaces.last().map(String::as_str).unwrap_or_default();
    assert!(
        !last.contains("resourceVersion"),
        "after a failure it asks etcd: {namespaces:?}"
    );
    server.put(PODS, labelled("here", "1"));
    until(&source, |it| label(it, "here").is_some()).await;
    assert!(server.requests("/api/v1/services", false).is_empty());
}

#[tokio::test]
async fn dropping_it_ends_its_connections() {
    let server = Server::start().await;
    let source = watch(&server, &Scope::Cluster);
    watched(&source, &server).await;
    assert!(server.connections() > 0);
    drop(source);
    in_time(async {
        while server.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
