// SPDX-License-Identifier: Apache-2.0
//! Events, whichever of the two APIs made them.

use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};

/// Who said it.
pub fn source(event: &Event) -> &str {
    let source = event.source.as_ref().and_then(|it| it.component.as_deref());
    let source = source.filter(|source| !source.is_empty());
    let controller = event.reporting_component.as_deref();
    source.or(controller).unwrap_or_default()
}

/// When it was said last.
pub fn last(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref();
    let series = series.and_then(|it| it.last_observed_time.as_ref());
    let micro = [series, event.event_time.as_ref()];
    let micro = micro.into_iter().flatten().map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    micro.chain(last).max()
}
