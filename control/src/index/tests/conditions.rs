// SPDX-License-Identifier: Apache-2.0
//! Reports that are kept in the conditions of pods.

use k8s_openapi::api::core::v1::PodCondition;

use super::*;

/// A cluster with the pod `a`, as an API server has it.
struct Cluster {
    objects: Objects,
    version: u64,
}

impl Cluster {
    fn new(ips: &[&str]) -> Self {
        let mut cluster = Self {
            objects: Objects::clone(&objects(&pod("a", "n1", ips))),
            version: 10,
        };
        cluster.pod(|_| {});
        cluster
    }

    fn pod(&mut self, change: impl FnOnce(&mut k8s_openapi::api::core::v1::Pod)) {
        self.version += 1;
        let version = self.version.to_string();
        let Some(pod) = self.objects.pods.values_mut().next() else {
            panic!("no pod");
        };
        let pod = Arc::make_mut(pod);
        pod.metadata.resource_version = Some(version);
        change(pod);
    }

    fn move_to(&mut self, ips: &[&str]) {
        let new = objects(&pod("a", "n1", ips));
        let status = new.pods.values().next().and_then(|pod| pod.status.clone());
        let ips = status.and_then(|status| status.pod_ips);
        self.pod(|pod| pod.status.get_or_insert_default().pod_ips = ips);
    }

    fn set(&mut self, status: &str, message: &str) {
        let condition = PodCondition {
            type_: "culvert.io/Meshed".to_owned(),
            status: status.to_owned(),
            message: Some(message.to_owned()),
            ..PodCondition::default()
        };
        self.pod(|pod| {
            let status = pod.status.get_or_insert_default();
            let conditions = status.conditions.get_or_insert_default();
            conditions.retain(|it| it.type_ != condition.type_);
            conditions.push(condition);
        });
    }

    /// Writes what the index wants, as its writer does, and tells the index of its success.
    fn write(&mut self, index: &mut Index) -> usize {
        let unwritten = Arc::clone(&index.unwritten().borrow());
        for (uid, write) in &unwritten.pods {
            let said = write.known.condition();
            self.set(said.status, &said.message);
            index.condition_written(uid, &write.known, self.version);
        }
        unwritten.pods.len()
    }

    fn show(&self, index: &mut Index) {
        index.reset(Arc::new(self.objects.clone()));
    }
}

fn started(cluster: &Cluster) -> Index {
    let mut index = Index::of_conditions();
    cluster.show(&mut index);
    index
}

fn meshed(index: &Index, ip: &str) -> bool {
    peer(index, &format!("{ip}:1")).meshed
}

fn says(index: &mut Index, cookie: u64, generation: u64, steered: bool, stream: &Arc<()>) {
    let report = Report {
        reporter: Reporter::of(stream),
        ..report("a", cookie, generation, steered)
    };
    let applied = index.report("n1", &report);
    assert!(applied.is_ok(), "{applied:?}");
}

fn unwritten(index: &Index) -> usize {
    index.unwritten().borrow().pods.len()
}

#[test]
fn a_report_is_told_once_it_is_seen_in_its_pod() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    let stream = Arc::default();
    says(&mut index, 1, 5, true, &stream);
    assert!(!meshed(&index, "10.0.0.1") && unwritten(&index) == 1);
    assert_eq!(cluster.write(&mut index), 1);
    assert!(!meshed(&index, "10.0.0.1"), "written, and not seen");
    cluster.show(&mut index);
    assert!(meshed(&index, "10.0.0.1") && unwritten(&index) == 0);
    assert_eq!(
        index.object_version_of(&PodUid("uid-a".into())),
        cluster.version
    );
    assert!(meshed(&started(&cluster), "10.0.0.1"), "as others see it");
}

#[test]
fn the_same_said_again_is_not_written_again() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    says(&mut index, 1, 5, true, &Arc::default());
    cluster.write(&mut index);
    cluster.show(&mut index);
    says(&mut index, 1, 9, true, &Arc::default());
    assert_eq!(unwritten(&index), 0);
    let mut restarted = started(&cluster);
    says(&mut restarted, 1, 11, true, &Arc::default());
    assert_eq!(unwritten(&restarted), 0);
    cluster.show(&mut restarted);
    assert!(meshed(&restarted, "10.0.0.1"));
}

#[test]
fn a_withdrawal_is_told_at_once_and_written() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    cluster.set("True", "netns=1 generation=5 addresses=10.0.0.1");
    let mut index = started(&cluster);
    assert!(meshed(&index, "10.0.0.1"));
    says(&mut index, 1, 6, false, &Arc::default());
    assert!(!meshed(&index, "10.0.0.1") && unwritten(&index) == 1);
    cluster.show(&mut index);
    assert!(!meshed(&index, "10.0.0.1"), "the condition is older");
    assert_eq!(cluster.write(&mut index), 1);
    cluster.show(&mut index);
    assert!(!meshed(&index, "10.0.0.1") && unwritten(&index) == 0);
    assert!(!meshed(&started(&cluster), "10.0.0.1"));
}

#[test]
fn a_report_ahead_of_its_pods_address_is_completed() {
    let mut cluster = Cluster::new(&[]);
    let mut index = started(&cluster);
    let stream = Arc::default();
    says(&mut index, 1, 5, true, &stream);
    cluster.write(&mut index);
    cluster.show(&mut index);
    assert_eq!(unwritten(&index), 0);
    cluster.move_to(&["10.0.0.1"]);
    assert!(meshed(&started(&cluster), "10.0.0.1"));
    cluster.show(&mut index);
    assert!(meshed(&index, "10.0.0.1") && unwritten(&index) == 1);
    cluster.write(&mut index);
    cluster.show(&mut index);
    assert_eq!(unwritten(&index), 0);
    cluster.move_to(&["10.0.0.2"]);
    assert!(!meshed(&started(&cluster), "10.0.0.2"), "another sandbox");
    cluster.show(&mut index);
    assert!(!meshed(&index, "10.0.0.2"));
}

#[test]
fn a_condition_that_is_not_understood_leaves_its_pod_meshed() {
    for message in ["", "of another release", "netns=x generation=-1 later=1"] {
        let mut cluster = Cluster::new(&["10.0.0.1"]);
        cluster.set("True", message);
        assert!(meshed(&started(&cluster), "10.0.0.1"), "{message}");
        cluster.set("Unknown", message);
        assert!(!meshed(&started(&cluster), "10.0.0.1"), "{message}");
    }
}

#[test]
fn what_another_replica_writes_counts_here() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    says(&mut index, 1, 5, true, &Arc::default());
    cluster.write(&mut index);
    cluster.show(&mut index);
    // The node's proxy went to the other replica.
    cluster.set("False", "netns=1 generation=7 addresses=10.0.0.1");
    cluster.show(&mut index);
    assert!(!meshed(&index, "10.0.0.1") && unwritten(&index) == 0);
    cluster.set("True", "netns=1 generation=8 addresses=10.0.0.1");
    cluster.show(&mut index);
    assert!(meshed(&index, "10.0.0.1") && unwritten(&index) == 0);
}

#[test]
fn of_two_replicas_the_one_with_the_later_report_of_a_living_stream_has_the_last_word() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    let stream = Arc::default();
    says(&mut index, 1, 5, true, &stream);
    cluster.write(&mut index);
    cluster.show(&mut index);
    cluster.set("False", "netns=1 generation=4 addresses=10.0.0.1");
    cluster.show(&mut index);
    assert_eq!(unwritten(&index), 1, "an old proxy's word");
    assert!(meshed(&index, "10.0.0.1"), "before it is written over");
    cluster.write(&mut index);
    cluster.show(&mut index);
    assert!(meshed(&index, "10.0.0.1"));
    cluster.set("False", "netns=1 generation=6 addresses=10.0.0.1");
    cluster.show(&mut index);
    assert!(unwritten(&index) == 0 && !meshed(&index, "10.0.0.1"));
}

#[test]
fn a_condition_that_somebody_removes_is_put_back_while_the_node_is_there() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    let stream = Arc::default();
    says(&mut index, 1, 5, true, &stream);
    cluster.write(&mut index);
    cluster.show(&mut index);
    cluster.pod(|pod| {
        let status = pod.status.get_or_insert_default();
        status.conditions.get_or_insert_default().clear();
    });
    cluster.show(&mut index);
    assert_eq!(unwritten(&index), 1);
    assert!(meshed(&index, "10.0.0.1"), "before it is back");
    drop(stream);
    cluster.pod(|_| {});
    cluster.show(&mut index);
    assert!(meshed(&index, "10.0.0.1"), "it is on its way");
    cluster.write(&mut index);
    cluster.show(&mut index);
    assert!(meshed(&index, "10.0.0.1"));
}

/// The node is at another replica, or at none.
#[test]
fn a_condition_that_somebody_removes_is_put_back_by_whoever_knew_it() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    cluster.set("True", "netns=1 generation=5 addresses=10.0.0.1");
    let mut index = started(&cluster);
    let remove = |cluster: &mut Cluster| {
        cluster.pod(|pod| pod.status.get_or_insert_default().conditions = None);
    };
    remove(&mut cluster);
    cluster.show(&mut index);
    assert!(unwritten(&index) == 1 && meshed(&index, "10.0.0.1"));
    cluster.write(&mut index);
    cluster.show(&mut index);
    assert!(unwritten(&index) == 0 && meshed(&index, "10.0.0.1"));
    remove(&mut cluster);
    cluster.move_to(&["10.0.0.2"]);
    cluster.show(&mut index);
    assert!(
        unwritten(&index) == 0 && !meshed(&index, "10.0.0.2"),
        "another sandbox"
    );
    cluster.set("False", "netns=1 generation=6 addresses=10.0.0.2");
    cluster.show(&mut index);
    remove(&mut cluster);
    cluster.show(&mut index);
    assert_eq!(
        unwritten(&index),
        0,
        "who is not meshed is so without a word"
    );
}

/// The proxy withdrew at this replica, which could not write it, and went to another, where it
/// said steered.
#[test]
fn a_report_that_could_not_be_written_gives_way_to_a_later_one() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    cluster.set("True", "netns=1 generation=5 addresses=10.0.0.1");
    let mut index = started(&cluster);
    says(&mut index, 1, 9, false, &Arc::default());
    assert!(!meshed(&index, "10.0.0.1") && unwritten(&index) == 1);
    cluster.set("True", "netns=1 generation=10 addresses=10.0.0.1");
    cluster.show(&mut index);
    assert_eq!(
        unwritten(&index),
        0,
        "it would be written over a later word"
    );
    assert!(meshed(&index, "10.0.0.1"));
}

/// Generations follow the node's clock: what was there when the report came is no later word.
#[test]
fn a_report_after_a_step_back_of_the_clock_is_written() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    cluster.set("True", "netns=1 generation=9 addresses=10.0.0.1");
    let mut index = started(&cluster);
    says(&mut index, 1, 4, false, &Arc::default());
    cluster.pod(|_| {});
    cluster.show(&mut index);
    assert!(unwritten(&index) == 1 && !meshed(&index, "10.0.0.1"));
    says(&mut index, 1, 3, false, &Arc::default());
    cluster.pod(|_| {});
    cluster.show(&mut index);
    assert_eq!(cluster.write(&mut index), 1);
    cluster.show(&mut index);
    assert!(unwritten(&index) == 0 && !meshed(&index, "10.0.0.1"));
}

/// The one before it, of a stream that ended, was on its way.
#[test]
fn a_report_after_a_step_back_of_the_clock_is_written_over_the_one_before() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    says(&mut index, 1, 9, true, &Arc::default());
    says(&mut index, 1, 4, false, &Arc::default());
    cluster.set("True", "netns=1 generation=9 addresses=10.0.0.1");
    cluster.show(&mut index);
    assert!(unwritten(&index) == 1 && !meshed(&index, "10.0.0.1"));
}

#[test]
fn what_a_pod_says_by_now_may_settle_a_write() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    says(&mut index, 1, 5, true, &Arc::default());
    let write = index.unwritten_of(&PodUid("uid-a".into()));
    let (write, version) = write.unwrap_or_else(|| panic!("nothing to write"));
    assert_eq!(version, cluster.version);
    let mut settled = |status, generation| {
        let message = format!("netns=1 generation={generation} addresses=10.0.0.1");
        cluster.set(status, &message);
        let pod = cluster.objects.pods.values().next();
        pod.is_some_and(|pod| write.is_settled_in(pod))
    };
    assert!(settled("True", 5) && settled("False", 6));
    assert!(!settled("False", 5) && !settled("False", 4));
}

#[test]
fn a_pod_that_goes_is_no_longer_written() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    says(&mut index, 1, 5, true, &Arc::default());
    cluster.objects.pods.clear();
    cluster.show(&mut index);
    assert_eq!(unwritten(&index), 0);
}

/// A report that comes while the one before is on its way is written after it.
#[test]
fn the_newest_report_is_written_last() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    cluster.set("True", "netns=1 generation=5 addresses=10.0.0.1");
    let mut index = started(&cluster);
    let stream = Arc::default();
    says(&mut index, 1, 6, false, &stream);
    let on_its_way = Arc::clone(&index.unwritten().borrow());
    says(&mut index, 1, 7, true, &stream);
    cluster.show(&mut index);
    assert_eq!(
        unwritten(&index),
        1,
        "what it says already may be overwritten"
    );
    for (uid, write) in &on_its_way.pods {
        let said = write.known.condition();
        cluster.set(said.status, &said.message);
        index.condition_written(uid, &write.known, cluster.version);
    }
    cluster.show(&mut index);
    assert_eq!(unwritten(&index), 1);
    cluster.write(&mut index);
    cluster.show(&mut index);
    assert!(meshed(&index, "10.0.0.1") && unwritten(&index) == 0);
}

/// Another replica wrote over it before the answer to the write came.
#[test]
fn a_report_that_was_seen_before_its_answer_is_settled() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    says(&mut index, 1, 5, true, &Arc::default());
    let unanswered = Arc::clone(&index.unwritten().borrow());
    cluster.set("True", "netns=1 generation=5 addresses=10.0.0.1");
    let version = cluster.version;
    cluster.set("False", "netns=1 generation=6 addresses=10.0.0.1");
    cluster.show(&mut index);
    for (uid, write) in &unanswered.pods {
        index.condition_written(uid, &write.known, version);
    }
    assert_eq!(unwritten(&index), 0);
    assert!(!meshed(&index, "10.0.0.1"));
}

#[test]
fn a_pod_that_is_made_again_under_its_name_begins_anew() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    cluster.set("True", "netns=1 generation=5 addresses=10.0.0.1");
    let mut index = started(&cluster);
    assert!(meshed(&index, "10.0.0.1"));
    let again = pod("a", "n1", &["10.0.0.1"]).replace("uid-a", "uid-again");
    cluster.objects = Objects::clone(&objects(&again));
    cluster.show(&mut index);
    assert!(!meshed(&index, "10.0.0.1"));
    let refused = index.report("n1", &report("a", 1, 6, true));
    assert!(matches!(refused, Err(Refused::UnknownPod { .. })));
}

#[test]
fn a_change_of_a_condition_is_told_from_others() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    let seen = |index: &Index| index.seen().map(|seen| *seen.borrow());
    let first = seen(&index).unwrap_or_default();
    cluster.pod(|pod| pod.status.get_or_insert_default().phase = Some("Pending".into()));
    cluster.show(&mut index);
    let second = seen(&index).unwrap_or_default();
    assert_eq!(
        (second.turns, second.newest),
        (first.turns, cluster.version)
    );
    cluster.set("True", "netns=1 generation=5 addresses=10.0.0.1");
    cluster.show(&mut index);
    let third = seen(&index).unwrap_or_default();
    assert_eq!(
        (third.turns, third.newest),
        (first.turns + 1, cluster.version)
    );
}

/// A list has versions of changes that other replicas don't look at.
#[test]
fn of_a_pod_that_is_listed_again_only_a_new_condition_is_waited_for() {
    let mut cluster = Cluster::new(&["10.0.0.1"]);
    let mut index = started(&cluster);
    let uid = PodUid("uid-a".into());
    assert_eq!(index.object_version_of(&uid), 0, "from the beginning");
    cluster.set("True", "netns=1 generation=5 addresses=10.0.0.1");
    cluster.show(&mut index);
    let said = cluster.version;
    assert_eq!(index.object_version_of(&uid), said);
    cluster.move_to(&["10.0.0.1", "10.0.0.2"]);
    cluster.show(&mut index);
    assert_eq!(index.object_version_of(&uid), said);
    cluster.set("True", "netns=1 generation=6 addresses=10.0.0.1");
    cluster.show(&mut index);
    assert_eq!(index.object_version_of(&uid), cluster.version);
}
