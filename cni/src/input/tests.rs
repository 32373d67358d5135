// SPDX-License-Identifier: Apache-2.0
use super::*;

fn environment(changes: &[(&'static str, &str)]) -> Environment {
    let base = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "Ab0_.-"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
    ];
    let all = base.iter().chain(changes);
    Environment {
        variables: all
            .map(|(name, value)| (*name, OsString::from(value)))
            .collect(),
    }
}

#[test]
fn capital_letters_are_allowed_in_container_ids() {
    let got = environment(&[])
        .attachment("n")
        .unwrap_or_else(|e| panic!("{}", e.details()));
    assert_eq!(got.container_id, "Ab0_.-");
}

#[test]
fn arguments_are_split() {
    let args = "IgnoreUnknown=1;K8S_POD_NAME=a=b;;K8S_POD_UID=";
    let got = environment(&[("CNI_ARGS", args)]).attachment("n");
    let got = got.unwrap_or_else(|e| panic!("{}", e.details()));
    assert_eq!(
        got.args.get("K8S_POD_NAME").map(String::as_str),
        Some("a=b")
    );
    assert_eq!(got.args.len(), 3);
}

#[test]
fn wrong_variables_are_named() {
    for (variable, value) in [
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "-a"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", ".."),
        ("CNI_NETNS", ""),
        ("CNI_NETNS", "netns"),
        ("CNI_ARGS", "K8S_POD_NAME"),
    ] {
        let error = environment(&[(variable, value)]).attachment("n").err();
        let error = error.unwrap_or_else(|| panic!("{variable}={value:?} was taken"));
        assert!(error.to_string().contains(variable), "{error}");
        assert_eq!(error.code(), 4);
    }
}

#[test]
fn only_del_lives_without_a_namespace() {
    let gone = environment(&[("CNI_NETNS", "")]);
    assert!(
        gone.old_attachment("n")
            .is_ok_and(|got| got.netns.is_none())
    );
}

#[test]
fn commands_are_exactly_six() {
    for name in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
        assert!(
            environment(&[("CNI_COMMAND", name)]).verb().is_ok(),
            "{name}"
        );
    }
    for name in ["", "add", "UPDATE"] {
        assert!(
            environment(&[("CNI_COMMAND", name)]).verb().is_err(),
            "{name}"
        );
    }
}
