// SPDX-License-Identifier: Apache-2.0
//! Pods come, stay and go.

use std::{
    fs,
    net::{TcpListener, TcpStream},
};

use culvert_api::{
    agent::{Family, FromAgent, FromProxy, VERSIONS},
    cni::{Command, code},
};

use crate::{
    node::{Node, POD},
    proxy::Proxy,
    talk::*,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_steered_across_a_killed_agent_until_it_is_deleted() {
    let mut node = Node::new("life");
    let rules = node.rules();
    node.write_pod("enabled");
    node.start(0);
    // Without a proxy as well: it is a pod itself, which the kubelet starts when STATUS is fine.
    assert_eq!(node.ask(Command::Status), UNSTEERED);
    let (mut proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods, []);
    let add = Command::Add(node.attachment());
    assert_eq!(node.ask(add.clone()), STEERED);
    assert_eq!(node.ask(add), STEERED);
    let (key, live) = pod_message(&mut proxy).await;
    assert!(!live);
    sockets(&mut proxy, 16).await;
    assert_eq!(node.ask(Command::Check(node.attachment())), STEERED);
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
    assert!(
        node.metrics()
            .contains("decision=\"steered_out\",namespace=\"shop\",pod=\"web\"} 1")
    );

    // Without an agent the proxy serves what it has.
    node.stop("-KILL");
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
    node.start(0);
    let (mut proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods, [key]);
    sockets(&mut proxy, 16).await;
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
    // What the agent does not hear of.
    node.inside(&["sysctl", "-w", "net.ipv4.fwmark_reflect=0"]);
    assert_eq!(
        failure(node.ask(Command::Check(node.attachment()))),
        code::NOT_AS_ADDED
    );

    drop(proxy);
    let mut gone = node.attachment();
    gone.netns = None;
    for _ in 0..2 {
        assert_eq!(node.ask(Command::Del(gone.clone())), UNSTEERED);
    }
    assert!(is_nothing_left(&node));
    assert_eq!(node.rules(), rules);
    assert_eq!(node.stop("-TERM"), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_enters_and_leaves_the_mesh_and_keeps_its_connections() {
    let mut node = Node::new("live");
    let rules = node.rules();
    node.start(0);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), UNSTEERED);
    let opt_in = fs::read_to_string(node.path("state/opt-in.json")).unwrap_or_default();
    assert!(opt_in.contains(&node.uid()), "{opt_in}");
    assert_eq!(node.rules(), rules);

    node.write_pod("enabled");
    let (key, live) = pod_message(&mut proxy).await;
    assert!(live);
    let (mut client, mut stream) = expect_steered(&node, &proxy);

    node.write_pod("disabled");
    let withdraw = |_: &Proxy, m: &FromAgent| matches!(m, FromAgent::Withdraw { .. }).then_some(());
    proxy.until(withdraw).await;
    proxy
        .say(&FromProxy::Withdrawn { key: key.clone() }, None)
        .await;
    let remove = |_: &Proxy, m: &FromAgent| matches!(m, FromAgent::Remove { .. }).then_some(());
    proxy.until(remove).await;
    proxy.listeners.clear();
    expect_open(&mut client, &mut stream);
    assert!(node.rules().contains("17101"));
    assert_eq!(node.pins(), Vec::<String>::new());
    let direct = in_netns(&node.name, || TcpListener::bind((POD, 8081)));
    let _client = in_netns(&node.peer(), || TcpStream::connect((POD, 8081)));
    direct.accept().unwrap_or_else(|e| panic!("{e}"));

    end(client, stream);
    node.until("the rules go with the last connection", || {
        (node.rules() == rules).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_enters_while_the_agent_is_killed_is_live_for_the_next_one() {
    let mut node = Node::new("killed");
    node.start(0);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), UNSTEERED);
    node.write_pod("enabled");
    let (_, live) = pod_message(&mut proxy).await;
    assert!(live);
    node.stop("-KILL");
    node.start(0);
    let mut proxy = Proxy::connect(&node, VERSIONS).await;
    let (_, live) = pod_message(&mut proxy).await;
    assert!(live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_that_is_called_off_hands_the_pod_over_again() {
    let mut node = Node::new("off");
    node.write_pod("enabled");
    node.start(0);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    pod_message(&mut proxy).await;
    node.write_pod("disabled");
    let withdraw = |_: &Proxy, m: &FromAgent| matches!(m, FromAgent::Withdraw { .. }).then_some(());
    proxy.until(withdraw).await;
    node.write_pod("enabled");
    let remove = |_: &Proxy, m: &FromAgent| matches!(m, FromAgent::Remove { .. }).then_some(());
    proxy.until(remove).await;
    let (_, live) = pod_message(&mut proxy).await;
    assert!(live);
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_s_addresses_are_followed() {
    let mut node = Node::new("addr");
    node.write_pod("enabled");
    node.start(0);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    node.ip("-6 route add default dev eth0");
    node.ip("addr add fd78::2/64 dev eth0 nodad");
    let count = |wanted: usize| {
        move |_: &Proxy, message: &FromAgent| match message {
            FromAgent::Addresses { addresses, .. } if addresses.len() == wanted => Some(()),
            _ => None,
        }
    };
    proxy.until(count(2)).await;
    assert!(node.ip("-6 rule").contains("17101"));
    let v6 = ("2001:db8::9", Family::V6);
    let (steered, stream) = expect_steered_to(&node, &proxy, v6, "fd78::2");
    end(steered, stream);
    node.ip("addr del fd78::2/64 dev eth0");
    proxy.until(count(1)).await;
    assert!(node.ip("-6 rule").contains("17101"));
    assert!(complaint(client(&node, v6.0)).contains("No route to host"));
    assert_eq!(node.ask(Command::Check(node.attachment())), STEERED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_namespace_is_gone_is_let_go_of() {
    for dead_agent in [false, true] {
        let mut node = Node::new("gone");
        node.write_pod("enabled");
        node.start(0);
        assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
        assert!(!node.pins().is_empty());
        if dead_agent {
            node.stop("-KILL");
        }
        node.delete_namespace();
        fs::remove_file(node.path("manifests/web.json")).unwrap_or_else(|e| panic!("{e}"));
        if dead_agent {
            node.start(0);
        }
        node.until("nothing is left", || is_nothing_left(&node).then_some(()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_a_new_agent_can_not_steer_again_is_cut_off_until_it_can() {
    let mut node = Node::new("closed");
    node.write_pod("enabled");
    node.start(0);
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    node.stop("-KILL");
    node.ip("rule del pref 100");
    node.ip("rule add pref 50 lookup 99");
    node.start(0);
    let (mut proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods, []);
    assert!(
        node.metrics()
            .contains("culvert_agent_pods{state=\"failed\"} 1")
    );
    let _application = in_netns(&node.name, || TcpListener::bind((POD, 8082)));
    let refused = in_netns(
        &node.peer(),
        || Ok(TcpStream::connect((POD, 8082)).is_err()),
    );
    assert!(refused);
    assert!(complaint(client(&node, ELSEWHERE)).contains("not permitted"));

    node.ip("rule del pref 50");
    pod_message(&mut proxy).await;
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_passed_without_an_agent_is_taken_in_and_can_enter_the_mesh() {
    let mut node = Node::new("passed");
    node.write_pod("disabled");
    let note = node.path("state/passed").join("c1.eth0.json");
    fs::create_dir_all(node.path("state/passed")).unwrap_or_else(|e| panic!("{e}"));
    let attachment = serde_json::to_vec(&node.attachment()).unwrap_or_else(|e| panic!("{e}"));
    fs::write(&note, attachment).unwrap_or_else(|e| panic!("{e}"));
    node.start(0);
    node.until("the note is taken", || (!note.exists()).then_some(()));
    assert_eq!(node.ask(Command::Check(node.attachment())), UNSTEERED);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    node.write_pod("enabled");
    let (_, live) = pod_message(&mut proxy).await;
    assert!(live);
    assert_eq!(node.ask(Command::Check(node.attachment())), STEERED);
}
