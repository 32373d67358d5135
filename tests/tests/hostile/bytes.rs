// SPDX-License-Identifier: Apache-2.0
//! Bytes that are no TLS, where TLS is spoken.

use std::io::Write;

use anyhow::{Context as _, ensure};
use culvert_tests::{
    sandbox::Sandbox,
    tls::{Hello, insider::Insider},
};
use rustls::ContentType;

use crate::ground::{among_bystanders, authority, counted, dial};

/// Let in as `plain`.
pub fn insider(sandbox: &Sandbox, pod: &str) -> anyhow::Result<Insider> {
    let own = authority(sandbox)?.sign("plain")?;
    Insider::client(dial(sandbox, pod)?, &Hello::mesh(pod, b""), own)
}

const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const UNEXPECTED_MESSAGE: u8 = 10;
const DECODE_ERROR: u8 = 50;

/// Each after the handshake, and the alert that answers it.
fn broken() -> Vec<(&'static str, Vec<u8>, &'static [u8])> {
    vec![
        (
            "plaintext",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            &[DECODE_ERROR, UNEXPECTED_MESSAGE],
        ),
        (
            "a forged record",
            [&[23, 3, 3, 0, 40][..], &[1; 40]].concat(),
            &[BAD_RECORD_MAC],
        ),
        (
            "a record of 2^14 + 257",
            [&[23, 3, 3, 0x41, 1][..], &[1; 0x4101]].concat(),
            &[RECORD_OVERFLOW, BAD_RECORD_MAC],
        ),
        (
            "a record of 65,535",
            [&[23, 3, 3, 0xff, 0xff][..], &[1; 0xffff]].concat(),
            &[RECORD_OVERFLOW, DECODE_ERROR],
        ),
        (
            "a record shorter than its tag",
            vec![23, 3, 3, 0, 3, 1, 2, 3],
            &[BAD_RECORD_MAC, DECODE_ERROR],
        ),
        (
            "a ClientHello",
            culvert_tests::tls::hello::ClientHello::new(b"x").bytes(),
            &[UNEXPECTED_MESSAGE, BAD_RECORD_MAC],
        ),
        (
            "an alert in plaintext",
            vec![21, 3, 3, 0, 2, 1, 0],
            &[UNEXPECTED_MESSAGE, BAD_RECORD_MAC],
        ),
        (
            "change_cipher_spec",
            vec![20, 3, 3, 0, 1, 1],
            &[UNEXPECTED_MESSAGE],
        ),
        (
            "a record of an unknown type",
            vec![99, 3, 3, 0, 1, 1],
            &[DECODE_ERROR, UNEXPECTED_MESSAGE],
        ),
    ]
}

pub fn broken_records(sandbox: &Sandbox) -> anyhow::Result<()> {
    among_bystanders(sandbox, || {
        for pod in ["strict", "open"] {
            for (what, bytes, alerts) in broken() {
                ends(sandbox, pod, &bytes, alerts).with_context(|| format!("{pod}, {what}"))?;
            }
            for (what, typ, payload) in inside() {
                let mut insider = insider(sandbox, pod)?;
                let record = insider.record(typ, payload)?;
                counted(sandbox, pod, ("tls", 1), || {
                    insider.tcp.write_all(&record)?;
                    Ok(insider.end()?)
                })
                .with_context(|| format!("{pod}, {what}, encrypted"))?;
            }
        }
        Ok(())
    })
}

/// What is broken inside of a record that is encrypted as it should be.
fn inside() -> Vec<(&'static str, ContentType, &'static [u8])> {
    vec![
        ("a ClientHello", ContentType::Handshake, &[1, 0, 0, 2, 3, 3]),
        (
            "post-handshake authentication",
            ContentType::Handshake,
            culvert_tests::tls::insider::CERTIFICATE_REQUEST,
        ),
        (
            "a certificate nobody asked for",
            ContentType::Handshake,
            &[11, 0, 0, 4, 0, 0, 0, 0],
        ),
        ("change_cipher_spec", ContentType::ChangeCipherSpec, &[1]),
        ("half an alert", ContentType::Alert, &[2]),
    ]
}

fn ends(sandbox: &Sandbox, pod: &str, bytes: &[u8], alerts: &[u8]) -> anyhow::Result<()> {
    let mut insider = insider(sandbox, pod)?;
    ensure!(
        insider.echoes(b"before")?,
        "the application does not answer"
    );
    let alert = counted(sandbox, pod, ("tls", 1), || {
        insider.tcp.write_all(bytes)?;
        Ok(insider.end()?)
    })?;
    ensure!(
        alerts.contains(&alert),
        "alert {alert}, expected one of {alerts:?}"
    );
    Ok(())
}
