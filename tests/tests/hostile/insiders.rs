// SPDX-License-Identifier: Apache-2.0
//! Clients that were let in.

use std::{net::Shutdown, sync::Arc};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    sandbox::Sandbox,
    tls::{
        Hello,
        insider::{Resumer, update_keys},
    },
    wait::wait_for,
};
use rustls::{ContentType, HandshakeKind};

use crate::{
    bytes::insider,
    ground::{SOON, among_bystanders, authority, counted, dial, memory},
};

/// A ticket of `strict` resumes a session with `strict`, and none with anybody else.
pub fn tickets(sandbox: &Sandbox) -> anyhow::Result<()> {
    let own = authority(sandbox)?.sign("plain")?;
    let resumer = Arc::new(Resumer::new(own)?);
    let kind = |pod: &str| resumer.connect(dial(sandbox, pod)?, pod);
    ensure!(
        kind("strict")? == HandshakeKind::Full,
        "there was no ticket yet"
    );
    ensure!(
        kind("strict")? == HandshakeKind::Resumed,
        "the ticket was not taken"
    );
    for pod in ["other", "open"] {
        ensure!(
            kind(pod)? == HandshakeKind::Full,
            "{pod} took a ticket of strict"
        );
        ensure!(
            kind(pod)? == HandshakeKind::Resumed,
            "{pod} did not take its own ticket"
        );
    }
    Ok(())
}

/// Each either goes on forever at the client's own cost, or is cut off; memory does not grow with it.
pub fn floods(sandbox: &Sandbox) -> anyhow::Result<()> {
    among_bystanders(sandbox, || {
        for pod in ["strict", "open"] {
            let mut insider = insider(sandbox, pod)?;
            counted(sandbox, pod, ("tls", 1), || {
                insider.flood(ContentType::Alert, &[1, 90], 20_000)
            })
            .with_context(|| format!("{pod}, a flood of warnings"))?;
            let own = authority(sandbox)?.sign("plain")?;
            let hello = Hello::mesh(pod, b"");
            counted(sandbox, pod, ("tls", 1), || {
                update_keys(dial(sandbox, pod)?, &hello, own, 20_000)
            })
            .with_context(|| format!("{pod}, a flood of key updates"))?;
            empty_records(sandbox, pod)?;
        }
        Ok(())
    })
}

/// Some are allowed (RFC 8446, section 5.4); rustls takes 32 in a row.
fn empty_records(sandbox: &Sandbox, pod: &str) -> anyhow::Result<()> {
    let mut insider = insider(sandbox, pod)?;
    insider.flood(ContentType::ApplicationData, &[], 20)?;
    let answered = insider.echoes(b"after");
    ensure!(answered?, "{pod}: another answer after empty records");
    let before = memory(sandbox, "n2")?;
    counted(sandbox, pod, ("tls", 1), || {
        insider.flood(ContentType::ApplicationData, &[], 100_000)
    })
    .with_context(|| format!("{pod}, a flood of empty records"))?;
    let more = memory(sandbox, "n2")?.saturating_sub(before);
    ensure!(more < 4 << 20, "{pod}: empty records took {more} bytes");
    Ok(())
}

/// The application sees RST where FIN came without close_notify, and FIN where it came with it.
pub fn truncated(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pod in ["strict", "open"] {
        let mut honest = insider(sandbox, pod)?;
        ensure!(honest.echoes(b"honest end")?, "not answered");
        honest.send(ContentType::Alert, &[1, 0])?;
        honest.tcp.shutdown(Shutdown::Write)?;
        saw(sandbox, pod, "fin", 11)?;
        let mut cut = insider(sandbox, pod)?;
        ensure!(cut.echoes(b"cut off")?, "not answered");
        counted(sandbox, pod, ("tls", 1), || {
            Ok(cut.tcp.shutdown(Shutdown::Write)?)
        })?;
        saw(sandbox, pod, "ECONNRESET", 8)?;
        half_a_record(sandbox, pod)?;
    }
    Ok(())
}

fn half_a_record(sandbox: &Sandbox, pod: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut half = insider(sandbox, pod)?;
    let record = half.record(ContentType::ApplicationData, b"never seen")?;
    counted(sandbox, pod, ("tls", 1), || {
        half.tcp.write_all(&record[..record.len() / 2])?;
        Ok(half.tcp.shutdown(Shutdown::Write)?)
    })?;
    saw(sandbox, pod, "ECONNRESET", 1)
}

/// Waits until the application's last line says that a connection ended so.
fn saw(sandbox: &Sandbox, pod: &str, end: &str, bytes: u64) -> anyhow::Result<()> {
    wait_for(
        &format!("{pod} to see {end} after {bytes} bytes"),
        SOON,
        || {
            let logs = sandbox.logs(pod)?;
            let last = logs.lines().rev().take(5).find(|line| {
                line.contains(&format!("\"end\":\"{end}\""))
                    && line.contains(&format!("\"bytes\":{bytes}"))
            });
            ensure!(
                last.is_some(),
                "the last lines: {:?}",
                logs.lines().rev().take(2).collect::<Vec<_>>()
            );
            Ok::<_, anyhow::Error>(())
        },
    )
}
