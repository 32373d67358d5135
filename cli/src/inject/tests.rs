// SPDX-License-Identifier: Apache-2.0
//! Each file `golden/NAME.in.yaml` becomes `golden/NAME.out.yaml`, and that the first again.

use std::{fs, path::PathBuf};

use super::*;

const OWN: &str = "culvert";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/inject/golden")
}

fn enabled() -> Vec<(&'static str, String)> {
    vec![(INJECT, "enabled".to_owned())]
}

fn inject(text: &str) -> Transformed {
    injected(text, &enabled(), OWN).unwrap_or_else(|e| panic!("{e}"))
}

fn uninject(text: &str) -> Transformed {
    uninjected(text, false).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn manifests_become_what_is_recorded_and_the_same_again() -> anyhow::Result<()> {
    let mut count = 0;
    for before in manifests(&golden())? {
        let Some(name) = before
            .to_str()
            .and_then(|path| path.strip_suffix(".in.yaml"))
        else {
            continue;
        };
        let read = |suffix: &str| fs::read_to_string(format!("{name}.{suffix}"));
        let (before, after) = (read("in.yaml")?, read("out.yaml")?);
        assert_eq!(inject(&before).text, after, "{name}");
        assert_eq!(
            inject(&before).report.join("\n"),
            read("report")?.trim_end(),
            "{name}"
        );
        assert_eq!(uninject(&after).text, before, "{name}");
        assert_eq!(inject(&after).text, after, "{name}");
        count += 1;
    }
    assert!(count >= 4, "{count} files");
    Ok(())
}

#[test]
fn what_is_no_map_is_refused_by_name() {
    for metadata in [
        "x",
        "[]",
        "{name: a, annotations: []}",
        "{name: a, annotations: x}",
    ] {
        let text = format!("kind: Pod\nmetadata: {metadata}\nspec: {{}}\n");
        let Err(error) = injected(&text, &enabled(), OWN) else {
            panic!("took {metadata}")
        };
        assert!(error.contains("expected a map"), "{metadata}: {error}");
        drop(uninjected(&text, false));
    }
}

#[test]
fn json_stays_json() -> anyhow::Result<()> {
    let before = r#"{"kind": "Pod", "metadata": {"name": "a"}, "spec": {}}"#;
    let after = inject(before).text;
    let read: Value = serde_json::from_str(&after)?;
    assert_eq!(read["metadata"]["annotations"][INJECT], "enabled");
    assert_eq!(uninject(&after).text, before);
    Ok(())
}

#[test]
fn what_is_there_is_replaced_and_only_ours_is_removed() {
    let text = "kind: Pod\nmetadata:\n  name: a\n  annotations:\n    a: b # keep\n    culvert.io/inject: 'no' # ours\n    c: d\n";
    let after = inject(text).text;
    assert!(
        after.contains("    culvert.io/inject: \"enabled\" # ours\n"),
        "{after}"
    );
    let without = uninject(&after).text;
    assert_eq!(
        without,
        "kind: Pod\nmetadata:\n  name: a\n  annotations:\n    a: b # keep\n    c: d\n"
    );
}

#[test]
fn empty_annotations_are_filled() {
    for empty in [
        "annotations:",
        "annotations: {}",
        "annotations: null",
        "annotations: ~",
    ] {
        let text = format!("kind: Pod # {{}}\nmetadata:\n  {empty} # x\n  name: a\n");
        let done = inject(&text);
        assert!(
            done.text.contains("# {}") && done.text.contains("# x"),
            "{}",
            done.text
        );
        assert_eq!(done.report, ["pod \"a\" injected"]);
    }
}

#[test]
fn what_can_not_be_edited_is_written_anew() -> anyhow::Result<()> {
    let text =
        "# gone\nkind: Deployment\nmetadata: &m\n  name: a\nspec:\n  template:\n    metadata: *m\n";
    let done = inject(text);
    let read = yaml::read(&done.text).map_err(anyhow::Error::msg)?;
    assert_eq!(
        read["spec"]["template"]["metadata"]["annotations"][INJECT],
        "enabled"
    );
    assert_eq!(read["metadata"]["annotations"], Value::Null);
    assert_eq!(
        done.report.last().map(String::as_str),
        Some("the comments could not be kept")
    );
    Ok(())
}

#[test]
fn all_annotations_of_the_flags_are_set() {
    let annotations = [
        enabled(),
        vec![("culvert.io/opaque-ports", "3306,4000-4100".to_owned())],
    ]
    .concat();
    let text = "kind: Namespace\nmetadata:\n  name: shop\n";
    let done = injected(text, &annotations, OWN).unwrap_or_else(|e| panic!("{e}"));
    let expected = "kind: Namespace\nmetadata:\n  annotations:\n    culvert.io/inject: enabled\n    \
                    culvert.io/opaque-ports: \"3306,4000-4100\"\n  name: shop\n";
    assert_eq!(done.text, expected);
    assert_eq!(
        uninjected(&done.text, true)
            .unwrap_or_else(|e| panic!("{e}"))
            .text,
        text
    );
}

#[test]
fn what_others_may_have_written_stays_unless_all_is_to_go() {
    let others = "kind: Namespace\nmetadata:\n  annotations:\n    linkerd.io/inject: enabled\n    \
                  culvert.io/opaque-ports: \"3306\"\n  name: shop\n";
    let done = uninject(&inject(others).text);
    assert_eq!(done.text, others);
    assert_eq!(
        done.report,
        ["namespace \"shop\" uninjected, but linkerd.io/inject: enabled stays"]
    );
    let without = uninject(others);
    assert_eq!(without.text, others);
    assert_eq!(
        without.report,
        ["namespace \"shop\" skipped: linkerd.io/inject: enabled stays"]
    );
    let none = uninjected(others, true).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(none.text, "kind: Namespace\nmetadata:\n  name: shop\n");
}

#[test]
fn what_is_no_yaml_is_refused_with_its_place() {
    let refused = injected("kind: Pod\nmetadata: {\n", &enabled(), OWN);
    assert!(refused.is_err_and(|message| message.contains("line")));
}

#[test]
fn files_become_documents_of_one_stream() {
    let texts = [
        "a: 1".to_owned(),
        "---\nb: 2\n".to_owned(),
        "c: 3\n".to_owned(),
    ];
    assert_eq!(joined(&texts), "a: 1\n---\nb: 2\n---\nc: 3\n");
}

#[test]
fn culverts_own_namespace_is_the_one_that_is_said() {
    let text = "kind: Namespace\nmetadata:\n  name: mesh\n";
    let report = |own| injected(text, &enabled(), own).map(|done| done.report.concat());
    let refused = "namespace \"mesh\" skipped: it is never meshed".to_owned();
    assert_eq!(report("mesh"), Ok(refused));
    assert_eq!(report(OWN), Ok("namespace \"mesh\" injected".to_owned()));
}

#[test]
fn what_has_a_network_stack_of_its_own_is_skipped() {
    let text = "kind: Pod\nmetadata:\n  name: a\nspec:\n  runtimeClassName: gvisor\n";
    let done = inject(text);
    assert_eq!(done.text, text);
    assert!(
        done.report.concat().contains("it runs in gvisor"),
        "{:?}",
        done.report
    );
}
