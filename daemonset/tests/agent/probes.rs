// SPDX-License-Identifier: Apache-2.0
//! The kubelet's probes, and a kubelet that is started again in another cgroup of the same name.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
    thread,
};

use culvert_api::cni::Command;

use crate::{
    node::{Node, POD},
    proxy::Proxy,
    talk::*,
};

const PASSED: &str = "decision=\"passed_probe\",namespace=\"shop\",pod=\"web\"}";

/// A cgroup beside the pods'.
struct Kubelet(PathBuf);

impl Kubelet {
    fn new(node: &Node) -> Self {
        let mut path = node.cgroup.clone().into_os_string();
        path.push("-kubelet");
        let kubelet = Self(path.into());
        kubelet.make();
        kubelet
    }

    fn make(&self) {
        fs::create_dir(&self.0).unwrap_or_else(|e| panic!("{e}"));
    }

    /// What ran in it may not be reaped yet.
    fn remove(&self, node: &Node) {
        node.until("the kubelet's cgroup goes", || {
            fs::remove_dir(&self.0)
                .ok()
                .or((!self.0.exists()).then_some(()))
        });
    }

    /// Connects to the pod, and is closed at once.
    fn probe(&self, node: &Node) {
        let script = format!(
            "echo $$ > {}; exec ip netns exec {} bash -c 'exec 3<>/dev/tcp/{POD}/8080'",
            self.0.join("cgroup.procs").display(),
            node.peer()
        );
        let probed = Process::new("bash")
            .args(["-c", &script])
            .stderr(Stdio::null())
            .status();
        probed.unwrap_or_else(|e| panic!("{e}"));
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn passed(node: &Node) -> u64 {
    let metrics = node.metrics();
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.split_once(PASSED).map(|(_, value)| value.trim()));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probes_of_a_kubelet_that_was_started_again_still_pass() {
    let mut node = Node::new("probes");
    node.write_pod("enabled");
    let kubelet = Kubelet::new(&node);
    node.start_with(0, &["--kubelet-cgroup", path(&kubelet.0)]);
    let (_proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    let application = in_netns(&node.name, || TcpListener::bind((POD, 8080)));
    thread::spawn(move || while application.accept().is_ok() {});
    kubelet.probe(&node);
    assert_eq!(passed(&node), 1);
    for _ in 0..2 {
        let before = passed(&node);
        kubelet.remove(&node);
        kubelet.make();
        node.until("probes pass again", || {
            kubelet.probe(&node);
            (passed(&node) > before).then_some(())
        });
    }
    // A kubelet that is gone for longer is missed, and taken back.
    kubelet.remove(&node);
    node.until("it is missed", || {
        node.log().contains("is not there").then_some(())
    });
    kubelet.make();
    let before = passed(&node);
    node.until("probes pass again", || {
        kubelet.probe(&node);
        (passed(&node) > before).then_some(())
    });
}
