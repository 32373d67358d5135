// SPDX-License-Identifier: Apache-2.0
//! Where pods and services are, in each family.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Daemon, PATIENCE, Sandbox};
use crate::{
    app::report::Report,
    manifests::NAMESPACE,
    process::{Output, run},
};

impl Sandbox {
    /// A pod's IPv4 address, from its interface.
    pub fn ip(&self, pod: &str) -> anyhow::Result<IpAddr> {
        self.address("-4", pod)
    }

    /// A pod's IPv6 address, from its interface.
    pub fn ip6(&self, pod: &str) -> anyhow::Result<IpAddr> {
        self.address("-6", pod)
    }

    fn address(&self, family: &str, pod: &str) -> anyhow::Result<IpAddr> {
        Ok(self.first(pod, family, "global")?.parse()?)
    }

    /// A pod's link-local IPv6 address.
    pub fn link_local(&self, pod: &str) -> anyhow::Result<String> {
        self.first(pod, "-6", "link")
    }

    /// `ip` puts an empty object in the place of each address that is of another scope.
    fn first(&self, pod: &str, family: &str, scope: &str) -> anyhow::Result<String> {
        let shown = ["-j", family, "addr", "show", "scope", scope];
        let links: Value = self.ip_in(pod, &shown)?.json()?;
        let links = links.as_array().into_iter().flatten();
        let infos = links.filter_map(|link| link["addr_info"].as_array());
        let mut addrs = infos.flatten().filter_map(|info| info["local"].as_str());
        let addr = addrs.next();
        let missing = || format!("the pod {pod} has no {scope} address of {family}");
        addr.map(str::to_owned).with_context(missing)
    }

    /// Runs `ip` in a pod's network namespace, from outside of the pod.
    pub fn ip_in(&self, pod: &str, args: &[&str]) -> anyhow::Result<Output> {
        let netns = format!("cv-{}-{NAMESPACE}-{pod}", self.name);
        let mut ip = Command::new("ip");
        run(ip.args(["-n", &netns]).args(args), PATIENCE)?.ok()
    }

    /// `IP:PORT` of a pod, over IPv4.
    pub fn at(&self, pod: &str, port: u16) -> anyhow::Result<String> {
        Ok(SocketAddr::new(self.ip(pod)?, port).to_string())
    }

    /// `[IP]:PORT` of a pod, over IPv6.
    pub fn at6(&self, pod: &str, port: u16) -> anyhow::Result<String> {
        Ok(SocketAddr::new(self.ip6(pod)?, port).to_string())
    }

    /// The IPv4 address of a service, as a pod resolves it.
    pub fn service_ip(&self, from: &str, service: &str) -> anyhow::Result<IpAddr> {
        self.resolve("ahostsv4", from, service)
    }

    /// The IPv6 address of a service, as a pod resolves it.
    pub fn service_ip6(&self, from: &str, service: &str) -> anyhow::Result<IpAddr> {
        let ip = self.resolve("ahostsv6", from, service)?;
        ensure!(ip.to_canonical() == ip, "{service} has no IPv6 address");
        Ok(ip)
    }

    fn resolve(&self, database: &str, from: &str, service: &str) -> anyhow::Result<IpAddr> {
        let found = self.exec(from, &["getent", database, service])?;
        let found = found.ok()?.stdout;
        let addr = found.split_whitespace().next().context("no address")?;
        Ok(addr.parse()?)
    }

    /// A pod's IPv4 and IPv6 address.
    pub fn ips(&self, pod: &str) -> anyhow::Result<[IpAddr; 2]> {
        Ok([self.ip(pod)?, self.ip6(pod)?])
    }

    /// Gives a link of a pod another address, written as `IP/LENGTH`.
    pub fn add_address(&self, pod: &str, address: &str, link: &str) -> anyhow::Result<()> {
        let nodad = address.contains(':').then_some("nodad");
        let mut args = vec!["addr", "add", address, "dev", link];
        args.extend(nodad);
        self.ip_in(pod, &args).map(drop)
    }

    /// Takes an address away again.
    pub fn delete_address(&self, pod: &str, address: &str, link: &str) -> anyhow::Result<()> {
        let args = ["addr", "del", address, "dev", link];
        self.ip_in(pod, &args).map(drop)
    }

    /// What a `whoami` server says to a pod.
    pub fn whoami(&self, from: &str, to: SocketAddr, flags: &[&str]) -> anyhow::Result<Report> {
        let flags = [&["--exchange", "line", "--patience", "5"], flags].concat();
        let report = self.connect(from, &to.to_string(), &flags)?;
        report.all().with_context(|| format!("{from} → {to}"))?;
        Ok(report)
    }

    /// A connection to the `whoami` server at port 7001 begins at `source`, for both sides.
    pub fn met(&self, from: &str, to: IpAddr, source: IpAddr) -> anyhow::Result<()> {
        let report = self.whoami(from, SocketAddr::new(to, 7001), &[])?;
        let peer = report.whoami()?.peer.ip().to_canonical();
        let own = report.seen()?.local.ip().to_canonical();
        ensure!(
            peer == source && own == source,
            "{from} → {to}: the server saw {peer}, the client {own}, expected {source}"
        );
        Ok(())
    }

    /// Fails unless connect() says at once that there is no way, by a route or by a rule.
    pub fn unreachable(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let report = self.connect(from, to, &["--patience", "5"])?;
        let errors = ["connect: EHOSTUNREACH", "connect: ENETUNREACH"];
        let as_said = errors.iter().any(|name| report.none(name).is_ok());
        ensure!(
            as_said,
            "{from} → {to}: {} succeeded, failures: {:?}",
            report.succeeded,
            report.failures
        );
        Ok(())
    }

    /// How often the programs of a pod decided so.
    pub fn steering(&self, node: &str, pod: &str, decision: &str) -> anyhow::Result<f64> {
        let labels = [("pod", pod), ("decision", decision)];
        self.metric(Daemon::Agent(node), "culvert_steering_total", &labels)
    }
}
