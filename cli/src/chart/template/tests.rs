// SPDX-License-Identifier: Apache-2.0

use serde_json::{Value, json};

use super::*;

fn rendered(text: &str, data: Value) -> Result<String, String> {
    let templates = Templates::parse([("t.yaml", text)]).map_err(|e| e.to_string())?;
    templates.render("t.yaml", &data).map_err(|e| e.to_string())
}

fn ok(text: &str, data: Value) -> String {
    rendered(text, data).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn markers_trim_and_comments_vanish() {
    assert_eq!(ok("a \n {{- 1 }} b {{ 2 -}} \n c", json!({})), "a1 b 2c");
    assert_eq!(ok("a {{- /* {{ }} */ -}} b", json!({})), "ab");
    assert_eq!(ok("{{ \"}}\" }}", json!({})), "}}");
}

#[test]
fn branches_follow_the_truth_of_go() {
    let text = "{{ if .a }}a{{ else if .b }}b{{ else }}c{{ end }}";
    assert_eq!(ok(text, json!({"a": 1, "b": 0})), "a");
    assert_eq!(ok(text, json!({"a": {}, "b": "x"})), "b");
    assert_eq!(ok(text, json!({"a": "", "b": []})), "c");
}

#[test]
fn lists_are_walked_and_variables_end_with_their_body() {
    let text = "{{ $x := .x }}{{ range .l }}{{ . }}{{ $x }}{{ $.x }},{{ end }}";
    assert_eq!(ok(text, json!({"x": 1, "l": ["a", "b"]})), "a11,b11,");
    let text = "{{ if true }}{{ $y := 1 }}{{ end }}{{ $y }}";
    assert_eq!(
        rendered(text, json!({})),
        Err("t.yaml:1: $y is not declared".to_owned())
    );
}

#[test]
fn pipes_give_the_last_argument() {
    let text = "{{ .a | default \"x\" | quote }}{{ define \"d\" }}({{ .b }}){{ end }}{{ include \"d\" (index . \"c\") }}";
    assert_eq!(ok(text, json!({"a": "", "c": {"b": true}})), "\"x\"(true)");
    assert_eq!(
        ok("a:{{ toYaml .a | nindent 2 }}", json!({"a": {"b": ["c"]}}))
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["a:", "b:", "-", "c"]
    );
}

#[test]
fn a_version_is_compared_with_its_least() {
    let text = "{{ semverCompare \">=1.22-0\" .v }}";
    for (version, expected) in [
        ("v1.21.9", "false"),
        ("v1.22.0-alpha.1", "true"),
        ("1.30", "true"),
        ("v2.0.0", "true"),
    ] {
        assert_eq!(ok(text, json!({"v": version})), expected, "{version}");
    }
}

#[test]
fn a_mistake_is_named_with_its_file_and_line() {
    let cases = [
        ("\n{{ .a.b }}", "t.yaml:2: there is no value .a"),
        (
            "\n\n{{ nope 1 }}",
            "t.yaml:3: nope: there is no such function, see functions.rs",
        ),
        ("{{ if 1 }}", "t.yaml:1: this if has no end"),
        ("\n{{ end }}", "t.yaml:2: one end too many"),
        ("{{ (1 }}", "t.yaml:1: this ( has no )"),
        ("{{ 1", "t.yaml:1: this {{ has no }}"),
        (
            "{{ required \"say it\" \"\" }}",
            "t.yaml:1: required: say it",
        ),
        ("{{ eq 1 }}", "t.yaml:1: eq: got 1 arguments, expected 2"),
        (
            "{{ block \"x\" }}",
            "t.yaml:1: block: there is no such function, see functions.rs",
        ),
        (
            "{{ . }}",
            "t.yaml:1: got {}, expected text or a number: print it with toYaml",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(
            rendered(text, json!({})),
            Err(expected.to_owned()),
            "{text}"
        );
    }
}

#[test]
fn a_template_that_includes_itself_ends() {
    let text = "{{ define \"d\" }}{{ include \"d\" . }}{{ end }}{{ include \"d\" . }}";
    assert!(rendered(text, json!({})).is_err_and(|e| e.contains("includes itself")));
}
