// SPDX-License-Identifier: Apache-2.0
//! Pods that run before the agent, and that only the container runtime tells of.

use std::{io::Read, net::TcpListener};

use culvert_api::{
    agent::{FromAgent, FromProxy},
    cni::Command,
};

use crate::{
    node::{NEIGHBOUR, Node},
    proxy::Proxy,
    runtime::{Runtime, Sandbox},
    talk::*,
};

/// The agent with the socket of a runtime.
fn start(node: &mut Node) {
    let socket = node.path("cri.sock").display().to_string();
    node.start_with(0, &["--cri-socket", &socket]);
}

fn says(node: &Node, what: &str) -> bool {
    node.log().contains(what)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ran_before_the_agent_is_taken_in_live_and_let_go_of() {
    let mut node = Node::new("before");
    let rules = node.rules();
    let server = in_netns(&node.peer(), || TcpListener::bind((NEIGHBOUR, 80)));
    let mut before = client(&node, NEIGHBOUR);
    let (mut stream, _) = server.accept().unwrap_or_else(|e| panic!("{e}"));
    node.write_pod("enabled");
    let runtime = Runtime::default();
    runtime.run(vec![Sandbox::of(&node)]);
    runtime.serve(&node);
    start(&mut node);
    let mut proxy = Proxy::connect(&node, culvert_api::agent::VERSIONS).await;
    let (key, live) = pod_message(&mut proxy).await;
    assert!(live && key.uid.0 == node.uid());
    let (steered, accepted) = expect_steered(&node, &proxy);
    end(steered, accepted);
    let mut hello = [0; 6];
    stream
        .read_exact(&mut hello)
        .unwrap_or_else(|e| panic!("{e}"));
    expect_open(&mut before, &mut stream);
    assert!(
        node.metrics()
            .contains("culvert_agent_pods_adopted_total{by=\"runtime\"} 1")
    );

    // The next agent has it from its record, and nobody takes it in twice.
    node.stop("-KILL");
    start(&mut node);
    let (proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods, [key]);
    node.until("the runtime was asked", || says(&node, "h2").then_some(()));
    end(before, stream);
    drop(proxy);

    // The DEL of a chain that has the plugin by now.
    assert_eq!(node.ask(Command::Del(node.attachment())), UNSTEERED);
    assert!(is_nothing_left(&node));
    assert_eq!(node.rules(), rules);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_annotated_later_is_taken_in_then_and_leaves_again() {
    let mut node = Node::new("later");
    let runtime = Runtime::default();
    runtime.run(vec![Sandbox::of(&node)]);
    start(&mut node);
    let (mut proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods, []);
    node.write_pod("enabled");
    // The runtime itself comes later, too.
    node.until("the agent complains", || {
        says(&node, "Could not look for pods").then_some(())
    });
    runtime.serve(&node);
    let (key, live) = pod_message(&mut proxy).await;
    assert!(live);
    let (steered, accepted) = expect_steered(&node, &proxy);
    end(steered, accepted);

    node.write_pod("disabled");
    let withdraw = |_: &Proxy, m: &FromAgent| matches!(m, FromAgent::Withdraw { .. }).then_some(());
    proxy.until(withdraw).await;
    proxy.say(&FromProxy::Withdrawn { key }, None).await;
    let remove = |_: &Proxy, m: &FromAgent| matches!(m, FromAgent::Remove { .. }).then_some(());
    proxy.until(remove).await;
    assert_eq!(node.pins(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_made_again_past_the_plugin_is_taken_in_too() {
    let mut node = Node::new("again");
    node.write_pod("enabled");
    let runtime = Runtime::default();
    runtime.serve(&node);
    start(&mut node);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    let (first, _) = pod_message(&mut proxy).await;
    let peer = std::path::Path::new("/run/netns").join(node.peer());
    let second = Sandbox {
        id: "second".to_owned(),
        netns: Some(peer),
        ..Sandbox::of(&node)
    };
    runtime.run(vec![second]);
    node.write("other", "uid-other", "enabled");
    let (second, live) = pod_message(&mut proxy).await;
    assert!(live && second.uid == first.uid && second.cookie != first.cookie);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_kernel_of_its_own_is_left_alone_and_said_so() {
    let mut node = Node::new("kata");
    let rules = node.rules();
    node.write_pod("enabled");
    let runtime = Runtime::default();
    runtime.run(vec![Sandbox {
        runtime_type: "io.containerd.kata.v2",
        ..Sandbox::of(&node)
    }]);
    runtime.serve(&node);
    start(&mut node);
    node.until("it is told", || {
        says(&node, "it runs in io.containerd.kata.v2").then_some(())
    });
    assert!(
        node.metrics()
            .contains("culvert_agent_pods_refused{reason=\"own_kernel\"} 1")
    );
    // One that the plugin brings is not steered either.
    assert_eq!(node.ask(Command::Add(node.attachment())), UNSTEERED);
    assert_eq!((node.rules(), node.pins()), (rules, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_namespace_is_never_guessed() {
    let mut node = Node::new("guess");
    node.write_pod("enabled");
    let runtime = Runtime::default();
    runtime.run(vec![Sandbox {
        netns: None,
        ..Sandbox::of(&node)
    }]);
    runtime.serve(&node);
    start(&mut node);
    let (mut proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods, []);
    runtime.run(vec![Sandbox {
        netns: Some("/run/netns/is-not-there".into()),
        ..Sandbox::of(&node)
    }]);
    node.until("it fails", || says(&node, "is-not-there").then_some(()));
    runtime.run(vec![Sandbox::of(&node)]);
    let (_, live) = pod_message(&mut proxy).await;
    assert!(live);
}
