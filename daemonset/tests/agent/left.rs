// SPDX-License-Identifier: Apache-2.0
//! What is left of pods whose end did not go smoothly, and what is missing of those that live.

use std::{fs, path::Path};

use culvert_api::cni::{Command, Response, code};
use culvert_ebpf_loader as loader;

use crate::{
    node::{Node, run},
    proxy::Proxy,
    talk::*,
};

/// A mount over a pin, which can't be removed for as long as it stands.
struct Busy(String);

impl Busy {
    fn new(pin: String) -> Self {
        run(&["mount", "--bind", "/proc/version", &pin]);
        Self(pin)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        run(&["umount", &self.0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_unpinned_is_unpinned_later() {
    let mut node = Node::new("busy");
    node.write_pod("enabled");
    node.start(0);
    let (proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    drop(proxy);
    let mut pins = node.pins().into_iter();
    let link = pins.find(|pin| pin.ends_with("/link"));
    let busy = Busy::new(link.unwrap_or_else(|| panic!("{:?}", node.pins())));
    let mut gone = node.attachment();
    gone.netns = None;
    assert_eq!(node.ask(Command::Del(gone.clone())), UNSTEERED);
    assert_ne!(node.pins(), Vec::<String>::new());
    assert!(records(&node).is_empty(), "{:?}", records(&node));
    node.delete_namespace();
    // An agent that comes up meanwhile does not mind either.
    node.stop("-KILL");
    node.start(0);
    drop(busy);
    node.until("the pins go", || is_nothing_left(&node).then_some(()));
    assert_eq!(node.ask(Command::Del(gone)), UNSTEERED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_version_pinned_goes_with_its_last_pod() {
    let mut node = Node::new("other");
    node.write_pod("enabled");
    node.start(0);
    let (proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    drop(proxy);
    node.stop("-KILL");
    // Only the name says which version it is.
    let pins = node.path("bpf/node");
    let version = names(&pins).pop().unwrap_or_else(|| panic!("no version"));
    let other = pins.join("v4000000000");
    fs::rename(pins.join(version), &other).unwrap_or_else(|e| panic!("{e}"));
    fs::remove_dir_all(node.path("state/pods")).unwrap_or_else(|e| panic!("{e}"));
    node.start(0);
    assert!(node.log().contains("could not be taken over"));
    assert!(other.exists());
    node.delete_namespace();
    node.until("the other version's pins go", || {
        (!other.exists()).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_at_the_connect_hook() {
    let mut node = Node::new("hook");
    node.write_pod("enabled");
    node.start(0);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    let check = || node.ask(Command::Check(node.attachment()));
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    let (key, _) = pod_message(&mut proxy).await;
    assert_eq!(check(), STEERED);
    let mut hooks = loader::Node::load(&loader::NodeOptions {
        dir: node.path("bpf/node"),
        cgroup: node.cgroup.clone(),
        kubelet_cgroup: None,
        debug: false,
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let cookie = key.cookie.0;
    let cut = hooks.set_up(cookie, false);
    cut.unwrap_or_else(|e| panic!("{e}"));
    expect_difference(check(), "up flag");
    let withdrawn = hooks.withdraw(cookie);
    withdrawn.unwrap_or_else(|e| panic!("{e}"));
    expect_difference(check(), "does not know the pod");
}

fn expect_difference(response: Response, words: &str) {
    let Response::Failed {
        code: code::NOT_AS_ADDED,
        message,
        ..
    } = response
    else {
        panic!("{response:?}")
    };
    assert!(message.contains(words), "{message}");
}

fn records(node: &Node) -> Vec<String> {
    names(&node.path("state/pods"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}
