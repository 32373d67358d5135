// SPDX-License-Identifier: Apache-2.0
//! Many pods that come and go at once.

use std::{path::Path, process::Command, thread, time::Instant};

use culvert_api::cni::{self, Attachment, Response};

use crate::node::{Node, run};

const PODS: usize = 50;

/// Namespaces of pods, gone with the guard.
struct Namespaces(Vec<String>);

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            drop(Command::new("ip").args(["netns", "del", name]).status());
        }
    }
}

fn prepare(node: &Node) -> Namespaces {
    let names = (0..PODS).map(|i| format!("{}-{i}", node.name));
    let namespaces = Namespaces(names.collect());
    for (i, name) in namespaces.0.iter().enumerate() {
        run(&["ip", "netns", "add", name]);
        let addr = format!("10.79.0.{}/32", i + 1);
        run(&["ip", "-n", name, "addr", "add", &addr, "dev", "lo"]);
        node.write(name, name, "enabled");
    }
    namespaces
}

fn attachment(node: &Node, name: &str) -> Attachment {
    let mut attachment = node.attachment();
    attachment.container_id = format!("c-{name}");
    attachment.netns = Some(Path::new("/run/netns").join(name));
    for key in ["K8S_POD_NAME", "K8S_POD_UID"] {
        attachment.args.insert(key.into(), name.into());
    }
    attachment
}

/// All at once; how long all took, in milliseconds.
fn all(
    node: &Node,
    pods: &Namespaces,
    command: fn(Attachment) -> cni::Command,
    steered: bool,
) -> u128 {
    let start = Instant::now();
    thread::scope(|scope| {
        for name in &pods.0 {
            scope.spawn(move || {
                let got = node.ask(command(attachment(node, name)));
                assert_eq!(got, Response::Done { steered });
            });
        }
    });
    start.elapsed().as_millis()
}

#[test]
fn fifty_pods_are_added_and_deleted_at_once() {
    let mut node = Node::new("many");
    let pods = prepare(&node);
    node.start(0);
    let first = Instant::now();
    assert_eq!(
        node.ask(cni::Command::Add(attachment(&node, &pods.0[0]))),
        Response::Done { steered: true }
    );
    println!("one ADD took {:?}", first.elapsed());
    println!(
        "{PODS} ADDs took {} ms",
        all(&node, &pods, cni::Command::Add, true)
    );
    println!(
        "{PODS} CHECKs took {} ms",
        all(&node, &pods, cni::Command::Check, true)
    );
    assert!(
        node.metrics()
            .contains(&format!("culvert_agent_pods{{state=\"enrolled\"}} {PODS}"))
    );
    let start = Instant::now();
    node.stop("-KILL");
    node.start(0);
    println!("a new agent took over {PODS} pods in {:?}", start.elapsed());
    assert!(
        node.metrics()
            .contains(&format!("culvert_agent_pods{{state=\"enrolled\"}} {PODS}"))
    );
    println!(
        "{PODS} DELs took {} ms",
        all(&node, &pods, cni::Command::Del, false)
    );
    assert_eq!(node.pins(), Vec::<String>::new());
    assert_eq!(
        node.files().filter(|name| name.starts_with("net:")).count(),
        0
    );
    assert!(
        node.metrics()
            .contains("culvert_agent_pods{state=\"enrolled\"} 0")
    );
}
