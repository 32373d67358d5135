// SPDX-License-Identifier: Apache-2.0
//! Which pods can't be meshed, whatever they ask for: what the agent goes by, and the command line that says so beforehand.

/// The namespace whose pods are never meshed, beside Culvert's own, unless the agents are told otherwise.
pub const NEVER_MESH: &str = "kube-system";

/// Containers that are proxies of meshes with sidecars: their pods have a mesh already.
pub const SIDECARS: [&str; 2] = ["linkerd-proxy", "istio-proxy"];

/// Of a static pod's mirror on the API server: the uid that the kubelet knows the pod by
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/#kubernetes-io-config-mirror>).
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Runtimes whose containers have a kernel, or at least a network stack, of their own, by a part
/// of the names that a RuntimeClass, its handler or the runtime itself has.
const OWN_KERNELS: [&str; 6] = ["gvisor", "runsc", "kata", "firecracker", "krun", "hyperv"];

/// Whether a runtime, or a RuntimeClass, of this name has a network stack of its own.
pub fn is_own_kernel(runtime: &str) -> bool {
    let runtime = runtime.to_lowercase();
    OWN_KERNELS.iter().any(|name| runtime.contains(name))
}
