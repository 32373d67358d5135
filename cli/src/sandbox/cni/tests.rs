// SPDX-License-Identifier: Apache-2.0
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A network in a namespace of its own, whose plugins are shell scripts.
struct Rig {
    dir: tempfile::TempDir,
    network: Network,
}

impl Rig {
    fn new(plugins: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let types: Vec<_> = plugins
            .iter()
            .map(|(kind, _)| json!({ "type": kind }))
            .collect();
        let list = json!({"cniVersion": "1.0.0", "name": "t", "plugins": types});
        let conflist = dir.path().join("10-t.conflist");
        fs::write(&conflist, list.to_string()).unwrap_or_else(|e| panic!("{e}"));
        for (kind, script) in plugins {
            let path = dir.path().join(kind);
            let script = format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display());
            fs::write(&path, script).unwrap_or_else(|e| panic!("{e}"));
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&path, executable).unwrap_or_else(|e| panic!("{e}"));
        }
        let name = format!("cvt-{}-{}", std::process::id(), plugins[0].0);
        let network = Network {
            node: Netns::create(&name).unwrap_or_else(|e| panic!("{e}")),
            conflist,
            plugin_dirs: vec!["/nonexistent".into(), dir.path().into()],
        };
        Self { dir, network }
    }

    fn attachment(&self) -> Attachment {
        Attachment::of_pod(&self.network.node, "ns", "pod", "0a-0b", 0)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.path().join(file)).unwrap_or_default()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = crate::sandbox::netns::remove(&self.network.node.name);
    }
}

const FIRST: &str = r#"cat >> "$CNI_COMMAND.first"; echo first >> order
    echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"},{"address":"fd00::2/64"}],"x":1}'"#;
const SECOND: &str = r#"tee "$CNI_COMMAND.second" | sed 's/.*"prevResult":\(.*\),"type.*/\1/'
    echo second >> order; echo "$CNI_ARGS" > args; ls /sys/class/net > /dev/null"#;

#[tokio::test]
async fn each_plugin_gets_the_result_of_the_one_before() {
    let rig = Rig::new(&[("one", FIRST), ("two", SECOND)]);
    let result = rig
        .network
        .add(&rig.attachment())
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    let expected: [IpAddr; 2] = [
        [10, 1, 0, 2].into(),
        "fd00::2".parse().unwrap_or([0; 4].into()),
    ];
    assert_eq!(addresses(&result), expected);
    assert!(!rig.read("ADD.first").contains("prevResult"));
    let second: Value = serde_json::from_str(&rig.read("ADD.second")).unwrap_or_default();
    assert_eq!(
        (&second["prevResult"]["x"], &second["name"]),
        (&json!(1), &json!("t"))
    );
    assert!(
        rig.read("args")
            .contains("K8S_POD_INFRA_CONTAINER_ID=0a0b;K8S_POD_UID=0a-0b")
    );

    rig.network
        .del(&rig.attachment(), &result)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(rig.read("DEL.first").contains("prevResult"));
    assert_eq!(rig.read("order"), "first\nsecond\nsecond\nfirst\n");
}

#[tokio::test]
async fn errors_of_plugins_are_understood() {
    let again = r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"away","details":"wait"}'; exit 1"#;
    let rig = Rig::new(&[("again", again)]);
    let error = rig.network.add(&rig.attachment()).await.err();
    let Some(Error {
        code, msg, details, ..
    }) = error
    else {
        panic!("a failure was taken for success");
    };
    assert_eq!(
        (code, msg.as_str(), details.as_str()),
        (TRY_AGAIN, "away", "wait")
    );

    let rude = Rig::new(&[("rude", "echo oops >&2; exit 3")]);
    let error = rude.network.add(&rude.attachment()).await.err();
    assert!(error.is_some_and(|e| e.code == 100 && e.to_string().contains("oops")));
}
