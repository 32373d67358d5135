// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::{netns::Netns, testing::TestNetns};

const ADDRESSES: [&str; 2] = [
    "addr add 10.77.0.2/24 dev p0",
    "addr add fd77::2/64 dev p0 nodad",
];

fn pod(label: &str) -> TestNetns {
    let pod = TestNetns::new(label);
    pod.ip("link add p0 type veth peer name p1");
    ["p0", "p1"]
        .iter()
        .for_each(|link| drop(pod.ip(&format!("link set {link} up"))));
    ADDRESSES.iter().for_each(|args| drop(pod.ip(args)));
    pod
}

async fn open(pod: &TestNetns) -> Rtnl {
    let netns = Netns::open(pod.path())
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    let rtnl = Rtnl::open(&netns).await.unwrap_or_else(|e| panic!("{e}"));
    rtnl.loopback_up().await.unwrap_or_else(|e| panic!("{e}"));
    rtnl
}

async fn own(rtnl: &Rtnl) -> Own {
    Own::pick(&rtnl.addresses().await.unwrap_or_else(|e| panic!("{e}")))
}

async fn apply_own(rtnl: &Rtnl) -> Result<Own, Error> {
    let own = own(rtnl).await;
    apply(rtnl, &own).await?;
    Ok(own)
}

fn rules(pod: &TestNetns) -> [String; 2] {
    ["-4 rule", "-6 rule"].map(|args| pod.ip(args))
}

#[tokio::test]
async fn rules_and_routes_are_set_once_and_removed_without_a_trace() {
    let pod = pod("routes");
    let before = rules(&pod);
    let rtnl = open(&pod).await;
    let own = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    let set = rules(&pod);
    assert!(
        set[0].contains("fwmark 0x2000000/0xf000000 lookup 17101"),
        "{set:?}"
    );
    assert!(!set[0].contains("0:\tfrom all lookup local\n1"), "{set:?}");
    let marked = pod.ip("route get 192.0.2.1 mark 0x2000000");
    assert!(
        marked.contains("dev lo") && marked.contains("src 10.77.0.2"),
        "{marked}"
    );
    let marked = pod.ip("-6 route get 2001:db8::1 mark 0x2000000");
    assert!(
        marked.contains("dev lo") && marked.contains("src fd77::2"),
        "{marked}"
    );

    apply(&rtnl, &own).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(rules(&pod), set);
    let differences = differences(&rtnl, &own).await;
    assert_eq!(
        differences.unwrap_or_else(|e| panic!("{e}")),
        Vec::<String>::new()
    );

    for _ in 0..2 {
        remove_all(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(rules(&pod), before);
    }
    for args in ["-4 route show table all", "-6 route show table all"] {
        assert!(!pod.ip(args).contains("1710"));
    }
}

#[tokio::test]
async fn a_family_without_an_address_is_unreachable_and_never_plaintext() {
    let pod = pod("family");
    let rtnl = open(&pod).await;
    let refused = |args: &str| {
        pod.try_ip(args)
            .is_err_and(|e| e.contains("No route to host"))
    };
    let marked = [
        "-4 route get 192.0.2.1 mark 0x2000000",
        "-6 route get 2001:db8::1 mark 0x2000000",
    ];
    pod.ip("route add default via 10.77.0.1");
    pod.ip("-6 route add default via fd77::1");
    pod.ip("addr del fd77::2/64 dev p0");
    let own = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(pod.ip(marked[0]).contains("dev lo") && refused(marked[1]));
    assert!(rules(&pod).iter().all(|rules| rules.contains("17101")));
    let left = differences(&rtnl, &own).await;
    assert_eq!(left.unwrap_or_else(|e| panic!("{e}")), Vec::<String>::new());
    // Before anybody looked at the addresses again.
    pod.ip(ADDRESSES[1]);
    pod.ip("addr add 10.77.1.3/24 dev p0");
    pod.ip("addr del 10.77.0.2/24 dev p0");
    assert!(pod.ip(marked[0]).contains("dev lo") && refused(marked[1]));
    pod.ip("addr del 10.77.1.3/24 dev p0");
    let own = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(refused(marked[0]) && pod.ip(marked[1]).contains("dev lo"));
    let left = differences(&rtnl, &own).await;
    assert_eq!(left.unwrap_or_else(|e| panic!("{e}")), Vec::<String>::new());
    remove_all(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(!rules(&pod).iter().any(|rules| rules.contains("1710")));
    assert!(!pod.ip("-4 route show table all").contains("1710"));
    assert!(!pod.ip("-6 route show table all").contains("1710"));
}

#[tokio::test]
async fn a_namespace_whose_ipv6_is_disabled_is_no_trouble() {
    let pod = pod("nov6");
    let netns = Netns::open(pod.path())
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    let disable = || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    let disabled = netns.run(disable).await.unwrap_or_else(|e| panic!("{e}"));
    disabled.unwrap_or_else(|e| panic!("{e}"));
    let rtnl = open(&pod).await;
    let own = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    let left = differences(&rtnl, &own).await;
    assert_eq!(left.unwrap_or_else(|e| panic!("{e}")), Vec::<String>::new());
}

#[tokio::test]
async fn the_source_follows_the_address() {
    let pod = pod("source");
    let rtnl = open(&pod).await;
    apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    pod.ip("addr add 10.77.1.3/24 dev p0");
    pod.ip("addr del 10.77.0.2/24 dev p0");
    let own = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    let marked = pod.ip("route get 192.0.2.1 mark 0x2000000");
    assert!(marked.contains("src 10.77.1.3"), "{marked}");
    let left = differences(&rtnl, &own).await;
    assert_eq!(left.unwrap_or_else(|e| panic!("{e}")), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_taken_away_is_noticed() {
    let pod = pod("check");
    let rtnl = open(&pod).await;
    let own = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    pod.ip("rule del pref 100");
    pod.ip("route flush table 17100");
    let got = differences(&rtnl, &own)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(got.len(), 2, "{got:?}");
}

#[tokio::test]
async fn a_rule_of_somebody_else_in_our_place_is_a_conflict() {
    for taken in [
        "rule add pref 0 iif lo lookup 99",
        "rule add pref 7 lookup 99",
    ] {
        let pod = pod("conflict");
        let before = {
            pod.ip(taken);
            rules(&pod)
        };
        let rtnl = open(&pod).await;
        let got = apply_own(&rtnl).await;
        assert!(matches!(got, Err(Error::Conflict { .. })), "{got:?}");
        assert_eq!(rules(&pod), before);
    }
}

#[tokio::test]
async fn a_rule_that_comes_later_is_no_conflict() {
    let pod = pod("later");
    let rtnl = open(&pod).await;
    apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    pod.ip("rule add pref 7 lookup 99");
    apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
}

#[tokio::test]
async fn a_change_of_addresses_is_heard() {
    let pod = pod("heard");
    let mut rtnl = open(&pod).await;
    // `lo` going up is itself a change.
    while let Ok(Some(())) = {
        let quiet = std::time::Duration::from_millis(100);
        tokio::time::timeout(quiet, rtnl.changed()).await
    } {}
    pod.ip("addr add 10.77.2.1/24 dev p0");
    let heard = tokio::time::timeout(std::time::Duration::from_secs(5), rtnl.changed()).await;
    assert_eq!(heard.ok().flatten(), Some(()));
}
