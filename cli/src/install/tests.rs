// SPDX-License-Identifier: Apache-2.0

use serde_json::json;

use super::*;

#[test]
fn the_manifests_hold_the_values_of_the_user() {
    let given = json!({"proxy": {"surge": false}});
    let mut values = over_defaults(&given);
    values::merge(&mut values, &identity::authority("A", "B", "C"));
    let text = manifests(&values, &given, &release("mesh", "v1.30.0".to_owned()));
    let text = text.unwrap_or_else(|e| panic!("{e}"));
    let read = chart::yaml::read_all(&chart::print(&text)).unwrap_or_else(|e| panic!("{e}"));
    let named = |name: &str| {
        read.iter()
            .find(|object| object["metadata"]["name"] == name)
    };
    let config = named("culvert-config").map(|config| config["data"]["values"].clone());
    assert_eq!(config, Some("proxy:\n  surge: false\n".into()));
    for object in &read {
        let label = &object["metadata"]["labels"]["culvert.io/control-plane-ns"];
        assert_eq!(label, "mesh", "{object}");
    }
}

#[test]
fn a_value_that_is_not_known_is_refused_by_name() {
    let given = json!({"proxy": {"surfe": false}});
    let refused = manifests(
        &over_defaults(&given),
        &given,
        &release("culvert", "v1.30.0".to_owned()),
    );
    let refused = refused
        .map(|_| ())
        .map_err(|e| (e.exit_code(), e.to_string()));
    let Err((code, message)) = refused else {
        panic!("it was not refused");
    };
    assert_eq!(code, 64);
    assert!(
        message.starts_with("proxy.surfe: there is no such value"),
        "{message}"
    );
}
