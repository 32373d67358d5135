// SPDX-License-Identifier: Apache-2.0
//! The process as it is started: what it refuses, what it gives up, and how it ends. As root.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const UID: u32 = 2102;

/// A proxy without agent and control, ended with the test.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(dir: &Path, admin: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-proxy"));
    command
        .args([
            "--node",
            "node-1",
            "--control",
            "127.0.0.1:1",
            "--admin",
            admin,
        ])
        .args([
            "--agent-socket",
            "/nonexistent",
            "--trust-anchors",
            "/nonexistent",
        ])
        .args([
            "--token-file",
            "/nonexistent",
            "--drain",
            "100ms",
            "--state-dir",
        ])
        .arg(dir)
        .stderr(Stdio::piped());
    command
}

fn state_dir() -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::os::unix::fs::chown(dir.path(), Some(UID), Some(UID))?;
    Ok(dir)
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn fetch(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn fetched_soon(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match fetch(admin, path) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            Ok(answer) => return Ok(answer),
        }
    }
}

#[test]
fn it_runs_without_rights_and_ends_when_asked() -> anyhow::Result<()> {
    let (dir, admin) = (state_dir()?, free_address()?);
    let child = command(dir.path(), &admin.to_string())
        .uid(UID)
        .gid(UID)
        .spawn()?;
    let mut proxy = Proxy(child);
    let ready = fetched_soon(admin, "/ready")?;
    assert!(
        ready.contains("503") && ready.contains("waiting for agent, certificate, control"),
        "{ready}"
    );
    assert!(fetch(admin, "/live")?.contains("200 OK"));
    let metrics = fetch(admin, "/metrics")?;
    for name in [
        "culvert_proxy_agent_connected 0",
        "culvert_proxy_control_connected 0",
    ] {
        assert!(metrics.contains(name), "{metrics}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.0.id()))?;
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{status}");
    }
    kill(Pid::from_raw(proxy.0.id().cast_signed()), Signal::SIGTERM)?;
    assert_eq!(proxy.0.wait()?.code(), Some(0));
    assert!(dir.path().join("state.json").exists());
    Ok(())
}

#[test]
fn it_refuses_to_be_root() -> anyhow::Result<()> {
    let dir = state_dir()?;
    let output = command(dir.path(), "127.0.0.1:0").output()?;
    let error = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("must not run as root"), "{error}");
    Ok(())
}

#[test]
fn it_names_all_mistakes_and_ends_with_64() -> anyhow::Result<()> {
    let dir = state_dir()?;
    let output = command(dir.path(), "nowhere")
        .args(["--trust-domain", "A B"])
        .output()?;
    let error = String::from_utf8(output.stderr).context("the log is UTF-8")?;
    assert_eq!(output.status.code(), Some(64));
    assert!(
        error.contains("--admin") && error.contains("--trust-domain"),
        "{error}"
    );
    Ok(())
}
