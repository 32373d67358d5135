// SPDX-License-Identifier: Apache-2.0

use std::path::Path;

use prometheus::Registry;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::ca::tests::{DAY, domain, files, install, leaf, made, tempdir, write};

struct Rotation {
    dir: TempDir,
    followed: Followed,
    metrics: CertificateMetrics,
    registry: Registry,
    notices: Notices,
    heard: UnboundedReceiver<Notice>,
}

impl Rotation {
    fn of(authority: &[String; 3]) -> Self {
        let (dir, registry) = (tempdir(), Registry::new());
        install(dir.path(), authority);
        let followed = Followed::open(files(dir.path()), domain(), DAY);
        let (notices, heard) = Notices::new();
        Self {
            dir,
            followed: followed.unwrap_or_else(|e| panic!("{e}")),
            metrics: CertificateMetrics::register(&registry).unwrap_or_else(|e| panic!("{e}")),
            registry,
            notices,
            heard,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn look(&mut self) {
        self.followed.look(&self.metrics, &self.notices).await;
    }

    /// The issuer that signs now.
    fn issuer(&self) -> Vec<u8> {
        let authority = self.followed.authority().borrow().clone();
        leaf(&authority)
            .chain
            .get(1)
            .map(|der| der.to_vec())
            .unwrap_or_default()
    }

    fn heard(&mut self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        while let Ok(notice) = self.heard.try_recv() {
            reasons.push(notice.reason);
        }
        reasons
    }

    fn counted(&self, result: &str) -> f64 {
        let families = self.registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == "culvert_control_authority_reads_total");
        let metrics = family.into_iter().flat_map(|family| family.get_metric());
        metrics
            .filter(|metric| {
                metric
                    .get_label()
                    .iter()
                    .any(|label| label.value() == result)
            })
            .map(|metric| metric.get_counter().get_value())
            .sum()
    }
}

fn good() -> [String; 3] {
    let now = OffsetDateTime::now_utc();
    made(now + 300 * DAY, now + 200 * DAY)
}

#[tokio::test]
async fn anchors_and_issuer_are_rotated_step_by_step() {
    let (old, new) = (good(), good());
    let mut rotation = Rotation::of(&old);
    let before = rotation.issuer();
    write(
        &rotation.path().join("trust-anchors.pem"),
        &format!("{}{}", old[0], new[0]),
    );
    rotation.look().await;
    assert_eq!(rotation.counted("updated"), 0.0, "it may be half written");
    rotation.look().await;
    assert_eq!(rotation.counted("updated"), 1.0);
    assert_eq!(rotation.issuer(), before);
    write(&rotation.path().join("issuer.crt"), &new[1]);
    rotation.look().await;
    write(&rotation.path().join("issuer.key"), &new[2]);
    rotation.look().await;
    assert_eq!(rotation.counted("refused"), 0.0, "file by file is no error");
    rotation.look().await;
    let after = rotation.issuer();
    assert_ne!(after, before);
    write(&rotation.path().join("trust-anchors.pem"), &new[0]);
    for _ in 0..3 {
        rotation.look().await;
    }
    assert_eq!(
        (rotation.counted("updated"), rotation.counted("refused")),
        (3.0, 0.0)
    );
    assert_eq!(rotation.issuer(), after);
    assert_eq!(rotation.heard(), ["IssuerUpdated"]);
}

#[tokio::test]
async fn what_is_of_no_use_is_refused_once_and_the_last_good_issuer_signs() {
    let old = good();
    let mut rotation = Rotation::of(&old);
    let before = rotation.issuer();
    let [_, stranger, stranger_key] = good();
    let now = OffsetDateTime::now_utc();
    let expired = made(now + DAY, now - DAY);
    let bad = [
        [old[0].clone(), stranger, stranger_key],
        [old[0].clone(), "half".to_owned(), old[2].clone()],
        [String::new(), old[1].clone(), old[2].clone()],
        expired,
    ];
    for (count, bad) in bad.iter().enumerate() {
        install(rotation.path(), bad);
        for _ in 0..4 {
            rotation.look().await;
        }
        assert_eq!(rotation.counted("refused"), (count + 1) as f64);
        assert_eq!(rotation.heard(), ["IssuerValidationFailed"]);
        assert_eq!(rotation.issuer(), before);
    }
    assert!(std::fs::remove_file(rotation.path().join("issuer.crt")).is_ok());
    for _ in 0..3 {
        rotation.look().await;
    }
    assert_eq!(rotation.issuer(), before, "a file that is gone");
    install(rotation.path(), &old);
    for _ in 0..3 {
        rotation.look().await;
    }
    assert_eq!(rotation.counted("updated"), 0.0, "it is what it was");
    install(rotation.path(), &good());
    for _ in 0..2 {
        rotation.look().await;
    }
    assert_ne!(rotation.issuer(), before);
}
