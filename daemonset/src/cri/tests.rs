// SPDX-License-Identifier: Apache-2.0

use super::*;

/// What containerd 1.6.20 said, cut to what may be mistaken for what is wanted.
const CONTAINERD: &str = include_str!("tests/containerd.json");

/// As CRI-O 1.28 builds it, <https://github.com/cri-o/cri-o/blob/v1.28.0/server/sandbox_status.go>.
const CRI_O: &str = r#"{"image":"pause:3.9","pid":7,"runtimeSpec":{"ociVersion":"1.1.0","linux":
{"namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/6f2c"},{"type":"uts",
"path":"/var/run/utsns/6f2c"}]}}}"#;

fn said(state: i32, handler: &str, info: Option<&str>) -> PodSandboxStatusResponse {
    PodSandboxStatusResponse {
        status: Some(messages::PodSandboxStatus {
            id: "s".to_owned(),
            state,
            runtime_handler: handler.to_owned(),
            ..messages::PodSandboxStatus::default()
        }),
        info: info
            .map(|i| ("info".to_owned(), i.to_owned()))
            .into_iter()
            .collect(),
    }
}

fn told(handler: &str, info: Option<&str>) -> (Option<String>, String) {
    let told = details("s", said(READY, handler, info)).unwrap_or_else(|e| panic!("{e}"));
    let Details { netns, runtime } = told.unwrap_or_else(|| panic!("not ready"));
    (netns.map(|path| path.display().to_string()), runtime)
}

#[test]
fn both_runtimes_say_where_the_network_is() {
    let (netns, runtime) = told("", Some(CONTAINERD));
    assert!(netns.is_some_and(|path| path.starts_with("/var/run/netns/cni-")));
    assert_eq!(runtime, "io.containerd.runc.v2");
    let expected = (Some("/var/run/netns/6f2c".to_owned()), "kata".to_owned());
    assert_eq!(told("kata", Some(CRI_O)), expected);
}

#[test]
fn what_a_runtime_does_not_say_is_not_guessed() {
    let host = r#"{"runtimeSpec":{"linux":{"namespaces":[{"type":"mount"}]}}}"#;
    let own = r#"{"runtimeSpec":{"linux":{"namespaces":[{"type":"network"}]}}}"#;
    for info in [None, Some("{}"), Some(host), Some(own)] {
        assert_eq!(told("", info).0, None, "{info:?}");
    }
    assert!(details("s", said(READY, "", Some("no JSON"))).is_err());
}

#[test]
fn a_sandbox_that_is_not_ready_is_none() {
    let gone = details("s", said(1, "", Some(CONTAINERD)));
    assert!(matches!(gone, Ok(None)));
    let listed = |state| PodSandbox {
        id: "s".to_owned(),
        metadata: Some(messages::PodSandboxMetadata::default()),
        state,
        ..PodSandbox::default()
    };
    assert!(sandbox(listed(1)).is_none() && sandbox(listed(READY)).is_some());
}
