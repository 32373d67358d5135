// SPDX-License-Identifier: Apache-2.0

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::*;
use crate::testing::TestNetns;

/// Adds and deletes routes as fast as it can.
struct Flood(Child);

impl Flood {
    fn start(pod: &TestNetns, dir: &Path) -> Self {
        let script = format!(
            "while ip -force -batch {}; do :; done",
            batch(dir).display()
        );
        let child = Command::new("nsenter")
            .arg(format!("--net={}", pod.path().display()))
            .args(["sh", "-c", &script])
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|e| panic!("{e}")))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn batch(dir: &Path) -> PathBuf {
    let mut batch = String::new();
    for host in 0..250 {
        let to = format!("198.51.100.{host}");
        let _ = writeln!(batch, "route add {to} dev lo\nroute del {to} dev lo");
    }
    let file = dir.join("flood");
    std::fs::write(&file, batch).unwrap_or_else(|e| panic!("{e}"));
    file
}

#[tokio::test]
async fn a_pod_that_changes_its_routes_all_the_time_is_heard_ten_times_a_second_at_most() {
    let (pod, dir) = (TestNetns::new("flood"), tempfile::tempdir());
    let dir = dir.unwrap_or_else(|e| panic!("{e}"));
    let netns = Netns::open(pod.path()).await;
    let netns = netns.unwrap_or_else(|e| panic!("{e}"));
    let mut rtnl = Rtnl::open(&netns).await.unwrap_or_else(|e| panic!("{e}"));
    rtnl.loopback_up().await.unwrap_or_else(|e| panic!("{e}"));
    let _flood = Flood::start(&pod, dir.path());
    let start = Instant::now();
    for _ in 0..6 {
        assert_eq!(rtnl.changed().await, Some(()));
        // Nothing that the pod does is in the way of an answer.
        rtnl.loopback_up().await.unwrap_or_else(|e| panic!("{e}"));
    }
    assert!(start.elapsed() >= Duration::from_millis(500));
    // Who takes long to follow is told less often.
    let (work, start) = (Duration::from_millis(100), Instant::now());
    tokio::time::sleep(work).await;
    assert_eq!(rtnl.changed().await, Some(()));
    assert!(start.elapsed() >= work * 5);
}
