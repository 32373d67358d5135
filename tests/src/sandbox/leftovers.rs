// SPDX-License-Identifier: Apache-2.0
//! What a sandbox must not leave behind: network namespaces, mounts, cgroups, processes, links and
//! state; and what earlier tests that were killed did leave.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::ensure;

use super::ROOT;
use crate::{binaries, netns, process::run};

const LOG_LINES: usize = 40;

/// Fails with a list if anything of the sandbox is left.
pub fn none(name: &str) -> anyhow::Result<()> {
    let mut left = Vec::new();
    left.extend(of(
        "network namespace",
        netns::names_with(&format!("cv-{name}-"))?,
    ));
    left.extend(of(
        "mount",
        lines_with(Path::new("/proc/self/mountinfo"), name)?,
    ));
    left.extend(of("cgroup", cgroups(Path::new("/sys/fs/cgroup"), name)));
    left.extend(of("process", processes(name)?));
    left.extend(of(
        "state",
        Path::new(ROOT).join(name).exists().then(|| ROOT.to_owned()),
    ));
    ensure!(
        left.is_empty(),
        "the sandbox {name} left {}",
        left.join(", ")
    );
    Ok(())
}

/// The links of this namespace, which a sandbox has no business in.
pub fn links() -> anyhow::Result<Vec<String>> {
    let output = run(
        Command::new("ip").args(["-o", "link"]),
        Duration::from_secs(5),
    )?
    .ok()?;
    let name = |line: &str| line.split(": ").nth(1).map(str::to_owned);
    Ok(output.stdout.lines().filter_map(name).collect())
}

/// Takes down the sandboxes of tests that are dead.
pub fn collect_dead() -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(ROOT) else {
        return Ok(());
    };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        if pid(&name).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let culvert = binaries::product("culvert")?;
            let mut down = Command::new(culvert);
            down.args(["sandbox", "down", "--name", &name]);
            run(&mut down, Duration::from_secs(60))?;
        }
    }
    Ok(())
}

/// Prints the end of every file in a directory and below.
pub fn print_logs(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            print_logs(&path)?;
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("--- {}", path.display());
        for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
            eprintln!("    {line}");
        }
    }
    Ok(())
}

/// The process of the test that a sandbox is named after.
fn pid(sandbox: &str) -> Option<&str> {
    let (pid, _) = sandbox.strip_prefix('t')?.split_once('-')?;
    pid.bytes().all(|byte| byte.is_ascii_digit()).then_some(pid)
}

fn of(what: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    names
        .into_iter()
        .map(|name| format!("{what} {name}"))
        .collect()
}

fn lines_with(file: &Path, part: &str) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(file)?;
    let lines = text.lines().filter(|line| line.contains(part));
    Ok(lines.map(str::to_owned).collect())
}

fn cgroups(dir: &Path, part: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let dirs = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    let found = dirs.flat_map(
        |path: PathBuf| match path.to_string_lossy().contains(part) {
            true => vec![path.display().to_string()],
            false => cgroups(&path, part),
        },
    );
    found.collect()
}

/// Processes that were started with the sandbox's name in an argument.
fn processes(part: &str) -> io::Result<Vec<String>> {
    let pids =
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let pids = pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()));
    let told = pids.filter_map(|pid| {
        let bytes = fs::read(Path::new("/proc").join(&pid).join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
        line.contains(part)
            .then(|| format!("{pid} ({})", line.trim_end()))
    });
    Ok(told.collect())
}
