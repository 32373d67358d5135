// SPDX-License-Identifier: Apache-2.0
//! What the agent gives to whom, and what it refuses.

use std::net::{SocketAddr, TcpListener, TcpStream};

use culvert_api::{
    agent::{Direction, Family, FromAgent, FromProxy, SocketKind, SocketPool},
    cni::{Command, code},
    identity::Identity,
    version::Versions,
    workload::WorkloadKey,
};
use socket2::Socket;

use crate::{
    node::{NEIGHBOUR, Node, POD},
    proxy::Proxy,
    talk::*,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_dial_what_they_are_for() {
    let mut node = Node::new("dial");
    node.write_pod("enabled");
    node.start(0);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    sockets(&mut proxy, 16).await;

    // From the wire to the inbound listener; from there to the application as the client.
    let application = in_netns(&node.name, || TcpListener::bind((POD, 8080)));
    let client = in_netns(&node.peer(), || TcpStream::connect((POD, 8080)));
    let wire = accept(&proxy, Direction::Inbound, Family::V4);
    let peer = client.local_addr().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(wire.peer_addr().ok(), Some(peer));
    let dial = Socket::from(taken(&mut proxy, SocketKind::InboundDial));
    dial.set_nonblocking(false)
        .unwrap_or_else(|e| panic!("{e}"));
    let from = SocketAddr::new(peer.ip(), 61_000);
    let to: SocketAddr = (
        POD.parse::<std::net::IpAddr>()
            .unwrap_or_else(|e| panic!("{e}")),
        8080,
    )
        .into();
    dial.bind(&from.into()).unwrap_or_else(|e| panic!("{e}"));
    dial.connect(&to.into()).unwrap_or_else(|e| panic!("{e}"));
    let (_served, seen) = application.accept().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(seen, from);

    // Out of the pod without being steered again.
    let upstream = in_netns(&node.peer(), || TcpListener::bind((NEIGHBOUR, 9090)));
    let leg = Socket::from(taken(&mut proxy, SocketKind::OutboundLeg));
    leg.set_nonblocking(false).unwrap_or_else(|e| panic!("{e}"));
    let to = upstream.local_addr().unwrap_or_else(|e| panic!("{e}"));
    leg.connect(&to.into()).unwrap_or_else(|e| panic!("{e}"));
    let (_served, seen) = upstream.accept().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(seen.ip().to_string(), POD);

    let before = proxy.sockets.len();
    let pool = SocketPool {
        kind: SocketKind::OutboundLeg,
        family: Family::V4,
    };
    let key = WorkloadKey {
        uid: culvert_api::workload::PodUid(node.uid()),
        cookie: record_cookie(&node),
    };
    proxy
        .say(
            &FromProxy::Want {
                key,
                pool,
                count: 1000,
            },
            None,
        )
        .await;
    sockets(&mut proxy, before + 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_counted() {
    let mut node = Node::new("strange");
    node.start(0);
    let later = Versions {
        oldest: 98,
        newest: 99,
    };
    let mut proxy = Proxy::connect(&node, later).await;
    assert!(matches!(
        proxy.try_next().await,
        Ok(FromAgent::Hello { .. })
    ));
    assert!(proxy.try_next().await.is_err());
    let refused = "culvert_agent_proxy_connections_refused_total";
    assert!(
        node.metrics()
            .contains(&format!("{refused}{{reason=\"version\"}} 1"))
    );
    node.stop("-TERM");

    node.start(2102);
    let mut proxy = Proxy::connect(&node, later).await;
    assert!(proxy.try_next().await.is_err());
    assert!(
        node.metrics()
            .contains(&format!("{refused}{{reason=\"uid\"}} 1"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_key_is_handed_to_the_next_proxy_until_its_last_pod_leaves() {
    let mut node = Node::new("keys");
    node.write_pod("enabled");
    node.start(0);
    let (proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    let identity = Identity {
        trust_domain: "cluster.local".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
    };
    let keep = FromProxy::Keep {
        identity: identity.clone(),
    };
    proxy.say(&keep, Some(&sealed(b"key"))).await;
    node.until("the key is kept", || {
        node.files()
            .any(|name| name.contains("memfd:key"))
            .then_some(())
    });
    let mut next = Proxy::connect(&node, culvert_api::agent::VERSIONS).await;
    assert!(matches!(next.next().await, FromAgent::Hello { .. }));
    assert_eq!(next.next().await, FromAgent::Key { identity });
    drop((proxy, next));
    let gc = |network: &str| Command::Gc {
        network: network.into(),
        valid: vec![],
    };
    assert_eq!(node.ask(gc("another")), UNSTEERED);
    assert_eq!(node.ask(Command::Check(node.attachment())), STEERED);
    assert_eq!(node.ask(gc("pods")), UNSTEERED);
    let mut last = Proxy::connect(&node, culvert_api::agent::VERSIONS).await;
    assert!(matches!(last.next().await, FromAgent::Hello { .. }));
    assert!(matches!(last.next().await, FromAgent::SnapshotEnd { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_steered_is_refused_and_leaves_nothing() {
    let mut node = Node::new("refuse");
    node.write_pod("enabled");
    node.start(0);
    let mut unknown = node.attachment();
    unknown.args.insert("K8S_POD_UID".into(), "another".into());
    assert_eq!(
        failure(node.ask(Command::Add(unknown.clone()))),
        code::TRY_AGAIN
    );
    unknown.args.insert("K8S_POD_UID".into(), "../../x".into());
    assert_eq!(
        failure(node.ask(Command::Add(unknown))),
        code::INVALID_ENVIRONMENT
    );
    let mut host = node.attachment();
    host.netns = Some("/proc/self/ns/net".into());
    assert_eq!(
        failure(node.ask(Command::Add(host))),
        code::INVALID_ENVIRONMENT
    );
    node.ip("rule add pref 50 lookup 99");
    let rules = node.rules();
    assert_eq!(
        failure(node.ask(Command::Add(node.attachment()))),
        code::STEERING_FAILED
    );
    assert!(is_nothing_left(&node));
    assert_eq!(node.rules(), rules);
    assert_eq!(
        failure(node.ask(Command::Check(node.attachment()))),
        code::UNKNOWN_CONTAINER
    );
    assert!(
        node.metrics()
            .contains("culvert_agent_cni_requests_total{command=\"add\",result=\"100\"} 1")
    );
}
