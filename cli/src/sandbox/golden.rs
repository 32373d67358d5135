// SPDX-License-Identifier: Apache-2.0
//! The golden metrics of requests: success rate and latencies, from Linkerd's counters and buckets.

use std::{cmp::Ordering, collections::BTreeMap};

use serde::Serialize;

use super::scrape::Sample;
use crate::output::{Cell, Style};

/// Responses of some series, and how long they took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Responses {
    /// How many were successful.
    pub success: f64,
    /// How many were not.
    pub failure: f64,
    /// In milliseconds.
    pub latency: Histogram,
}

/// A Prometheus histogram: the cumulative counts at the upper bounds of its buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram(BTreeMap<Bound, f64>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Bound(f64);

/// What people and programs are told of responses, with Linkerd's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Golden {
    /// The part of all responses that was successful; none without responses.
    pub success: Option<f64>,
    /// Responses per second.
    pub rps: f64,
    /// Half of all took no longer, in milliseconds.
    pub latency_ms_p50: Option<f64>,
    /// 95 in 100 took no longer.
    pub latency_ms_p95: Option<f64>,
    /// 99 in 100 took no longer.
    pub latency_ms_p99: Option<f64>,
}

// === impl Responses ===

impl Responses {
    /// Adds a sample, if it is one of responses.
    pub fn add(&mut self, sample: &Sample) {
        match (sample.name.as_str(), sample.label("classification")) {
            ("response_total", "success") => self.success += sample.value,
            ("response_total", _) => self.failure += sample.value,
            ("response_latency_ms_bucket", _) => self.latency.add(sample),
            _ => {}
        }
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        self.success += other.success;
        self.failure += other.failure;
        for (bound, count) in &other.latency.0 {
            *self.latency.0.entry(*bound).or_default() += count;
        }
    }

    /// How many there are.
    pub fn total(&self) -> f64 {
        self.success + self.failure
    }

    /// What they were, of so many seconds.
    pub fn golden(&self, seconds: f64) -> Golden {
        let total = self.total();
        Golden {
            success: (total > 0.0).then(|| self.success / total),
            rps: total / seconds.max(0.001),
            latency_ms_p50: self.latency.quantile(0.5),
            latency_ms_p95: self.latency.quantile(0.95),
            latency_ms_p99: self.latency.quantile(0.99),
        }
    }
}

// === impl Histogram ===

impl Histogram {
    fn add(&mut self, bucket: &Sample) {
        if let Ok(bound) = bucket.label("le").parse() {
            *self.0.entry(Bound(bound)).or_default() += bucket.value;
        }
    }

    /// The quantile as Prometheus' `histogram_quantile` estimates it, linear inside of a bucket
    /// (<https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile>). None
    /// without an observation, or without the last bucket.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let (last, all) = self.0.last_key_value()?;
        if last.0 != f64::INFINITY || *all <= 0.0 {
            return None;
        }
        let rank = q * all;
        let (mut lower, mut below) = (0.0, 0.0);
        for (Bound(upper), count) in &self.0 {
            if *count >= rank {
                return Some(match upper.is_infinite() {
                    true => lower,
                    false => lower + (upper - lower) * part(rank - below, count - below),
                });
            }
            (lower, below) = (*upper, *count);
        }
        None
    }
}

/// A bucket that nothing is in begins where it ends.
fn part(of: f64, whole: f64) -> f64 {
    if whole > 0.0 { of / whole } else { 0.0 }
}

// === impl Bound ===

impl Eq for Bound {}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bound {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

// === impl Golden ===

impl Golden {
    /// The success rate, coloured by how good it is.
    pub fn success_cell(&self) -> Cell {
        let Some(success) = self.success else {
            return Cell::number("-");
        };
        let style = match success {
            0.99.. => Style::Good,
            0.9.. => Style::Notable,
            _ => Style::Bad,
        };
        Cell::number(format!("{:.2}%", success * 100.0)).style(style)
    }

    /// The rate with its unit if there is one.
    pub fn rps_cell(&self, unit: &str) -> Cell {
        match self.success {
            Some(_) => Cell::number(format!("{:.1}{unit}", self.rps)),
            None => Cell::number("-"),
        }
    }

    /// The three latencies.
    pub fn latency_cells(&self) -> [Cell; 3] {
        let of = [
            self.latency_ms_p50,
            self.latency_ms_p95,
            self.latency_ms_p99,
        ];
        of.map(|millis| match millis {
            Some(millis) => Cell::number(format!("{millis:.0}ms")),
            None => Cell::number("-"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::scrape::parse;

    fn responses(text: &str) -> Responses {
        let mut responses = Responses::default();
        parse(text).iter().for_each(|sample| responses.add(sample));
        responses
    }

    fn buckets(counts: &[(&str, u32)]) -> Histogram {
        let line = |(le, count): &(&str, u32)| {
            format!("response_latency_ms_bucket{{le=\"{le}\"}} {count}\n")
        };
        let text: String = counts.iter().map(line).collect();
        responses(&text).latency
    }

    #[test]
    fn success_is_a_part_of_all_and_none_of_nothing() {
        let text = "response_total{classification=\"success\",pod=\"a\"} 6\n\
            response_total{classification=\"success\",pod=\"b\"} 3\n\
            response_total{classification=\"failure\",pod=\"b\"} 3\n\
            request_total{pod=\"a\"} 99\n";
        let golden = responses(text).golden(2.0);
        assert_eq!((golden.success, golden.rps), (Some(0.75), 6.0));
        assert_eq!(Responses::default().golden(1.0).success, None);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let histogram = buckets(&[("1", 10), ("2", 10), ("5", 90), ("10", 98), ("+Inf", 100)]);
        let close = |q: f64, expected: f64| {
            let got = histogram.quantile(q).unwrap_or(f64::NAN);
            assert!((got - expected).abs() < 1e-9, "{q}: {got}");
        };
        close(0.05, 0.5);
        close(0.5, 2.0 + 3.0 * 40.0 / 80.0);
        close(0.95, 5.0 + 5.0 * 5.0 / 8.0);
        // Above the last bound nothing is known but the bound.
        close(0.99, 10.0);
        assert_eq!(buckets(&[("1", 3)]).quantile(0.5), None);
        assert_eq!(buckets(&[("1", 0), ("+Inf", 0)]).quantile(0.5), None);
        assert_eq!(buckets(&[("+Inf", 4)]).quantile(0.5), Some(0.0));
    }

    #[test]
    fn buckets_are_ordered_as_numbers_and_added_up() {
        let mut some = Responses {
            latency: buckets(&[("10", 4), ("2", 0), ("+Inf", 4)]),
            ..Responses::default()
        };
        let more = Responses {
            latency: buckets(&[("2", 4), ("10", 4), ("+Inf", 4)]),
            ..Responses::default()
        };
        some.merge(&more);
        assert_eq!(some.latency.quantile(0.5), Some(2.0));
    }
}
