// SPDX-License-Identifier: Apache-2.0
use std::io;

use super::*;

fn add(args: &[(&str, &str)]) -> Command {
    let args = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Command::Add(Attachment {
        network: "n".into(),
        container_id: "c".into(),
        ifname: "eth0".into(),
        netns: None,
        args: args.collect(),
    })
}

fn decided(settings: &Settings, command: &Command) -> Result<Pass, u32> {
    let reason = NoAnswer::Connect(io::ErrorKind::NotFound.into());
    decide(settings, command, reason).map_err(|error| error.code())
}

fn settings(opt_in: &Path) -> Settings {
    Settings {
        agent_socket: "/nowhere".into(),
        opt_in_file: Some(opt_in.to_owned()),
        never_mesh: vec!["culvert".into()],
    }
}

#[test]
fn add_passes_only_what_is_known_to_be_unmeshed() {
    let file = tempfile::NamedTempFile::new().unwrap_or_else(|e| panic!("{e}"));
    fs::write(file.path(), r#"{"unmeshed_pods":["plain"]}"#).unwrap_or_else(|e| panic!("{e}"));
    let settings = settings(file.path());
    let pod = |namespace, uid| add(&[("K8S_POD_NAMESPACE", namespace), ("K8S_POD_UID", uid)]);
    let never = decided(&settings, &pod("culvert", "any"));
    assert!(matches!(never, Ok(Pass::NoMatter(_))), "{never:?}");
    let unmeshed = decided(&settings, &pod("shop", "plain"));
    assert!(matches!(unmeshed, Ok(Pass::Unmeshed(_))), "{unmeshed:?}");
    assert_eq!(decided(&settings, &pod("shop", "other")), Err(11));
    assert_eq!(
        decided(&settings, &add(&[("K8S_POD_NAMESPACE", "shop")])),
        Err(11)
    );
    assert_eq!(decided(&settings, &add(&[])), Err(11));
}

#[test]
fn a_missing_or_broken_list_knows_nobody() {
    let pod = add(&[("K8S_POD_NAMESPACE", "shop"), ("K8S_POD_UID", "plain")]);
    assert_eq!(decided(&settings(Path::new("/nowhere")), &pod), Err(11));
    assert_eq!(
        decided(&settings(Path::new("/proc/self/exe")), &pod),
        Err(11)
    );
}

#[test]
fn only_del_succeeds_otherwise() {
    let settings = settings(Path::new("/nowhere"));
    let Command::Add(pod) = add(&[]) else {
        panic!("not ADD")
    };
    assert!(decided(&settings, &Command::Del(pod.clone())).is_ok());
    assert_eq!(decided(&settings, &Command::Check(pod)), Err(11));
    let gc = Command::Gc {
        network: "n".into(),
        valid: vec![],
    };
    assert_eq!(decided(&settings, &gc), Err(11));
    assert_eq!(decided(&settings, &Command::Status), Err(50));
}
