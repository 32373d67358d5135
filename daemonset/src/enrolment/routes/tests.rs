// SPDX-License-Identifier: Apache-2.0

use std::time::Duration;

use super::*;
use crate::{netns::Netns, testing::TestNetns};

const ADDRESSES: [&str; 2] = [
    "addr add 10.77.0.2/24 dev p0",
    "addr add fd77::2/64 dev p0 nodad",
];
const DEFAULTS: [&str; 2] = [
    "route add default via 10.77.0.1",
    "-6 route add default via fd77::1",
];
const MARKED: [&str; 2] = [
    "-4 route get 192.0.2.1 mark 0x2000000",
    "-6 route get 2001:db8::1 mark 0x2000000",
];

fn pod(label: &str) -> TestNetns {
    let pod = TestNetns::new(label);
    pod.ip("link add p0 type veth peer name p1");
    ["p0", "p1"]
        .iter()
        .for_each(|link| drop(pod.ip(&format!("link set {link} up"))));
    let all = ADDRESSES.iter().chain(&DEFAULTS);
    all.for_each(|args| drop(pod.ip(args)));
    pod
}

/// Refused as by a route or by a rule.
fn is_refused(pod: &TestNetns, args: &str) -> bool {
    let refusals = ["No route to host", "Network is unreachable"];
    pod.try_ip(args)
        .is_err_and(|error| refusals.iter().any(|refusal| error.contains(refusal)))
}

async fn none_differ(rtnl: &Rtnl, tables: &Tables) {
    let left = differences(rtnl, tables).await;
    assert_eq!(left.unwrap_or_else(|e| panic!("{e}")), Vec::<String>::new());
}

async fn open(pod: &TestNetns) -> Rtnl {
    let netns = Netns::open(pod.path())
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    let rtnl = Rtnl::open(&netns).await.unwrap_or_else(|e| panic!("{e}"));
    rtnl.loopback_up().await.unwrap_or_else(|e| panic!("{e}"));
    rtnl
}

async fn apply_own(rtnl: &Rtnl) -> Result<Tables, Error> {
    let own = Own::pick(&rtnl.addresses().await?);
    let tables = look(rtnl, &own).await?;
    apply(rtnl, &tables).await?;
    Ok(tables)
}

fn rules(pod: &TestNetns) -> [String; 2] {
    ["-4 rule", "-6 rule"].map(|args| pod.ip(args))
}

#[tokio::test]
async fn rules_and_routes_are_set_once_and_removed_without_a_trace() {
    let pod = pod("routes");
    let before = rules(&pod);
    let rtnl = open(&pod).await;
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    let set = rules(&pod);
    assert!(
        set[0].contains("fwmark 0x2000000/0xf000000 lookup 17101"),
        "{set:?}"
    );
    assert!(!set[0].contains("0:\tfrom all lookup local\n1"), "{set:?}");
    let marked = pod.ip(MARKED[0]);
    assert!(
        marked.contains("dev lo") && marked.contains("src 10.77.0.2"),
        "{marked}"
    );
    let marked = pod.ip(MARKED[1]);
    assert!(
        marked.contains("dev lo") && marked.contains("src fd77::2"),
        "{marked}"
    );

    apply(&rtnl, &tables)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(rules(&pod), set);
    none_differ(&rtnl, &tables).await;

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
    pod.ip("addr del fd77::2/64 dev p0");
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(pod.ip(MARKED[0]).contains("dev lo") && is_refused(&pod, MARKED[1]));
    assert!(rules(&pod).iter().all(|rules| rules.contains("17101")));
    none_differ(&rtnl, &tables).await;
    // Before anybody looked at the addresses again.
    pod.ip(ADDRESSES[1]);
    pod.ip("addr add 10.77.1.3/24 dev p0");
    pod.ip("addr del 10.77.0.2/24 dev p0");
    assert!(pod.ip(MARKED[0]).contains("dev lo") && is_refused(&pod, MARKED[1]));
    pod.ip("addr del 10.77.1.3/24 dev p0");
    pod.ip("-6 route replace default via fd77::1");
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(is_refused(&pod, MARKED[0]) && pod.ip(MARKED[1]).contains("dev lo"));
    none_differ(&rtnl, &tables).await;
    remove_all(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(!rules(&pod).iter().any(|rules| rules.contains("1710")));
    assert!(!pod.ip("-4 route show table all").contains("1710"));
    assert!(!pod.ip("-6 route show table all").contains("1710"));
}

#[tokio::test]
async fn a_socket_bound_to_a_link_sends_nothing_on_it() {
    let pod = pod("bound");
    let rtnl = open(&pod).await;
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    pod.ip("link add late type veth peer name early");
    pod.ip("link set late up");
    assert_ne!(tables, look_own(&rtnl).await, "the new link is not caught");
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    none_differ(&rtnl, &tables).await;
    let bound = |to: &str, link: &str| format!("{to} oif {link} mark 0x1000000");
    for link in ["p0", "late"] {
        assert!(is_refused(&pod, &bound("-6 route get fd77::9", link)));
        let v4 = bound("-4 route get 10.77.0.9", link);
        assert!(pod.ip(&v4).contains("dev lo"), "{}", pod.ip(&v4));
        pod.ip(&format!("route del local default dev {link} table 17100"));
        let on_link = pod.ip(&v4).contains(&format!("dev {link}"));
        assert!(on_link, "it is refused anyhow");
    }
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    none_differ(&rtnl, &tables).await;
}

async fn look_own(rtnl: &Rtnl) -> Tables {
    let own = Own::pick(&rtnl.addresses().await.unwrap_or_else(|e| panic!("{e}")));
    look(rtnl, &own).await.unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::test]
async fn lo_down_flushes_our_routes_and_lets_nothing_marked_out() {
    let pod = pod("lodown");
    let rtnl = open(&pod).await;
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    pod.ip("link set lo down");
    for mark in ["0x1000000", "0x2000000"] {
        for to in ["-4 route get 192.0.2.1", "-6 route get 2001:db8::1"] {
            let args = format!("{to} mark {mark}");
            // IPv4's local routes stay, and lead to where nothing leaves.
            let kept = pod.try_ip(&args).is_ok_and(|got| got.contains("dev lo"));
            let fine = kept || is_refused(&pod, &args);
            assert!(fine, "{args}: {:?}", pod.try_ip(&args));
        }
    }
    pod.ip("link set lo up");
    let left = differences(&rtnl, &tables).await;
    assert_eq!(left.unwrap_or_else(|e| panic!("{e}")).len(), TABLES.len());
    apply(&rtnl, &tables)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    none_differ(&rtnl, &tables).await;
    assert!(pod.ip(MARKED[1]).contains("dev lo"));
}

/// `net1` beside `p0`, with addresses of both families and a route of its own.
fn second_interface(pod: &TestNetns) {
    pod.ip("link add net1 type veth peer name net2");
    for args in [
        "link set net1 up",
        "link set net2 up",
        "addr add 10.88.0.9/24 dev net1",
        "addr add 10.77.0.7/24 dev p0",
        "addr add fd88::9/64 dev net1 nodad",
        "route add 198.51.100.0/24 via 10.88.0.1",
        "-6 route add 2001:db8:88::/48 via fd88::1",
        "route add 203.0.113.0/24 dev p0 src 10.77.0.7",
        "-6 route add 2001:db8:99::/48 dev p0 src fd77::2",
        "route add unreachable 192.0.2.128/25",
    ] {
        pod.ip(args);
    }
}

#[tokio::test]
async fn each_destination_has_the_source_that_it_has_without_us() {
    let pod = pod("sources");
    second_interface(&pod);
    let rtnl = open(&pod).await;
    let all = [
        ("10.77.0.99", "10.77.0.2"),
        ("10.88.0.99", "10.88.0.9"),
        ("198.51.100.1", "10.88.0.9"),
        ("203.0.113.1", "10.77.0.7"),
        ("192.0.2.1", "10.77.0.2"),
        ("fd77::99", "fd77::2"),
        ("fd88::99", "fd88::9"),
        ("2001:db8:88::1", "fd88::9"),
        ("2001:db8:99::1", "fd77::2"),
        ("2001:db8::1", "fd77::2"),
    ];
    let get = |to: &str, mark: &str| pod.ip(&format!("route get {to} {mark}"));
    for (to, source) in all {
        let before = get(to, "");
        assert!(before.contains(&format!("src {source} ")), "{before}");
    }
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    none_differ(&rtnl, &tables).await;
    for (to, source) in all {
        let marked = get(to, "mark 0x2000000");
        let expected = format!("src {source} ");
        let fine = marked.contains("dev lo") && marked.contains(&expected);
        assert!(fine, "{to} should be {expected}: {marked}");
    }
    assert!(is_refused(&pod, "route get 192.0.2.200 mark 0x2000000"));
    // The interface goes, and its routes with it.
    pod.ip("link del net1");
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    none_differ(&rtnl, &tables).await;
    assert!(get("198.51.100.1", "mark 0x2000000").contains("src 10.77.0.2"));
    assert!(get("2001:db8:88::1", "mark 0x2000000").contains("src fd77::2"));
}

#[tokio::test]
async fn what_has_no_route_without_us_has_none_with_us() {
    let pod = pod("noroute");
    pod.ip("route del default");
    pod.ip("-6 route del default");
    let rtnl = open(&pod).await;
    apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(MARKED.iter().all(|args| is_refused(&pod, args)));
    let near = pod.ip("-6 route get fd77::9 mark 0x2000000");
    assert!(near.contains("dev lo"), "{near}");
    // Policy rules of its own may know more.
    pod.ip("rule add pref 7000 lookup 99");
    pod.ip("-6 rule add pref 7000 lookup 99");
    apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(MARKED.iter().all(|args| pod.ip(args).contains("dev lo")));
}

#[tokio::test]
async fn temporary_and_deprecated_addresses_are_chosen_as_without_us() {
    let pod = pod("rfc6724");
    for args in [
        "addr add fd77::3/64 dev p0 nodad preferred_lft 0",
        "addr add 2001:db8:5::5/64 dev p0 nodad",
        "addr add 2001:db8:6::6/64 dev p0 nodad preferred_lft 0",
    ] {
        pod.ip(args);
    }
    let rtnl = open(&pod).await;
    apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    for to in ["fd77::99", "fd78::1", "2001:db8:6::99", "2600::1"] {
        let [plain, marked] = ["", "mark 0x2000000"].map(|mark| {
            let got = pod.ip(&format!("-6 route get {to} {mark}"));
            let mut words = got.split_whitespace().skip_while(|word| *word != "src");
            words.nth(1).unwrap_or_default().to_owned()
        });
        assert_eq!(plain, marked, "{to}");
    }
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
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    none_differ(&rtnl, &tables).await;
}

#[tokio::test]
async fn the_source_follows_the_address() {
    let pod = pod("source");
    let rtnl = open(&pod).await;
    apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    pod.ip("addr add 10.77.1.3/24 dev p0");
    pod.ip("addr del 10.77.0.2/24 dev p0");
    pod.ip("route replace default via 10.77.1.1");
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    let marked = pod.ip(MARKED[0]);
    assert!(marked.contains("src 10.77.1.3"), "{marked}");
    none_differ(&rtnl, &tables).await;
}

#[tokio::test]
async fn what_is_taken_away_is_noticed() {
    let pod = pod("check");
    let rtnl = open(&pod).await;
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    pod.ip("rule del pref 100");
    pod.ip("route flush table 17100");
    let got = differences(&rtnl, &tables)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(got.len(), 2, "{got:?}");
}

#[tokio::test]
async fn a_rule_of_somebody_else_in_our_place_is_a_conflict() {
    for taken in [
        "rule add pref 0 iif lo lookup 99",
        "rule add pref 7 lookup 99",
        "rule add pref 101 lookup 99",
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
async fn a_rule_that_comes_later_is_a_conflict_if_it_takes_what_is_marked() {
    let pod = pod("later");
    let rtnl = open(&pod).await;
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    for taking in [
        "pref 0 lookup main",
        "pref 7 to 192.0.2.0/24 lookup 99",
        "pref 100 iif lo lookup 99",
        "pref 50 fwmark 0x2000000/0x2000000 lookup 99",
        "pref 50 not iif p0 lookup 99",
    ] {
        pod.ip(&format!("rule add {taking}"));
        let left = differences(&rtnl, &tables).await;
        assert_eq!(left.unwrap_or_else(|e| panic!("{e}")).len(), 1, "{taking}");
        let got = apply_own(&rtnl).await;
        assert!(
            matches!(got, Err(Error::Conflict { .. })),
            "{taking}: {got:?}"
        );
        pod.ip(&format!("rule del {taking}"));
        let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
        none_differ(&rtnl, &tables).await;
    }
    for fine in [
        "pref 7 iif p0 lookup 99",
        "pref 7 fwmark 7 lookup 99",
        "pref 102 lookup 99",
    ] {
        pod.ip(&format!("rule add {fine}"));
        let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
        none_differ(&rtnl, &tables).await;
    }
}

#[tokio::test]
async fn a_route_of_somebody_else_in_our_tables_goes() {
    let pod = pod("surplus");
    let rtnl = open(&pod).await;
    let tables = apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    pod.ip("addr add 10.77.0.7/24 dev p0");
    pod.ip("nexthop add id 7 via 10.77.0.1 dev p0");
    pod.ip("nexthop add id 8 via fd77::1 dev p0");
    pod.ip("nexthop add id 9 blackhole");
    for surplus in [
        "route add 10.2.0.0/16 via 10.77.0.1 dev p0 table 17101",
        "route add 10.2.0.0/16 dev p0 table 17100",
        "route prepend default via 10.77.0.1 table 17101",
        "route append local default dev lo src 10.77.0.7 table 17101",
        "route prepend local default dev lo src 10.77.0.7 table 17101",
        "route add local default dev lo metric 9 table 17101",
        "route add 10.2.0.0/16 tos 0x10 via 10.77.0.1 table 17101",
        "route add 10.2.0.0/16 nhid 7 table 17101",
        "route add 10.2.0.0/16 nhid 9 table 17101",
        "route add table 17101 10.2.0.0/16 nexthop via 10.77.0.1 nexthop via 10.77.0.9",
        "route add 10.2.0.0/16 via inet6 fd77::1 dev p0 table 17101",
        "route add 10.2.0.0/16 via 10.77.0.1 mtu 1000 table 17101",
        "route add throw 10.2.0.0/16 table 17101",
        "route add blackhole 10.2.0.0/16 table 17101",
        "route add prohibit default metric 1 table 17101",
        "-6 route add 2001:db8::/32 via fd77::1 dev p0 onlink table 17101",
        "-6 route add default via fd77::1 dev p0 onlink table 17101 metric 1",
        "-6 route append default via fd77::1 dev p0 onlink table 17101 metric 1024",
        "-6 route add local default dev lo metric 9 table 17101",
        "-6 route add 2001:db8::/32 from fd77::/64 via fd77::1 dev p0 onlink table 17101",
        "-6 route add 2001:db8::/32 nhid 8 table 17101",
        "-6 route add table 17101 2001:db8::/32 nexthop via fd77::1 dev p0 onlink \
         nexthop via fd77::9 dev p0 onlink",
        "-6 route add blackhole 2001:db8::/32 table 17100",
    ] {
        pod.ip(surplus);
        let left = differences(&rtnl, &tables).await;
        assert_eq!(left.unwrap_or_else(|e| panic!("{e}")).len(), 1, "{surplus}");
        let applied = apply(&rtnl, &tables).await;
        applied.unwrap_or_else(|e| panic!("{surplus}: {e}"));
        none_differ(&rtnl, &tables).await;
    }
}

#[tokio::test]
async fn routes_go_though_the_rules_are_gone_already() {
    let pod = pod("ruleless");
    let rtnl = open(&pod).await;
    apply_own(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    for family in ["-4", "-6"] {
        pod.ip(&format!("{family} rule add pref 0 lookup local"));
        for rule in ["pref 1", "pref 100", "pref 101", "pref 101"] {
            pod.ip(&format!("{family} rule del {rule}"));
        }
        let own = "fwmark 0x1000000/0xf000000 lookup 17100";
        pod.ip(&format!("{family} rule del pref 0 {own}"));
    }
    remove_all(&rtnl).await.unwrap_or_else(|e| panic!("{e}"));
    for args in ["-4 route show table all", "-6 route show table all"] {
        assert!(!pod.ip(args).contains("1710"), "{args}");
    }
}

#[tokio::test]
async fn a_change_of_addresses_routes_rules_and_links_is_heard() {
    let pod = pod("heard");
    let mut rtnl = open(&pod).await;
    for change in [
        "addr add 10.77.2.1/24 dev p0",
        "addr del fd77::2/64 dev p0",
        "route add 198.51.100.0/24 via 10.77.0.1",
        "-6 rule add pref 7000 lookup 99",
        "rule add pref 7000 lookup 99",
        "route add 198.51.100.0/24 dev p0 table 17101",
        "link set lo down",
    ] {
        quiet(&mut rtnl).await;
        pod.ip(change);
        let heard = tokio::time::timeout(Duration::from_secs(5), rtnl.changed()).await;
        assert_eq!(heard.ok().flatten(), Some(()), "{change}");
    }
}

/// Waits until nothing is heard any more: `lo` going up is itself a change.
async fn quiet(rtnl: &mut Rtnl) {
    let pause = Duration::from_millis(300);
    while let Ok(Some(())) = tokio::time::timeout(pause, rtnl.changed()).await {}
}
