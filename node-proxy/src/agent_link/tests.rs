// SPDX-License-Identifier: Apache-2.0
//! Against an agent in this process.

mod recorded;

use std::os::fd::{AsFd, BorrowedFd};

use culvert_api::{
    agent::{Family, SocketKind, SocketPool},
    version::Versions,
    workload::{NetnsCookie, PodUid},
};
use tokio::task::AbortHandle;

use super::*;
use crate::fixture::{Fixture, announced, eventually, key, workload};

const NEXT: Versions = Versions {
    newest: 9,
    oldest: 9,
};

/// The agent of one test.
struct FakeAgent {
    dir: tempfile::TempDir,
    listener: Option<seqpacket::Listener>,
    metrics: AgentMetrics,
    link: AbortHandle,
}

impl FakeAgent {
    fn start(fixture: &mut Fixture) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("proxy.sock");
        let listener = Some(seqpacket::Listener::bind(&path)?);
        let metrics = AgentMetrics::register(&fixture.registry)?;
        fixture.readiness.pending(READINESS);
        let link = AgentLink {
            path,
            pods: fixture.pods.clone(),
            identities: fixture.proxy.identities.clone(),
            readiness: fixture.readiness.clone(),
            metrics: metrics.clone(),
        };
        let outgoing = fixture
            .to_agent
            .take()
            .ok_or_else(|| anyhow::anyhow!("linked twice"))?;
        let link = tokio::spawn(link.run(outgoing)).abort_handle();
        Ok(Self {
            dir,
            listener,
            metrics,
            link,
        })
    }

    async fn accept(&self, versions: Versions) -> anyhow::Result<Channel> {
        let Some(listener) = &self.listener else {
            anyhow::bail!("the agent is away");
        };
        let (channel, _) = listener.accept(MAX_MESSAGE, MAX_FDS).await?;
        let hello = channel.recv::<FromProxy>().await?.body;
        assert_eq!(hello, FromProxy::Hello { versions: VERSIONS });
        let hello = FromAgent::Hello {
            versions,
            node: "node-1".to_owned(),
        };
        channel.send(&hello, &[]).await?;
        Ok(channel)
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        self.listener = None;
        self.listener = Some(seqpacket::Listener::bind(
            &self.dir.path().join("proxy.sock"),
        )?);
        Ok(())
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.link.abort();
    }
}

fn pod(seq: u64, announced: &Announced) -> FromAgent {
    FromAgent::Pod {
        seq,
        key: announced.key.clone(),
        workload: announced.workload.clone(),
        addresses: announced.addresses.clone(),
        live: announced.live,
        listeners: announced
            .listeners
            .iter()
            .map(|(listener, _)| *listener)
            .collect(),
    }
}

fn fds(announced: &Announced) -> Vec<BorrowedFd<'_>> {
    announced
        .listeners
        .iter()
        .map(|(_, fd)| fd.as_fd())
        .collect()
}

/// The next message that is no wish for sockets.
async fn next(channel: &Channel) -> FromProxy {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), channel.recv::<FromProxy>()).await;
        match next {
            Ok(Ok(Message {
                body: FromProxy::Want { .. } | FromProxy::Keep { .. },
                ..
            })) => {}
            Ok(Ok(message)) => return message.body,
            other => panic!("the proxy said nothing: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_snapshot_makes_the_proxy_ready_and_asks_for_sockets() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let agent = FakeAgent::start(&mut fixture)?;
    let channel = agent.accept(VERSIONS).await?;
    let announced = announced()?;
    channel.send(&pod(1, &announced), &fds(&announced)).await?;
    let (mut wanted, mut acknowledged) = (Vec::new(), false);
    while wanted.len() < 2 || !acknowledged {
        match channel.recv::<FromProxy>().await?.body {
            FromProxy::Want {
                key: of,
                pool,
                count,
            } => {
                assert!(of == key() && count > 0);
                wanted.push(pool);
            }
            FromProxy::Ack { seq: 1 } => acknowledged = true,
            FromProxy::Keep { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(
        wanted.iter().all(|pool| pool.family == Family::V4),
        "{wanted:?}"
    );
    assert_eq!(fixture.readiness.waiting_for(), [READINESS]);
    channel
        .send(&FromAgent::SnapshotEnd { seq: 2 }, &[])
        .await?;
    assert_eq!(next(&channel).await, FromProxy::Ack { seq: 2 });
    assert!(fixture.readiness.waiting_for().is_empty());
    Ok(())
}

#[tokio::test]
async fn pods_outlive_the_agent_and_go_when_the_next_snapshot_does_not_name_them()
-> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let mut agent = FakeAgent::start(&mut fixture)?;
    let channel = agent.accept(VERSIONS).await?;
    let kept = announced()?;
    let mut gone = announced()?;
    gone.key.cookie = NetnsCookie(8);
    for (seq, announced) in [(1, &kept), (2, &gone)] {
        channel.send(&pod(seq, announced), &fds(announced)).await?;
        assert_eq!(next(&channel).await, FromProxy::Ack { seq });
    }
    drop(channel);
    agent.restart()?;
    let channel = agent.accept(VERSIONS).await?;
    assert_eq!(fixture.pods.count(), 2);
    channel.send(&pod(3, &kept), &fds(&kept)).await?;
    channel
        .send(&FromAgent::SnapshotEnd { seq: 4 }, &[])
        .await?;
    assert_eq!(next(&channel).await, FromProxy::Ack { seq: 3 });
    assert_eq!(next(&channel).await, FromProxy::Ack { seq: 4 });
    assert_eq!(fixture.pods.count(), 1);
    assert_eq!(agent.metrics.connected.get(), 1);
    channel
        .send(&FromAgent::Remove { seq: 5, key: key() }, &[])
        .await?;
    assert_eq!(next(&channel).await, FromProxy::Ack { seq: 5 });
    assert_eq!(fixture.pods.count(), 0);
    Ok(())
}

/// As a later release would name it, with a listener of a kind that this one does not know.
#[tokio::test]
async fn a_pod_that_can_not_be_read_is_kept_and_the_next_whole_snapshot_decides()
-> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let mut agent = FakeAgent::start(&mut fixture)?;
    let channel = agent.accept(VERSIONS).await?;
    let announced = announced()?;
    channel.send(&pod(1, &announced), &fds(&announced)).await?;
    assert_eq!(next(&channel).await, FromProxy::Ack { seq: 1 });
    drop(channel);
    for (unreadable, kept) in [(true, 1), (false, 0)] {
        agent.restart()?;
        let channel = agent.accept(VERSIONS).await?;
        if unreadable {
            let mut later = serde_json::to_value(pod(2, &announced))?;
            later["listeners"][0]["direction"] = "sideways".into();
            channel.send(&later, &fds(&announced)).await?;
        }
        channel
            .send(&FromAgent::SnapshotEnd { seq: 3 }, &[])
            .await?;
        assert_eq!(next(&channel).await, FromProxy::Ack { seq: 3 });
        assert_eq!(fixture.pods.count(), kept);
    }
    Ok(())
}

#[tokio::test]
async fn what_can_not_be_carried_out_is_refused_and_nothing_else_suffers() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let agent = FakeAgent::start(&mut fixture)?;
    let channel = agent.accept(VERSIONS).await?;
    channel
        .send(&serde_json::json!({"type": "of a later release"}), &[])
        .await?;
    let announced = announced()?;
    let too_few = fds(&announced).pop();
    channel
        .send(&pod(1, &announced), too_few.as_slice())
        .await?;
    assert!(matches!(
        next(&channel).await,
        FromProxy::Nack { seq: 1, .. }
    ));
    let null = std::fs::File::open("/dev/null")?;
    channel
        .send(&pod(2, &announced), &[null.as_fd(), null.as_fd()])
        .await?;
    assert!(matches!(
        next(&channel).await,
        FromProxy::Nack { seq: 2, .. }
    ));
    let stranger = WorkloadKey {
        uid: PodUid("nobody".to_owned()),
        cookie: NetnsCookie(1),
    };
    let pool = SocketPool {
        kind: SocketKind::OutboundLeg,
        family: Family::V4,
    };
    channel
        .send(
            &FromAgent::Sockets {
                key: stranger,
                pool,
            },
            &[null.as_fd()],
        )
        .await?;
    channel.send(&pod(3, &announced), &fds(&announced)).await?;
    assert_eq!(next(&channel).await, FromProxy::Ack { seq: 3 });
    let refused = |reason| agent.metrics.refused.with_label_values(&[reason]).get();
    assert_eq!((refused("malformed"), refused("refused")), (1, 2));
    Ok(())
}

#[tokio::test]
async fn an_agent_of_other_versions_is_counted() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let agent = FakeAgent::start(&mut fixture)?;
    let channel = agent.accept(NEXT).await?;
    assert!(matches!(
        channel.recv::<FromProxy>().await,
        Err(seqpacket::Error::Closed)
    ));
    eventually("it is counted", || {
        agent.metrics.version_mismatches.get() == 1
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_pod_that_no_peer_knows_is_withdrawn_at_once() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    fixture.control.stop().await;
    let agent = FakeAgent::start(&mut fixture)?;
    let channel = agent.accept(VERSIONS).await?;
    let announced = announced()?;
    channel.send(&pod(1, &announced), &fds(&announced)).await?;
    assert_eq!(next(&channel).await, FromProxy::Ack { seq: 1 });
    channel
        .send(&FromAgent::Withdraw { seq: 2, key: key() }, &[])
        .await?;
    let said = [next(&channel).await, next(&channel).await];
    assert!(
        said.contains(&FromProxy::Withdrawn { key: key() }),
        "{said:?}"
    );
    assert!(said.contains(&FromProxy::Ack { seq: 2 }), "{said:?}");
    Ok(())
}

#[tokio::test]
async fn an_agent_gets_every_key_to_keep_and_gives_it_to_the_next_proxy() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let agent = FakeAgent::start(&mut fixture)?;
    let channel = agent.accept(VERSIONS).await?;
    let announced = announced()?;
    channel.send(&pod(1, &announced), &fds(&announced)).await?;
    let identity = fixture
        .proxy
        .domain
        .identity("shop", &workload().service_account);
    let sealed = loop {
        let message = channel.recv::<FromProxy>().await?;
        if let (FromProxy::Keep { identity: kept }, mut fds) = (message.body, message.fds) {
            assert_eq!((&kept, fds.len()), (&identity, 1));
            break fds.pop();
        }
    };
    let mut next_proxy = Fixture::start().await?;
    std::fs::copy(
        fixture.control.dir.path().join("anchors.pem"),
        next_proxy.control.dir.path().join("anchors.pem"),
    )?;
    next_proxy.control.stop().await;
    let agent = FakeAgent::start(&mut next_proxy)?;
    let channel = agent.accept(VERSIONS).await?;
    let sealed = sealed.as_ref().map(AsFd::as_fd);
    let anchors = || next_proxy.proxy.identities.is_certified(&identity);
    for _ in 0..50 {
        let key = FromAgent::Key {
            identity: identity.clone(),
        };
        channel.send(&key, sealed.as_slice()).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        if anchors() {
            return Ok(());
        }
    }
    panic!("the next proxy did not take the key");
}
