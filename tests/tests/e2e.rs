// SPDX-License-Identifier: Apache-2.0
//! Culvert on a real Kubernetes of two nodes, from the README's commands to the last file that is gone again. `make e2e` runs it.

#[path = "e2e/crashes.rs"]
mod crashes;
#[path = "e2e/identity.rs"]
mod identity;
#[path = "e2e/install.rs"]
mod install;
#[path = "e2e/live.rs"]
mod live;
#[path = "e2e/mesh.rs"]
mod mesh;
#[path = "e2e/residue.rs"]
mod residue;

use std::time::Duration;

use culvert_tests::{cluster::Cluster, require, suite::Suite};

const SOON: Duration = Duration::from_secs(60);
const NODES: [u8; 2] = [1, 2];

#[test]
#[ignore = "`make e2e`: it needs a Kubernetes that takes minutes to build"]
fn e2e() -> anyhow::Result<()> {
    if !require::root()? || !require::kubernetes()? {
        return Ok(());
    }
    let mut suite = Suite::new(Cluster::up(2)?);
    suite.step("a node that is new waits for its agent", install::waits);
    suite.step("the README's commands install it", install::install);
    suite.step("a node that is ready loses its taint", install::taint);
    suite.step(
        "processes have no more rights than they need",
        install::rights,
    );
    suite.step("an annotated namespace is meshed", mesh::annotated);
    suite.step("nothing of it can be read on the wire", mesh::wire);
    suite.step("a job is meshed from its first packet", mesh::first_packet);
    suite.step("a StatefulSet behind a headless service", mesh::stateful);
    suite.step(
        "pods that are not annotated are left alone",
        mesh::untouched,
    );
    suite.step("strict refuses plaintext, and probes pass", mesh::strict);
    suite.step("probes of strict pods tell the truth", mesh::sick);
    suite.step("a running pod joins and leaves", live::joins_and_leaves);
    suite.step(
        "a stolen token proves no more than its node",
        identity::stolen,
    );
    suite.step("the agents are deleted under load", crashes::agents);
    suite.step("the proxies are deleted under load", crashes::proxies);
    suite.step("control is deleted under load", crashes::control);
    suite.step("the chain of CNI plugins heals", crashes::chain);
    suite.step(
        "kubelet and containerd are killed under load",
        crashes::runtime,
    );
    suite.step("the API server is away under load", crashes::api_server);
    suite.step("a node loses its power", crashes::power);
    suite.step("it is uninstalled, and nothing is left", install::uninstall);
    suite.finish()
}
