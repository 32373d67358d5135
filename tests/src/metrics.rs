// SPDX-License-Identifier: Apache-2.0
//! Scraping and reading `/metrics`.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::netns::Netns;

const PATIENCE: Duration = Duration::from_secs(5);

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    samples: Vec<Sample>,
}

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name of the metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Fetches a page of an admin server from inside a namespace.
pub fn get(netns: &Netns, addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    let response = netns.run(move || {
        let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok(response)
    });
    let response = response.with_context(|| format!("get {path} from {addr}"))?;
    let (head, body) = response
        .split_once("\r\n\r\n")
        .context("no HTTP response")?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{path} of {addr}: {head}\n{body}"
    );
    Ok(body.to_owned())
}

// === impl Scrape ===

impl Scrape {
    /// Scrapes an admin server.
    pub fn of(netns: &Netns, addr: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self::parse(&get(netns, addr, "/metrics")?))
    }

    /// Reads the text format; lines that are no samples are comments.
    pub fn parse(text: &str) -> Self {
        Self {
            samples: text.lines().filter_map(sample).collect(),
        }
    }

    /// The sum of all samples that have the name and the labels; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples that have the name and the labels.
    pub fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        self.samples
            .iter()
            .filter(move |s| s.name == name && s.misses(labels) == 0)
    }

    /// Every sample of the name, the one that misses the fewest labels first.
    pub fn nearest(&self, name: &str, labels: &[(&str, &str)]) -> String {
        let mut all: Vec<_> = self.samples.iter().filter(|s| s.name == name).collect();
        all.sort_by_key(|sample| sample.misses(labels));
        let lines: Vec<_> = all
            .iter()
            .take(3)
            .map(|s| format!("{:?} {}", s.labels, s.value))
            .collect();
        match lines.is_empty() {
            true => format!("there is no {name}"),
            false => format!("the nearest {name} are {}", lines.join("; ")),
        }
    }
}

// === impl Sample ===

impl Sample {
    fn misses(&self, labels: &[(&str, &str)]) -> usize {
        let has = |(name, value): &&(&str, &str)| {
            self.labels.get(*name).map(String::as_str) == Some(*value)
        };
        labels.len() - labels.iter().filter(has).count()
    }
}

fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, rest) = series.split_once('{').unwrap_or((series, ""));
    Some(Sample {
        name: name.to_owned(),
        labels: labels(rest),
        value: value.parse().ok()?,
    })
}

/// Label values with quotes in them are not used by Culvert.
fn labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.trim_end_matches('}').split("\",").filter_map(|pair| {
        let (name, value) = pair.split_once("=\"")?;
        Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_labels() {
        let text =
            "# HELP x y\nx{a=\"1\",b=\"s,t\"} 2\nx{a=\"1\",b=\"\"} 3\nx{a=\"2\",b=\"\"} 4\ny 1.5\n";
        let scrape = Scrape::parse(text);
        assert_eq!(scrape.sum("x", &[("a", "1")]), 5.0);
        assert_eq!(scrape.sum("x", &[("b", "s,t")]), 2.0);
        assert_eq!(scrape.sum("y", &[]), 1.5);
        assert_eq!(scrape.sum("z", &[]), 0.0);
        assert!(
            scrape
                .nearest("x", &[("a", "2"), ("b", "q")])
                .contains("\"2\"")
        );
    }
}
