// SPDX-License-Identifier: Apache-2.0
use super::*;

fn config(text: &str) -> Result<Config, Error> {
    parse(fields(text.as_bytes())?)
}

fn with(extra: &str) -> String {
    let ours = r#""cniVersion":"1.1.0","name":"n","type":"culvert-cni","agentSocket":"/a""#;
    format!("{{{ours}{extra}}}")
}

#[test]
fn prev_result_keeps_every_byte() {
    let result = r#"{ "b":1.50,  "a" : 1e999, "x":"\u00e9", "n": 12345678901234567890123 }"#;
    let got = config(&with(&format!(r#","prevResult":{result}"#)));
    let got = got.unwrap_or_else(|e| panic!("{e}: {}", e.details()));
    assert_eq!(
        got.prev_result.map(|raw| raw.get().to_owned()).as_deref(),
        Some(result)
    );
}

#[test]
fn standard_fields_are_fine_and_others_are_named() {
    let standard = r#","ipam":{},"dns":{},"args":{"cni":{}},"runtimeConfig":{"mac":"00:11:22:33:44:55"},
        "capabilities":{"mac":true},"cni.dev/other":1,"neverMesh":["culvert"],"optInFile":"/o""#;
    let got = config(&with(standard)).unwrap_or_else(|e| panic!("{e}: {}", e.details()));
    assert_eq!(got.settings.never_mesh, ["culvert"]);
    assert!(got.refuse_unknown().is_ok());
    for (extra, name) in [
        (r#","agentSockets":1"#, "agentSockets"),
        (r#","ipMasq":true"#, "ipMasq"),
    ] {
        let got = config(&with(extra)).and_then(|config| config.refuse_unknown());
        let error = got.err().unwrap_or_else(|| panic!("{name} was taken"));
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.code(), 7);
    }
}

#[test]
fn mistakes_name_their_field() {
    let relative = with("").replace("/a", "a");
    let missing = with("").replace("agentSocket", "cni.dev/x");
    for (text, field) in [
        (relative, "agentSocket"),
        (missing, "agentSocket"),
        (with(r#","neverMesh":"culvert""#), "neverMesh"),
        (with(r#","optInFile":["/o"]"#), "optInFile"),
        (
            with(r#","cni.dev/valid-attachments":[{"ifname":"e"}]"#),
            "cni.dev/valid-attachments",
        ),
        (with(r#","dns":7"#), "standard"),
    ] {
        let error = config(&text)
            .err()
            .unwrap_or_else(|| panic!("{text} was taken"));
        assert!(error.to_string().contains(field), "{text}: {error}");
        assert_eq!(error.code(), 7);
    }
}

#[test]
fn the_attachments_of_gc_come_under_either_name() {
    let one = r#"[{"containerID":"A","ifname":"eth0"}]"#;
    for (extra, count) in [
        (
            format!(r#","cni.dev/valid-attachments":{one},"cni.dev/attachments":{one}"#),
            Some(1),
        ),
        (format!(r#","cni.dev/attachments":{one}"#), Some(1)),
        (r#","cni.dev/valid-attachments":null"#.to_owned(), Some(0)),
        (String::new(), None),
    ] {
        let got = config(&with(&extra)).unwrap_or_else(|e| panic!("{e}: {}", e.details()));
        assert_eq!(
            got.valid_attachments.map(|list| list.len()),
            count,
            "{extra}"
        );
    }
}
