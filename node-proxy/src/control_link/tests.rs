// SPDX-License-Identifier: Apache-2.0
//! Against a control plane in this process.

pub(crate) mod fake;
mod recorded;

use std::{net::SocketAddr, time::Duration};

use v1::{watch_request::Kind as Asked, watch_response::Kind as Said};

use super::*;
use crate::{
    destinations::{Resolved, Unresolved},
    fixture::{Fixture, announced, eventually, key, known, workload},
};

fn addr() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 1], 80))
}

fn unknown() -> Said {
    Said::Destination(v1::Destination {
        destination: Some(addr().into()),
        kind: Some(v1::destination::Kind::Unknown(v1::Unknown::default())),
    })
}

fn policy(clients: v1::Clients) -> Said {
    let rule = v1::Rule {
        name: "x".to_owned(),
        clients: clients.into(),
    };
    Said::Policy(v1::Policy {
        pod_uid: workload().uid.0,
        rules: vec![rule],
        ..Default::default()
    })
}

async fn hello(fixture: &mut Fixture) {
    let Asked::Hello(hello) = fixture.control.next().await else {
        panic!("the stream did not begin with a hello");
    };
    assert_eq!(hello.node, "node-1");
}

#[tokio::test]
async fn a_destination_is_asked_for_once_and_again_by_every_new_stream() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let _link = fixture.link_control()?;
    hello(&mut fixture).await;
    let destinations = fixture.proxy.destinations.clone();
    let first = tokio::spawn(async move { destinations.resolve(&key(), addr()).await });
    let Asked::Subscribe(asked) = fixture.control.next().await else {
        panic!("no subscription");
    };
    assert_eq!(asked.destination, Some(addr().into()));
    fixture.control.say(1, unknown());
    assert!(matches!(*first.await??, Resolved::Unknown));
    for restart in [false, true] {
        match restart {
            true => fixture.control.restart().await?,
            false => fixture.control.hang_up(),
        }
        hello(&mut fixture).await;
        assert!(matches!(fixture.control.next().await, Asked::Subscribe(_)));
        assert!(
            fixture
                .proxy
                .destinations
                .resolve(&key(), addr())
                .await
                .is_ok()
        );
    }
    Ok(())
}

#[tokio::test]
async fn with_control_away_what_is_known_is_served_and_the_rest_fails_closed() -> anyhow::Result<()>
{
    let mut fixture = Fixture::start().await?;
    let _link = fixture.link_control()?;
    hello(&mut fixture).await;
    let destinations = fixture.proxy.destinations.clone();
    let first = tokio::spawn(async move { destinations.resolve(&key(), addr()).await });
    fixture.control.next().await;
    fixture.control.say(1, unknown());
    assert!(first.await?.is_ok());
    fixture.control.stop().await;
    assert!(
        fixture
            .proxy
            .destinations
            .resolve(&key(), addr())
            .await
            .is_ok()
    );
    let other = SocketAddr::from(([10, 96, 0, 2], 80));
    let unresolved = fixture.proxy.destinations.resolve(&key(), other).await;
    assert!(matches!(unresolved, Err(Unresolved::NoAnswer { .. })));
    // What control said is kept for the next proxy, what nobody answered is not.
    assert_eq!(fixture.proxy.destinations.save().len(), 1);
    Ok(())
}

#[tokio::test]
async fn every_message_is_acknowledged_after_it_holds() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let _link = fixture.link_control()?;
    hello(&mut fixture).await;
    fixture.pods.add(announced()?)?;
    fixture.control.next().await;
    fixture
        .control
        .say(41, policy(v1::Clients::Unauthenticated));
    loop {
        match fixture.control.asked.recv().await {
            Some(Asked::Ack(v1::Ack { sequence: 41 })) => break,
            Some(_) => {}
            None => panic!("no acknowledgement"),
        }
    }
    let (policies, _) = fixture.pods.save();
    assert!(
        policies
            .get(&key().uid)
            .is_some_and(|policy| !policy.requires_identity())
    );
    Ok(())
}

#[tokio::test]
async fn a_pod_is_reported_when_served_and_certified_and_withdrawn_in_turn() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let _link = fixture.link_control()?;
    hello(&mut fixture).await;
    fixture.pods.add(announced()?)?;
    let Asked::SubscribePolicy(asked) = fixture.control.next().await else {
        panic!("no policy was asked for");
    };
    assert_eq!(asked.pod_uid, key().uid.0);
    let Asked::Report(steered) = fixture.control.next().await else {
        panic!("no report");
    };
    assert!(steered.steered && steered.netns_cookie == key().cookie.0);
    let reported = |report: &v1::Report| {
        Said::Reported(v1::Reported {
            pod_uid: report.pod_uid.clone(),
            netns_cookie: report.netns_cookie,
            generation: report.generation,
        })
    };
    fixture.control.say(1, reported(&steered));
    eventually("the report is kept", || {
        fixture.pods.save().1.contains(&key())
    })
    .await;
    fixture.pods.withdraw(&key());
    let Asked::Report(withdrawn) = fixture.control.next().await else {
        panic!("no report");
    };
    assert!(!withdrawn.steered && withdrawn.generation > steered.generation);
    fixture.control.say(2, reported(&withdrawn));
    loop {
        let told = fixture.told_agent().await.message;
        if let culvert_api::agent::FromProxy::Withdrawn { key: withdrawn } = told {
            assert_eq!(withdrawn, key());
            return Ok(());
        }
    }
}

#[tokio::test]
async fn a_removal_is_told_by_the_next_streams_until_it_is_acknowledged() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    fixture.pods.add(announced()?)?;
    let told = || fixture.pods.wanted().len() > 1;
    eventually("there is a report", told).await;
    fixture.pods.remove(&key());
    let _link = fixture.link_control()?;
    let mut generations = Vec::new();
    for _ in 0..2 {
        hello(&mut fixture).await;
        let Asked::Report(report) = fixture.control.next().await else {
            panic!("no report");
        };
        assert!(!report.steered);
        generations.push(report.generation);
        fixture.control.hang_up();
    }
    let [first, second] = generations[..] else {
        panic!("{generations:?}");
    };
    assert_eq!(first, second);
    fixture.pods.reported(&key(), first);
    assert!(fixture.pods.wanted().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_known_policy_holds_before_control_is_there() -> anyhow::Result<()> {
    let fixture = Fixture::with(known()).await?;
    fixture.pods.add(announced()?)?;
    let (policies, reported) = fixture.pods.save();
    assert!(policies.contains_key(&key().uid) && reported.contains(&key()));
    Ok(())
}

#[tokio::test]
async fn a_wrong_token_is_told_and_tried_again() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let token = fixture.control.dir.path().join("token");
    std::fs::write(&token, "of-another")?;
    let _link = fixture.link_control()?;
    let refused = fixture
        .control
        .client()
        .certify(&key().uid, Vec::new())
        .await;
    assert!(
        matches!(refused, Err(CertifyError::Refused(_))),
        "{refused:?}"
    );
    std::fs::write(&token, fake::TOKEN)?;
    hello(&mut fixture).await;
    Ok(())
}

#[tokio::test]
async fn control_must_be_who_it_should_be() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (anchors, _) =
        crate::identities::watch_anchors(fixture.control.dir.path().join("anchors.pem"));
    let config = ControlConfig {
        server_name: fake::domain().server_name(&fake::domain().identity("shop", "cart")),
        ..fixture.control.config()
    };
    let refused = Control::new(config, anchors)
        .certify(&key().uid, Vec::new())
        .await;
    let Err(CertifyError::Refused(status)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(status.code(), tonic::Code::Unavailable);
    let none = tokio::time::timeout(Duration::from_millis(1), async {
        fixture.control.signed().is_empty()
    });
    assert!(none.await?);
    Ok(())
}
