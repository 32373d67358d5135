// SPDX-License-Identifier: Apache-2.0
//! The built binary against an agent of the test's own.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use culvert_api::cni::{self, Request, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const PREV_RESULT: &str = r#"{"ips":[{"address":"10.0.0.2/24"}],  "x":1.50, "cniVersion":"1.0.0"}"#;

struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        Self { dir }
    }

    /// An agent that answers one request with `answer`, verbatim, and gives the request back.
    fn agent(&self, answer: String) -> JoinHandle<Request> {
        let path = self.dir.path().join("cni.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap_or_else(|e| panic!("{e}"));
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap_or_else(|e| panic!("{e}"));
            let mut line = String::new();
            let read = BufReader::new(&stream).read_line(&mut line);
            read.unwrap_or_else(|e| panic!("{e}"));
            let written = writeln!(stream, "{answer}");
            written.unwrap_or_else(|e| panic!("{e}"));
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
        })
    }

    fn config(&self, version: &str, extra: &str) -> String {
        let socket = self.dir.path().join("cni.sock");
        format!(
            r#"{{"cniVersion":"{version}","name":"net","type":"culvert-cni","agentSocket":{socket:?},"prevResult":{PREV_RESULT}{extra}}}"#
        )
    }

    fn opt_in(&self, text: &str) -> String {
        let path = self.dir.path().join("opt-in.json");
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("{e}"));
        format!(r#","optInFile":{path:?}"#)
    }
}

fn plugin(command: &str, netns: &str, stdin: &str) -> Output {
    let args = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=u1";
    plugin_with(command, netns, args, stdin)
}

fn plugin_with(command: &str, netns: &str, args: &str, stdin: &str) -> Output {
    let mut child = Command::new(Path::new(env!("CARGO_BIN_EXE_culvert-cni")))
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "Container-1")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{e}"));
    let pipe = child.stdin.take();
    let mut pipe = pipe.unwrap_or_else(|| panic!("no stdin"));
    pipe.write_all(stdin.as_bytes())
        .unwrap_or_else(|e| panic!("{e}"));
    drop(pipe);
    child.wait_with_output().unwrap_or_else(|e| panic!("{e}"))
}

/// The one JSON object of a failure.
fn failure(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let object: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    assert!(
        object["msg"].is_string() && object["details"].is_string(),
        "{object}"
    );
    object
}

fn done(steered: bool) -> String {
    serde_json::to_string(&Response::Done { steered }).unwrap_or_else(|e| panic!("{e}"))
}

fn served(agent: JoinHandle<Request>) -> cni::Command {
    agent
        .join()
        .unwrap_or_else(|_| panic!("the agent panicked"))
        .command
}

#[test]
fn an_agent_of_another_release_stops_no_deletion_and_every_addition() {
    let apart = Response::Failed {
        code: cni::code::NOT_AVAILABLE,
        message: "the peer speaks versions 1–1, this process speaks 8–9".to_owned(),
        details: "too far apart".to_owned(),
    };
    let apart = serde_json::to_string(&apart).unwrap_or_else(|e| panic!("{e}"));
    for later in [apart, r#"{"answer":"of a later release"}"#.to_owned()] {
        let fixture = Fixture::new();
        let agent = fixture.agent(later.clone());
        let deleted = plugin("DEL", "", &fixture.config("1.0.0", ""));
        assert!(deleted.status.success(), "{deleted:?}");
        served(agent);
        let agent = fixture.agent(later);
        let added = failure(&plugin("ADD", "/run/netns/x", &fixture.config("1.0.0", "")));
        assert!(
            [11, 50].map(Value::from).contains(&added["code"]),
            "{added}"
        );
        served(agent);
    }
}

#[test]
fn an_agent_of_an_earlier_release_is_understood() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded/0.1.0/cni.jsonl");
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{e}"));
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}"));
        let command = line["env"]["CNI_COMMAND"].as_str().unwrap_or_default();
        let fixture = Fixture::new();
        let agent = fixture.agent(line["answer"].to_string());
        let config = fixture.config("1.1.0", r#","cni.dev/valid-attachments":[]"#);
        let output = plugin(command, "/run/netns/x", &config);
        assert_eq!(
            output.status.success(),
            line["answer"]["answer"] == "done",
            "{line}"
        );
        let asked = serde_json::to_value(served(agent)).unwrap_or_else(|e| panic!("{e}"));
        let earlier = line["request"]["command"].as_object();
        for (name, value) in earlier.into_iter().flatten() {
            let now = asked
                .get(name)
                .unwrap_or_else(|| panic!("{asked} lacks {name}"));
            let same = std::mem::discriminant(now) == std::mem::discriminant(value);
            assert!(same, "{name} was {value} and is {now}");
        }
    }
}

#[test]
fn add_returns_prev_result_as_it_came() {
    for version in VERSIONS {
        let fixture = Fixture::new();
        let agent = fixture.agent(done(true));
        let output = plugin("ADD", "/run/netns/x", &fixture.config(version, ""));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), PREV_RESULT);
        let cni::Command::Add(pod) = served(agent) else {
            panic!("not ADD")
        };
        assert_eq!(pod.args.get("K8S_POD_UID").map(String::as_str), Some("u1"));
        assert_eq!(pod.netns.as_deref(), Some(Path::new("/run/netns/x")));
    }
}

#[test]
fn del_and_check_say_nothing_and_del_needs_no_namespace() {
    for version in VERSIONS {
        for (command, netns) in [
            ("DEL", ""),
            ("DEL", "/run/netns/x"),
            ("CHECK", "/run/netns/x"),
        ] {
            let fixture = Fixture::new();
            let agent = fixture.agent(done(false));
            let output = plugin(command, netns, &fixture.config(version, ""));
            assert!(
                output.status.success() && output.stdout.is_empty(),
                "{output:?}"
            );
            match served(agent) {
                cni::Command::Del(pod) => assert_eq!(pod.netns.is_none(), netns.is_empty()),
                cni::Command::Check(_) => assert_eq!(command, "CHECK"),
                other => panic!("{other:?}"),
            }
        }
    }
    let output = plugin("CHECK", "", &Fixture::new().config("1.0.0", ""));
    assert_eq!(failure(&output)["code"], 4);
}

#[test]
fn gc_and_status_come_with_1_1_0() {
    let fixture = Fixture::new();
    let valid = r#","cni.dev/valid-attachments":[{"containerID":"A","ifname":"eth0"}]"#;
    let agent = fixture.agent(done(false));
    let output = plugin("GC", "", &fixture.config("1.1.0", valid));
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    let valid = vec![("A".to_owned(), "eth0".to_owned())];
    let network = "net".to_owned();
    assert_eq!(served(agent), cni::Command::Gc { network, valid });

    let agent = fixture.agent(done(false));
    let output = plugin("STATUS", "", &fixture.config("1.1.0", ""));
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    assert_eq!(served(agent), cni::Command::Status);

    assert_eq!(
        failure(&plugin("GC", "", &fixture.config("1.1.0", "")))["code"],
        7
    );
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        for command in ["GC", "STATUS"] {
            let object = failure(&plugin(command, "", &fixture.config(version, "")));
            assert_eq!(
                (&object["code"], &object["cniVersion"]),
                (&json!(1), &json!(version))
            );
        }
    }
}

#[test]
fn version_lists_exactly_what_is_spoken() {
    for version in ["0.1.0", "0.4.0", "1.0.0", "1.1.0", "2.0.0"] {
        let output = plugin("VERSION", "", &format!(r#"{{"cniVersion":"{version}"}}"#));
        let got: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            got,
            json!({"cniVersion": version, "supportedVersions": VERSIONS})
        );
    }
    assert!(plugin("VERSION", "", "").status.success());
}

#[test]
fn the_agents_failure_is_passed_on() {
    let fixture = Fixture::new();
    for (code, expected) in [(11, 11), (101, 101), (256, 256), (0, 100)] {
        let answer = json!({"answer":"failed","code":code,"message":"no","details":"do this"});
        let agent = fixture.agent(answer.to_string());
        let object = failure(&plugin("ADD", "/n", &fixture.config("1.0.0", "")));
        assert_eq!(object["code"], expected);
        assert_eq!(
            (&object["msg"], &object["details"]),
            (&json!("no"), &json!("do this"))
        );
        served(agent);
    }
}

#[test]
fn without_the_agent_each_command_does_what_is_safe() {
    let fixture = Fixture::new();
    let valid = r#","cni.dev/valid-attachments":[]"#;
    for (command, code) in [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
        let object = failure(&plugin(command, "/n", &fixture.config("1.1.0", valid)));
        assert_eq!(object["code"], code, "{command}: {object}");
        assert!(
            object["details"].to_string().contains("cni.sock"),
            "{object}"
        );
    }
    assert!(
        plugin("DEL", "", &fixture.config("1.0.0", ""))
            .status
            .success()
    );
    for known in [
        r#","neverMesh":["shop"]"#.to_owned(),
        fixture.opt_in(r#"{"unmeshed_pods":["u1"]}"#),
    ] {
        let output = plugin("ADD", "/n", &fixture.config("1.0.0", &known));
        assert_eq!(String::from_utf8_lossy(&output.stdout), PREV_RESULT);
        assert!(
            output.status.success() && !output.stderr.is_empty(),
            "{output:?}"
        );
    }
    let other = fixture.opt_in(r#"{"unmeshed_pods":["u2"]}"#);
    assert_eq!(
        failure(&plugin("ADD", "/n", &fixture.config("1.0.0", &other)))["code"],
        11
    );
}

#[test]
fn a_container_that_is_no_pod_is_left_alone_with_or_without_the_agent() {
    let config = Fixture::new().config("1.0.0", "");
    for args in ["", "IgnoreUnknown=1;K8S_POD_NAME=name", "K8S_POD_UID="] {
        let output = plugin_with("ADD", "/n", args, &config);
        assert!(output.status.success(), "{args}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), PREV_RESULT);
        for command in ["CHECK", "DEL"] {
            let output = plugin_with(command, "/n", args, &config);
            assert!(output.status.success(), "{command} {args}: {output:?}");
        }
    }
    for args in ["K8S_POD_NAMESPACE=shop", "K8S_POD_UID=u1"] {
        let object = failure(&plugin_with("ADD", "/n", args, &config));
        assert_eq!(object["code"], 11, "{object}");
    }
}

#[test]
fn an_agent_that_talks_nonsense_or_hangs_up_counts_as_away() {
    let fixture = Fixture::new();
    for answer in ["{}", "HTTP/1.1 400 Bad Request", r#"{"answer":"later"}"#] {
        let agent = fixture.agent(answer.to_owned());
        let object = failure(&plugin("ADD", "/n", &fixture.config("1.0.0", "")));
        assert_eq!(object["code"], 11);
        assert!(
            object["details"].to_string().contains("release"),
            "{object}"
        );
        served(agent);
    }
}

#[test]
fn a_silent_agent_does_not_hold_status_up() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("cni.sock");
    let _listener = UnixListener::bind(path).unwrap_or_else(|e| panic!("{e}"));
    let begin = Instant::now();
    let object = failure(&plugin("STATUS", "", &fixture.config("1.1.0", "")));
    assert_eq!(object["code"], 50);
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn mistakes_give_one_object_with_the_specs_code() {
    let fixture = Fixture::new();
    let good = fixture.config("1.0.0", "");
    let alone = good.replace("prevResult", "cni.dev/x");
    let unknown = fixture.config("1.0.0", r#","agentSokcet":"/x""#);
    for (command, stdin, code, word) in [
        ("ADD", alone.as_str(), 7, "chained"),
        ("ADD", &unknown, 7, "agentSokcet"),
        ("ADD", &fixture.config("0.2.0", ""), 1, "1.1.0"),
        ("ADD", &fixture.config("1.2.0", ""), 1, "1.1.0"),
        ("ADD", "", 6, "EOF"),
        ("ADD", "[]", 6, "map"),
        ("ADD", "{}", 7, "cniVersion"),
        ("ADD", r#"{"cniVersion":"1.0.0"}"#, 7, "name"),
        ("UPDATE", &good, 4, "GC"),
        ("", &good, 4, "CNI_COMMAND"),
    ] {
        let object = failure(&plugin(command, "/n", stdin));
        assert_eq!(object["code"], code, "{object}");
        assert!(
            object.to_string().contains(word),
            "{word:?} is not in {object}"
        );
    }
    assert!(plugin("DEL", "", &unknown).status.success());
}

#[test]
fn a_pod_that_passes_leaves_a_note_until_the_agent_answers_for_it() {
    let fixture = Fixture::new();
    let config = fixture.config("1.0.0", &fixture.opt_in(r#"{"unmeshed_pods":["u1"]}"#));
    let note = fixture.dir.path().join("passed/Container-1.eth0.json");
    for (command, answered) in [("DEL", false), ("DEL", true), ("ADD", true)] {
        assert!(plugin("ADD", "/run/netns/x", &config).status.success());
        let text = std::fs::read(&note).unwrap_or_else(|e| panic!("{e}"));
        let pod: cni::Attachment = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(pod.netns.as_deref(), Some(Path::new("/run/netns/x")));
        let agent = answered.then(|| fixture.agent(done(false)));
        assert!(plugin(command, "/run/netns/x", &config).status.success());
        assert!(!note.exists(), "the note stays after {command}");
        agent.map(served);
        let _ = std::fs::remove_file(fixture.dir.path().join("cni.sock"));
    }
}
