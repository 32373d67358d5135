// SPDX-License-Identifier: Apache-2.0
//! One of Culvert's own processes, kept running: control, an agent or a proxy.

use std::{
    future::pending,
    io,
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::{
    process::Child,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{backoff::Backoff, http, netns::Netns, process::Launch};

const FIRST_RESTART: Duration = Duration::from_millis(100);
const LAST_RESTART: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(5);

/// How often a process that is not ready, or is, is asked.
const ASK: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// Makes the launch of each start.
pub type Launcher = Box<dyn Fn() -> io::Result<Launch> + Send>;

/// How a process is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonStatus {
    /// `control`, `agent` or `proxy`.
    pub kind: String,
    /// The node, but for control.
    pub node: Option<String>,
    /// Its process, while it runs.
    pub pid: Option<i32>,
    /// Whether its `/ready` says so.
    pub ready: bool,
    /// Why it is not ready.
    pub reason: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it was killed to stay down.
    pub held: bool,
    /// Where its log is.
    pub log: String,
}

/// A handle of a process that is kept running.
#[derive(Debug)]
pub struct Daemon {
    orders: mpsc::Sender<Order>,
    status: Arc<Mutex<DaemonStatus>>,
    runner: JoinHandle<()>,
    watcher: JoinHandle<()>,
    first_ready: watch::Receiver<bool>,
}

#[derive(Debug)]
enum Order {
    Kill {
        signal: Signal,
        hold: bool,
        done: oneshot::Sender<Result<(), String>>,
    },
    Start,
    Stop,
}

struct Runner {
    launcher: Launcher,
    orders: mpsc::Receiver<Order>,
    status: Arc<Mutex<DaemonStatus>>,
    backoff: Backoff,
}

// === impl Daemon ===

impl Daemon {
    /// Starts a process and keeps it running until [`Daemon::stop`].
    pub fn start(status: DaemonStatus, admin: (Netns, u16), launcher: Launcher) -> Self {
        let (orders, received) = mpsc::channel(16);
        let (ready, first_ready) = watch::channel(false);
        let status = Arc::new(Mutex::new(status));
        let runner = Runner {
            launcher,
            orders: received,
            status: status.clone(),
            backoff: Backoff::new(FIRST_RESTART, LAST_RESTART),
        };
        Self {
            orders,
            runner: tokio::spawn(runner.run()),
            watcher: tokio::spawn(watch_readiness(admin, status.clone(), ready)),
            first_ready,
            status,
        }
    }

    /// How it is doing.
    pub fn status(&self) -> DaemonStatus {
        lock(&self.status).clone()
    }

    /// Whether it was ever ready.
    pub fn first_ready(&self) -> watch::Receiver<bool> {
        self.first_ready.clone()
    }

    /// Kills it; with `hold` it stays down until [`Daemon::resume`].
    pub async fn kill(&self, signal: Signal, hold: bool) -> Result<(), String> {
        let (done, outcome) = oneshot::channel();
        let order = Order::Kill { signal, hold, done };
        let ended = |_| "the sandbox is going down".to_owned();
        self.orders.send(order).await.map_err(|_| ended(()))?;
        outcome.await.unwrap_or_else(|_| Err(ended(())))
    }

    /// Starts it again after it was held.
    pub async fn resume(&self) {
        // Nobody to hear: the sandbox is going down.
        let _ = self.orders.send(Order::Start).await;
    }

    /// Ends it: TERM, and KILL after five seconds.
    pub async fn stop(self) {
        let _ = self.orders.send(Order::Stop).await;
        let _ = self.runner.await;
        self.watcher.abort();
    }
}

// === impl Runner ===

impl Runner {
    async fn run(mut self) {
        loop {
            let held = lock(&self.status).held;
            let child = if held { None } else { self.spawn() };
            if !self.attend(child).await {
                return;
            }
        }
    }

    fn spawn(&mut self) -> Option<Child> {
        let command = (self.launcher)().and_then(Launch::command);
        match command.and_then(|command| tokio::process::Command::from(command).spawn()) {
            Ok(child) => {
                let mut status = lock(&self.status);
                status.pid = child.id().and_then(|pid| pid.try_into().ok());
                status.reason = "starting".into();
                Some(child)
            }
            Err(error) => {
                lock(&self.status).reason = format!("can't be started: {error}");
                None
            }
        }
    }

    /// Stays with a child until it is to be started again (true) or no more (false).
    async fn attend(&mut self, mut child: Option<Child>) -> bool {
        loop {
            let held = lock(&self.status).held;
            let wait = self.backoff_if(child.is_none() && !held);
            tokio::select! {
                ended = exit(child.as_mut()) => {
                    self.note_exit(&ended);
                    child = None;
                }
                () = wait_or_never(wait) => return true,
                order = self.orders.recv() => match order {
                    Some(Order::Kill { signal, hold, done }) => {
                        let killed = self.kill(child.as_ref(), signal, hold);
                        // One that waits to be started again has nothing that could end.
                        if killed.is_ok() && signal == Signal::SIGKILL && child.is_some() {
                            let ended = exit(child.as_mut()).await;
                            self.note_exit(&ended);
                            child = None;
                        }
                        // Nobody waits for the answer any more.
                        let _ = done.send(killed);
                    }
                    Some(Order::Start) => {
                        lock(&self.status).held = false;
                        if child.is_none() {
                            return true;
                        }
                    }
                    Some(Order::Stop) | None => {
                        stop(child).await;
                        return false;
                    }
                }
            }
        }
    }

    fn backoff_if(&mut self, waiting: bool) -> Option<Duration> {
        waiting.then(|| self.backoff.wait())
    }

    fn kill(&self, child: Option<&Child>, signal: Signal, hold: bool) -> Result<(), String> {
        let mut status = lock(&self.status);
        status.held |= hold;
        match child
            .and_then(Child::id)
            .and_then(|pid| i32::try_from(pid).ok())
        {
            Some(pid) => kill(Pid::from_raw(pid), signal).map_err(|e| e.to_string()),
            None if hold => Ok(()),
            None => Err("it does not run just now".into()),
        }
    }

    fn note_exit(&self, ended: &io::Result<ExitStatus>) {
        let mut status = lock(&self.status);
        status.pid = None;
        status.ready = false;
        status.restarts += 1;
        status.reason = match ended {
            Ok(exit) => format!("ended with {exit}"),
            Err(error) => format!("can't be waited for: {error}"),
        };
        tracing::warn!(
            daemon.kind = %status.kind, node = ?status.node, reason = %status.reason, held = status.held,
            "A process ended"
        );
    }
}

async fn exit(child: Option<&mut Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => pending().await,
    }
}

async fn wait_or_never(wait: Option<Duration>) {
    match wait {
        Some(wait) => sleep(wait).await,
        None => pending().await,
    }
}

async fn stop(child: Option<Child>) {
    let Some(mut child) = child else { return };
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    // It may have ended by itself.
    let _ = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
    if timeout(GRACE, child.wait()).await.is_err() {
        tracing::warn!(pid, "A process did not end within five seconds of SIGTERM");
        let _ = child.kill().await;
    }
}

async fn watch_readiness(
    (netns, port): (Netns, u16),
    status: Arc<Mutex<DaemonStatus>>,
    first_ready: watch::Sender<bool>,
) {
    loop {
        let pid = lock(&status).pid;
        let ready = match pid {
            Some(_) => ask_ready(&netns, port).await,
            None => Err(String::new()),
        };
        let is_ready = ready.is_ok();
        note_readiness(&mut lock(&status), pid, ready);
        first_ready.send_if_modified(|was| !std::mem::replace(was, *was || is_ready) && is_ready);
        sleep(ASK[usize::from(is_ready)]).await;
    }
}

/// Why the process is not ready.
async fn ask_ready(netns: &Netns, port: u16) -> Result<(), String> {
    match http::ask_admin(netns, port, "/ready").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(answer.body.trim().to_owned()),
        Err(error) => Err(format!("/ready does not answer: {error}")),
    }
}

/// An answer about a process that ended meanwhile says nothing.
fn note_readiness(status: &mut DaemonStatus, pid: Option<i32>, ready: Result<(), String>) {
    if pid.is_none() || status.pid != pid {
        return;
    }
    status.ready = ready.is_ok();
    status.reason = ready.err().unwrap_or_default();
}

fn lock(status: &Mutex<DaemonStatus>) -> MutexGuard<'_, DaemonStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
