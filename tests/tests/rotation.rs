// SPDX-License-Identifier: Apache-2.0
//! The issuer and the trust anchors are replaced while pods talk, and no connection notices.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{hold::Held, report::Report, requests::Requested},
    manifests::Pod,
    process::Running,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    tls::{self, Authority, Ending, Hello},
    wait::wait_for,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair};

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
const HELD: &str = "20";

const ANCHORS: &str = "culvert_proxy_trust_anchor_expiration_timestamp_seconds";
const ISSUERS: &str = "control_identity_cert_issuer_expiration_timestamp_seconds";
const READS: &str = "culvert_control_authority_reads_total";

#[test]
fn rotation() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step("when anchors and issuer end is told", told);
    suite.step("a new issuer signs at once, under load", new_issuer);
    suite.step(
        "an issuer that nobody vouches for changes nothing",
        stranger,
    );
    suite.step(
        "new anchors and an issuer of theirs, under load",
        new_anchors,
    );
    suite.step(
        "who has the old issuer's certificate is refused",
        old_is_refused,
    );
    suite.step(
        "control and proxies that restart go on from there",
        restarted,
    );
    suite.finish()
}

fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("rotation")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo", "7001=http"]).strict();
    let sandbox = plan
        .pod(&pod("client", "n1"))?
        .pod(&pod("server", "n2"))?
        .pod(&pod("back", "n1"))?
        .pod(&Pod::serving("plain", "n1", &app, &["7000=echo"]))?
        .up()?;
    sandbox.answers("client", "server", 7000)?;
    sandbox.answers("server", "back", 7000)?;
    Ok(sandbox)
}

// === what goes on meanwhile ===

/// Connections, requests and open connections in both directions between the nodes.
struct Load {
    connections: Vec<Running>,
    requests: Vec<Running>,
    held: Option<Running>,
}

impl Load {
    /// All of it.
    fn begin(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let mut load = Self::of_connections(sandbox)?;
        let flags = ["--rate", "200", "--connections", "4"];
        load.requests = start(sandbox, 7001, "requests", &flags)?;
        let at = sandbox.at("server", 7000)?;
        let mut held = sandbox.spawn_app("client", &["hold", &at, "--connections", HELD])?;
        all_held(&mut held)?;
        load.held = Some(held);
        Ok(load)
    }

    /// A proxy that ends closes what is open and idle: only connections of one exchange.
    fn of_connections(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let flags = ["--count", "0", "--concurrent", "4", "--patience", "30"];
        let connections = start(sandbox, 7000, "connect", &flags)?;
        let load = Self {
            connections,
            requests: Vec::new(),
            held: None,
        };
        load.goes_on(sandbox)?;
        Ok(load)
    }

    /// Waits until a hundred connections have been opened each way from now on.
    fn goes_on(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        for (node, pod) in [("n2", "server"), ("n1", "back")] {
            let labels = [("pod", pod), ("direction", "inbound")];
            let opened = || sandbox.metric(Daemon::Proxy(node), "tcp_open_total", &labels);
            let before = opened()?;
            wait_for("a hundred connections more", LONG, || {
                let now = opened()?;
                ensure!(now >= before + 100.0, "{before} became {now}");
                Ok::<_, anyhow::Error>(())
            })?;
        }
        Ok(())
    }

    /// Not one failed.
    fn end(mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        self.goes_on(sandbox)?;
        if let Some(mut held) = self.held.take() {
            held.say("once more")?;
            all_held(&mut held)?;
            held.finish(LONG)?.ok()?;
        }
        for load in self.connections {
            let report: Report = load.finish(LONG)?.json()?;
            eprintln!(
                "    {} connections, {:?}",
                report.attempted, report.failures
            );
            report.all()?;
        }
        for load in self.requests {
            let report: Requested = load.finish(LONG)?.json()?;
            eprintln!("    {} requests, {:?}", report.sent, report.failures);
            ensure!(report.failures.is_empty(), "{report:?}");
            ensure!(report.sent > 100, "{report:?}");
        }
        Ok(())
    }
}

/// A client each way.
fn start(sandbox: &Sandbox, port: u16, what: &str, flags: &[&str]) -> anyhow::Result<Vec<Running>> {
    let each = [("client", "server"), ("server", "back")].into_iter();
    let each = each.map(|(from, to)| {
        let at = sandbox.at(to, port)?;
        sandbox.spawn_app(from, &[&[what, &at, "--until-eof"], flags].concat())
    });
    each.collect()
}

fn all_held(held: &mut Running) -> anyhow::Result<()> {
    let now: Held = held.next(SOON)?;
    ensure!(now.working.to_string() == HELD, "{now:?}, expected {HELD}");
    Ok(())
}

// === files ===

/// An anchor or an issuer, with its key.
struct Ca {
    pem: String,
    key: String,
}

impl Ca {
    fn anchor(name: &str) -> anyhow::Result<Self> {
        let issuer = CertifiedIssuer::self_signed(params(name), KeyPair::generate()?)?;
        Ok(Self {
            pem: issuer.pem(),
            key: issuer.key().serialize_pem(),
        })
    }

    /// What control made at its first start.
    fn of_sandbox(sandbox: &Sandbox) -> anyhow::Result<Self> {
        Ok(Self {
            pem: fs::read_to_string(file(sandbox, "trust-anchors.pem"))?,
            key: fs::read_to_string(file(sandbox, "anchor.key"))?,
        })
    }

    fn issuer(&self, name: &str) -> anyhow::Result<Self> {
        let signer = Issuer::from_ca_cert_pem(&self.pem, KeyPair::from_pem(&self.key)?)?;
        let key = KeyPair::generate()?;
        Ok(Self {
            pem: params(name).signed_by(&key, &signer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Control signs with it.
    fn install(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        write(sandbox, "issuer.crt", &self.pem)?;
        write(sandbox, "issuer.key", &self.key)
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn file(sandbox: &Sandbox, name: &str) -> PathBuf {
    sandbox.root().join("control").join(name)
}

/// As a kubelet or an operator does: under another name first.
fn write(sandbox: &Sandbox, name: &str, text: &str) -> anyhow::Result<()> {
    let (path, new) = (file(sandbox, name), file(sandbox, "new"));
    fs::write(&new, text).and_then(|()| fs::rename(&new, &path))?;
    Ok(())
}

// === what the proxies have ===

fn labels(
    sandbox: &Sandbox,
    node: &str,
    metric: &str,
    label: &str,
) -> anyhow::Result<BTreeSet<String>> {
    let scrape = sandbox.scrape(Daemon::Proxy(node))?;
    let samples = scrape.matching(metric, &[]);
    Ok(samples
        .filter_map(|sample| sample.labels.get(label).cloned())
        .collect())
}

fn issuers(sandbox: &Sandbox, node: &str) -> anyhow::Result<BTreeSet<String>> {
    labels(sandbox, node, ISSUERS, "issuer")
}

fn anchors(sandbox: &Sandbox, node: &str) -> anyhow::Result<BTreeSet<String>> {
    labels(sandbox, node, ANCHORS, "anchor")
}

/// Every certificate of both nodes is of another issuer than `before`, and of one.
fn all_renewed(sandbox: &Sandbox, before: &BTreeSet<String>) -> anyhow::Result<()> {
    let begun = Instant::now();
    for node in ["n1", "n2"] {
        wait_for("all certificates to be renewed", SOON, || {
            let now = issuers(sandbox, node)?;
            let done = now.len() == 1 && now.is_disjoint(before);
            ensure!(done, "{node} has {now:?} after {before:?}");
            Ok::<_, anyhow::Error>(())
        })?;
    }
    eprintln!("    all renewed after {} ms", begun.elapsed().as_millis());
    Ok(())
}

fn have_anchors(sandbox: &Sandbox, count: usize) -> anyhow::Result<BTreeSet<String>> {
    for node in ["n1", "n2"] {
        wait_for(&format!("{node} to have {count} anchors"), SOON, || {
            let now = anchors(sandbox, node)?;
            ensure!(now.len() == count, "{now:?}");
            Ok::<_, anyhow::Error>(())
        })?;
    }
    anchors(sandbox, "n1")
}

fn reads(sandbox: &Sandbox, result: &str) -> anyhow::Result<f64> {
    sandbox.metric(Daemon::Control, READS, &[("result", result)])
}

// === the steps ===

fn told(sandbox: &Sandbox) -> anyhow::Result<()> {
    for name in [
        "issuer_cert_ttl_seconds",
        "culvert_control_trust_anchor_ttl_seconds",
        "culvert_control_serving_cert_ttl_seconds",
    ] {
        let left = sandbox.metric(Daemon::Control, name, &[])?;
        ensure!(left > 3600.0, "{name} is {left}");
    }
    for node in ["n1", "n2"] {
        ensure!(anchors(sandbox, node)?.len() == 1);
        ensure!(issuers(sandbox, node)?.len() == 1);
    }
    Ok(())
}

fn new_issuer(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = issuers(sandbox, "n1")?;
    let load = Load::begin(sandbox)?;
    Ca::of_sandbox(sandbox)?
        .issuer("the second")?
        .install(sandbox)?;
    all_renewed(sandbox, &before)?;
    load.end(sandbox)
}

fn stranger(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (before, refused) = (issuers(sandbox, "n1")?, reads(sandbox, "refused")?);
    let [certificate, key] =
        ["issuer.crt", "issuer.key"].map(|name| fs::read_to_string(file(sandbox, name)));
    let good = Ca {
        pem: certificate?,
        key: key?,
    };
    Ca::anchor("a stranger")?
        .issuer("of a stranger")?
        .install(sandbox)?;
    let labels = [("result", "refused")];
    sandbox.metric_reaches(Daemon::Control, READS, &labels, refused + 1.0)?;
    let log = sandbox.logs("control")?;
    ensure!(
        log.contains("does not lead to any of the trust anchors"),
        "{log}"
    );
    write(sandbox, "issuer.crt", "-----BEGIN CERTIFICATE-----\nhalf")?;
    sandbox.metric_reaches(Daemon::Control, READS, &labels, refused + 2.0)?;
    sandbox.apply(&Pod::serving("late", "n2", sandbox.testapp(), &["7000=echo"]).strict())?;
    sandbox.answers("client", "late", 7000)?;
    ensure!(issuers(sandbox, "n2")? == before, "another issuer signed");
    good.install(sandbox)
}

fn new_anchors(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (old_anchor, old_issuers) = (anchors(sandbox, "n1")?, issuers(sandbox, "n1")?);
    let old = fs::read_to_string(file(sandbox, "trust-anchors.pem"))?;
    keep_credentials(sandbox)?;
    let load = Load::begin(sandbox)?;
    let new = Ca::anchor("the second anchor")?;
    write(sandbox, "trust-anchors.pem", &format!("{old}{}", new.pem))?;
    have_anchors(sandbox, 2)?;
    load.goes_on(sandbox)?;
    new.issuer("of the second anchor")?.install(sandbox)?;
    all_renewed(sandbox, &old_issuers)?;
    load.goes_on(sandbox)?;
    write(sandbox, "trust-anchors.pem", &new.pem)?;
    let now = have_anchors(sandbox, 1)?;
    ensure!(now.is_disjoint(&old_anchor), "{now:?}");
    load.goes_on(sandbox)?;
    load.end(sandbox)
}

/// The old issuer, for who would go on with it.
fn keep_credentials(sandbox: &Sandbox) -> anyhow::Result<()> {
    let kept = sandbox.root().join("old");
    fs::create_dir_all(&kept)?;
    for name in ["issuer.crt", "issuer.key"] {
        fs::copy(file(sandbox, name), kept.join(name)).context(name)?;
    }
    ensure!(
        is_let_in(sandbox, &Authority::kept(&kept)?)?,
        "it is still good"
    );
    Ok(())
}

fn is_let_in(sandbox: &Sandbox, authority: &Authority) -> anyhow::Result<bool> {
    let at = sandbox.at("server", 7000)?.parse()?;
    let hello = Hello::mesh("server", b"let me in");
    let own = authority.sign("plain")?;
    let ending = tls::connect(&sandbox.pod("plain"), at, &hello, Some(own))?;
    Ok(matches!(ending, Ending::Answered(_)))
}

fn old_is_refused(sandbox: &Sandbox) -> anyhow::Result<()> {
    let old = Authority::kept(&sandbox.root().join("old"))?;
    ensure!(!is_let_in(sandbox, &old)?, "the old issuer still counts");
    ensure!(
        is_let_in(sandbox, &Authority::of_sandbox(sandbox)?)?,
        "the new one does not"
    );
    Ok(())
}

fn restarted(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = issuers(sandbox, "n1")?;
    let load = Load::of_connections(sandbox)?;
    let control = sandbox.pid(Daemon::Control)?;
    sandbox.kill("control", None, false)?;
    sandbox.replaced(Daemon::Control, control)?;
    let proxy = sandbox.pid(Daemon::Proxy("n2"))?;
    sandbox.terminate("proxy", Some("n2"))?;
    sandbox.replaced(Daemon::Proxy("n2"), proxy)?;
    sandbox.ready(Daemon::Proxy("n2"))?;
    ensure!(
        issuers(sandbox, "n2")? == before,
        "it has another issuer's certificate"
    );
    load.end(sandbox)
}
