// SPDX-License-Identifier: Apache-2.0
//! Puts the series of all pods on the page that Prometheus scrapes.

use prometheus::{
    core::{Collector, Desc},
    proto::{self, Metric, MetricFamily},
};

use super::{Metrics, families::Family, labels::Labels, sets::IDLE, value::Histogram};

/// The series of one scrape, by family.
#[derive(Debug)]
pub(super) struct Page([Vec<Metric>; Family::ALL.len()]);

/// Collects them.
pub(super) struct Exposition {
    metrics: Metrics,
    descs: Vec<Desc>,
}

// === impl Page ===

impl Page {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Vec::new()))
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus has floats only")]
    pub(super) fn count(&mut self, family: Family, labels: Labels, count: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(count as f64);
        let mut metric = Metric::from_label(labels.pairs());
        metric.set_counter(counter);
        self.add(family, metric);
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus has floats only")]
    pub(super) fn gauge(&mut self, family: Family, labels: Labels, value: u64) {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value as f64);
        let mut metric = Metric::from_label(labels.pairs());
        metric.set_gauge(gauge);
        self.add(family, metric);
    }

    pub(super) fn histogram<const N: usize>(
        &mut self,
        family: Family,
        labels: Labels,
        histogram: &Histogram<N>,
    ) {
        let mut metric = Metric::from_label(labels.pairs());
        metric.set_histogram(histogram.expose());
        self.add(family, metric);
    }

    fn add(&mut self, family: Family, metric: Metric) {
        if let Some(metrics) = self.0.get_mut(family as usize) {
            metrics.push(metric);
        }
    }

    fn families(self) -> Vec<MetricFamily> {
        let family = |(family, metrics): (Family, Vec<Metric>)| {
            let mut all = MetricFamily::default();
            all.set_name(family.name().to_owned());
            all.set_help(family.help().to_owned());
            all.set_field_type(family.kind());
            all.set_metric(metrics);
            all
        };
        Family::ALL.into_iter().zip(self.0).map(family).collect()
    }
}

// === impl Exposition ===

impl Exposition {
    pub(super) fn new(metrics: Metrics) -> Result<Self, prometheus::Error> {
        let descs = Family::ALL.into_iter().map(Family::desc);
        let descs = descs.collect::<Result<_, _>>()?;
        Ok(Self { metrics, descs })
    }
}

impl Collector for Exposition {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut page = Page::new();
        for pod in self.metrics.pods() {
            pod.sweep(IDLE);
            pod.expose(&mut page);
        }
        let (taken, max) = self.metrics.series();
        page.gauge(Family::Series, Labels::default(), taken as u64);
        page.gauge(Family::SeriesLimit, Labels::default(), max as u64);
        page.families()
    }
}
