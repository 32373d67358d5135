// SPDX-License-Identifier: Apache-2.0
//! What goes wrong costs connections, and never sends them out in plaintext.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use culvert_api::{
    agent::{FromAgent, FromProxy},
    cni::{Command, code},
};

use crate::{node::Node, proxy::Proxy, talk::*};

async fn steered(label: &str) -> (Node, Proxy) {
    let mut node = Node::new(label);
    node.write_pod("enabled");
    node.start(0);
    let (mut proxy, _) = Proxy::snapshot(&node).await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    pod_message(&mut proxy).await;
    (node, proxy)
}

async fn addresses(proxy: &mut Proxy, wanted: usize) {
    let count = move |_: &Proxy, message: &FromAgent| match message {
        FromAgent::Addresses { addresses, .. } if addresses.len() == wanted => Some(()),
        _ => None,
    };
    proxy.until(count).await;
}

fn record(node: &Node) -> PathBuf {
    let entries = fs::read_dir(node.path("state/pods"));
    let mut entries = entries.unwrap_or_else(|e| panic!("{e}")).flatten();
    let entry = entries.next().unwrap_or_else(|| panic!("no record"));
    entry.path()
}

fn count(node: &Node, metric: &str, wanted: u64) -> Option<()> {
    let metrics = node.metrics();
    let value = metrics.lines().find_map(|line| {
        let value = line.strip_prefix("culvert_agent_")?.strip_prefix(metric)?;
        value.trim().parse::<u64>().ok()
    });
    (value? >= wanted).then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_rules_can_not_be_set_is_cut_off_until_they_can() {
    let (node, mut proxy) = steered("cut").await;
    node.ip("rule del pref 100");
    node.ip("rule add pref 50 lookup 99");
    node.ip("addr add 10.78.1.5/24 dev eth0");
    node.until("it is cut off, and tried again", || {
        count(&node, "cut_off_total", 2)
    });
    assert!(complaint(client(&node, ELSEWHERE)).contains("not permitted"));
    assert_eq!(
        failure(node.ask(Command::Check(node.attachment()))),
        code::NOT_AS_ADDED
    );
    node.ip("rule del pref 50");
    addresses(&mut proxy, 2).await;
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
    assert_eq!(node.ask(Command::Check(node.attachment())), STEERED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_comes_before_steering_cuts_the_pod_off_until_it_is_gone() {
    let (node, proxy) = steered("before").await;
    node.ip("rule add pref 7 iif eth0 lookup 99");
    node.ip("rule add pref 0 lookup main");
    node.until("it is cut off, and tried again", || {
        count(&node, "cut_off_total", 2)
    });
    assert!(complaint(client(&node, ELSEWHERE)).contains("not permitted"));
    assert_eq!(
        failure(node.ask(Command::Check(node.attachment()))),
        code::NOT_AS_ADDED
    );
    assert_eq!(
        node.log()
            .matches("the pod is cut off until it can")
            .count(),
        1
    );
    assert_eq!(
        node.log().matches("somebody else at preference 0").count(),
        1
    );
    node.ip("rule del pref 0 lookup main");
    node.until("it is steered again", || {
        (node.ask(Command::Check(node.attachment())) == STEERED).then_some(())
    });
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_from_a_pod_is_put_back() {
    let (node, proxy) = steered("repair").await;
    let is_repaired = || (node.ask(Command::Check(node.attachment())) == STEERED).then_some(());
    // The agent hears of each of these.
    for taken in [
        "rule del pref 100",
        "-6 rule del pref 101",
        "route flush table 17100",
        "link set lo down",
        "route add 10.2.0.0/16 dev eth0 table 17101",
    ] {
        node.ip(taken);
        node.until(&format!("{taken:?} is repaired"), is_repaired);
    }
    assert!(!node.ip("route show table 17101").contains("eth0"));
    assert!(count(&node, "repairs_total", 5).is_some());
    assert_eq!(node.log().matches("not steered as it was left").count(), 1);
    assert!(node.ip("link show lo up").contains("lo"));
    // The regular look, at once.
    node.inside(&["sysctl", "-w", "net.ipv4.fwmark_reflect=0"]);
    fs::remove_file(node.path("manifests/web.json")).unwrap_or_else(|e| panic!("{e}"));
    node.until("it is repaired", is_repaired);
    assert!(count(&node, "repairs_total", 2).is_some());
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_that_fails_keeps_the_rules_of_open_connections() {
    let (node, mut proxy) = steered("keep").await;
    let (mut client, mut stream) = expect_steered(&node, &proxy);
    node.write_pod("disabled");
    let withdraw = |_: &Proxy, m: &FromAgent| match m {
        FromAgent::Withdraw { key, .. } => Some(key.clone()),
        _ => None,
    };
    let key = proxy.until(withdraw).await;
    proxy.say(&FromProxy::Withdrawn { key }, None).await;
    node.until("it drains", || {
        node.metrics()
            .contains("culvert_agent_pods{state=\"draining\"} 1")
            .then_some(())
    });
    node.ip("-6 rule del pref 100");
    node.ip("-6 rule add pref 50 lookup 99");
    node.write_pod("enabled");
    node.until("it fails", || {
        node.metrics()
            .contains("culvert_agent_pods{state=\"failed\"} 1")
            .then_some(())
    });
    assert!(node.ip("-4 rule").contains("17101"));
    expect_open(&mut client, &mut stream);
    node.write_pod("disabled");
    node.until("it drains again", || {
        node.metrics()
            .contains("culvert_agent_pods{state=\"draining\"} 1")
            .then_some(())
    });
    assert!(node.ip("-4 rule").contains("17101"));
    end(client, stream);
    node.until("the rules go", || {
        (!node.rules().contains("17101")).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_record_is_lost_or_broken_is_cut_off_until_it_is_gone() {
    for broken in [false, true] {
        let (mut node, proxy) = steered("lost").await;
        drop(proxy);
        node.stop("-KILL");
        let record = record(&node);
        let done = match broken {
            true => fs::write(&record, "{"),
            false => fs::remove_file(&record),
        };
        done.unwrap_or_else(|e| panic!("{e}"));
        node.start(0);
        assert!(node.log().contains("delete the pod"), "{}", node.log());
        assert_eq!(record.with_extension("broken").exists(), broken);
        assert!(node.pins().iter().any(|pin| pin.ends_with("/link")));
        assert!(complaint(client(&node, ELSEWHERE)).contains("not permitted"));
        node.delete_namespace();
        node.until("nothing is left", || is_nothing_left(&node).then_some(()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_could_not_be_looked_at_has_an_owner() {
    let (mut node, mut proxy) = steered("unseen").await;
    let (path, netns) = (node.path("netns"), node.attachment().netns);
    let netns = netns.unwrap_or_else(|| panic!("no namespace"));
    let at = |target: &PathBuf| {
        drop(fs::remove_file(&path));
        symlink(target, &path).unwrap_or_else(|e| panic!("{e}"));
    };
    for deleted in [false, true] {
        drop(proxy);
        node.stop("-KILL");
        let record = record(&node);
        let text = fs::read_to_string(&record).unwrap_or_else(|e| panic!("{e}"));
        let text = text.replace(&netns.display().to_string(), &path.display().to_string());
        fs::write(&record, text).unwrap_or_else(|e| panic!("{e}"));
        // A loop.
        at(&path);
        node.start(0);
        assert_eq!(
            failure(node.ask(Command::Check(node.attachment()))),
            code::NOT_AS_ADDED
        );
        if deleted {
            assert_eq!(node.ask(Command::Del(node.attachment())), UNSTEERED);
            assert!(is_nothing_left(&node));
            return;
        }
        at(&netns);
        (proxy, _) = Proxy::snapshot(&node).await;
        pod_message(&mut proxy).await;
        assert_eq!(node.ask(Command::Check(node.attachment())), STEERED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_addresses_of_a_second_interface_count_when_it_was_added() {
    let (node, mut proxy) = steered("second").await;
    // Changes that follow this one are not looked at for a moment.
    node.ip("addr add 10.78.1.5/24 dev eth0");
    addresses(&mut proxy, 2).await;
    node.ip("addr add fd78::2/64 dev eth0 nodad");
    let mut second = node.attachment();
    second.network = "another".into();
    second.ifname = "net1".into();
    assert_eq!(node.ask(Command::Add(second.clone())), STEERED);
    let routes = node.ip("-6 route show table 17101");
    assert!(routes.contains("local fd78::/64"), "{routes}");
    assert_eq!(node.ask(Command::Del(second)), UNSTEERED);
    assert_eq!(node.ask(Command::Check(node.attachment())), STEERED);
}
