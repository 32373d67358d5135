// SPDX-License-Identifier: Apache-2.0
//! `culvert uninstall`: the agents first, since only they can take pods out of the mesh and nodes out of the chain, while the
//! proxies and control still serve; then the rest.

mod args;
mod objects;
mod plan;
mod strangers;
mod traces;

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

pub use self::args::UninstallArgs;
use self::{objects::Object, plan::Plan, strangers::Census};
use crate::{
    chart::yaml,
    install::{Error, Result, block_on},
    left::{Left, REMEDY},
    output::{self, Progress},
};

const PAUSE: Duration = Duration::from_millis(500);

/// Runs `culvert uninstall`.
pub fn uninstall(args: &UninstallArgs) -> Result<()> {
    block_on(async {
        let client = args.cluster.connect().await?;
        let namespace = &args.cluster.culvert_namespace;
        let found = objects::find(&client, namespace).await?;
        if found.is_empty() {
            nothing(namespace);
            return Ok(());
        }
        let mut census = Census::of(&client, namespace);
        let strangers = match found.iter().any(Object::is_namespace) {
            true => census.strangers().await,
            false => BTreeSet::new(),
        };
        let cluster = args.cluster.title().await?;
        let plan = Plan {
            cluster: &cluster,
            namespace,
            found: &found,
            strangers: &strangers,
        };
        if args.manifests {
            return print(&plan);
        }
        if args.dry_run {
            output::print(&plan.text())?;
            return Ok(());
        }
        eprint!("{}", plan.text());
        plan::confirm(args.yes)?;
        let client = client.clone();
        Uninstall { client, args }.run(&found, &mut census).await
    })
}

fn nothing(namespace: &str) {
    eprintln!("Nothing of Culvert is in namespace {namespace}, or labelled as if it were.");
}

/// What may go now: the agents alone, or everything once they are gone.
fn print(plan: &Plan<'_>) -> Result<()> {
    let all = plan.goes();
    let now = match agents(plan.found) {
        0 => &all[..],
        agents => &all[..agents],
    };
    for object in now {
        output::print(&format!("---\n{}\n", yaml::write(&object.manifest())))?;
    }
    if now.len() < all.len() {
        eprintln!(
            "The agents go first, and need the rest for it:\n\n  \
             culvert uninstall --manifests | kubectl delete --cascade=foreground -f -\n\n\
             When that has ended, the same command once more deletes the rest."
        );
    }
    if let Some(stays) = plan.stays() {
        eprintln!("{stays}");
    }
    Ok(())
}

/// How many of the objects are the agents, which come first.
fn agents(found: &[Object]) -> usize {
    found.iter().take_while(|object| object.is_agent()).count()
}

/// What to do about nodes whose agents could not clean up.
fn left(nodes: &[Left]) -> String {
    let mut text = format!(
        "the agents of these nodes could not clean up; pods there stay steered, and new ones may wait for an agent. {REMEDY}"
    );
    for Left { node, conflist } in nodes {
        text += &format!("\n  node {node}: {conflist}");
    }
    text
}

struct Uninstall<'a> {
    client: Client,
    args: &'a UninstallArgs,
}

// === impl Uninstall ===

impl Uninstall<'_> {
    /// Marks are taken off before the last objects go, so that who is interrupted can go on.
    async fn run(&self, found: &[Object], census: &mut Census<'_>) -> Result<()> {
        let workloads = found.iter().take_while(|object| object.has_pods()).count();
        let (workloads, rest) = found.split_at(workloads);
        let (agents, others) = workloads.split_at(agents(workloads));
        self.remove(agents).await?;
        self.remove(others).await?;
        let traces = traces::remove(&self.client).await?;
        say(&format!(
            "Marks are off pods ({}) and nodes ({})",
            traces.pods, traces.nodes
        ));
        for object in rest {
            match object.is_namespace() {
                true => self.remove_namespace(object, census).await?,
                false => self.remove(std::slice::from_ref(object)).await?,
            }
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
    async fn remove(&self, together: &[Object]) -> Result<()> {
        for object in together {
            self.delete(object).await?;
        }
        for object in together {
            self.wait(object).await?;
        }
        Ok(())
    }

    /// Looks again before what can't be taken back: something may have come.
    async fn remove_namespace(&self, object: &Object, census: &mut Census<'_>) -> Result<()> {
        let strangers = census.strangers().await;
        if strangers.is_empty() {
            return self.remove(std::slice::from_ref(object)).await;
        }
        say(&plan::stays(&object.name, &strangers));
        self.disown(object).await
    }

    /// Takes our labels off a namespace that stays, so that it is nobody's installation any more.
    async fn disown(&self, object: &Object) -> Result<()> {
        let labels = objects::OF_NAMESPACE.map(|label| (label.to_owned(), Value::Null));
        let patch = json!({"metadata": {"labels": Map::from_iter(labels)}});
        let api = object.api(&self.client);
        let patched = api
            .patch(&object.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match patched {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => {
                let doing = format!("take Culvert's labels off {}", object.title());
                Err(Error::cluster(doing, &error))
            }
        }
    }

    /// Asks for an object to go, and what depends on it before it.
    async fn delete(&self, object: &Object) -> Result<()> {
        let api = object.api(&self.client);
        match api.delete(&object.name, &DeleteParams::foreground()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Error::cluster(format!("delete {}", object.title()), &error)),
        }
    }

    /// Waits until an object that was asked to go is gone.
    async fn wait(&self, object: &Object) -> Result<()> {
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
