// SPDX-License-Identifier: Apache-2.0
use serde_json::json;

use super::*;

/// As flannel's DaemonSet writes it.
const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": { "hairpinMode": true, "isDefaultGateway": true }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}"#;

const ISTIO: &str = r#"{"type":"istio-cni","log_level":"info"}"#;

fn ours() -> Value {
    json!({"type": OURS, "agentSocket": "/run/culvert/cni.sock"})
}

fn read(name: &str, text: &str) -> List {
    List::read(name, text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn list(text: &str) -> List {
    read("10-a.conflist", text)
}

fn chained(primary: &List, found: Vec<Plugin>, kept: Vec<Plugin>) -> Chained {
    let chained = chain("10-a.conflist", primary, found, kept, &ours());
    chained.unwrap_or_else(|e| panic!("{e}"))
}

fn alone(text: &str) -> String {
    chained(&list(text), vec![], vec![]).text
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn types(text: &str) -> Vec<String> {
    let plugins = list(text).plugins;
    plugins.into_iter().map(|plugin| plugin.kind).collect()
}

fn istio() -> Vec<Plugin> {
    let of = format!(r#"{{"name":"n","plugins":[{ISTIO}]}}"#);
    list(&of).plugins
}

#[test]
fn ours_is_the_primary_with_our_plugin_last() {
    let text = alone(FLANNEL);
    let got = value(&text);
    assert_eq!(got["name"], "cbr0");
    assert_eq!(got["cniVersion"], "0.3.1");
    assert_eq!(types(&text), ["flannel", "portmap", OURS]);
    assert_eq!(got["plugins"][2], ours());
    assert_eq!(got["plugins"][0], value(FLANNEL)["plugins"][0]);
}

#[test]
fn what_is_not_ours_keeps_every_byte() {
    let odd = r#"{ "type":"x",  "n": 12345678901234567890123, "f":1.50, "e":1e999, "u":"\u00e9" }"#;
    let primary = format!(
        r#"{{"disableCheck" : true, "cniVersion":"1.0.0","name":"n","cniVersions":["1.0.0" ,"0.4.0"],
        "loadOnlyInlinedPlugins":false, "x-vendor":{{ "b":1, "a":[ ] }},"plugins":[{odd}]}}"#
    );
    let text = alone(&primary);
    for part in [
        odd,
        r#"{ "b":1, "a":[ ] }"#,
        r#"["1.0.0" ,"0.4.0"]"#,
        r#""disableCheck": true"#,
        r#""loadOnlyInlinedPlugins": false"#,
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn one_plugin_becomes_a_list() {
    let conf =
        r#"{"cniVersion":"0.4.0","name":"one","type":"bridge","ipam":{"type":"host-local"}}"#;
    for name in ["10-one.conf", "10-one.json"] {
        let got = value(&chained(&read(name, conf), vec![], vec![]).text);
        assert_eq!(got["name"], "one");
        assert_eq!(got["cniVersion"], "0.4.0");
        assert_eq!(got["plugins"][0], value(conf));
        assert_eq!(got["plugins"][1], ours());
    }
}

#[test]
fn our_plugin_is_never_there_twice() {
    let with_ours = r#"{"cniVersion":"1.0.0","name":"n","plugins":[
        {"type":"bridge"},{"type":"culvert-cni","agentSocket":"/old"},{"type":"portmap"}]}"#;
    let once = alone(with_ours);
    assert_eq!(types(&once), ["bridge", "portmap", OURS]);
    assert_eq!(value(&once)["plugins"][2], ours());
    assert_eq!(alone(&once), once, "a chain of the chain is another one");
}

#[test]
fn a_version_that_can_not_stay_is_explained() {
    for (got, to) in [
        ("0.3.0", None),
        ("0.3.1", None),
        ("0.4.0", None),
        ("1.0.0", None),
        ("1.1.0", None),
        ("", Some("0.3.1")),
        ("0.1.0", Some("0.3.1")),
        ("0.2.0", Some("0.3.1")),
        ("0.4.1", Some("0.4.0")),
        ("1.2.0", Some("1.1.0")),
        ("2.0.0", Some("1.1.0")),
    ] {
        let version = match got {
            "" => String::new(),
            got => format!(r#""cniVersion":"{got}","#),
        };
        let primary = format!(r#"{{{version}"name":"n","plugins":[{{"type":"x"}}]}}"#);
        let chained = chained(&list(&primary), vec![], vec![]);
        let now = value(&chained.text)["cniVersion"].clone();
        assert_eq!(now, to.unwrap_or(got), "{got}");
        let changed = to.map(|to| Changed {
            got: got.to_owned(),
            to,
        });
        assert_eq!(chained.version, changed, "{got}");
    }
}

#[test]
fn what_another_mesh_puts_into_ours_stays_before_our_plugin() {
    let ours = alone(FLANNEL);
    assert!(added(&list(&ours)).is_empty() && added(&list(FLANNEL)).is_empty());
    // linkerd-cni and istio-cni append themselves to the first file there is.
    let theirs = ours.replacen("\n  ],", &format!(",{ISTIO}],"), 1);
    let text = chained(&list(FLANNEL), vec![], added(&list(&theirs))).text;
    assert_eq!(types(&text), ["flannel", "portmap", "istio-cni", OURS]);
    let again = added(&list(&text));
    assert_eq!(chained(&list(FLANNEL), vec![], again).text, text);
    // It takes itself out again.
    let without = text.replacen(&format!("    {ISTIO},\n"), "", 1);
    let none = added(&list(&without));
    assert_eq!(chained(&list(FLANNEL), vec![], none).text, ours);
}

#[test]
fn what_leaves_the_primary_leaves_ours() {
    let before = alone(FLANNEL);
    let primary = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"}]}"#;
    let kept = added(&list(&before));
    assert_eq!(
        types(&chained(&list(primary), vec![], kept).text),
        ["flannel", OURS]
    );
}

#[test]
fn what_another_mesh_chains_in_a_copy_of_ours_goes_with_it() {
    let with = chained(&list(FLANNEL), istio(), vec![]).text;
    assert_eq!(types(&with), ["flannel", "portmap", "istio-cni", OURS]);
    // Its file is gone: it came from there, so it is no addition of somebody's.
    let kept = added(&list(&with));
    assert_eq!(
        types(&chained(&list(FLANNEL), vec![], kept).text),
        ["flannel", "portmap", OURS]
    );
}

#[test]
fn a_plugin_that_delegates_to_ours_is_refused() {
    let delegate = alone(FLANNEL);
    let multus = format!(
        r#"{{"cniVersion":"0.3.1","name":"multus","type":"multus","delegates":[{delegate}]}}"#
    );
    let multus = read("00-multus.conf", &multus);
    let refused = chain("00-multus.conf", &multus, vec![], vec![], &ours());
    let text = refused.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(
        text.contains("multus") && text.contains("--multus-master-cni-file-name"),
        "{text}"
    );
}

#[test]
fn a_plugin_that_delegates_to_others_is_fine() {
    let multus = format!(
        r#"{{"cniVersion":"0.3.1","name":"multus","type":"multus","delegates":[{FLANNEL}]}}"#
    );
    let text = chained(&read("00-multus.conf", &multus), vec![], vec![]).text;
    assert_eq!(types(&text), ["multus", OURS]);
}

#[test]
fn mistakes_of_the_primary_are_told() {
    for (name, text, word) in [
        ("a.conflist", "", "JSON"),
        ("a.conflist", r#"{"name":"n","plugins":["#, "JSON"),
        ("a.conflist", "[]", "JSON"),
        ("a.conflist", r#"{"plugins":[{"type":"x"}]}"#, "name"),
        (
            "a.conflist",
            r#"{"name":7,"plugins":[{"type":"x"}]}"#,
            "name",
        ),
        ("a.conflist", r#"{"name":"n"}"#, "plugins"),
        ("a.conflist", r#"{"name":"n","plugins":{}}"#, "plugins"),
        ("a.conflist", r#"{"name":"n","plugins":[{}]}"#, "type"),
        ("a.conflist", r#"{"name":"n","plugins":[7]}"#, "type"),
        (
            "a.conflist",
            r#"{"name":"n","name":"m","plugins":[]}"#,
            "twice",
        ),
        (
            "a.conf",
            r#"{"name":"n","plugins":[{"type":"x"}]}"#,
            ".conflist",
        ),
        ("a.conf", r#"{"name":"n"}"#, "type"),
        ("a.conf", r#"{"type":"x"}"#, "name"),
    ] {
        let broken = List::read(name, text.as_bytes()).err();
        let broken = broken.unwrap_or_else(|| panic!("took {text}")).to_string();
        assert!(broken.contains(word), "{text}: {broken}");
    }
    for version in [r#""one""#, "1", r#""1.0""#] {
        let text = format!(r#"{{"cniVersion":{version},"name":"n","plugins":[{{"type":"x"}}]}}"#);
        let refused = chain("a", &list(&text), vec![], vec![], &ours()).err();
        assert!(matches!(refused, Some(Broken::Version { .. })), "{version}");
    }
}

#[test]
fn who_formats_it_does_not_matter() {
    let text = alone(FLANNEL);
    let pretty = serde_json::to_vec_pretty(&value(&text)).unwrap_or_else(|e| panic!("{e}"));
    assert!(same(&pretty, text.as_bytes()));
    assert!(!same(b"", text.as_bytes()) && !same(b"", b"{"));
    assert!(same(b"{\"a\":1e999}", b"{\"a\":1e999}"));
}
