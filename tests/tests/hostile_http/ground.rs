// SPDX-License-Identifier: Apache-2.0
//! The pods, three ways to a server, and the bystander that must not notice.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use culvert_tests::{
    manifests::Pod,
    metrics::Scrape,
    process::Running,
    sandbox::{Daemon, Plan, Sandbox},
    tls::{self, Authority, CULVERT_H2, CULVERT_HTTP1, Hello},
    wait::wait_for,
};

use crate::{app, app2};

pub const SOON: Duration = Duration::from_secs(10);

/// How long a request's body may stand still here.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// The ports of the applications: HTTP/1.1 and HTTP/2.
pub const HTTP1: u16 = 7080;
pub const HTTP2: u16 = 7081;
/// The one whose answers mean harm.
pub const EVIL: u16 = 7082;

/// Where the relay in `mesh` listens for each port.
const RELAYED: u16 = 2000;

/// On the first node `mesh`, which is meshed, and `plain`, which is not; on the second the servers
/// `open` (permissive) and `strict`.
pub struct Ground<'a> {
    pub sandbox: &'a Sandbox,
    pub apps: &'a Apps,
}

/// The applications in the servers' pods, which this test plays itself.
pub struct Apps {
    open: app::App,
    strict: app::App,
    open2: app2::App,
    strict2: app2::App,
    _relay: Running,
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// An unmeshed pod to `open`: the server's proxy reads it.
    Plain,
    /// A meshed pod's application to `open`: its own proxy reads it.
    Outbound,
    /// A peer with a certificate to `strict`: the server's proxy reads it.
    Peer,
}

pub const WAYS: [Way; 3] = [Way::Plain, Way::Outbound, Way::Peer];

/// A connection of a kind that matters to nobody.
pub trait Wire: Read + Write + Send {
    fn patience(&self, patience: Duration) -> io::Result<()>;
}

impl Wire for TcpStream {
    fn patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }
}

impl Wire for rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    fn patience(&self, patience: Duration) -> io::Result<()> {
        self.sock.patience(patience)
    }
}

// === impl Way ===

impl Way {
    /// Connects to the server's HTTP/1.1 or HTTP/2.
    pub fn dial(self, sandbox: &Sandbox, port: u16) -> anyhow::Result<Box<dyn Wire>> {
        let wire: Box<dyn Wire> = match self {
            Self::Plain => Box::new(from(sandbox, "plain", at(sandbox, "open", port)?)?),
            Self::Outbound => {
                let relay = SocketAddr::from((Ipv4Addr::LOCALHOST, port + RELAYED));
                Box::new(from(sandbox, "mesh", relay)?)
            }
            Self::Peer => {
                let tcp = from(sandbox, "plain", at(sandbox, "strict", port)?)?;
                let mut hello = Hello::mesh("strict", b"");
                let alpn = if port == HTTP2 {
                    CULVERT_H2
                } else {
                    CULVERT_HTTP1
                };
                hello.alpn = vec![alpn.to_vec()];
                let own = Authority::of_sandbox(sandbox)?.sign("mesh")?;
                Box::new(tls::session(tcp, &hello, own)?)
            }
        };
        wire.patience(SOON)?;
        Ok(wire)
    }

    /// What the application at its end has seen.
    pub fn app<'a>(self, ground: &Ground<'a>) -> &'a app::App {
        if self == Self::Peer {
            &ground.apps.strict
        } else {
            &ground.apps.open
        }
    }

    /// The same of the HTTP/2 application.
    pub fn app2<'a>(self, ground: &Ground<'a>) -> &'a app2::App {
        if self == Self::Peer {
            &ground.apps.strict2
        } else {
            &ground.apps.open2
        }
    }

    /// What the proxy that reads it has refused so far, by `error`.
    pub fn faults(self, sandbox: &Sandbox) -> anyhow::Result<Faults> {
        let (node, metric, pod) = match self {
            Self::Plain => ("n2", "inbound_http_errors_total", "open"),
            Self::Outbound => ("n1", "outbound_http_errors_total", "mesh"),
            Self::Peer => ("n2", "inbound_http_errors_total", "strict"),
        };
        let scrape = sandbox.scrape(Daemon::Proxy(node))?;
        Ok(Faults {
            scrape,
            metric,
            pod,
        })
    }

    /// Waits until this many more were refused as `error`.
    pub fn counted(
        self,
        ground: &Ground<'_>,
        before: &Faults,
        error: &str,
        times: usize,
    ) -> anyhow::Result<()> {
        let what = format!("{times} more `{error}` ({self:?})");
        wait_for(&what, SOON, || {
            let now = self.faults(ground.sandbox)?;
            let more = now.of(error) - before.of(error);
            ensure!(more == times as f64, "there are {more}: {}", now.all());
            Ok::<_, anyhow::Error>(())
        })
    }
}

/// A look at `{in,out}bound_http_errors_total`.
pub struct Faults {
    scrape: Scrape,
    metric: &'static str,
    pod: &'static str,
}

// === impl Faults ===

impl Faults {
    pub fn of(&self, error: &str) -> f64 {
        self.scrape
            .sum(self.metric, &[("pod", self.pod), ("error", error)])
    }

    fn all(&self) -> String {
        let labels = [("pod", self.pod)];
        let samples = self.scrape.matching(self.metric, &labels);
        let all: Vec<_> = samples
            .map(|sample| format!("{:?} {}", sample.labels.get("error"), sample.value))
            .collect();
        all.join(", ")
    }
}

// === impl Ground ===

impl Ground<'_> {
    pub fn up() -> anyhow::Result<(Sandbox, Apps)> {
        let plan = Plan::new("hostile-http")?
            .flag("--proxy-arg=--body-timeout")
            .flag(&format!("--proxy-arg={}s", BODY_TIMEOUT.as_secs()));
        let idle = |name, node| Pod::new(name, node, &["sleep", "infinity"]);
        let sandbox = plan
            .pod(&idle("mesh", "n1").meshed())?
            .pod(&idle("plain", "n1"))?
            .pod(&idle("open", "n2").meshed())?
            .pod(&idle("strict", "n2").strict())?
            .up()?;
        let apps = Apps::start(&sandbox)?;
        apps.over(&sandbox).answers()?;
        Ok((sandbox, apps))
    }

    /// Every way leads to an application.
    fn answers(&self) -> anyhow::Result<()> {
        for way in WAYS {
            wait_for(&format!("an answer, {way:?}"), SOON * 2, || {
                get(&mut *way.dial(self.sandbox, HTTP1)?, "/up")
            })?;
        }
        Ok(())
    }
}

// === impl Apps ===

impl Apps {
    fn start(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let relayed = |port| {
            let target = at(sandbox, "open", port)?;
            Ok::<_, anyhow::Error>(format!("{}={target}", port + RELAYED))
        };
        let relays = [relayed(HTTP1)?, relayed(HTTP2)?, relayed(EVIL)?];
        let mut relay =
            sandbox.spawn_app("mesh", &["relay", &relays[0], &relays[1], &relays[2]])?;
        ensure!(relay.next::<bool>(SOON)?, "the relay does not listen");
        Ok(Self {
            open: app::App::start(sandbox, "open", HTTP1)?,
            strict: app::App::start(sandbox, "strict", HTTP1)?,
            open2: app2::App::start(sandbox, "open", HTTP2)?,
            strict2: app2::App::start(sandbox, "strict", HTTP2)?,
            _relay: relay,
        })
    }

    pub fn over<'a>(&'a self, sandbox: &'a Sandbox) -> Ground<'a> {
        Ground {
            sandbox,
            apps: self,
        }
    }
}

/// The anonymous memory of both proxies, in bytes.
pub fn memory(sandbox: &Sandbox) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in proxies(sandbox)? {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        sum += kilobytes.context("no RssAnon")?.parse::<u64>()? << 10;
    }
    Ok(sum)
}

fn from(sandbox: &Sandbox, pod: &str, addr: SocketAddr) -> anyhow::Result<TcpStream> {
    sandbox.pod(pod).run(move || {
        let tcp = TcpStream::connect_timeout(&addr, SOON)?;
        tcp.set_nodelay(true)?;
        tcp.patience(SOON)?;
        Ok(tcp)
    })
}

pub fn at(sandbox: &Sandbox, pod: &str, port: u16) -> anyhow::Result<SocketAddr> {
    Ok(sandbox.at(pod, port)?.parse()?)
}

/// One request and its answer on a connection that stays open.
pub fn get(wire: &mut dyn Wire, path: &str) -> anyhow::Result<()> {
    wire.write_all(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n").as_bytes())?;
    let answer = read_answer(wire)?.context("the connection ended")?;
    ensure!(answer.status == 200, "{path}: {}", answer.head);
    Ok(())
}

/// An answer with a Content-Length, or none.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

/// Reads the next answer. None: the connection ended before it.
pub fn read_answer(wire: &mut dyn Wire) -> anyhow::Result<Option<Answer>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match wire.read(&mut byte) {
            Ok(0) if head.is_empty() => return Ok(None),
            Ok(1) => head.push(byte[0]),
            Err(error) if head.is_empty() && was_reset(&error) => return Ok(None),
            other => {
                return Err(anyhow!(
                    "{other:?} after {:?}",
                    String::from_utf8_lossy(&head)
                ));
            }
        }
    }
    let head = String::from_utf8(head)?.to_lowercase();
    let status = head.get(9..12).and_then(|code| code.parse().ok());
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap_or("0").parse()?];
    wire.read_exact(&mut body)?;
    let status = status.with_context(|| format!("no status: {head:?}"))?;
    Ok(Some(Answer { status, head, body }))
}

/// Ended by RST, or by TLS without its alert.
fn was_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof
    )
}

/// Requests all the while on connections of its own, each way.
pub struct Bystander {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<u32>>>,
    proxies: [u64; 2],
}

// === impl Bystander ===

impl Bystander {
    fn start(ground: &Ground<'_>) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for way in WAYS {
            let mut wire = way.dial(ground.sandbox, HTTP1)?;
            let stop = stop.clone();
            threads.push(thread::spawn(move || {
                ask(&mut *wire, &stop).with_context(|| format!("{way:?}"))
            }));
        }
        Ok(Self {
            stop,
            threads,
            proxies: proxies(ground.sandbox)?,
        })
    }

    fn unharmed(self, ground: &Ground<'_>) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let asked = thread
                .join()
                .map_err(|_| anyhow!("the bystander panicked"))?;
            let asked = asked.context("the bystander noticed")?;
            ensure!(asked > 0, "the bystander never asked");
        }
        ensure!(
            proxies(ground.sandbox)? == self.proxies,
            "a proxy was restarted"
        );
        for node in ["n1", "n2"] {
            let panics = ground
                .sandbox
                .metric(Daemon::Proxy(node), "proxy_panics_total", &[])?;
            ensure!(panics == 0.0, "{panics} tasks panicked on {node}");
        }
        Ok(())
    }
}

fn ask(wire: &mut dyn Wire, stop: &AtomicBool) -> anyhow::Result<u32> {
    let mut asked = 0;
    while asked == 0 || !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        get(wire, "/bystander").with_context(|| format!("request {asked}"))?;
        asked += 1;
        thread::sleep(Duration::from_millis(20).saturating_sub(begun.elapsed()));
    }
    Ok(asked)
}

fn proxies(sandbox: &Sandbox) -> anyhow::Result<[u64; 2]> {
    Ok([
        sandbox.pid(Daemon::Proxy("n1"))?,
        sandbox.pid(Daemon::Proxy("n2"))?,
    ])
}

/// Runs an attack while the bystander asks. No application ever sees what was smuggled.
pub fn among_bystanders(
    ground: &Ground<'_>,
    attack: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bystander = Bystander::start(ground)?;
    let result = attack();
    let unharmed = bystander.unharmed(ground);
    result?;
    unharmed?;
    for app in [&ground.apps.open, &ground.apps.strict] {
        let smuggled = app
            .seen()
            .into_iter()
            .find(|seen| seen.line.contains("/smuggled"));
        ensure!(smuggled.is_none(), "an application saw {smuggled:?}");
    }
    Ok(())
}
