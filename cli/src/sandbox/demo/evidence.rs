// SPDX-License-Identifier: Apache-2.0
//! Captures while the demo application runs, and what its traffic generator itself says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::sandbox::{
    api::{PodView, Status},
    capture::{Beginnings, Capture, Findings, Search},
    error::{Doing, Error, Result},
    layout::Layout,
    netns::Netns,
};

/// What the meshed applications send, in every line.
pub const SECRET: &str = "CULVERT-DEMO-SECRET-PAYLOAD";

/// What the unmeshed pods send over the same link.
pub const PLAIN: &str = "CULVERT-DEMO-PLAINTEXT-CONTROL";

/// The port of the fabric that the first node is at.
const LINK: &str = "n1";

/// Captures that run.
pub struct Evidence {
    link: Capture,
    nodes: Vec<Capture>,
    inside: Capture,
}

/// What the captures found.
pub struct Found {
    /// On the link between the nodes.
    pub link: Findings,
    /// On every interface of every node.
    pub nodes: Findings,
    /// On the loopback of a pod, between the application and the proxy.
    pub inside: Findings,
}

/// What the traffic generator counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were answered as they must.
    pub ok: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Answers in which the server saw another address than the client's own.
    pub mistaken: u64,
    /// How often the service was connected to, since the client began.
    pub connections: u64,
    /// How often each program was answered by whom. Each asks over one connection.
    pub answered: BTreeMap<String, BTreeMap<String, u64>>,
}

// === impl Evidence ===

impl Evidence {
    /// Begins to capture.
    pub fn start(layout: &Layout, status: &Status) -> Result<Self> {
        let fabric = open(&layout.name.fabric_netns())?;
        let web = status
            .pods
            .iter()
            .find(|pod| pod.deployment.as_deref() == Some("web"));
        let web = web.ok_or_else(|| Error::Demo(vec!["there is no pod of web".into()]))?;
        // Of two nodes, one end of the link sees all that they say to each other.
        let pcap = layout.captures().join("node-link.pcap");
        let link = start(&fabric, Some(LINK), Some(pcap))?;
        let nodes = status
            .nodes
            .iter()
            .map(|node| start(&open(&node.netns)?, None, None));
        Ok(Self {
            link,
            nodes: nodes.collect::<Result<_>>()?,
            inside: start(&open(&web.netns)?, Some("lo"), None)?,
        })
    }

    /// Ends the captures.
    pub fn stop(self) -> Result<Found> {
        Ok(Found {
            link: add(vec![self.link])?,
            nodes: add(self.nodes)?,
            inside: add(vec![self.inside])?,
        })
    }
}

fn open(netns: &str) -> Result<Netns> {
    Netns::open(netns).doing(|| format!("open {netns}"))
}

fn start(netns: &Netns, on: Option<&str>, pcap: Option<std::path::PathBuf>) -> Result<Capture> {
    let search = Search::new(&[SECRET, PLAIN]);
    let capture = Capture::start(netns, on, pcap, search);
    capture.doing(|| format!("capture in {}", netns.name))
}

fn add(captures: Vec<Capture>) -> Result<Findings> {
    let mut sum = Findings {
        found: vec![0, 0],
        ..Findings::default()
    };
    for capture in captures {
        let findings = capture.stop().doing(|| "capture".into())?;
        sum.frames += findings.frames;
        sum.bytes += findings.bytes;
        sum.dropped += findings.dropped;
        for (sum, found) in sum.found.iter_mut().zip(findings.found) {
            *sum += found;
        }
        for (peers, beginnings) in findings.streams {
            let sum = sum.streams.entry(peers).or_default();
            sum.tls += beginnings.tls;
            sum.other += beginnings.other;
        }
    }
    Ok(sum)
}

/// How the streams between meshed pods began.
pub fn between_meshed(findings: &Findings, status: &Status) -> Beginnings {
    let meshed: BTreeSet<IpAddr> = status.pods.iter().flat_map(meshed_ips).collect();
    let ours = findings
        .streams
        .iter()
        .filter(|(peers, _)| meshed.contains(&peers.from) && meshed.contains(&peers.to));
    ours.fold(Beginnings::default(), |sum, (_, beginnings)| Beginnings {
        tls: sum.tls + beginnings.tls,
        other: sum.other + beginnings.other,
    })
}

fn meshed_ips(pod: &PodView) -> impl Iterator<Item = IpAddr> {
    let ips = pod.ips.iter().filter(|_| pod.meshed);
    ips.filter_map(|ip| ip.parse().ok())
}

/// What the traffic generator said last.
pub fn client_report(layout: &Layout, status: &Status) -> Result<Report> {
    let traffic = status
        .pods
        .iter()
        .filter(|pod| pod.deployment.as_deref() == Some("traffic"));
    let mut sum = Report::default();
    for pod in traffic {
        let log = layout
            .pod_logs(&pod.namespace, &pod.name)
            .join("traffic.log");
        let text = fs::read_to_string(&log).doing(|| format!("read {}", log.display()))?;
        let last = text
            .lines()
            .rev()
            .find_map(Report::parse)
            .unwrap_or_default();
        sum.add(&last);
    }
    Ok(sum)
}

// === impl Report ===

/// Before the JSON of a report in the traffic generator's log.
const LINE: &str = "requests ";

impl Report {
    /// Counts an answer: `web-1 saw 10.0.0.1: line | api-1 saw 10.0.0.2: line`, each after the one
    /// that it was asked by.
    pub fn count(&mut self, client: &str, answer: &str, own: IpAddr) {
        self.ok += 1;
        self.mistaken += u64::from(!answer.contains(&format!(" saw {own}:")));
        let mut asker = client;
        for hop in answer.split(" | ") {
            let Some((answerer, _)) = hop.split_once(" saw ") else {
                break;
            };
            let of_asker = self.answered.entry(asker.to_owned()).or_default();
            *of_asker.entry(answerer.to_owned()).or_default() += 1;
            asker = answerer;
        }
    }

    /// The line that the traffic generator writes each second.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{LINE}{json}")
    }

    fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(LINE)?).ok()
    }

    fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.mistaken += other.mistaken;
        self.connections += other.connections;
        for (asker, more) in &other.answered {
            let answered = self.answered.entry(asker.clone()).or_default();
            for (answerer, count) in more {
                *answered.entry(answerer.clone()).or_default() += count;
            }
        }
    }

    /// What was counted after an earlier report.
    pub fn since(self, earlier: &Self) -> Self {
        let mut answered = self.answered;
        for (asker, before) in &earlier.answered {
            let Some(now) = answered.get_mut(asker) else {
                continue;
            };
            for (answerer, count) in now.iter_mut() {
                *count = count.saturating_sub(*before.get(answerer).unwrap_or(&0));
            }
        }
        Self {
            ok: self.ok.saturating_sub(earlier.ok),
            failed: self.failed.saturating_sub(earlier.failed),
            mistaken: self.mistaken.saturating_sub(earlier.mistaken),
            connections: self.connections,
            answered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report {
            failed: 3,
            connections: 1,
            ..Report::default()
        };
        let own = IpAddr::from([10, 0, 0, 1]);
        report.count("t", "w1 saw 10.0.0.1: x | a1 saw 10.0.0.2: x", own);
        report.count("t", "w2 saw 10.0.0.9: x | api:8080 is not well", own);
        report
    }

    #[test]
    fn reports_are_read_as_they_are_written() {
        let report = report();
        assert_eq!(Report::parse(&report.line()), Some(report));
        assert_eq!(Report::parse("failed: connection refused"), None);
    }

    #[test]
    fn who_answered_whom_is_counted() {
        let report = report();
        assert_eq!((report.ok, report.mistaken), (2, 1));
        let answered = serde_json::json!({"t": {"w1": 1, "w2": 1}, "w1": {"a1": 1}});
        assert_eq!(serde_json::to_value(&report.answered).ok(), Some(answered));
        let nothing = report.clone().since(&report);
        assert_eq!((nothing.ok, nothing.failed, nothing.connections), (0, 0, 1));
        assert_eq!(nothing.answered["t"]["w1"], 0);
    }
}
