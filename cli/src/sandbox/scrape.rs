// SPDX-License-Identifier: Apache-2.0
//! Metrics in Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::collections::{BTreeMap, HashMap};

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

// === impl Sample ===

impl Sample {
    /// A label's value; empty when there is no such label.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    fn series(&self) -> (&str, &BTreeMap<String, String>) {
        (&self.name, &self.labels)
    }

    /// By its name; the text's types are not looked at.
    fn is_counter(&self) -> bool {
        let suffixes = ["_total", "_bucket", "_count", "_sum"];
        suffixes.iter().any(|suffix| self.name.ends_with(suffix))
    }
}

/// The samples of a text. Lines that are none are passed over.
pub fn parse(text: &str) -> Vec<Sample> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(sample).collect()
}

/// How much each counter of `now` has grown since `then`; what is no counter is as it is now.
///
/// As Prometheus has it: one that has shrunk began again at 0, and one that is gone grew no more
/// (<https://prometheus.io/docs/prometheus/latest/querying/functions/#increase>). One that is new
/// began at 0.
pub fn increase(then: &[Sample], now: &[Sample]) -> Vec<Sample> {
    let then: HashMap<_, _> = then.iter().map(|one| (one.series(), one.value)).collect();
    let grown = now.iter().map(|sample| {
        let before = then.get(&sample.series()).copied().unwrap_or(0.0);
        let value = match sample.is_counter() && sample.value >= before {
            true => sample.value - before,
            false => sample.value,
        };
        Sample {
            value,
            ..sample.clone()
        }
    });
    grown.collect()
}

fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: rest.split_whitespace().next()?.parse().ok()?,
    })
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(name.to_owned(), value);
        rest = after;
    }
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"q\\\"}\\\\\"} 3\nb 4.5\nnonsense\nc{x= 1\n";
        let got = parse(text);
        assert_eq!(got.len(), 2);
        assert_eq!(
            (got[0].label("x"), got[0].label("y"), got[0].value),
            ("1", "q\"}\\", 3.0)
        );
        assert_eq!(
            (got[1].name.as_str(), got[1].value, got[1].label("x")),
            ("b", 4.5, "")
        );
    }

    #[test]
    fn counters_grow_from_where_they_were_or_began_again() {
        let then = parse("a_total{x=\"1\"} 5\na_total{x=\"2\"} 5\ngone_total 3\nopen 7\n");
        let now = parse("a_total{x=\"1\"} 8\na_total{x=\"2\"} 2\na_total{x=\"3\"} 4\nopen 6\n");
        let grown = increase(&then, &now);
        let values: Vec<_> = grown.iter().map(|sample| sample.value).collect();
        assert_eq!(values, [3.0, 2.0, 4.0, 6.0]);
    }
}
