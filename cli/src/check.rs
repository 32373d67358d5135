// SPDX-License-Identifier: Apache-2.0
//! `culvert check`: whether Culvert can be installed, and whether what is installed works.
//!
//! Facts are gathered from the API server ([`gather`]), judged by pure functions, one module for
//! each part, and shown ([`render`]).

use std::{process::ExitCode, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::time::{Instant, sleep};

mod api;
mod args;
mod asked;
mod certificates;
mod cni;
mod data_plane;
mod events;
mod facts;
mod gather;
mod kubernetes;
mod nodes;
mod permissions;
mod processes;
mod render;
mod report;
#[cfg(test)]
mod testing;
mod trouble;
mod trust;
mod unsupported;
mod version;
mod versions;

pub use self::args::{Check as CheckArgs, Version as VersionArgs};
pub use self::version::version;

use self::{
    api::ApiServer,
    facts::{After, Before, Reason, Refusal, Server},
    gather::Gather,
    report::{Category, Check, Outcome, Report},
};
use crate::{cluster::NoCluster, output};

/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_secs(2);

/// Runs `culvert check`.
pub fn check(args: &CheckArgs) -> std::io::Result<ExitCode> {
    let report = runtime()?.block_on(wait(args));
    let text = render::render(&report, args.output, output::colours())?;
    output::print(&text)?;
    Ok(match report.outcome() {
        Outcome::Success | Outcome::Warning => ExitCode::SUCCESS,
        Outcome::Error => ExitCode::FAILURE,
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Looks until nothing is left that may become right by itself, or the time is over.
async fn wait(args: &CheckArgs) -> Report {
    let end = Instant::now() + args.wait;
    let mut progress = output::Progress::start();
    let report = loop {
        let report = look(args).await;
        if !report.may_heal() || Instant::now() + PAUSE > end {
            break report;
        }
        progress.say(&waited_for(&report));
        sleep(PAUSE).await;
    };
    progress.end();
    report
}

fn waited_for(report: &Report) -> String {
    let mut failed = report.failed();
    let Some(first) = failed.next() else {
        return String::new();
    };
    let found = first.found.first().map(String::as_str).unwrap_or_default();
    let more = match failed.count() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("waiting until {}{more}: {found}", first.description)
}

async fn look(args: &CheckArgs) -> Report {
    let mut report = Report::default();
    let api = match ApiServer::connect(&args.cluster).await {
        Ok(api) => api,
        Err(error) => {
            report.add("kubernetes-api", vec![no_client(&error)]);
            return report;
        }
    };
    let server = api.server().await;
    let reached = vec![Check::good("can initialize the client"), answers(&server)];
    report.add("kubernetes-api", reached);
    if let Ok(server) = server {
        judge(args, &api, server, &mut report).await;
    }
    report
}

async fn judge(args: &CheckArgs, api: &ApiServer, server: Server, report: &mut Report) {
    let namespace = &args.cluster.culvert_namespace;
    let gather = Gather { api, namespace };
    if args.pre {
        return before(report, &gather.before(server).await);
    }
    let of = args.namespace.as_deref();
    let facts = gather.after(of, &args.expected_version, server).await;
    if !args.proxy {
        control_plane(report, &facts);
    }
    nodes_and_pods(report, &facts);
    report.add("culvert-version", versions::checks(&facts));
}

fn before(report: &mut Report, facts: &Before) {
    report.add(
        "kubernetes-version",
        vec![kubernetes::version(&facts.server.version)],
    );
    let mut setup = vec![permissions::namespace(
        &facts.namespace,
        &facts.existing,
        &facts.control,
    )];
    setup.extend(permissions::checks(&facts.permissions));
    report.add("pre-kubernetes-setup", setup);
    report.add("kubernetes-nodes", nodes::checks(&facts.nodes));
    report.add(
        "clocks",
        vec![
            kubernetes::clock(facts.server.clock),
            kubernetes::node_clocks(facts.server.clock, &facts.nodes, &facts.leases),
        ],
    );
}

fn control_plane(report: &mut Report, facts: &After) {
    report.add(
        "kubernetes-version",
        vec![kubernetes::version(&facts.server.version)],
    );
    report.add("culvert-existence", vec![processes::exist(facts)]);
    report.add("culvert-control", processes::control(facts));
    let mut identity = certificates::checks(facts);
    // Else there is nothing to compare.
    if facts.anchors.is_ok() && !facts.proxies.is_empty() {
        identity.push(trust::check(facts));
    }
    report.add("culvert-identity", identity);
    report.add(
        "clocks",
        vec![
            kubernetes::clock(facts.server.clock).at_most_warning(),
            kubernetes::node_clocks(facts.server.clock, &facts.nodes, &facts.leases),
        ],
    );
}

fn nodes_and_pods(report: &mut Report, facts: &After) {
    report.add("kubernetes-nodes", nodes::checks(&facts.nodes));
    let mut checks = vec![
        processes::on_every_node(facts, processes::AGENT),
        processes::on_every_node(facts, processes::PROXY),
    ];
    checks.extend(cni::checks(facts));
    report.add("culvert-nodes", checks);
    let mut pods = data_plane::checks(facts);
    pods.push(asked::check(facts));
    report.add("culvert-data-plane", pods);
}

impl Report {
    fn add(&mut self, name: &'static str, checks: Vec<Check>) {
        self.categories.push(Category { name, checks });
    }
}

fn answers(server: &facts::Answer<Server>) -> Check {
    let description = "can query the Kubernetes API";
    match server {
        Ok(_) => Check::good(description),
        Err(refusal) => unanswered(description, refusal).heals(),
    }
}

fn no_client(error: &NoCluster) -> Check {
    let hint = "give --kubeconfig FILE or --context NAME, or set KUBECONFIG; \
                `kubectl config get-contexts` lists them";
    Check::failed("can initialize the client", vec![error.to_string()], hint)
}

/// A check that can't be made, because the API server did not answer.
fn unanswered(description: impl Into<String>, refusal: &Refusal) -> Check {
    let check = Check::failed(description, vec![refusal.to_string()], refusal.hint());
    match refusal.reason {
        Reason::Late(_) | Reason::Other(_) => check.heals(),
        Reason::NotFound | Reason::Forbidden(_) | Reason::Unauthorized(_) => check,
    }
}

/// The object's name; the API server gives each one.
fn named(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}
