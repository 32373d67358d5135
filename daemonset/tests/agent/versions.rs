// SPDX-License-Identifier: Apache-2.0
//! The built agent with what an earlier release said and kept (`tests/recorded`), and with what a
//! later one may say.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use culvert_api::{
    agent::{MAX_FDS, MAX_MESSAGE},
    cni::{Command, code},
    version::still_says,
};
use culvert_runtime::seqpacket::Channel;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    node::{Node, PATIENCE},
    proxy::Proxy,
    talk::*,
};

const RELEASE: &str = "../tests/recorded/0.1.0";

fn recorded(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(RELEASE)
        .join(file)
}

fn lines(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(recorded(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let lines = text.lines().map(serde_json::from_str);
    lines
        .map(|line| line.unwrap_or_else(|e| panic!("{file}: {e}")))
        .collect()
}

/// The first recorded line of a kind.
fn line(file: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let found = lines(file).into_iter().find(is_it);
    found.unwrap_or_else(|| panic!("not in {file}"))
}

// === the recorded proxy ===

/// A proxy of an earlier release: it says what it said then, about this node's pod.
struct OldProxy {
    channel: Channel,
}

impl OldProxy {
    async fn connect(node: &Node) -> Self {
        let channel = Channel::connect(&node.path("run/proxy.sock"), MAX_MESSAGE, MAX_FDS);
        let this = Self {
            channel: channel.unwrap_or_else(|e| panic!("{e}")),
        };
        this.say("hello", json!({}), None).await;
        this
    }

    /// Says what was recorded, with these fields in place of the recorded ones.
    async fn say(&self, kind: &str, fields: Value, fd: Option<&OwnedFd>) {
        let is_it = |line: &Value| line["from"] == "proxy" && line["message"]["type"] == kind;
        let mut message = line("agent-proxy.jsonl", is_it)["message"].take();
        for (name, value) in fields.as_object().into_iter().flatten() {
            assert!(message.get(name).is_some(), "{message} has no {name}");
            message[name] = value.clone();
        }
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        let said = self.channel.send(&message, &fds).await;
        said.unwrap_or_else(|e| panic!("{e}"));
    }

    /// Reads on until a kind of message comes, which must have all that the earlier agent's had.
    async fn until(&self, kind: &str) -> (Value, Vec<OwnedFd>) {
        loop {
            let received = timeout(PATIENCE, self.channel.recv::<Value>()).await;
            let received = received.unwrap_or_else(|_| panic!("no {kind} came"));
            let received = received.unwrap_or_else(|e| panic!("{e}"));
            let message = received.body;
            let name = message["type"].clone();
            let earlier = line("agent-proxy.jsonl", |line| {
                line["from"] == "agent" && line["message"]["type"] == name
            });
            let (now, then) = (shape(&message), shape(&earlier["message"]));
            assert!(still_says(&now, &then), "{then} became {now}");
            if let Some(seq) = message.get("seq") {
                self.say("ack", json!({"seq": seq}), None).await;
            }
            if name == kind {
                return (message, received.fds);
            }
        }
    }
}

/// The kinds of the values; of a list that of the first.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect(),
        Value::Array(values) => values.iter().take(1).map(shape).collect(),
        Value::String(_) => "string".into(),
        Value::Number(_) => "number".into(),
        Value::Bool(_) => "bool".into(),
        Value::Null => Value::Null,
    }
}

fn content(fd: &OwnedFd) -> Vec<u8> {
    let mut file = fs::File::from(fd.try_clone().unwrap_or_else(|e| panic!("{e}")));
    let mut content = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut content));
    read.unwrap_or_else(|e| panic!("{e}"));
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_an_earlier_release_is_served() {
    let mut node = Node::new("oldproxy");
    node.write_pod("enabled");
    node.start(0);
    let proxy = OldProxy::connect(&node).await;
    proxy.until("snapshot_end").await;
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    let (pod, listeners) = proxy.until("pod").await;
    assert_eq!(
        pod["listeners"].as_array().map(Vec::len),
        Some(listeners.len())
    );
    let key = json!({"key": pod["key"]});
    for _ in 0..2 {
        assert!(
            !proxy.until("sockets").await.1.is_empty(),
            "the first supply"
        );
    }

    let kept = sealed(b"not for the agent");
    let identity =
        json!({"trust_domain": "cluster.local", "namespace": "shop", "service_account": "web"});
    proxy
        .say("keep", json!({"identity": identity}), Some(&kept))
        .await;
    // What comes after shows that it was kept.
    proxy.say("want", key.clone(), None).await;
    assert!(
        !proxy.until("sockets").await.1.is_empty(),
        "what was wanted"
    );
    let next = OldProxy::connect(&node).await;
    let (_, fds) = next.until("key").await;
    assert_eq!(
        fds.iter().map(content).collect::<Vec<_>>(),
        [b"not for the agent"]
    );
    next.until("snapshot_end").await;
    drop(proxy);

    node.ip("addr add 10.78.0.99/24 dev eth0");
    next.until("addresses").await;
    node.write_pod("disabled");
    next.until("withdraw").await;
    next.say("withdrawn", key, None).await;
    next.until("remove").await;
    assert!(node.metrics().contains("culvert_agent_proxy_nacks_total 0"));
}

// === the recorded plugin ===

fn ask(node: &Node, request: &Value) -> Value {
    let asked = || {
        let mut stream = UnixStream::connect(node.path("run/cni.sock"))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        std::io::Result::Ok(line)
    };
    let line = asked().unwrap_or_else(|e| panic!("{e}\n{}", node.log()));
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

/// A recorded request, about this node's pod.
fn about(node: &Node, recorded: &Value) -> Value {
    let ours = serde_json::to_value(node.attachment()).unwrap_or_else(|e| panic!("{e}"));
    let mut request = recorded.clone();
    let command = request["command"].as_object_mut();
    for (name, value) in command.into_iter().flatten() {
        match name.as_str() {
            "valid" => *value = json!([[ours["container_id"], ours["ifname"]]]),
            "args" => {
                for (name, value) in value.as_object_mut().into_iter().flatten() {
                    value.clone_from(ours["args"].get(name).unwrap_or(&json!("x")));
                }
            }
            "container_id" | "netns" => value.clone_from(&ours[name]),
            _ => {}
        }
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_an_earlier_release_is_answered_as_then() {
    let mut node = Node::new("oldcni");
    node.write_pod("enabled");
    node.start(0);
    let (_proxy, _) = Proxy::snapshot(&node).await;
    for (command, is_it) in [
        ("status", None),
        ("add", Some(true)),
        ("check", Some(true)),
        ("gc", None),
        ("check", Some(true)),
        ("del", None),
        ("del", None),
    ] {
        let recorded = line("cni.jsonl", |line| {
            let same = line["request"]["command"]["command"] == command;
            same && is_it.is_none_or(|steered| line["answer"]["steered"] == steered)
        });
        let answer = ask(&node, &about(&node, &recorded["request"]));
        assert!(
            still_says(&answer, &recorded["answer"]),
            "{command}: {answer}, was {recorded}"
        );
    }
    assert!(is_nothing_left(&node));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_a_later_release_is_told_what_is_wrong() {
    let mut node = Node::new("latecni");
    node.start(0);
    let far = json!({"versions": {"newest": 9, "oldest": 8}, "command": ["of", "its", "own"]});
    let answer = ask(&node, &far);
    assert_eq!(answer["code"], code::NOT_AVAILABLE);
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("8–9") && message.contains("1–1"),
        "{message}"
    );
    let near = |command: Value| json!({"versions": {"newest": 2, "oldest": 1}, "command": command});
    let unknown = ask(&node, &near(json!({"command": "later"})));
    assert_eq!(unknown["code"], code::DECODING_FAILURE);
    assert!(
        unknown["message"].to_string().contains("later"),
        "{unknown}"
    );
    let status = ask(&node, &near(json!({"command": "status", "later": 1})));
    assert_eq!(status["answer"], "done", "{status}");
    for line in ["result=\"50\"} 1", "result=\"6\"} 1"] {
        let counted = format!("culvert_agent_cni_requests_total{{command=\"unreadable\",{line}");
        assert!(node.metrics().contains(&counted), "{counted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_a_later_release_chooses_a_common_version_or_is_refused() {
    let mut node = Node::new("lateproxy");
    node.start(0);
    let connect = || {
        let channel = Channel::connect(&node.path("run/proxy.sock"), MAX_MESSAGE, MAX_FDS);
        channel.unwrap_or_else(|e| panic!("{e}"))
    };
    let hello = |newest, oldest| json!({"type": "hello", "later": 1, "versions": {"newest": newest, "oldest": oldest}});
    let far = connect();
    assert!(far.send(&hello(9, 8), &[]).await.is_ok());
    while far.recv::<Value>().await.is_ok() {}
    assert!(
        node.metrics()
            .contains("culvert_agent_proxy_connections_refused_total{reason=\"version\"} 1")
    );
    assert!(
        node.log()
            .contains("speaks versions 8–9, this process speaks 1–1")
    );

    let near = connect();
    assert!(near.send(&hello(9, 1), &[]).await.is_ok());
    assert!(
        near.send(&json!({"type": "later", "fds": 0}), &[])
            .await
            .is_ok()
    );
    let near = OldProxy { channel: near };
    near.until("snapshot_end").await;
    assert_eq!(node.ask(Command::Status), UNSTEERED);
    assert!(
        node.metrics()
            .contains("culvert_agent_proxy_messages_unreadable_total 1")
    );
}

// === state ===

fn record(node: &Node) -> PathBuf {
    let mut entries = fs::read_dir(node.path("state/pods")).unwrap_or_else(|e| panic!("{e}"));
    let entry = entries.next().and_then(Result::ok);
    entry
        .map(|entry| entry.path())
        .unwrap_or_else(|| panic!("no record"))
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// What the earlier release would have written of this pod.
fn as_recorded(now: &Value) -> Value {
    let files = fs::read_dir(recorded("state/agent/pods")).unwrap_or_else(|e| panic!("{e}"));
    let all = files.filter_map(|file| Some(read(&file.ok()?.path())));
    let enrolled = all.filter(|record| record["phase"] == "enrolled").last();
    let mut old = enrolled.unwrap_or_else(|| panic!("no enrolled pod is recorded"));
    for (name, value) in old.as_object_mut().into_iter().flatten() {
        let ours = now
            .get(name)
            .unwrap_or_else(|| panic!("{now} has no {name} any more"));
        assert!(
            still_says(&shape(ours), &shape(value)) || value.is_object(),
            "{name}: {value}, {ours}"
        );
        value.clone_from(ours);
    }
    old
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_an_earlier_release_keeps_its_pod_and_one_of_a_later_waits_for_that() {
    let mut node = Node::new("records");
    node.write_pod("enabled");
    node.start(0);
    assert_eq!(node.ask(Command::Add(node.attachment())), STEERED);
    node.stop("-KILL");
    let path = record(&node);
    let old = as_recorded(&read(&path)).to_string();
    assert!(fs::write(&path, &old).is_ok());
    node.start(0);
    let (proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods.len(), 1);
    let (client_of_old, stream) = expect_steered(&node, &proxy);
    end(client_of_old, stream);
    drop(proxy);

    node.stop("-KILL");
    let later = json!({"version": 2, "pods": [old]}).to_string();
    assert!(fs::write(&path, &later).is_ok());
    node.start(0);
    let (proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods, []);
    assert_eq!(
        fs::read_to_string(&path).ok().as_deref(),
        Some(later.as_str()),
        "it is left as it was"
    );
    assert!(node.log().contains("start that release's agent again"));
    assert!(
        complaint(client(&node, ELSEWHERE)).contains("not permitted"),
        "never plaintext"
    );
    drop(proxy);

    node.stop("-KILL");
    assert!(fs::write(&path, &old).is_ok());
    node.start(0);
    let (proxy, pods) = Proxy::snapshot(&node).await;
    assert_eq!(pods.len(), 1);
    let (client, stream) = expect_steered(&node, &proxy);
    end(client, stream);
}
