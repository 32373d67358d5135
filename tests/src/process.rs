// SPDX-License-Identifier: Apache-2.0
//! Programs that a test starts, each with a deadline and never left behind.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde::de::DeserializeOwned;

const POLL: Duration = Duration::from_millis(5);

/// What a program that ended left.
#[derive(Clone, Debug)]
pub struct Output {
    /// What was run.
    pub command: String,
    /// Its exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// A program that runs beside the test. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

/// Runs a program to its end.
pub fn run(command: &mut Command, patience: Duration) -> anyhow::Result<Output> {
    let mut running = Running::start(command)?;
    running.stdin = None;
    running.finish(patience)
}

// === impl Output ===

impl Output {
    /// The output, if the program succeeded.
    pub fn ok(self) -> anyhow::Result<Self> {
        ensure!(
            self.status == Some(0),
            "`{}` ended with {:?}\nstdout: {}\nstderr: {}",
            self.command,
            self.status,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        );
        Ok(self)
    }

    /// The JSON that the program printed.
    pub fn json<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        let output = self.ok()?;
        let parsed = serde_json::from_str(output.stdout.trim());
        parsed.with_context(|| format!("`{}` printed {:?}", output.command, output.stdout))
    }

    /// The JSON of the last line that the program printed.
    pub fn json_of_last_line<T: DeserializeOwned>(mut self) -> anyhow::Result<T> {
        let last = self.stdout.lines().last().unwrap_or_default().to_owned();
        self.stdout = last;
        self.json()
    }
}

// === impl Running ===

impl Running {
    /// Starts a program with pipes to it.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let text = show(command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start `{text}`"))?;
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().context("no stdout")?;
        thread::spawn(move || {
            // A line that nobody waits for any more is nobody's loss.
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|l| sender.send(l))
        });
        let stderr = child.stderr.take().context("no stderr")?;
        Ok(Self {
            command: text,
            stdin: child.stdin.take(),
            child,
            lines,
            stderr: Some(thread::spawn(move || all(stderr))),
        })
    }

    /// The next line that the program prints, as JSON.
    pub fn next<T: DeserializeOwned>(&mut self, patience: Duration) -> anyhow::Result<T> {
        let line = self.line(patience)?;
        serde_json::from_str(&line).with_context(|| format!("`{}` printed {line:?}", self.command))
    }

    /// The next line that the program prints.
    pub fn line(&mut self, patience: Duration) -> anyhow::Result<String> {
        self.lines.recv_timeout(patience).or_else(|error| {
            let _ = self.child.kill();
            let stderr = self.stderr();
            bail!(
                "`{}` printed nothing: {error}; stderr: {stderr}",
                self.command
            )
        })
    }

    /// Writes a line to the program.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("tell `{}`", self.command))?;
        Ok(stdin.flush()?)
    }

    /// Closes stdin and waits for the end.
    pub fn finish(mut self, patience: Duration) -> anyhow::Result<Output> {
        self.stdin = None;
        let deadline = Instant::now() + patience;
        let mut stdout = String::new();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            stdout.extend(self.lines.try_iter().map(|line| line + "\n"));
            if Instant::now() > deadline {
                self.child.kill()?;
                let stderr = self.stderr();
                bail!(
                    "`{}` did not end in {patience:?}; stderr: {stderr}",
                    self.command
                );
            }
            thread::sleep(POLL);
        };
        // The pipe may be held open by a grandchild: what is there must do.
        let rest = self.lines.iter_timeout(Duration::from_secs(1));
        stdout.extend(rest.map(|line| line + "\n"));
        Ok(Output {
            command: self.command.clone(),
            status: status.code(),
            stdout,
            stderr: self.stderr(),
        })
    }

    /// Whether the program still runs.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    fn stderr(&mut self) -> String {
        let reader = self.stderr.take().map(JoinHandle::join);
        reader.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

trait IterTimeout {
    fn iter_timeout(&self, patience: Duration) -> impl Iterator<Item = String>;
}

impl IterTimeout for Receiver<String> {
    fn iter_timeout(&self, patience: Duration) -> impl Iterator<Item = String> {
        std::iter::from_fn(move || self.recv_timeout(patience).ok())
    }
}

fn all(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn show(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let args = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(program)
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}
