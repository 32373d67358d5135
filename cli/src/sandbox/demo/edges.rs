// SPDX-License-Identifier: Apache-2.0
//! Who talks to whom, from the proxies' metrics.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    output::{Cell, Style, Table},
    sandbox::{golden::Responses, scrape::Sample, watch::Look},
};

/// The demo application: each service, and whose identity asks it.
pub const EXPECTED: [(&str, &str); 3] = [("traffic", "web"), ("web", "api"), ("api", "db")];

/// The namespace of the demo application.
pub const NAMESPACE: &str = "demo";

const HEADINGS: [&str; 12] = [
    "SOURCE",
    "DESTINATION",
    "IDENTITY",
    "TLS",
    "SUCCESS",
    "RPS",
    "P50",
    "P95",
    "P99",
    "OPEN",
    "IN",
    "OUT",
];

/// The two ends of an edge, and how it is protected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ends {
    /// The client's SPIFFE id; empty if it has none.
    pub client_id: String,
    /// The namespace of the pods that were connected to.
    pub namespace: String,
    /// Their workload.
    pub workload: String,
    /// Their ServiceAccount.
    pub service_account: String,
    /// `true`, or why not.
    pub tls: String,
}

/// What an edge carried.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Carried {
    /// Connections that were opened.
    pub connections: u64,
    /// Connections that are open.
    pub open: u64,
    /// Bytes from the client.
    pub received_bytes: u64,
    /// Bytes to the client.
    pub sent_bytes: u64,
    /// Requests that were answered.
    #[serde(skip)]
    pub responses: Responses,
}

/// All edges, and what they carried in some time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edges {
    /// What each of them carried.
    pub carried: BTreeMap<Ends, Carried>,
    /// In how many seconds.
    pub seconds: f64,
}

// === impl Edges ===

impl Edges {
    /// What was carried between two looks.
    pub fn of(look: &Look) -> Self {
        let mut edges = Self {
            seconds: look.seconds,
            ..Self::default()
        };
        // A connection's peer is its client here: what the proxy copies to the application itself
        // is counted on the other side.
        let inbound = look.samples.iter().filter(|sample| {
            sample.label("direction") == "inbound" && ["", "src"].contains(&sample.label("peer"))
        });
        for sample in inbound {
            let carried = edges.carried.entry(Ends::of(sample)).or_default();
            carried.add(sample);
        }
        let nothing = Carried::default();
        edges.carried.retain(|_, carried| *carried != nothing);
        edges
    }

    /// Adds what was carried after this.
    pub fn advance(&mut self, later: &Self) {
        self.seconds += later.seconds;
        for carried in self.carried.values_mut() {
            carried.open = 0;
        }
        for (ends, more) in &later.carried {
            self.carried.entry(ends.clone()).or_default().advance(more);
        }
    }

    /// The edges of the application that carried nothing under mutual TLS.
    pub fn missing(&self) -> Vec<String> {
        let carried = |from: &str, to: &str| {
            let client = spiffe(from);
            self.carried.iter().any(|(ends, carried)| {
                ends.client_id == client
                    && ends.namespace == NAMESPACE
                    && ends.workload == to
                    && ends.tls == "true"
                    && carried.is_used()
            })
        };
        let missing = EXPECTED.iter().filter(|(from, to)| !carried(from, to));
        missing.map(|(from, to)| format!("{from} → {to}")).collect()
    }

    /// How many connections to the application's pods had no identity, or have none.
    pub fn without_identity(&self) -> u64 {
        let ours = self.carried.iter().filter(|(ends, _)| {
            ends.namespace == NAMESPACE && !["true", "loopback"].contains(&ends.tls.as_str())
        });
        ours.map(|(_, carried)| carried.connections + carried.open)
            .sum()
    }

    /// What the edge from an identity to a workload of the application carried.
    pub fn responses(&self, from: &str, to: &str) -> Responses {
        let client = spiffe(from);
        let mut sum = Responses::default();
        let between = self.carried.iter().filter(|(ends, _)| {
            ends.client_id == client && ends.namespace == NAMESPACE && ends.workload == to
        });
        between.for_each(|(_, carried)| sum.merge(&carried.responses));
        sum
    }

    /// The edges for people.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&HEADINGS);
        for (ends, carried) in &self.carried {
            let golden = carried.responses.golden(self.seconds);
            let mut row = vec![
                ends.source().into(),
                format!("{}/{}", ends.namespace, ends.workload).into(),
                format!("{}/{}", ends.namespace, ends.service_account).into(),
                ends.tls_cell(),
                golden.success_cell(),
                golden.rps_cell(""),
            ];
            row.extend(golden.latency_cells());
            row.extend([
                Cell::number(carried.open),
                Cell::number(size(carried.received_bytes)),
                Cell::number(size(carried.sent_bytes)),
            ]);
            table.row(row);
        }
        table
    }
}

// === impl Carried ===

impl Carried {
    fn add(&mut self, sample: &Sample) {
        let count = sample.value.max(0.0) as u64;
        match sample.name.as_str() {
            "tcp_open_total" => self.connections += count,
            "tcp_open_connections" => self.open += count,
            "tcp_read_bytes_total" => self.received_bytes += count,
            "tcp_write_bytes_total" => self.sent_bytes += count,
            _ => self.responses.add(sample),
        }
    }

    fn is_used(&self) -> bool {
        self.connections + self.received_bytes > 0 || self.responses.total() > 0.0
    }

    fn advance(&mut self, later: &Self) {
        self.connections += later.connections;
        self.open = later.open;
        self.received_bytes += later.received_bytes;
        self.sent_bytes += later.sent_bytes;
        self.responses.merge(&later.responses);
    }
}

// === impl Ends ===

impl Ends {
    fn of(sample: &Sample) -> Self {
        let label = |name| sample.label(name).to_owned();
        Self {
            client_id: label("client_id"),
            namespace: label("namespace"),
            workload: label("workload_name"),
            service_account: label("service_account"),
            tls: label("tls"),
        }
    }

    /// The client's namespace and ServiceAccount.
    fn source(&self) -> String {
        let path = self.client_id.strip_prefix("spiffe://");
        let parts: Vec<_> = path.unwrap_or_default().split('/').collect();
        match parts.as_slice() {
            [_, "ns", namespace, "sa", account] => format!("{namespace}/{account}"),
            _ if self.client_id.is_empty() => "(unknown)".into(),
            _ => self.client_id.clone(),
        }
    }

    fn tls_cell(&self) -> Cell {
        match self.tls.as_str() {
            "true" => Cell::new("mutual", Style::Good),
            other => Cell::new(other, Style::Notable),
        }
    }
}

/// The identity of a ServiceAccount of the demo application.
fn spiffe(account: &str) -> String {
    format!(
        "spiffe://{}/ns/{NAMESPACE}/sa/{account}",
        crate::sandbox::layout::TRUST_DOMAIN
    )
}

fn size(bytes: u64) -> String {
    let (mut size, mut units) = (bytes as f64, ["B", "kB", "MB", "GB"].iter());
    let mut unit = units.next();
    while size >= 1000.0 && units.len() > 0 {
        size /= 1000.0;
        unit = units.next();
    }
    let digits = usize::from(bytes >= 1000);
    format!("{size:.digits$} {}", unit.unwrap_or(&"B"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::scrape::parse;

    const LABELS: &str = "direction=\"inbound\",namespace=\"demo\",workload_name=\"web\",\
        service_account=\"web\",tls=\"true\",client_id=\"spiffe://cluster.local/ns/demo/sa/traffic\"";

    fn edges(connections: u64) -> Edges {
        let text = format!(
            "tcp_open_total{{pod=\"a\",peer=\"src\",{LABELS}}} {connections}\n\
             tcp_open_total{{pod=\"b\",peer=\"src\",{LABELS}}} 1\n\
             tcp_open_connections{{pod=\"b\",peer=\"src\",{LABELS}}} 1\n\
             tcp_read_bytes_total{{pod=\"a\",peer=\"src\",{LABELS}}} 12345\n\
             tcp_read_bytes_total{{pod=\"a\",peer=\"dst\",{LABELS}}} 99999\n\
             tcp_open_total{{direction=\"outbound\",peer=\"dst\",namespace=\"demo\"}} 9\n\
             response_total{{pod=\"a\",classification=\"success\",{LABELS}}} 19\n\
             response_total{{pod=\"b\",classification=\"failure\",{LABELS}}} 1\n\
             response_latency_ms_bucket{{pod=\"a\",le=\"10\",{LABELS}}} 20\n\
             response_latency_ms_bucket{{pod=\"a\",le=\"+Inf\",{LABELS}}} 20\n"
        );
        let samples = parse(&text);
        let seconds = 2.0;
        Edges::of(&Look { samples, seconds })
    }

    #[test]
    fn the_pods_of_a_workload_are_added_up() {
        let edges = edges(4);
        let carried: Vec<_> = edges.carried.values().collect();
        assert_eq!(carried.len(), 1);
        assert_eq!(
            (carried[0].connections, carried[0].received_bytes),
            (5, 12345)
        );
        assert_eq!(edges.missing(), ["web → api", "api → db"]);
        assert_eq!(edges.without_identity(), 0);
        assert_eq!(edges.responses("traffic", "web").total(), 20.0);
    }

    #[test]
    fn rates_are_of_all_the_time_and_what_is_open_of_now() {
        let mut all = edges(14);
        all.advance(&edges(4));
        let text = all.table().render(false);
        let expected = "SOURCE         DESTINATION   IDENTITY   TLS      SUCCESS    RPS   P50    P95    P99   OPEN        IN   OUT\n\
                        demo/traffic   demo/web      demo/web   mutual    95.00%   10.0   5ms   10ms   10ms      1   24.7 kB   0 B\n";
        assert_eq!(text, expected);
    }
}
