// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox status`.

use super::{
    api::{self, PodView, Problem, Status},
    daemon::DaemonStatus,
    error::{Doing, Result},
    layout::Layout,
};
use crate::{
    args::{self, Format},
    output::{self, Cell, Style, Table},
};

/// The longest note in a table, in characters.
const LONGEST_NOTE: usize = 100;

/// Runs the command.
pub fn run(args: args::Status) -> Result<()> {
    let status = api::ask_status(&Layout::new(args.target.name))?;
    let printed = match args.output {
        Format::Json => output::print_json(&status),
        Format::Table => output::print(&render(&status, output::colours())),
    };
    printed.doing(|| "print".into())
}

fn render(status: &Status, colours: bool) -> String {
    let state = match status.ready {
        true => Style::Good.paint("ready", colours),
        false => Style::Notable.paint("not ready", colours),
    };
    let nodes = status.nodes.len();
    let mut text = format!(
        "Sandbox {} is {state}: {nodes} nodes, manifests from {}\n",
        status.name, status.dir
    );
    let tables = [
        processes(status),
        pods(status),
        services(status),
        problems(status),
    ];
    for table in tables.iter().filter(|table| !table.is_empty()) {
        text += "\n";
        text += &table.render(colours);
    }
    text
}

fn processes(status: &Status) -> Table {
    let mut table = Table::new(&["PROCESS", "NODE", "PID", "READY", "RESTARTS", "NOTE"]);
    for process in &status.processes {
        table.row(vec![
            process.kind.as_str().into(),
            process.node.as_deref().unwrap_or("-").into(),
            Cell::number(
                process
                    .pid
                    .map_or_else(|| "-".into(), |pid| pid.to_string()),
            ),
            yes_no(process.ready, Style::Bad),
            Cell::number(process.restarts),
            Cell::new(short(&note(process)), Style::Notable),
        ]);
    }
    table
}

fn note(process: &DaemonStatus) -> String {
    match (process.held, process.reason.as_str()) {
        (true, _) => "held down".into(),
        (false, reason) => reason.into(),
    }
}

fn pods(status: &Status) -> Table {
    let headings = [
        "NAMESPACE",
        "NAME",
        "NODE",
        "IP",
        "READY",
        "MESHED",
        "POLICY",
        "RESTARTS",
        "NOTE",
    ];
    let mut table = Table::new(&headings);
    for pod in &status.pods {
        table.row(row(pod));
    }
    table
}

fn row(pod: &PodView) -> Vec<Cell> {
    let policy = if pod.meshed { pod.policy.as_str() } else { "-" };
    let note = match (pod.terminating, pod.phase.as_str()) {
        (true, _) => "terminating",
        (false, "Succeeded") => "completed",
        _ => pod.reason.as_str(),
    };
    vec![
        pod.namespace.as_str().into(),
        pod.name.as_str().into(),
        pod.node.as_str().into(),
        pod.ip.as_deref().unwrap_or("-").into(),
        yes_no(pod.ready, Style::Bad),
        yes_no(pod.meshed, Style::Plain),
        policy.into(),
        Cell::number(pod.restarts),
        Cell::new(short(note), Style::Notable),
    ]
}

/// All of it is in the JSON.
fn short(note: &str) -> String {
    if note.chars().count() <= LONGEST_NOTE {
        return note.to_owned();
    }
    let head: String = note.chars().take(LONGEST_NOTE - 1).collect();
    format!("{head}…")
}

fn services(status: &Status) -> Table {
    let mut table = Table::new(&["NAMESPACE", "SERVICE", "CLUSTER-IP", "PORTS"]);
    for service in &status.services {
        let ports: Vec<_> = service.ports.iter().map(ToString::to_string).collect();
        table.row(vec![
            service.namespace.as_str().into(),
            service.name.as_str().into(),
            service.cluster_ips.join(",").into(),
            ports.join(",").into(),
        ]);
    }
    table
}

fn problems(status: &Status) -> Table {
    let mut table = Table::new(&["PROBLEM", "IN", "REASON"]);
    for Problem {
        refused,
        place,
        reason,
    } in &status.problems
    {
        let (word, style) = match refused {
            true => ("refused", Style::Bad),
            false => ("no effect", Style::Notable),
        };
        table.row(vec![
            Cell::new(word, style),
            place.as_str().into(),
            reason.as_str().into(),
        ]);
    }
    table
}

fn yes_no(yes: bool, no: Style) -> Cell {
    match yes {
        true => Cell::new("yes", Style::Good),
        false => Cell::new("no", no),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_and_pods_are_shown() {
        let pod = PodView {
            namespace: "shop".into(),
            name: "web-1".into(),
            node: "n1".into(),
            ip: Some("10.244.1.2".into()),
            ready: true,
            meshed: true,
            policy: "strict".into(),
            ..PodView::default()
        };
        let problem = Problem {
            refused: true,
            place: "/m/a.yaml:3".into(),
            reason: "unknown field".into(),
        };
        let status = Status {
            name: "default".into(),
            dir: "/m".into(),
            pods: vec![pod],
            problems: vec![problem],
            ..Status::default()
        };
        let text = render(&status, false);
        let expected = "Sandbox default is not ready: 0 nodes, manifests from /m\n\n\
            NAMESPACE   NAME    NODE   IP           READY   MESHED   POLICY   RESTARTS   NOTE\n\
            shop        web-1   n1     10.244.1.2   yes     yes      strict          0\n\n\
            PROBLEM   IN            REASON\nrefused   /m/a.yaml:3   unknown field\n";
        assert_eq!(text, expected);
    }
}
