// SPDX-License-Identifier: Apache-2.0
//! The socket of `culvert-cni`: one request and one answer on each connection.

use std::{
    convert::Infallible,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_api::{
    cni::{Command, MAX_MESSAGE, Request, Response, VERSIONS, code},
    version::{NoCommonVersion, Versions},
};
use nix::sys::stat::{Mode, fchmod};
use serde::Deserialize;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

use crate::{metrics::Metrics, pods::Pods};

const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than anything takes, shorter than the plugin waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

const MAX_CONNECTIONS: usize = 512;
const BACKLOG: i32 = 512;

/// The bound socket.
#[derive(Debug)]
pub struct CniServer {
    listener: UnixListener,
    pods: Pods,
    metrics: Metrics,
    connections: Arc<Semaphore>,
}

/// A request can't be read: the plugin's fault.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("could not read the request: {0}")]
    Io(#[from] io::Error),
    #[error("no request came within {} seconds", READ_TIMEOUT.as_secs())]
    Slow,
    #[error("the request is longer than {MAX_MESSAGE} bytes")]
    TooLong,
    #[error("the request is not one of this protocol: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
}

/// What no release changes of a request, so that the rest need not be understood to refuse it.
#[derive(Deserialize)]
struct Head {
    versions: Versions,
}

// === impl CniServer ===

impl CniServer {
    /// Binds the socket for root alone.
    pub fn bind(path: &Path, pods: Pods, metrics: Metrics) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        // Before bind(): there is no moment in which others can connect.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(BACKLOG)?;
        Ok(Self {
            listener: UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())?,
            pods,
            metrics,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        })
    }

    /// Serves until the task is dropped.
    pub async fn serve(self) -> Infallible {
        let this = Arc::new(self);
        loop {
            // Never closed, so always granted.
            let permit = Arc::clone(&this.connections).acquire_owned().await;
            match this.listener.accept().await {
                Ok((stream, _)) => {
                    let this = Arc::clone(&this);
                    tokio::spawn(async move {
                        this.connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a connection of the CNI plugin");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, mut stream: UnixStream) {
        let response = match read(&mut stream).await {
            Ok(request) => self.answer(request).await,
            Err(unreadable) => self.refuse(&unreadable),
        };
        if let Err(error) = write(&mut stream, &response).await {
            tracing::warn!(%error, "Could not answer the CNI plugin");
        }
    }

    async fn answer(&self, Request { command, .. }: Request) -> Response {
        let (label, start) = (label(&command), Instant::now());
        let response = self.carry_out(command).await;
        if label == "add" {
            let seconds = start.elapsed().as_secs_f64();
            self.metrics.cni_add_seconds.observe(seconds);
        }
        self.count(label, &response);
        response
    }

    async fn carry_out(&self, command: Command) -> Response {
        let carried_out = async {
            match command {
                Command::Add(attachment) => self.pods.add(attachment).await,
                Command::Del(attachment) => self.pods.del(attachment).await,
                Command::Check(attachment) => self.pods.check(attachment).await,
                Command::Gc { network, valid } => self.pods.gc(network, valid).await,
                // The socket is bound when pods can be added. A proxy is not asked for: the kubelet
                // starts nothing in the pods' network, and so no proxy, while STATUS fails.
                Command::Status => Response::Done { steered: false },
            }
        };
        let late = || {
            let message = format!("took longer than {} seconds", ANSWER_TIMEOUT.as_secs());
            failed(code::TRY_AGAIN, message, "the agent's log says more")
        };
        timeout(ANSWER_TIMEOUT, carried_out)
            .await
            .unwrap_or_else(|_| late())
    }

    fn refuse(&self, unreadable: &Unreadable) -> Response {
        tracing::warn!(error = %unreadable, "Could not read a request of the CNI plugin");
        let (code, advice) = match unreadable {
            Unreadable::Version(_) => (
                code::NOT_AVAILABLE,
                "culvert-cni and culvert-agent are more than a release apart",
            ),
            _ => (
                code::DECODING_FAILURE,
                "a culvert-cni of a later release, or something else used the agent's socket",
            ),
        };
        let response = failed(code, unreadable.to_string(), advice);
        self.count("unreadable", &response);
        response
    }

    fn count(&self, command: &str, response: &Response) {
        let result = match response {
            Response::Done { .. } => "ok".to_owned(),
            Response::Failed { code, .. } => code.to_string(),
        };
        let requests = &self.metrics.cni_requests;
        requests.with_label_values(&[command, &result]).inc();
    }
}

async fn read(stream: &mut UnixStream) -> Result<Request, Unreadable> {
    let limit = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    let mut limited = BufReader::new(stream.take(limit));
    let read = limited.read_until(b'\n', &mut line);
    timeout(READ_TIMEOUT, read)
        .await
        .map_err(|_| Unreadable::Slow)??;
    if line.len() >= MAX_MESSAGE && !line.ends_with(b"\n") {
        return Err(Unreadable::TooLong);
    }
    let Head { versions } = serde_json::from_slice(&line)?;
    VERSIONS.agree(versions)?;
    Ok(serde_json::from_slice(&line)?)
}

async fn write(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    timeout(READ_TIMEOUT, stream.write_all(&line)).await?
}

const fn label(command: &Command) -> &'static str {
    match command {
        Command::Add(_) => "add",
        Command::Del(_) => "del",
        Command::Check(_) => "check",
        Command::Gc { .. } => "gc",
        Command::Status => "status",
    }
}

fn failed(code: u32, message: String, details: &str) -> Response {
    Response::Failed {
        code,
        message,
        details: details.to_owned(),
    }
}
