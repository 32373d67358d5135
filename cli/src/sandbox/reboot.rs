// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox reboot`: a node loses all but its disk, and its pods are started again as the
//! same pods, as a kubelet does with those that it finds bound to its node.

use nix::sys::signal::Signal;
use tokio::task::block_in_place;

use super::{
    api::{self, Request},
    cgroup,
    error::{Doing, Error, Result},
    fabric,
    kubelet::Kubelet,
    layout::{Layout, NodeId},
    node::{Node, Site},
    pods::Handle,
};
use crate::args;

/// How long processes may take to die.
const DEATH: std::time::Duration = std::time::Duration::from_secs(10);

/// Asks the supervisor for it.
pub fn run(args: &args::Reboot) -> Result<()> {
    let layout = Layout::new(args.target.name.clone());
    let NodeId(node) = args.node;
    api::ask(&layout, &Request::Reboot { node }).map(|_| ())
}

// === impl Kubelet ===

impl Kubelet {
    /// Ends a node without a word to anyone, and starts it again with what was on its disk.
    pub async fn reboot(&mut self, id: NodeId) -> Result<()> {
        let site = self.site.clone();
        let node = self.nodes.remove(&id).ok_or_else(|| unknown(id))?;
        for daemon in [&node.agent, &node.proxy] {
            // One that does not run just now stays down all the same.
            let _ = daemon.kill(Signal::SIGKILL, true).await;
        }
        let ours = self.pods.extract_if(.., |_, pod| pod.placement.node == id);
        let ours: Vec<_> = ours.collect();
        for (_, pod) in &ours {
            pod.crash().await;
            block_in_place(|| remove(&site, pod))?;
        }
        node.power_off(&site, self.fabric()).await?;
        self.start_node(id)?;
        for (key, pod) in ours {
            self.start_again(&key, &pod);
        }
        self.reconcile();
        Ok(())
    }

    fn start_node(&mut self, id: NodeId) -> Result<()> {
        let node = block_in_place(|| Node::start(&self.site, self.fabric(), id))?;
        self.nodes.insert(id, node);
        block_in_place(|| self.route())
    }
}

/// Processes and namespace of a pod; nobody tells the CNI plugins.
fn remove(site: &Site, pod: &Handle) -> Result<()> {
    let ((namespace, name), uid) = (&pod.placement.key, &pod.placement.uid);
    let cgroup = site.cgroups.kubepods(pod.placement.node).join(uid);
    let killed = cgroup::kill_all(&cgroup, DEATH).and_then(|()| cgroup::remove(&cgroup, DEATH));
    killed.doing(|| format!("end the processes of {namespace}/{name}"))?;
    fabric::remove(&site.layout, &site.layout.name.pod_netns(namespace, name))
}

fn unknown(id: NodeId) -> Error {
    Error::Usage(format!("there is no node {id}"))
}
