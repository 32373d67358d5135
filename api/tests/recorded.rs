// SPDX-License-Identifier: Apache-2.0
//! What earlier releases said (`tests/recorded/<release>`) is understood, and what this one says is
//! understood by them. See "Versions" in ARCHITECTURE.md before changing anything for these tests.

mod proto;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use culvert_api::{
    agent::{self, Direction, Family, FromAgent, FromProxy, SocketKind},
    cni::{self, Command, Request, Response},
    version::still_says,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// The directories of the releases.
fn releases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded");
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let found: Vec<_> = paths.filter(|path| path.is_dir()).collect();
    assert!(!found.is_empty(), "nothing is recorded");
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn lines(release: &Path, file: &str) -> Vec<Value> {
    let text = text(&release.join(file));
    let lines = text.lines().map(serde_json::from_str);
    lines
        .map(|line| line.unwrap_or_else(|e| panic!("{file}: {e}")))
        .collect()
}

/// It is read, and written again so that the earlier release reads it.
fn understood<T: Serialize + DeserializeOwned>(earlier: &Value) {
    let read: T = serde_json::from_value(earlier.clone())
        .unwrap_or_else(|e| panic!("this release can't read {earlier}: {e}"));
    let now = serde_json::to_value(&read).unwrap_or_else(|e| panic!("{e}"));
    assert!(
        still_says(&now, earlier),
        "the earlier release said {earlier}, this one says {now}"
    );
}

#[test]
fn agent_and_proxy_understand_earlier_ones() {
    for release in releases() {
        for line in lines(&release, "agent-proxy.jsonl") {
            match line["from"].as_str() {
                Some("agent") => understood::<FromAgent>(&line["message"]),
                Some("proxy") => understood::<FromProxy>(&line["message"]),
                other => panic!("{other:?}"),
            }
        }
    }
    // Never said when all is well.
    understood::<FromProxy>(&json!({"type": "nack", "seq": 7, "reason": "no"}));
}

#[test]
fn plugin_and_agent_understand_earlier_ones() {
    for release in releases() {
        for line in lines(&release, "cni.jsonl") {
            understood::<Request>(&line["request"]);
            understood::<Response>(&line["answer"]);
        }
    }
    understood::<Response>(
        &json!({"answer": "failed", "code": 11, "message": "m", "details": "d"}),
    );
}

#[test]
fn a_new_kind_of_message_has_a_new_version() {
    for release in releases() {
        let kinds: Value = serde_json::from_str(&text(&release.join("kinds.json")))
            .unwrap_or_else(|e| panic!("{e}"));
        let agent = [
            ("FromAgent", variants::<FromAgent>("type")),
            ("FromProxy", variants::<FromProxy>("type")),
            ("Direction", variants::<Direction>("")),
            ("Family", variants::<Family>("")),
            ("SocketKind", variants::<SocketKind>("")),
        ];
        compare(&kinds["agent"], agent::VERSIONS.newest, &agent);
        let cni = [
            ("Command", variants::<Command>("command")),
            ("Response", variants::<Response>("answer")),
        ];
        compare(&kinds["cni"], cni::VERSIONS.newest, &cni);
    }
}

fn compare(earlier: &Value, newest: u32, now: &[(&str, BTreeSet<String>)]) {
    for (name, now) in now {
        let names = earlier[name].as_array().into_iter().flatten();
        let earlier_names: BTreeSet<_> =
            names.filter_map(Value::as_str).map(str::to_owned).collect();
        assert!(
            earlier["version"] != newest || *now == earlier_names,
            "{name} was {earlier_names:?} in version {newest} and is {now:?}: add a version"
        );
        assert!(
            earlier_names.is_subset(now),
            "{name} lost one of {earlier_names:?}"
        );
    }
}

/// The names that serde knows, which it tells to who asks for none of them.
fn variants<T: DeserializeOwned>(tag: &str) -> BTreeSet<String> {
    let nonsense = match tag {
        "" => json!("no such thing"),
        tag => json!({ tag: "no such thing" }),
    };
    let told = serde_json::from_value::<T>(nonsense).err();
    let told = told.map(|error| error.to_string()).unwrap_or_default();
    let (_, names) = told
        .split_once("expected")
        .unwrap_or_else(|| panic!("{told}"));
    names
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// A later release may add fields, but a value that this one does not know is no other's.
#[test]
fn what_a_later_release_adds_is_passed_over_or_refused() {
    let ack = json!({"type": "ack", "seq": 7, "later": {"a": 1}});
    assert_eq!(
        serde_json::from_value(ack).ok(),
        Some(FromProxy::Ack { seq: 7 })
    );
    for unknown in [
        json!({"type": "later"}),
        json!({"type": "want", "key": {"uid": "u", "cookie": 1}, "count": 1,
               "pool": {"kind": "later", "family": "v4"}}),
    ] {
        assert!(serde_json::from_value::<FromProxy>(unknown).is_err());
    }
    let request = json!({"versions": {"newest": 2, "oldest": 1, "later": 1}, "command": {"command": "status"}});
    assert!(serde_json::from_value::<Request>(request).is_ok());
}
