// SPDX-License-Identifier: Apache-2.0
//! What is known of the protocols of ports: `opaque-ports`, whose meaning is Linkerd's, and the
//! `appProtocol` of a service's port, which counts before it.

use std::{collections::BTreeSet, ops::RangeInclusive};

use culvert_api::{
    annotations::{Annotations, OPAQUE_PORTS, own},
    lists::{self, BadItem},
    protocol::{Hint, PortHint, PortHints},
};
use culvert_manifests::NamespacedName;
use k8s_openapi::api::core::v1::{PodSpec, ServicePort};

use super::addresses;

const KNOWN: &str = "http, kubernetes.io/h2c (gRPC too), kubernetes.io/ws, linkerd.io/opaque";

/// Something with ports and annotations: a pod or a service.
pub(super) struct Owner<'a> {
    pub(super) kind: &'static str,
    pub(super) key: &'a NamespacedName,
    pub(super) annotations: Option<&'a Annotations>,
    /// Those of its namespace.
    pub(super) namespace: Option<&'a Annotations>,
}

/// The opaque ports of a pod.
pub(super) fn of_pod(
    owner: &Owner<'_>,
    spec: Option<&PodSpec>,
    refusals: &mut BTreeSet<String>,
) -> PortHints {
    let named = |name: &str| spec.and_then(|spec| addresses::named_port(spec, name));
    opaque(owner, |name| named(name).map(|port| vec![port]), refusals)
}

/// The opaque ports of a service.
pub(super) fn of_service(
    owner: &Owner<'_>,
    ports: &[ServicePort],
    refusals: &mut BTreeSet<String>,
) -> PortHints {
    let named = |name: &str| {
        let is_named = |port: &&ServicePort| port.name.as_deref() == Some(name);
        let port = ports.iter().find(is_named)?;
        Some(addresses::service_port(port).into_iter().collect())
    };
    opaque(owner, named, refusals)
}

/// What a service's port speaks.
pub(super) fn of_service_port(
    owner: &Owner<'_>,
    port: &ServicePort,
    opaque: &PortHints,
    refusals: &mut BTreeSet<String>,
) -> Hint {
    let number = addresses::service_port(port).unwrap_or_default();
    let Some(protocol) = port.app_protocol.as_deref().filter(|text| !text.is_empty()) else {
        return opaque.of(number);
    };
    app_protocol(protocol).unwrap_or_else(|| {
        let (namespace, name) = owner.key;
        refusals.insert(format!(
            "Service {namespace}/{name} says appProtocol {protocol:?} of port {number}, expected \
             one of {KNOWN}; the port is opaque"
        ));
        Hint::Opaque
    })
}

/// None: not known. Linkerd compares without case, too.
fn app_protocol(text: &str) -> Option<Hint> {
    match text.to_ascii_lowercase().as_str() {
        // A WebSocket begins as HTTP/1.
        "http" | "kubernetes.io/ws" => Some(Hint::Http1),
        "kubernetes.io/h2c" => Some(Hint::Http2),
        "linkerd.io/tcp" | "linkerd.io/opaque" => Some(Hint::Opaque),
        _ => None,
    }
}

/// The object's own list, else its namespace's, else the default one.
fn opaque(
    owner: &Owner<'_>,
    named: impl Fn(&str) -> Option<Vec<u16>>,
    refusals: &mut BTreeSet<String>,
) -> PortHints {
    let list = match (list_of(owner.annotations), list_of(owner.namespace)) {
        (Some(list), _) => lists::named_ports(list, named),
        // Not each object of a namespace has a port of a name.
        (None, Some(list)) => lists::named_ports(list, |name| {
            is_port_name(name).then(|| named(name).unwrap_or_default())
        }),
        (None, None) => return PortHints::default(),
    };
    list.map(hints).unwrap_or_else(|bad| {
        refusals.insert(malformed(owner, &bad));
        PortHints::default()
    })
}

fn list_of(annotations: Option<&Annotations>) -> Option<&str> {
    annotations.and_then(|annotations| own(OPAQUE_PORTS, annotations))
}

/// RFC 6335, section 5.1, apart from its lengths and dashes.
fn is_port_name(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.bytes().all(is_fine) && name.bytes().any(|byte| byte.is_ascii_lowercase())
}

fn hints(ranges: Vec<RangeInclusive<u16>>) -> PortHints {
    let opaque = ranges.into_iter().map(|range| PortHint {
        first: *range.start(),
        last: *range.end(),
        hint: Hint::Opaque,
    });
    PortHints::new(opaque.collect())
}

fn malformed(owner: &Owner<'_>, bad: &BadItem) -> String {
    let (namespace, name) = owner.key;
    format!(
        "{} {namespace}/{name} has a list of opaque ports that can't be read: {bad}; the default \
         list holds",
        owner.kind
    )
}
