// SPDX-License-Identifier: Apache-2.0
//! The process as it is started.

use std::process::Command;

#[test]
fn it_says_once_why_it_can_not_start() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let no_directory = dir.path().join("state");
    std::fs::write(&no_directory, "")?;
    let output = Command::new(env!("CARGO_BIN_EXE_culvert-control"))
        .args(["--listen=127.0.0.1:0", "--admin=127.0.0.1:0", "--manifests"])
        .arg(dir.path())
        .arg("--join-tokens")
        .arg(dir.path().join("tokens.json"))
        .arg("--state-dir")
        .arg(&no_directory)
        .output()?;
    let log = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{log}");
    let told = log.matches("File exists").count();
    assert_eq!(told, 1, "{log}");
    Ok(())
}
