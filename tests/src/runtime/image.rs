// SPDX-License-Identifier: Apache-2.0
//! Images of one layer, made from programs of this machine: nothing is fetched.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;

use crate::process::{Output, run};

/// The image of pods' infra containers, which only sleep.
pub const PAUSE: &str = "localhost/culvert-pause:1";
/// The image with busybox and `culvert-testapp`.
pub const APP: &str = "localhost/culvert-app:1";
/// `culvert-testapp` in [`APP`].
pub const TESTAPP: &str = "/bin/culvert-testapp";

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 6] = ["sh", "sleep", "cat", "grep", "wget", "true"];
const SOON: Duration = Duration::from_secs(30);

/// Makes [`PAUSE`] and [`APP`] as archives that `ctr images import` and `podman load` read.
pub fn archives(dir: &Path, testapp: &Path) -> anyhow::Result<[PathBuf; 2]> {
    let pause = dir.join("pause");
    add(&pause, BUSYBOX)?;
    let app = dir.join("app");
    add(&app, BUSYBOX)?;
    for applet in APPLETS {
        symlink("busybox", app.join("bin").join(applet))?;
    }
    fs::copy(testapp, app.join(TESTAPP.trim_start_matches('/')))?;
    for library in libraries(testapp)? {
        add(&app, &library)?;
    }
    Ok([
        archive(&pause, PAUSE, &[BUSYBOX, "sleep", "2147483647"])?,
        archive(&app, APP, &[])?,
    ])
}

/// A file of this machine at the same place below a root.
fn add(root: &Path, file: &str) -> anyhow::Result<()> {
    let to = root.join(file.trim_start_matches('/'));
    fs::create_dir_all(to.parent().context("a file has a directory")?)?;
    fs::copy(file, to).with_context(|| format!("copy {file}"))?;
    Ok(())
}

/// What a program is linked to, its interpreter too.
fn libraries(program: &Path) -> anyhow::Result<Vec<String>> {
    let listed = tool("ldd", &[&program.display().to_string()])?.stdout;
    let paths = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    Ok(paths.map(str::to_owned).collect())
}

/// <https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md>
fn archive(root: &Path, name: &str, entrypoint: &[&str]) -> anyhow::Result<PathBuf> {
    let text = |path: &Path| path.display().to_string();
    let dir = root.with_extension("image");
    fs::create_dir(&dir)?;
    let (layer, out) = (dir.join("layer.tar"), root.with_extension("tar"));
    tool("tar", &["-C", &text(root), "-cf", &text(&layer), "."])?;
    let sum = tool("sha256sum", &[&text(&layer)])?.stdout;
    let sum = sum.split_whitespace().next().context("no sum")?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Entrypoint": entrypoint},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(dir.join("config.json"), config.to_string())?;
    fs::write(dir.join("manifest.json"), manifest.to_string())?;
    tool("tar", &["-C", &text(&dir), "-cf", &text(&out), "."])?;
    Ok(out)
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tool(program: &str, args: &[&str]) -> anyhow::Result<Output> {
    run(Command::new(program).args(args), SOON)?.ok()
}
