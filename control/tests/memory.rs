// SPDX-License-Identifier: Apache-2.0
//! What the process takes of a large cluster: 5,000 pods and 500 services with their slices.

#[path = "../../kubernetes/tests/scale/cluster.rs"]
#[expect(dead_code, reason = "another test asks more of it")]
mod cluster;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use culvert_api::identity::IdentityDomain;
use culvert_control::ca::{self, IssuerFiles};
use tempfile::{NamedTempFile, TempDir};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use self::cluster::{Cluster, PODS, SERVICES};

const PATIENCE: Duration = Duration::from_mins(2);

/// What the process may take, in KiB: half as much again as it took when this was written.
const MOST: u64 = 160 << 10;

/// Killed when it is dropped.
struct Control {
    child: Child,
    admin: SocketAddr,
    _files: (TempDir, NamedTempFile),
}

impl Control {
    fn start(cluster: &Cluster) -> Result<Self> {
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (dir, kubeconfig) = (tempfile::tempdir()?, cluster.kubeconfig()?);
        let domain = IdentityDomain {
            trust_domain: "cluster.local".to_owned(),
            control_namespace: "culvert".to_owned(),
        };
        let issuer = ca::kept(dir.path(), &domain)?;
        let IssuerFiles::Pair { certificate, key } = &issuer.issuer else {
            anyhow::bail!("{issuer:?}");
        };
        let child = Command::new(env!("CARGO_BIN_EXE_culvert-control"))
            .args(["--kubernetes", "--replica=r1", "--listen=127.0.0.1:0"])
            .arg(format!("--admin={admin}"))
            .arg("--kubeconfig")
            .arg(kubeconfig.path())
            .arg("--trust-anchors")
            .arg(issuer.anchors.as_ref().context("no anchors")?)
            .arg("--issuer-certificate")
            .arg(certificate)
            .arg("--issuer-key")
            .arg(key)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            child,
            admin,
            _files: (dir, kubeconfig),
        })
    }

    async fn is_ready(&self) -> Result<bool> {
        let mut stream = TcpStream::connect(self.admin).await?;
        let request = b"GET /ready HTTP/1.0\r\nHost: control\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.contains(" 200 "))
    }

    async fn ready(&self) {
        while !self.is_ready().await.unwrap_or_default() {
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// KiB, of `/proc/<pid>/status`.
    fn takes(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let mut lines = status.lines().filter_map(|line| line.strip_prefix(field));
        let value = lines.next().context("no such field")?;
        Ok(value.trim_matches([':', ' ', '\t', 'k', 'B']).parse()?)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cluster_fits() -> Result<()> {
    let cluster = Cluster::start(PODS).await?;
    let control = Control::start(&cluster)?;
    timeout(PATIENCE, control.ready()).await?;
    // Of changes that are told together a second view is made.
    for nth in 0..20 {
        cluster.label(nth, "changed")?;
        sleep(Duration::from_millis(60)).await;
    }
    let (now, most) = (control.takes("VmRSS")?, control.takes("VmHWM")?);
    println!(
        "{PODS} pods and {SERVICES} services: {} MiB, {} MiB at most meanwhile",
        now >> 10,
        most >> 10
    );
    ensure!(now < MOST, "{now} KiB");
    Ok(())
}
