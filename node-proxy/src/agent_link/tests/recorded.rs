// SPDX-License-Identifier: Apache-2.0
//! What the agent of an earlier release said, with sockets in place of its descriptors.

use std::net::{TcpListener, TcpStream};

use serde_json::Value;

use super::*;

const RECORDED: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/recorded/0.1.0/agent-proxy.jsonl"
));

/// The last session of the agent, message by message.
fn session() -> Vec<Value> {
    let lines = RECORDED.lines().map(serde_json::from_str);
    let lines: Result<Vec<Value>, _> = lines.collect();
    let mut lines = lines.unwrap_or_else(|e| panic!("{e}"));
    lines.retain(|line| line["from"] == "agent");
    let hello = |line: &Value| line["message"]["type"] == "hello";
    let last = lines.iter().rposition(hello);
    lines.split_off(last.unwrap_or_else(|| panic!("no session")))
}

/// As many descriptors as came, each of a kind that it may be.
fn descriptors(line: &Value) -> anyhow::Result<Vec<OwnedFd>> {
    let message = &line["message"];
    let listeners = message["listeners"].as_array().into_iter().flatten();
    let listeners = listeners.map(|listener| match listener["family"] == "v4" {
        true => TcpListener::bind("127.0.0.1:0"),
        false => TcpListener::bind("[::1]:0"),
    });
    let mut fds: Vec<OwnedFd> = Vec::new();
    for listener in listeners {
        fds.push(listener?.into());
    }
    let peer = TcpListener::bind("127.0.0.1:0")?;
    while (fds.len() as u64) < line["fds"].as_u64().unwrap_or_default() {
        fds.push(TcpStream::connect(peer.local_addr()?)?.into());
    }
    Ok(fds)
}

#[tokio::test]
async fn all_that_an_earlier_agent_says_is_carried_out() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let agent = FakeAgent::start(&mut fixture)?;
    let Some(listener) = &agent.listener else {
        anyhow::bail!("the agent is away");
    };
    let (channel, _) = listener.accept(MAX_MESSAGE, MAX_FDS).await?;
    let (mut sent, mut pods) = (BTreeSet::new(), BTreeSet::new());
    for line in session() {
        let (message, fds) = (&line["message"], descriptors(&line)?);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        channel.send(message, &fds).await?;
        sent.extend(message["seq"].as_u64());
        let key = message["key"].to_string();
        match message["type"].as_str() {
            Some("pod") => drop(pods.insert(key)),
            Some("remove") => drop(pods.remove(&key)),
            _ => {}
        }
    }
    assert!(sent.len() > 5 && pods.len() == 1, "{sent:?} {pods:?}");
    while !sent.is_empty() {
        match next(&channel).await {
            FromProxy::Ack { seq } => assert!(sent.remove(&seq)),
            FromProxy::Hello { .. } | FromProxy::Withdrawn { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fixture.pods.count(), 1);
    let refused = |reason| agent.metrics.refused.with_label_values(&[reason]).get();
    assert_eq!((refused("malformed"), refused("refused")), (0, 0));
    Ok(())
}
