// SPDX-License-Identifier: Apache-2.0
//! Captures while the demo application runs, and what its traffic generator itself says.

use std::{collections::BTreeSet, fs, net::IpAddr};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests that were answered as they must.
    pub ok: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Answers in which the server saw another address than the client's own.
    pub mistaken: u64,
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
        sum.ok += last.ok;
        sum.failed += last.failed;
        sum.mistaken += last.mistaken;
    }
    Ok(sum)
}

// === impl Report ===

impl Report {
    /// The line that the traffic generator writes each second.
    pub fn line(self) -> String {
        format!(
            "requests ok={} failed={} mistaken={}",
            self.ok, self.failed, self.mistaken
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("requests ")?.split(' ');
        let mut next = |name: &str| {
            words
                .next()?
                .strip_prefix(name)?
                .strip_prefix('=')?
                .parse()
                .ok()
        };
        Some(Self {
            ok: next("ok")?,
            failed: next("failed")?,
            mistaken: next("mistaken")?,
        })
    }

    /// What was counted after an earlier report.
    pub fn since(self, earlier: &Self) -> Self {
        Self {
            ok: self.ok.saturating_sub(earlier.ok),
            failed: self.failed.saturating_sub(earlier.failed),
            mistaken: self.mistaken.saturating_sub(earlier.mistaken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_they_are_written() {
        let report = Report {
            ok: 12,
            failed: 3,
            mistaken: 1,
        };
        assert_eq!(Report::parse(&report.line()), Some(report));
        assert_eq!(Report::parse("failed: connection refused"), None);
    }
}
