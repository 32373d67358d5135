// SPDX-License-Identifier: Apache-2.0
//! The process that keeps a sandbox: it sets everything up, answers commands, and takes everything
//! down again.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{interval, sleep, timeout},
};

use super::{
    api::{Answer, ProcessName, Request},
    binaries::{self, Binaries},
    cgroup,
    daemon::Daemon,
    error::{Doing, Error, Result},
    fabric::Fabric,
    kubelet::Kubelet,
    layout::{Layout, NodeId},
    leftovers,
    node::{Site, start_control},
    options::Options,
    process::raise_file_limit,
    published::Published,
    services::Key,
    tokens,
};

/// How long control may take to make its trust anchor.
const CONTROL_START: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
const LAST_ONE: Duration = Duration::from_secs(3);
const ANCHORS: Duration = Duration::from_secs(1);

/// A command that waits for its answer.
type Call = (Request, oneshot::Sender<Answer>);

struct Supervisor {
    kubelet: Kubelet,
    calls: mpsc::Receiver<Call>,
    gone: mpsc::UnboundedReceiver<(Key, String)>,
}

enum Next {
    GoOn,
    End(Option<oneshot::Sender<Answer>>),
}

/// Runs the supervisor of a sandbox until it is told to end.
pub fn run(layout: Layout, options: Options) -> Result<()> {
    let _lock = lock(&layout)?;
    let binaries = Binaries::find(Some(&options.bin_dir))?;
    let cgroups = binaries::check(&binaries, &layout.name)?;
    leftovers::clear(&layout, &cgroups)?;
    cgroup::join(&cgroups.kubelet()).doing(|| "enter the kubelet's cgroup".into())?;
    raise_file_limit().doing(|| "raise the limit of open files".into())?;
    let site = Site {
        layout,
        cgroups,
        binaries,
        options,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.doing(|| "start a runtime".into())?;
    let cgroups = site.cgroups.clone();
    runtime.block_on(supervise(site)).inspect_err(|_| {
        // What else is there goes with the next `up` or `down`.
        if let Err(error) = leftovers::end_processes(&cgroups) {
            tracing::warn!(%error, "Could not end the processes that were started");
        }
    })
}

/// Held as long as the process lives, whatever ends it.
fn lock(layout: &Layout) -> Result<File> {
    let doing = || format!("lock {}", layout.lock().display());
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(layout.lock());
    let lock = lock.doing(doing)?;
    // One that was just killed may take a moment to be gone; one that answers stays.
    let until = Instant::now() + LAST_ONE;
    let may_wait = || Instant::now() < until && StdUnixStream::connect(layout.socket()).is_err();
    while let Err(error) = lock.try_lock() {
        match error {
            TryLockError::WouldBlock if may_wait() => std::thread::sleep(POLL),
            TryLockError::WouldBlock => {
                let message = format!("the sandbox {} has a supervisor already", layout.name);
                return Err(Error::Supervisor(message));
            }
            TryLockError::Error(error) => return Err(error).doing(doing),
        }
    }
    // `down` may have removed the sandbox meanwhile, and the file with it.
    let same = fs::metadata(layout.lock())
        .is_ok_and(|now| lock.metadata().is_ok_and(|held| held.ino() == now.ino()));
    if !same {
        let message = format!("the sandbox {} was removed while it started", layout.name);
        return Err(Error::Supervisor(message));
    }
    let pid =
        File::create(layout.pid()).and_then(|mut file| writeln!(file, "{}", std::process::id()));
    pid.doing(|| "write the supervisor's pid".into())?;
    Ok(lock)
}

async fn supervise(site: Site) -> Result<()> {
    let site = Arc::new(site);
    let (gone_tx, gone) = mpsc::unbounded_channel();
    let kubelet = set_up(&site, gone_tx).await?;
    let (calls_tx, calls) = mpsc::channel(16);
    let listener = listen(&site.layout).doing(|| "listen for commands".into())?;
    tokio::spawn(accept(listener, calls_tx));
    let mut supervisor = Supervisor {
        kubelet,
        calls,
        gone,
    };
    supervisor.kubelet.reconcile();
    tracing::info!(sandbox = %site.layout.name, "The sandbox is up");
    let answer_to = supervisor.serve().await?;
    tracing::info!("The sandbox goes down");
    supervisor.kubelet.stop().await;
    if let Some(answer_to) = answer_to {
        // The one who asked may have gone.
        let _ = answer_to.send(Answer::Done);
        sleep(POLL).await;
    }
    Ok(())
}

async fn set_up(site: &Arc<Site>, gone: mpsc::UnboundedSender<(Key, String)>) -> Result<Kubelet> {
    let layout = &site.layout;
    for dir in [layout.netns_records(), layout.logs(), layout.control()] {
        fs::create_dir_all(&dir).doing(|| format!("make {}", dir.display()))?;
    }
    let published = Published::create(layout.manifests());
    let published = published.doing(|| format!("make {}", layout.manifests().display()))?;
    let fabric = tokio::task::block_in_place(|| Fabric::up(layout, site.options.ip_families))?;
    // Before control starts, which looks for changes only now and then.
    let nodes: Vec<_> = NodeId::first(site.options.nodes).collect();
    tokens::issue(layout, &nodes).doing(|| "issue join tokens".into())?;
    let control = start_control(site)?;
    wait_for_anchors(layout, &control).await;
    let mut kubelet = Kubelet::new(site.clone(), fabric, control, published, gone)?;
    kubelet.set_nodes(site.options.nodes).await?;
    Ok(kubelet)
}

/// Proxies start with trust anchors if control makes them in good time; without, they wait.
async fn wait_for_anchors(layout: &Layout, control: &Daemon) {
    let (until, anchors) = (
        Instant::now() + CONTROL_START,
        layout.control().join("trust-anchors.pem"),
    );
    while !anchors.exists() {
        if Instant::now() > until {
            let status = control.status();
            tracing::warn!(reason = %status.reason, "Control has not made its trust anchor yet");
            return;
        }
        sleep(POLL).await;
    }
}

fn listen(layout: &Layout) -> io::Result<UnixListener> {
    let path = layout.socket();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, calls: mpsc::Sender<Call>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream, calls.clone()))),
            Err(error) => {
                tracing::warn!(%error, "Could not accept a command");
                sleep(POLL).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, calls: mpsc::Sender<Call>) {
    if let Err(error) = try_answer(&mut stream, calls).await {
        tracing::debug!(%error, "A command failed");
    }
}

async fn try_answer(stream: &mut UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    timeout(ANCHORS, BufReader::new(reader).read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (tx, rx) = oneshot::channel();
            let ended = || refused("the sandbox is going down");
            match calls.send((request, tx)).await {
                Ok(()) => rx.await.unwrap_or_else(|_| ended()),
                Err(_) => ended(),
            }
        }
        Err(error) => refused(format!("not a request of this version: {error}")),
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    writer.write_all(&bytes).await
}

fn refused(reason: impl Into<String>) -> Answer {
    let reason = reason.into();
    Answer::Refused {
        reason,
        usage: false,
    }
}

// === impl Supervisor ===

impl Supervisor {
    /// Serves until it is told to end; by whom, if by a command.
    async fn serve(&mut self) -> Result<Option<oneshot::Sender<Answer>>> {
        let mut term = signal(SignalKind::terminate()).doing(|| "wait for signals".into())?;
        let mut interrupt = signal(SignalKind::interrupt()).doing(|| "wait for signals".into())?;
        let mut anchors = interval(ANCHORS);
        let mut objects = self.kubelet.source.objects();
        let mut problems = self.kubelet.source.problems();
        let changed = self.kubelet.changed.clone();
        loop {
            tokio::select! {
                _ = term.recv() => return Ok(None),
                _ = interrupt.recv() => return Ok(None),
                _ = anchors.tick() => self.kubelet.hand_trust_anchors(),
                Ok(()) = objects.changed() => self.kubelet.reconcile(),
                Ok(()) = problems.changed() => self.kubelet.reconcile(),
                () = changed.notified() => self.kubelet.reconcile(),
                Some((key, uid)) = self.gone.recv() => {
                    self.kubelet.forget(&key, &uid);
                    self.kubelet.reconcile();
                }
                Some((request, answer_to)) = self.calls.recv() => {
                    match self.handle(request, answer_to).await {
                        Next::GoOn => {}
                        Next::End(answer_to) => return Ok(answer_to),
                    }
                    // Another directory may have been asked for.
                    objects = self.kubelet.source.objects();
                    problems = self.kubelet.source.problems();
                }
            }
        }
    }

    async fn handle(&mut self, request: Request, answer_to: oneshot::Sender<Answer>) -> Next {
        let answer = match request {
            Request::Down => return Next::End(Some(answer_to)),
            Request::Status => Answer::Status {
                status: Box::new(self.kubelet.status()),
            },
            Request::Apply { options } => {
                done(self.apply(options).await.map_err(|e| e.to_string()))
            }
            Request::Kill {
                process,
                signal,
                hold,
            } => done(self.kill(&process, signal, hold).await),
            Request::Start { process } => done(self.start(&process).await),
            Request::Reboot { node } => done(
                self.kubelet
                    .reboot(NodeId(node))
                    .await
                    .map_err(|e| e.to_string()),
            ),
            Request::Enter { pod, container } => self.enter(&pod, container.as_deref()),
        };
        // The one who asked may have gone.
        let _ = answer_to.send(answer);
        Next::GoOn
    }

    async fn apply(&mut self, options: Options) -> Result<()> {
        let site = &self.kubelet.site;
        if options.fixed() != site.options.fixed() {
            return Err(Error::Supervisor(site.options.refusal(&options)));
        }
        let (dir, nodes) = (options.dir.clone(), self.kubelet.nodes.len());
        let site = Site {
            options,
            ..(**site).clone()
        };
        if dir != self.kubelet.site.options.dir {
            let source = culvert_manifests::Source::watch(&dir);
            self.kubelet.source = source.doing(|| format!("watch {}", dir.display()))?;
        }
        self.kubelet.site = Arc::new(site);
        self.catch_up(&dir)
            .await
            .doing(|| format!("read {}", dir.display()))?;
        let wanted = self.kubelet.site.options.nodes;
        if usize::from(wanted) != nodes {
            self.kubelet.set_nodes(wanted).await?;
        }
        self.kubelet.reconcile();
        Ok(())
    }

    /// Waits until the watch has seen what the directory holds now: who asks has just changed it.
    async fn catch_up(&self, dir: &Path) -> io::Result<()> {
        let until = Instant::now() + LAST_ONE;
        while Instant::now() < until {
            let (objects, problems) = culvert_manifests::load(dir)?;
            let seen = &self.kubelet.source;
            // What is refused leaves what it said before.
            let same = !problems.is_empty() || *seen.objects().borrow().as_ref() == objects;
            if same && *seen.problems().borrow().as_ref() == problems {
                break;
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn kill(&self, process: &ProcessName, signal: i32, hold: bool) -> Result<(), String> {
        let signal = Signal::try_from(signal).map_err(|_| format!("no signal {signal}"))?;
        for daemon in self.daemons(process)? {
            daemon.kill(signal, hold).await?;
        }
        Ok(())
    }

    async fn start(&self, process: &ProcessName) -> Result<(), String> {
        for daemon in self.daemons(process)? {
            daemon.resume().await;
        }
        Ok(())
    }

    fn daemons(&self, process: &ProcessName) -> Result<Vec<&Daemon>, String> {
        if process.kind == "control" {
            return Ok(vec![&self.kubelet.control]);
        }
        let is_meant = |node: &String| process.node.as_ref().is_none_or(|wanted| wanted == node);
        let nodes = self
            .kubelet
            .nodes
            .values()
            .filter(|node| is_meant(&node.id.to_string()));
        let daemons: Vec<_> = nodes
            .map(|node| {
                if process.kind == "agent" {
                    &node.agent
                } else {
                    &node.proxy
                }
            })
            .collect();
        if daemons.is_empty() {
            return Err(format!("there is no node {:?}", process.node));
        }
        Ok(daemons)
    }

    fn enter(&self, pod: &str, container: Option<&str>) -> Answer {
        match self.kubelet.enter(pod, container) {
            Ok(entrance) => Answer::Enter { entrance },
            Err(reason) => Answer::Refused {
                reason,
                usage: true,
            },
        }
    }
}

fn done(result: Result<(), String>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(reason) => refused(reason),
    }
}
