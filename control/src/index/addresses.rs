// SPDX-License-Identifier: Apache-2.0
//! The addresses and ports that objects state.

use std::net::IpAddr;

use culvert_api::workload::Addresses;
use k8s_openapi::{
    api::core::v1::{ContainerPort, Pod, PodSpec, PodStatus, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// The addresses of a pod, without what is no address.
pub(super) fn of_pod(status: Option<&PodStatus>) -> Addresses {
    let Some(status) = status else {
        return Addresses::new();
    };
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    unique(listed.chain(&status.pod_ip))
}

/// The addresses of a service; none for a headless one.
pub(super) fn of_service(spec: &ServiceSpec) -> Addresses {
    unique(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip))
}

fn unique<'a>(texts: impl Iterator<Item = &'a String>) -> Addresses {
    let mut addresses = Addresses::new();
    for address in texts.filter_map(|text| text.parse::<IpAddr>().ok()) {
        let address = address.to_canonical();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// The TCP port of a service, or none.
pub(super) fn service_port(port: &ServicePort) -> Option<u16> {
    is_tcp(port.protocol.as_deref()).then(|| u16::try_from(port.port).ok())?
}

/// Where a service's port is on a pod; none if the pod has no port of that name.
pub(super) fn target_port(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => named_port(pod.spec.as_ref()?, name),
    }
}

pub(super) fn named_port(spec: &PodSpec, name: &str) -> Option<u16> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| is_named(port, name))?;
    u16::try_from(port.container_port).ok()
}

fn is_named(port: &ContainerPort, name: &str) -> bool {
    port.name.as_deref() == Some(name) && is_tcp(port.protocol.as_deref())
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("TCP"))
}
