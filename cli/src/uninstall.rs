// SPDX-License-Identifier: Apache-2.0
//! `culvert uninstall`: the agents first, since only they can take pods out of the mesh and nodes out of the chain, while the
//! proxies and control still serve; then the rest.

mod args;
mod objects;
mod traces;

use std::{collections::BTreeSet, time::Duration};

use culvert_api::kubernetes::NODE_STATUS_ANNOTATION;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams},
};
use tokio::time::{Instant, sleep};

pub use self::args::UninstallArgs;
use self::{objects::Object, traces::Left};
use crate::{
    chart::yaml,
    install::{Error, Result, block_on},
    output::{self, Progress},
};

const PAUSE: Duration = Duration::from_millis(500);

/// Runs `culvert uninstall`.
pub fn uninstall(args: &UninstallArgs) -> Result<()> {
    block_on(async {
        let client = args.cluster.connect().await?;
        let found = objects::find(&client, &args.cluster.culvert_namespace).await?;
        match (found.is_empty(), args.manifests) {
            (true, _) => nothing(&args.cluster.culvert_namespace),
            (false, true) => print(&found)?,
            (false, false) => Uninstall { client, args }.run(&found).await?,
        }
        Ok(())
    })
}

fn nothing(namespace: &str) {
    eprintln!("Nothing of Culvert is in namespace {namespace}, or labelled as if it were.");
}

/// What may go now: the agents alone, or everything once they are gone.
fn print(found: &[Object]) -> Result<()> {
    let now = match agents(found) {
        0 => found,
        agents => &found[..agents],
    };
    for object in now {
        output::print(&format!("---\n{}\n", yaml::write(&object.manifest())))?;
    }
    if now.len() < found.len() {
        eprintln!(
            "The agents go first, and need the rest for it:\n\n  \
             culvert uninstall --manifests | kubectl delete --cascade=foreground -f -\n\n\
             When that has ended, the same command once more deletes the rest."
        );
    }
    Ok(())
}

/// How many of the objects are the agents, which come first.
fn agents(found: &[Object]) -> usize {
    found.iter().take_while(|object| object.is_agent()).count()
}

/// What to do about nodes whose agents could not clean up.
fn left(nodes: &[Left]) -> String {
    let mut text = "the agents of these nodes could not clean up; pods there stay steered, and new ones may wait for an agent. \
                    On each, as root: remove the file named below, reboot, then rm -r /var/lib/culvert"
        .to_owned();
    for Left { node, conflist } in nodes {
        text += &format!(
            "\n  node {node}: {conflist}; then kubectl annotate node {node} {NODE_STATUS_ANNOTATION}-"
        );
    }
    text
}

fn stays(object: &Object, keep: &BTreeSet<String>) -> bool {
    object.kind.kind == "Namespace" && !keep.is_empty()
}

struct Uninstall<'a> {
    client: Client,
    args: &'a UninstallArgs,
}

// === impl Uninstall ===

impl Uninstall<'_> {
    /// Marks are taken off before the last objects go, so that who is interrupted can go on.
    async fn run(&self, found: &[Object]) -> Result<()> {
        let keep = self.foreign_pods().await?;
        let workloads = found.iter().take_while(|object| object.has_pods()).count();
        let (workloads, rest) = found.split_at(workloads);
        let (agents, others) = workloads.split_at(agents(workloads));
        self.remove(agents, &keep).await?;
        self.remove(others, &keep).await?;
        let traces = traces::remove(&self.client).await?;
        say(&format!(
            "Marks are off pods ({}) and nodes ({})",
            traces.pods, traces.nodes
        ));
        for object in rest {
            self.remove(std::slice::from_ref(object), &keep).await?;
        }
        if found.iter().any(Object::is_helms) {
            say("Helm still knows the release: helm uninstall culvert");
        }
        if !traces.left.is_empty() {
            return Err(Error::State(left(&traces.left)));
        }
        say("Culvert is gone. Annotations on your pods and namespaces stay: culvert uninject");
        Ok(())
    }

    /// Removes objects that may go together.
    async fn remove(&self, together: &[Object], keep: &BTreeSet<String>) -> Result<()> {
        for object in together {
            self.delete(object, keep).await?;
        }
        for object in together {
            self.wait(object, keep).await?;
        }
        Ok(())
    }

    /// Asks for an object to go, and what depends on it before it.
    async fn delete(&self, object: &Object, keep: &BTreeSet<String>) -> Result<()> {
        if stays(object, keep) {
            say(&format!(
                "{} stays: there are pods of others, {}",
                object.title(),
                list(keep)
            ));
            return Ok(());
        }
        let api = object.api(&self.client);
        match api.delete(&object.name, &DeleteParams::foreground()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Error::cluster(format!("delete {}", object.title()), &error)),
        }
    }

    /// Waits until an object that was asked to go is gone.
    async fn wait(&self, object: &Object, keep: &BTreeSet<String>) -> Result<()> {
        if stays(object, keep) {
            return Ok(());
        }
        let started = Instant::now();
        let mut progress = Progress::start();
        while !self.is_gone(object, started).await? {
            if started.elapsed() >= self.args.timeout {
                progress.end();
                return self.late(object).await;
            }
            progress.say(&self.waiting(object).await);
            sleep(PAUSE).await;
        }
        progress.end();
        say(&format!(
            "{} is gone{}",
            object.title(),
            after(started.elapsed())
        ));
        Ok(())
    }

    /// An API server that is away comes back, or time is up.
    async fn is_gone(&self, object: &Object, started: Instant) -> Result<bool> {
        match object.api(&self.client).get_opt(&object.name).await {
            Ok(found) => Ok(found.is_none()),
            Err(_) if started.elapsed() < self.args.timeout => Ok(false),
            Err(error) => Err(Error::cluster(
                format!("look at {}", object.title()),
                &error,
            )),
        }
    }

    async fn waiting(&self, object: &Object) -> String {
        match object.is_agent() {
            true => format!("taking pods out of the mesh on {}", self.nodes_left().await),
            false => format!("deleting {}", object.title()),
        }
    }

    /// Waiting took too long: an error, unless the user goes on all the same.
    async fn late(&self, object: &Object) -> Result<()> {
        let time = humantime::format_duration(self.args.timeout);
        let what = match object.is_agent() {
            true => format!(
                "the agents of {} have not ended after {time}",
                self.nodes_left().await
            ),
            false => format!("{} is not gone after {time}", object.title()),
        };
        if self.args.force {
            say(&format!("{what}: left as it is"));
            return Ok(());
        }
        Err(Error::State(format!(
            "{what}. Run this again to go on waiting, or with --force to leave it as it is; the logs of agents say what they wait for"
        )))
    }

    /// The nodes whose agents have not ended yet.
    async fn nodes_left(&self) -> String {
        let api: Api<Pod> =
            Api::namespaced(self.client.clone(), &self.args.cluster.culvert_namespace);
        let agents = ListParams::default().labels("culvert.io/component=agent");
        let Ok(pods) = api.list(&agents).await else {
            return "nodes that the API server does not name now".to_owned();
        };
        let nodes = pods.items.into_iter().filter_map(|pod| pod.spec?.node_name);
        let nodes = nodes.collect::<BTreeSet<_>>();
        match nodes.len() {
            0 => "no node any more".to_owned(),
            1 => format!("node {}", list(&nodes)),
            count => format!("{count} nodes: {}", list(&nodes)),
        }
    }

    /// Pods in Culvert's namespace that are none of Culvert's.
    async fn foreign_pods(&self) -> Result<BTreeSet<String>> {
        let api: Api<Pod> =
            Api::namespaced(self.client.clone(), &self.args.cluster.culvert_namespace);
        let others = ListParams::default().labels(&format!("!{}", objects::LABEL));
        let pods = api.list(&others).await;
        let pods = pods.map_err(|error| Error::cluster("list pods", &error))?;
        Ok(pods
            .items
            .into_iter()
            .filter_map(|pod| pod.metadata.name)
            .collect())
    }
}

fn list(names: &BTreeSet<String>) -> String {
    let some: Vec<_> = names.iter().take(5).map(String::as_str).collect();
    match names.len().saturating_sub(some.len()) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

fn after(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0 => String::new(),
        seconds => format!(" after {seconds} s"),
    }
}

fn say(what: &str) {
    eprintln!("{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let names = |count| (1..=count).map(|n| format!("n{n}")).collect();
        assert_eq!(list(&names(2)), "n1, n2");
        assert_eq!(list(&names(7)), "n1, n2, n3, n4, n5 and 2 more");
    }
}
