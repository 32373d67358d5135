// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::{
    control_link,
    fixture::{Fixture, announced, eventually, key, known, workload},
    state::State,
};

impl Pod {
    /// A pod for tests of the data path: with these sockets and this policy.
    pub(crate) fn for_tests(
        workload: Workload,
        identity: Identity,
        addresses: Vec<IpAddr>,
        sockets: Sockets,
        metrics: PodMetrics,
        policy: InboundPolicy,
    ) -> Self {
        let key = WorkloadKey {
            uid: workload.uid.clone(),
            cookie: culvert_api::workload::NetnsCookie(1),
        };
        Self {
            key,
            workload,
            identity,
            sockets,
            metrics,
            addresses: ArcSwap::from_pointee(addresses),
            own_listeners: ArcSwap::default(),
            policy: watch::Sender::new(Arc::new(policy)),
            http: crate::http::Pool::default(),
        }
    }
}

fn report(pods: &Pods) -> Option<control_link::Report> {
    let registry = pods.lock();
    registry.entries.get(&key()).and_then(Entry::report)
}

/// Every peer knows what control was told last.
fn acknowledge(pods: &Pods) {
    let report = report(pods).unwrap_or_else(|| panic!("nothing was told"));
    pods.reported(&report.key, report.generation);
}

/// A strict pod that every peer knows of.
async fn reported() -> anyhow::Result<Fixture> {
    let fixture = Fixture::start().await?;
    fixture.pods.add(announced()?)?;
    fixture.pods.set_policy(&key().uid, InboundPolicy::strict());
    eventually("it is reported", || report(&fixture.pods).is_some()).await;
    acknowledge(&fixture.pods);
    assert!(requires_identity(&fixture.pods));
    Ok(fixture)
}

fn requires_identity(pods: &Pods) -> bool {
    let registry = pods.lock();
    let policy = registry.entries.get(&key()).map(|entry| entry.pod.policy());
    policy.is_some_and(|policy| policy.borrow().requires_identity())
}

fn pod(pods: &Pods) -> Arc<Pod> {
    let pod = pods
        .lock()
        .entries
        .get(&key())
        .map(|entry| entry.pod.clone());
    pod.unwrap_or_else(|| panic!("there is no pod"))
}

#[tokio::test]
async fn an_unknown_policy_is_strict_but_for_a_live_pod_that_nobody_knows() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.pods.add(announced()?)?;
    assert!(requires_identity(&fixture.pods));
    fixture
        .pods
        .set_policy(&key().uid, InboundPolicy::permissive());
    assert!(!requires_identity(&fixture.pods));
    fixture.pods.remove(&key());
    fixture.pods.add(Announced {
        live: true,
        ..announced()?
    })?;
    fixture.pods.set_policy(&key().uid, InboundPolicy::strict());
    assert!(!requires_identity(&fixture.pods));
    Ok(())
}

#[tokio::test]
async fn a_live_pod_that_an_earlier_proxy_reported_stays_strict() -> anyhow::Result<()> {
    let mut known = known();
    known.policies.insert(key().uid, InboundPolicy::strict());
    let fixture = Fixture::with(known).await?;
    fixture.pods.add(Announced {
        live: true,
        ..announced()?
    })?;
    assert!(requires_identity(&fixture.pods));
    Ok(())
}

#[tokio::test]
async fn replaced_listeners_stay_the_pods_own_and_the_same_ones_are_not_served_twice()
-> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let first = announced()?;
    let again = first
        .listeners
        .iter()
        .map(|(listener, fd)| Ok((*listener, fd.try_clone()?)));
    let again = again.collect::<anyhow::Result<Vec<_>>>()?;
    fixture.pods.add(first)?;
    let own = pod(&fixture.pods).own_listeners.load_full();
    assert_eq!(own.len(), 2);
    fixture.pods.add(Announced {
        listeners: again,
        ..announced()?
    })?;
    assert_eq!(pod(&fixture.pods).own_listeners.load_full(), own);
    fixture.pods.add(announced()?)?;
    let replaced = pod(&fixture.pods).own_listeners.load_full();
    assert!(replaced.len() == 4 && own.iter().all(|addr| replaced.contains(addr)));
    let pod = pod(&fixture.pods);
    assert!(own.iter().all(|addr| pod.is_own_listener(*addr)));
    assert!(pod.is_own_listener(SocketAddr::from(([127, 0, 0, 9], 1))));
    assert!(!pod.is_own_listener(SocketAddr::from(([10, 1, 0, 2], 80))));
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_gone_leaves_nothing_behind() -> anyhow::Result<()> {
    let fixture = Fixture::with(known()).await?;
    fixture.pods.add(announced()?)?;
    let pod = Arc::downgrade(&pod(&fixture.pods));
    fixture.pods.remove(&key());
    eventually("its tasks ended", || pod.strong_count() == 0).await;
    acknowledge_departure(&fixture.pods);
    let (policies, reported) = fixture.pods.save();
    assert!(policies.is_empty() && reported.is_empty());
    Ok(())
}

/// Every peer knows that the pod is gone.
fn acknowledge_departure(pods: &Pods) {
    let told = pods.lock().departed.reports().next();
    let told = told.unwrap_or_else(|| panic!("nothing was told"));
    assert!(!told.steered);
    pods.reported(&told.key, told.generation);
}

#[tokio::test]
async fn what_left_is_told_by_the_next_proxy_too() -> anyhow::Result<()> {
    let fixture = Fixture::with(known()).await?;
    fixture.pods.add(announced()?)?;
    fixture.pods.remove(&key());
    let (policies, reported) = fixture.pods.save();
    let next = Fixture::with(State::new(Vec::new(), policies, reported)).await?;
    next.pods.retain(&BTreeSet::new());
    let wanted = next.pods.wanted();
    let told = |ask: &Ask| matches!(ask, Ask::Report(report) if !report.steered);
    assert!(wanted.iter().any(told), "{wanted:?}");
    acknowledge_departure(&next.pods);
    assert_eq!(next.pods.wanted(), []);
    assert!(next.pods.save().1.is_empty());
    Ok(())
}

#[tokio::test]
async fn another_workload_under_the_same_key_is_another_pod() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.pods.add(announced()?)?;
    let till = Workload {
        service_account: "till".to_owned(),
        ..workload()
    };
    fixture.pods.add(Announced {
        workload: till,
        ..announced()?
    })?;
    assert_eq!(pod(&fixture.pods).identity.service_account, "till");
    assert_eq!(fixture.pods.count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_withdrawal_that_is_called_off_is_permissive_until_peers_know_again() -> anyhow::Result<()>
{
    for told in [false, true] {
        let fixture = reported().await?;
        fixture.pods.withdraw(&key());
        if told {
            acknowledge(&fixture.pods);
        }
        fixture.pods.add(announced()?)?;
        assert!(!requires_identity(&fixture.pods));
        fixture.pods.add(announced()?)?;
        assert!(!requires_identity(&fixture.pods));
        acknowledge(&fixture.pods);
        assert!(!requires_identity(&fixture.pods), "some may be on the way");
        let pods = &fixture.pods;
        eventually("it is strict again", || requires_identity(pods)).await;
    }
    Ok(())
}

#[tokio::test]
async fn strict_comes_a_moment_after_the_last_peer_knows() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let live = Announced {
        live: true,
        ..announced()?
    };
    fixture.pods.add(live)?;
    fixture.pods.set_policy(&key().uid, InboundPolicy::strict());
    eventually("it is reported", || report(&fixture.pods).is_some()).await;
    tokio::time::pause();
    acknowledge(&fixture.pods);
    tokio::time::sleep(GRACE / 2).await;
    assert!(!requires_identity(&fixture.pods));
    tokio::time::sleep(GRACE).await;
    assert!(requires_identity(&fixture.pods));
    Ok(())
}

#[tokio::test]
async fn the_agent_hears_nothing_of_a_withdrawal_that_is_called_off() -> anyhow::Result<()> {
    let fixture = reported().await?;
    let mut to_agent = fixture.to_agent;
    tokio::time::pause();
    fixture.pods.withdraw(&key());
    acknowledge(&fixture.pods);
    fixture.pods.add(announced()?)?;
    tokio::time::sleep(2 * GRACE).await;
    let mut told = std::iter::from_fn(|| to_agent.as_mut()?.try_recv().ok());
    let withdrawn = told.any(|told| matches!(told.message, FromProxy::Withdrawn { .. }));
    assert!(!withdrawn, "the agent was told to take the pod out");
    Ok(())
}
