// SPDX-License-Identifier: Apache-2.0
//! Readiness and liveness probes, made from the node's network namespace by this process, as a
//! kubelet makes them.

use std::{
    collections::BTreeMap,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::time::{sleep, timeout};

use super::{http, netns::Netns, process::Launch};

/// A container that does not answer yet is asked more often than its probe says, as by kubelets.
const IMPATIENT: Duration = Duration::from_millis(250);

/// Makes a process inside the container.
pub type Exec<'a> = Box<dyn Fn(Vec<String>) -> io::Result<Launch> + Send + Sync + 'a>;

/// The container that is probed.
pub struct Target<'a> {
    /// Where probes come from.
    pub node: &'a Netns,
    /// The pod's address.
    pub ip: Option<IpAddr>,
    /// The container's named ports.
    pub ports: BTreeMap<String, i32>,
    /// For exec probes.
    pub exec: Exec<'a>,
}

/// The numbers of a probe, with Kubernetes' defaults.
#[derive(Clone, Copy, Debug)]
struct Timing {
    delay: Duration,
    period: Duration,
    patience: Duration,
    successes: i32,
    failures: i32,
}

/// Counts answers until they make a difference.
#[derive(Debug)]
struct Verdict {
    timing: Timing,
    ready: bool,
    in_a_row: i32,
}

/// Tells whether the container is ready whenever that changes, and why not. Never returns.
pub async fn follow_readiness(
    probe: Option<&Probe>,
    target: &Target<'_>,
    tell: impl Fn(Result<(), String>),
) {
    let Some(probe) = probe else {
        return pending().await;
    };
    let mut verdict = Verdict::new(probe, false);
    sleep(verdict.timing.delay).await;
    loop {
        let answer = ask(probe, target, verdict.timing.patience).await;
        if verdict.changes(answer.is_ok()) || (!verdict.ready && answer.is_err()) {
            tell(answer.map_err(|why| format!("readiness probe failed: {why}")));
        }
        let period = verdict.timing.period;
        sleep(if verdict.ready {
            period
        } else {
            period.min(IMPATIENT)
        })
        .await;
    }
}

/// Returns why when the liveness probe failed as often as it may.
pub async fn wait_for_death(probe: Option<&Probe>, target: &Target<'_>) -> String {
    let Some(probe) = probe else {
        return pending().await;
    };
    let mut verdict = Verdict::new(probe, true);
    sleep(verdict.timing.delay).await;
    loop {
        let answer = ask(probe, target, verdict.timing.patience).await;
        if let (true, Err(why)) = (verdict.changes(answer.is_ok()), answer) {
            return why;
        }
        sleep(verdict.timing.period).await;
    }
}

async fn ask(probe: &Probe, target: &Target<'_>, patience: Duration) -> Result<(), String> {
    let asked = async {
        if let Some(get) = &probe.http_get {
            return ask_http(get, target, patience).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let addr = target.addr(tcp.host.as_deref(), &tcp.port)?;
            let connected = http::connect(target.node, addr).await;
            return connected
                .map(drop)
                .map_err(|error| format!("{addr}: {error}"));
        }
        let argv = probe.exec.as_ref().and_then(|exec| exec.command.clone());
        ask_exec(argv.unwrap_or_default(), target).await
    };
    let late = |_| format!("no answer in {patience:?}");
    timeout(patience, asked).await.map_err(late)?
}

async fn ask_http(get: &HTTPGetAction, target: &Target<'_>, wait: Duration) -> Result<(), String> {
    let addr = target.addr(get.host.as_deref(), &get.port)?;
    let path = get
        .path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/");
    let headers = headers(get, addr);
    let answer = http::ask(target.node, addr, path, &headers, wait).await;
    match answer
        .map_err(|error| format!("http://{addr}{path}: {error}"))?
        .status
    {
        200..400 => Ok(()),
        status => Err(format!("http://{addr}{path}: status {status}")),
    }
}

fn headers(get: &HTTPGetAction, addr: SocketAddr) -> String {
    let mut lines = String::new();
    let mut host = addr.to_string();
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
        } else {
            lines += &format!("{}: {}\r\n", header.name, header.value);
        }
    }
    format!("Host: {host}\r\nUser-Agent: culvert-sandbox-probe\r\nAccept: */*\r\n{lines}")
}

async fn ask_exec(argv: Vec<String>, target: &Target<'_>) -> Result<(), String> {
    let command = (target.exec)(argv)
        .and_then(Launch::command)
        .map_err(|e| e.to_string())?;
    let mut command = tokio::process::Command::from(command);
    let status = command
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|e| e.to_string())?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| status.to_string())
}

// === impl Target ===

impl Target<'_> {
    fn addr(&self, host: Option<&str>, port: &IntOrString) -> Result<SocketAddr, String> {
        let ip = match host.filter(|host| !host.is_empty()) {
            Some(host) => host
                .parse()
                .map_err(|_| format!("host {host:?} is no address"))?,
            None => self.ip.ok_or("the pod has no address")?,
        };
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => self.ports.get(name).copied().or(name.parse().ok()),
        };
        let number = number.and_then(|number| u16::try_from(number).ok());
        let number = number.ok_or_else(|| format!("the container has no port {port:?}"))?;
        Ok((ip, number).into())
    }
}

// === impl Timing ===

impl From<&Probe> for Timing {
    fn from(probe: &Probe) -> Self {
        let seconds = |given: Option<i32>, default: u64, least: u64| {
            let given = given
                .and_then(|given| u64::try_from(given).ok())
                .unwrap_or(default);
            Duration::from_secs(given.max(least))
        };
        Self {
            delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            patience: seconds(probe.timeout_seconds, 1, 1),
            successes: probe.success_threshold.unwrap_or(1),
            failures: probe.failure_threshold.unwrap_or(3),
        }
    }
}

// === impl Verdict ===

impl Verdict {
    fn new(probe: &Probe, ready: bool) -> Self {
        Self {
            timing: probe.into(),
            ready,
            in_a_row: 0,
        }
    }

    fn changes(&mut self, success: bool) -> bool {
        if success == self.ready {
            self.in_a_row = 0;
            return false;
        }
        self.in_a_row += 1;
        let needed = if success {
            self.timing.successes
        } else {
            self.timing.failures
        };
        if self.in_a_row < needed {
            return false;
        }
        self.in_a_row = 0;
        self.ready = success;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_in_a_row() {
        let probe = Probe {
            success_threshold: Some(2),
            ..Probe::default()
        };
        let mut verdict = Verdict::new(&probe, false);
        let changes = [
            true, false, true, true, false, false, true, false, false, false,
        ]
        .map(|success| verdict.changes(success));
        let expected = [
            false, false, false, true, false, false, false, false, false, true,
        ];
        assert_eq!(changes, expected);
    }

    #[tokio::test]
    async fn ports_are_numbers_or_names() {
        let node = Netns::create(&format!("cvt-{}-probe", std::process::id()));
        let node = node.unwrap_or_else(|e| panic!("{e}"));
        let target = Target {
            node: &node,
            ip: Some([10, 0, 0, 1].into()),
            ports: BTreeMap::from([("http".into(), 80)]),
            exec: Box::new(|_| Err(io::ErrorKind::Unsupported.into())),
        };
        let addr = |port| target.addr(None, &port).ok().map(|addr| addr.port());
        assert_eq!(addr(IntOrString::Int(8080)), Some(8080));
        assert_eq!(addr(IntOrString::String("http".into())), Some(80));
        assert_eq!(addr(IntOrString::String("x".into())), None);
        let probe = Probe::default();
        let refused = ask(&probe, &target, Duration::from_secs(1)).await;
        assert!(refused.is_err());
        crate::sandbox::netns::remove(&node.name).unwrap_or_else(|e| panic!("{e}"));
    }
}
