// SPDX-License-Identifier: Apache-2.0
//! Who talks to whom, from the proxies' metrics.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    output::{Cell, Style, Table},
    sandbox::scrape::Sample,
};

/// The demo application: each service, and whose identity asks it.
pub const EXPECTED: [(&str, &str); 3] = [("traffic", "web"), ("web", "api"), ("api", "db")];

/// The namespace of the demo application.
pub const NAMESPACE: &str = "demo";

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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
}

/// All edges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edges {
    /// What each of them carried.
    pub carried: BTreeMap<Ends, Carried>,
}

// === impl Edges ===

impl Edges {
    /// Adds what one proxy counted.
    pub fn add(&mut self, samples: &[Sample]) {
        // A connection's peer is its client here: what the proxy copies to the application itself
        // is counted on the other side.
        let inbound = samples.iter().filter(|sample| {
            sample.label("direction") == "inbound" && sample.label("peer") == "src"
        });
        for sample in inbound {
            let count = sample.value.max(0.0) as u64;
            let carried = self.carried.entry(Ends::of(sample)).or_default();
            match sample.name.as_str() {
                "tcp_open_total" => carried.connections += count,
                "tcp_open_connections" => carried.open += count,
                "tcp_read_bytes_total" => carried.received_bytes += count,
                "tcp_write_bytes_total" => carried.sent_bytes += count,
                _ => {}
            }
        }
        self.carried
            .retain(|_, carried| *carried != Carried::default());
    }

    /// Adds what another proxy counted.
    pub fn merge(&mut self, other: &Self) {
        for (ends, more) in &other.carried {
            let carried = self.carried.entry(ends.clone()).or_default();
            carried.connections += more.connections;
            carried.open += more.open;
            carried.received_bytes += more.received_bytes;
            carried.sent_bytes += more.sent_bytes;
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
                    && carried.connections > 0
            })
        };
        let missing = EXPECTED.iter().filter(|(from, to)| !carried(from, to));
        missing.map(|(from, to)| format!("{from} → {to}")).collect()
    }

    /// How many connections to the application's pods had no identity.
    pub fn without_identity(&self) -> u64 {
        let ours = self.carried.iter().filter(|(ends, _)| {
            ends.namespace == NAMESPACE && !["true", "loopback"].contains(&ends.tls.as_str())
        });
        ours.map(|(_, carried)| carried.connections).sum()
    }

    /// What was carried after an earlier look.
    pub fn since(&self, earlier: &Self) -> Self {
        let later = self.carried.iter().map(|(ends, now)| {
            let then = earlier.carried.get(ends).copied().unwrap_or_default();
            let carried = Carried {
                connections: now.connections.saturating_sub(then.connections),
                open: now.open,
                received_bytes: now.received_bytes.saturating_sub(then.received_bytes),
                sent_bytes: now.sent_bytes.saturating_sub(then.sent_bytes),
            };
            (ends.clone(), carried)
        });
        Self {
            carried: later.collect(),
        }
    }

    /// The edges for people, with rates since an earlier look.
    pub fn table(&self, earlier: &Self, seconds: f64) -> Table {
        let headings = [
            "SOURCE",
            "DESTINATION",
            "IDENTITY",
            "TLS",
            "OPEN",
            "CONNS",
            "CONN/S",
            "IN",
            "OUT",
        ];
        let mut table = Table::new(&headings);
        let since = self.since(earlier);
        for (ends, carried) in &self.carried {
            let new = since.carried.get(ends).copied().unwrap_or_default();
            let rate = new.connections as f64 / seconds.max(0.001);
            table.row(vec![
                ends.source().into(),
                format!("{}/{}", ends.namespace, ends.workload).into(),
                format!("{}/{}", ends.namespace, ends.service_account).into(),
                ends.tls_cell(),
                Cell::number(carried.open),
                Cell::number(carried.connections),
                Cell::number(format!("{rate:.1}")),
                Cell::number(size(carried.received_bytes)),
                Cell::number(size(carried.sent_bytes)),
            ]);
        }
        table
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

    fn edges(connections: u64) -> Edges {
        let labels = "direction=\"inbound\",peer=\"src\",namespace=\"demo\",workload_name=\"web\",\
            service_account=\"web\",tls=\"true\",client_id=\"spiffe://cluster.local/ns/demo/sa/traffic\"";
        let text = format!(
            "tcp_open_total{{pod=\"a\",{labels}}} {connections}\n\
             tcp_open_total{{pod=\"b\",{labels}}} 1\n\
             tcp_read_bytes_total{{pod=\"a\",{labels}}} 12345\n\
             tcp_open_total{{direction=\"outbound\",peer=\"dst\",namespace=\"demo\"}} 9\n"
        );
        let mut edges = Edges::default();
        edges.add(&parse(&text));
        edges
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
    }

    #[test]
    fn rates_are_of_what_is_new() {
        let text = edges(14).table(&edges(4), 2.0).render(false);
        let expected = "SOURCE         DESTINATION   IDENTITY   TLS      OPEN   CONNS   CONN/S        IN   OUT\n\
                        demo/traffic   demo/web      demo/web   mutual      0      15      5.0   12.3 kB   0 B\n";
        assert_eq!(text, expected);
    }
}
