// SPDX-License-Identifier: Apache-2.0
//! Whether a pod is to be meshed, and what it asks for in vain.

use culvert_api::{
    annotations::{
        ACCESS_LOG, Annotations, DEFAULT_INBOUND_POLICY, INJECT, SKIP_INBOUND_PORTS,
        SKIP_OUTBOUND_PORTS, SKIP_SUBNETS, Standing, standing,
    },
    policy::InboundPolicy,
    unmeshable::{MIRROR, SIDECARS, is_own_kernel},
};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::{
    Effective, Fault,
    exclusions::{self, BadItem, Exclusions},
};

const POLICIES: &str = "all-unauthenticated, all-authenticated, audit or deny: the pod lets in \
                        only who proves an identity (all-authenticated)";
const ACCESS_LOGS: &str = "apache or json: the pod's requests are not logged";

/// Where a pod is.
pub struct Place<'a> {
    /// Its namespace, if that is never meshed.
    pub never_meshed: Option<&'a str>,
    /// What runs it, if that has a network stack of its own.
    pub own_kernel: Option<&'a str>,
}

/// What becomes of a pod.
#[derive(Debug, Default)]
pub struct Judged {
    /// Whether it is to be meshed, and with what left alone.
    pub mesh: Option<Exclusions>,
    /// What is told of the pod.
    pub of_pod: Vec<Fault>,
    /// What is told of its namespace.
    pub of_namespace: Vec<Fault>,
}

/// What becomes of a pod.
pub fn judge(pod: &Pod, place: &Place<'_>, annotations: &Effective) -> Judged {
    let mut faults = Vec::new();
    if !is_opted_in(annotations, &mut faults) {
        return Judged {
            of_pod: faults,
            ..Judged::default()
        };
    }
    if let Some(fault) = unsupported(pod, place) {
        return Judged {
            of_pod: vec![fault],
            ..Judged::default()
        };
    }
    let mesh = Some(exclusions(annotations, &mut faults));
    values(annotations, &mut faults);
    faults.extend(not_followed(&annotations.pod));
    Judged {
        mesh,
        of_pod: faults,
        of_namespace: not_followed(&annotations.namespace),
    }
}

fn is_opted_in(annotations: &Effective, faults: &mut Vec<Fault>) -> bool {
    match annotations.value(INJECT) {
        Some("enabled") => true,
        Some("disabled") | None => false,
        Some("ingress") => {
            faults.push(Fault::Ingress);
            true
        }
        Some(other) => {
            let got = other.to_owned();
            faults.push(Fault::Inject { got });
            false
        }
    }
}

fn unsupported(pod: &Pod, place: &Place<'_>) -> Option<Fault> {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let is_static = || {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.contains_key(MIRROR))
    };
    if let Some(namespace) = place.never_meshed {
        let namespace = namespace.to_owned();
        return Some(Fault::NeverMeshed { namespace });
    }
    if spec.host_network == Some(true) {
        return Some(Fault::HostNetwork);
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Some(Fault::Windows);
    }
    if is_static() {
        return Some(Fault::Static);
    }
    own_kernel(spec, place).or_else(|| sidecar(spec))
}

fn own_kernel(spec: &PodSpec, place: &Place<'_>) -> Option<Fault> {
    let class = spec.runtime_class_name.as_deref();
    let by = place
        .own_kernel
        .or(class.filter(|class| is_own_kernel(class)));
    by.map(|by| Fault::OwnKernel { by: by.to_owned() })
}

fn sidecar(spec: &PodSpec) -> Option<Fault> {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let mut all = spec.containers.iter().chain(init);
    let found = all.find(|container| SIDECARS.contains(&container.name.as_str()))?;
    let container = found.name.clone();
    Some(Fault::Sidecar { container })
}

/// A list that can't be read excludes nothing: what should not be steered is noticed, what should
/// be and is not would not be.
fn exclusions(annotations: &Effective, faults: &mut Vec<Fault>) -> Exclusions {
    Exclusions {
        outbound_ports: list(annotations, SKIP_OUTBOUND_PORTS, exclusions::ports, faults),
        inbound_ports: list(annotations, SKIP_INBOUND_PORTS, exclusions::ports, faults),
        subnets: list(annotations, SKIP_SUBNETS, exclusions::subnets, faults),
    }
}

fn list<T>(
    annotations: &Effective,
    names: [&'static str; 2],
    parse: fn(&str) -> Result<Vec<T>, BadItem>,
    faults: &mut Vec<Fault>,
) -> Vec<T> {
    let Some(value) = annotations.value(names) else {
        return Vec::new();
    };
    parse(value).unwrap_or_else(|bad| {
        let annotation = names[0];
        faults.push(Fault::Exclusion { annotation, bad });
        Vec::new()
    })
}

/// What control reads, and says in its log only.
fn values(annotations: &Effective, faults: &mut Vec<Fault>) {
    let mut value = |names: [&'static str; 2], known: fn(&str) -> bool, expected| {
        if let Some(got) = annotations.value(names).filter(|got| !known(got)) {
            let (annotation, got) = (names[0], got.to_owned());
            faults.push(Fault::Value {
                annotation,
                got,
                expected,
            });
        }
    };
    let is_policy = |name: &str| InboundPolicy::named(name).is_some();
    value(DEFAULT_INBOUND_POLICY, is_policy, POLICIES);
    let is_log = |name: &str| matches!(name, "" | "apache" | "json");
    value(ACCESS_LOG, is_log, ACCESS_LOGS);
}

fn not_followed(annotations: &Annotations) -> Vec<Fault> {
    let judged = annotations.keys().filter_map(|name| {
        let standing = standing(name).filter(|standing| *standing != Standing::Followed)?;
        let annotation = name.clone();
        Some(Fault::Annotation {
            annotation,
            standing,
        })
    });
    judged.collect()
}
