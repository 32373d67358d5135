// SPDX-License-Identifier: Apache-2.0
//! What is counted of balancers, under Linkerd's names: `outbound_http_balancer_*` of those that serve
//! requests, `outbound_tcp_balancer_*` of those that serve opaque connections.
//!
//! A service's series are made when its balancer is used for the first time, and go with the last
//! balancer of that service: there are as many as destinations in use.

mod families;
mod population;

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::Registry;

use self::families::{Families, Handles};
pub(super) use self::population::Population;
use super::{Unit, queue::FAIL_FAST};

/// The families, and which of their series are in use. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct BalancerMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Families,
    connections: Families,
    used: Mutex<HashMap<(Unit, ServicePort), Used>>,
}

/// Series of a service that has balancers under several addresses are shared by them.
#[derive(Debug)]
struct Used {
    by: usize,
    handles: Arc<Handles>,
}

/// Whom the series are of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServicePort {
    /// The service's namespace.
    pub(crate) namespace: String,
    /// The service's name.
    pub(crate) name: String,
    /// The service's port.
    pub(crate) port: u16,
}

/// The metrics of one service.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    metrics: BalancerMetrics,
    service: ServicePort,
}

/// The series of one balancer, which go when it is dropped.
#[derive(Debug)]
pub(super) struct Series {
    measured: Measured,
    unit: Unit,
    handles: Arc<Handles>,
}

// === impl BalancerMetrics ===

impl BalancerMetrics {
    /// Registers every family.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self(Arc::new(Inner {
            requests: Families::register(registry, "outbound_http_balancer")?,
            connections: Families::register(registry, "outbound_tcp_balancer")?,
            used: Mutex::default(),
        })))
    }

    fn used(&self) -> MutexGuard<'_, HashMap<(Unit, ServicePort), Used>> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn families(&self, unit: Unit) -> &Families {
        match unit {
            Unit::Request => &self.0.requests,
            Unit::Connection => &self.0.connections,
        }
    }
}

// === impl Measured ===

impl Measured {
    pub(super) fn new(metrics: BalancerMetrics, service: ServicePort) -> Self {
        Self { metrics, service }
    }

    pub(super) fn series(&self, unit: Unit) -> Series {
        let mut used = self.metrics.used();
        let made = || Used {
            by: 0,
            handles: Arc::new(self.metrics.families(unit).handles(&self.service)),
        };
        let used = used.entry((unit, self.service.clone()));
        let used = used.or_insert_with(made);
        used.by += 1;
        let series = Series {
            measured: self.clone(),
            unit,
            handles: used.handles.clone(),
        };
        series.gate_timeout.set(FAIL_FAST.as_secs_f64());
        series.opened();
        series
    }
}

// === impl Series ===

impl Series {
    /// The gate opened now.
    pub(super) fn opened(&self) {
        self.gate_open.inc();
        self.gate_open_time.set(unix_time());
        self.gate_shut_time.set(0.0);
    }

    /// The gate shut now.
    pub(super) fn shut(&self) {
        self.gate_shut.inc();
        self.gate_shut_time.set(unix_time());
        self.gate_open_time.set(0.0);
    }
}

impl Deref for Series {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.handles
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        let Measured { metrics, service } = &self.measured;
        let mut all = metrics.used();
        let key = (self.unit, service.clone());
        let Some(used) = all.get_mut(&key) else {
            return;
        };
        used.by -= 1;
        if used.by == 0 {
            all.remove(&key);
            metrics.families(self.unit).remove(service);
        }
    }
}

fn unix_time() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}
