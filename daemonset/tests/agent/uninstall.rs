// SPDX-License-Identifier: Apache-2.0
//! The agent takes Culvert from its node when the cluster wants it gone, and only then.

use std::{
    fs,
    io::{ErrorKind, Read},
    net::TcpStream,
    path::PathBuf,
    process::Child,
    time::{Duration, Instant},
};

use culvert_api::{
    agent::{FromAgent, FromProxy},
    cni::Command,
    workload::WorkloadKey,
};
use serde_json::json;

use crate::{
    cluster::Cluster,
    node::{Node, PATIENCE, run},
    proxy::Proxy,
    talk::*,
};

const PRIMARY: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;

/// A node of a cluster, chained, with an opted-in pod.
struct World {
    node: Node,
    cluster: Cluster,
    rules: String,
}

/// A mount over a file, which can't be removed for as long as it stands.
struct Busy(String);

impl World {
    async fn new(label: &str) -> Self {
        let node = Node::new(label);
        node.write_pod("enabled");
        let cluster = Cluster::start(&node).await;
        fs::create_dir(node.path("net")).unwrap_or_else(|e| panic!("{e}"));
        for (file, text) in [("net/10-pods.conflist", PRIMARY), ("plugin", "program")] {
            fs::write(node.path(file), text).unwrap_or_else(|e| panic!("{e}"));
        }
        let rules = node.rules();
        Self {
            node,
            cluster,
            rules,
        }
    }

    /// Whose agent is there, and has its pod steered.
    async fn meshed(label: &str, flags: &[&str]) -> (Self, Proxy, WorkloadKey) {
        let mut world = Self::new(label).await;
        world.start(flags);
        let (mut proxy, _) = Proxy::snapshot(&world.node).await;
        let add = Command::Add(world.node.attachment());
        assert_eq!(world.node.ask(add), STEERED);
        let (key, _) = pod_message(&mut proxy).await;
        (world, proxy, key)
    }

    fn start(&mut self, flags: &[&str]) {
        self.node.launch_in_cluster(flags);
        self.node.until_ready();
        self.node.until("the node says how it is", || {
            self.cluster.annotation()?;
            self.is_chained().then_some(())
        });
    }

    fn conflist(&self) -> PathBuf {
        self.node.path("net/00-culvert.conflist")
    }

    fn program(&self) -> PathBuf {
        self.node.path("bin/culvert-cni")
    }

    fn is_chained(&self) -> bool {
        self.conflist().exists() && self.program().exists()
    }

    /// Neither in the pod nor on the node nor on the API server.
    fn nothing_is_left(&self) {
        let node = &self.node;
        assert!(!self.conflist().exists() && !self.program().exists());
        assert_eq!(node.rules(), self.rules);
        for dir in ["state", "proxy", "run/cni.sock", "run/proxy.sock"] {
            assert!(!node.path(dir).exists(), "{dir}\n{}", node.log());
        }
        assert_eq!(node.all_pins(), Vec::<String>::new());
        assert_eq!(self.cluster.annotation(), None, "{}", node.log());
    }
}

impl Busy {
    fn new(path: PathBuf) -> Self {
        let path = path.display().to_string();
        run(&["mount", "--bind", &path, &path]);
        Self(path)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        run(&["umount", &self.0]);
    }
}

/// Does what a proxy does when a pod leaves the mesh.
async fn withdrawn(proxy: &mut Proxy, key: WorkloadKey) {
    let withdraw = |_: &Proxy, m: &FromAgent| matches!(m, FromAgent::Withdraw { .. }).then_some(());
    proxy.until(withdraw).await;
    proxy.say(&FromProxy::Withdrawn { key }, None).await;
    let remove = |_: &Proxy, m: &FromAgent| matches!(m, FromAgent::Remove { .. }).then_some(());
    proxy.until(remove).await;
    proxy.listeners.clear();
}

/// Nothing comes any more, and no regular end either.
fn expect_ended(client: Child, mut stream: TcpStream) {
    let patient = stream.set_read_timeout(Some(PATIENCE));
    patient.unwrap_or_else(|e| panic!("{e}"));
    let read = stream.read(&mut [0]);
    let kind = read.map_err(|error| error.kind());
    // Both its ends are the pod's, and one is ended before the other.
    assert!(
        matches!(
            kind,
            Err(ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
        ),
        "{kind:?}"
    );
    end(client, stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_left_clean_and_connections_go_on_until_they_end() {
    let (mut world, mut proxy, key) = World::meshed("gone", &[]).await;
    let (mut client, mut stream) = expect_steered(&world.node, &proxy);
    world.cluster.delete_daemonset();
    // An API server that fails for a moment is asked again.
    world.cluster.refuse_patches(2);
    world.node.signal("-TERM");
    withdrawn(&mut proxy, key).await;
    assert!(!world.conflist().exists(), "it goes before pods do");
    expect_open(&mut client, &mut stream);
    assert!(world.node.rules().contains("17101"));
    assert!(world.program().exists() && world.cluster.annotation().is_some());
    end(client, stream);
    assert_eq!(world.node.ended(), Some(0));
    world.nothing_is_left();
    assert_eq!(world.cluster.refused(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_no_proxy_withdraws_are_let_go_of_in_time() {
    let grace = ["--grace-period", "8"];
    let (mut world, proxy, _) = World::meshed("late", &grace).await;
    let (client, stream) = expect_steered(&world.node, &proxy);
    world.cluster.delete_daemonset();
    let asked = Instant::now();
    world.node.signal("-TERM");
    assert_eq!(world.node.ended(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "{asked:?}");
    world.nothing_is_left();
    expect_ended(client, stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_ends_leaves_all_as_it_is() {
    let (mut world, proxy, _) = World::meshed("stays", &[]).await;
    assert_eq!(world.node.stop("-TERM"), Some(0));
    assert!(world.is_chained() && world.cluster.annotation().is_some());
    let (client, stream) = expect_steered(&world.node, &proxy);
    end(client, stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_selected_no_more_is_left_clean() {
    let (mut world, mut proxy, key) = World::meshed("other", &[]).await;
    world.cluster.select(json!({"pool": "b"}));
    world.node.signal("-TERM");
    withdrawn(&mut proxy, key).await;
    assert_eq!(world.node.ended(), Some(0));
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_can_not_be_removed_keeps_its_plugin_and_its_name() {
    let (mut world, mut proxy, key) = World::meshed("stuck", &[]).await;
    let busy = Busy::new(world.conflist());
    world.cluster.delete_daemonset();
    world.node.signal("-TERM");
    withdrawn(&mut proxy, key).await;
    assert_eq!(world.node.ended(), Some(0));
    // The runtime goes on calling the plugin, which looks into the state.
    assert!(world.is_chained() && world.node.path("state/opt-in.json").exists());
    assert!(world.cluster.annotation().is_some(), "nobody is told");
    // What is not in the way goes all the same.
    assert_eq!(world.node.rules(), world.rules);
    assert_eq!(world.node.all_pins(), Vec::<String>::new());
    drop(busy);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_still_starts_leaves_its_node_clean() {
    let (mut world, proxy, _) = World::meshed("starts", &[]).await;
    drop(proxy);
    world.node.stop("-KILL");
    world.cluster.delete_daemonset();
    ended_at_start(&mut world);
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_can_not_start_takes_away_what_makes_pods_wait() {
    let (mut world, proxy, _) = World::meshed("broken", &[]).await;
    world.node.stop("-KILL");
    // As a disk that reads no more.
    let record = world.node.path("state/pods/x.json");
    fs::create_dir(record).unwrap_or_else(|e| panic!("{e}"));
    world.cluster.delete_daemonset();
    ended_at_start(&mut world);
    assert!(!world.conflist().exists());
    // Its pods stay steered: the node is to be named, and the next agent finds them.
    assert!(world.cluster.annotation().is_some(), "nobody is told");
    let records = fs::read_dir(world.node.path("state/pods")).map(Iterator::count);
    assert_eq!(records.ok(), Some(2));
    let (client, stream) = expect_steered(&world.node, &proxy);
    end(client, stream);
}

/// Starts the agent, and ends it while the programs are loaded.
fn ended_at_start(world: &mut World) {
    world.node.launch_in_cluster(&[]);
    let says = |what: &str| world.node.log().contains(what);
    world.node.until("the agent starts", || {
        says("The agent starts").then_some(())
    });
    world.node.signal("-TERM");
    world.node.until("it takes note", || {
        says("Uninstalling while the agent starts").then_some(())
    });
    assert!(!says("The agent is ready"));
    assert_eq!(world.node.ended(), Some(0));
}
