// SPDX-License-Identifier: Apache-2.0
//! What the unit tests share.

use std::sync::Arc;

use culvert_api::workload::{NetnsCookie, PodUid};
use culvert_manifests::Objects;

use crate::index::{Report, Reporter};

/// The objects of a text of manifests.
pub(crate) fn objects(text: &str) -> Arc<Objects> {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let written = std::fs::write(dir.path().join("all.yaml"), text);
    assert!(written.is_ok(), "{written:?}");
    let (objects, problems) = culvert_manifests::load(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(problems, []);
    Arc::new(objects)
}

/// A ready pod `web` with two named ports, in the namespace `shop`.
pub(crate) fn pod(name: &str, node: &str, ips: &[&str]) -> String {
    let ips: Vec<_> = ips.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect();
    format!(
        "\
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{app: web}}}}
spec:
  nodeName: {node}
  serviceAccountName: web
  containers:
  - {{name: web, ports: [{{name: http, containerPort: 8080}}, {{name: http, containerPort: 1, protocol: UDP}}]}}
status:
  phase: Running
  podIPs: [{}]
  conditions: [{{type: Ready, status: 'True'}}]
",
        ips.join(", ")
    )
}

/// The service `web` in the namespace `shop`, of both families.
pub(crate) const SERVICE: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd96::1']
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: raw, port: 9000}
  - {name: dns, port: 53, protocol: UDP}
";

pub(crate) fn report(pod: &str, cookie: u64, generation: u64, steered: bool) -> Report {
    Report {
        uid: PodUid(format!("uid-{pod}")),
        cookie: NetnsCookie(cookie),
        generation,
        steered,
        reporter: Reporter::default(),
    }
}
