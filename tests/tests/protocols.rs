// SPDX-License-Identifier: Apache-2.0
//! HTTP, an application's own TLS inside the mesh's, and plain throughput: nginx, curl, OpenSSL
//! and iperf3, unmodified, through the mesh.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    capture::Capture,
    programs::{CLIENT, PLAIN, Server, nobody_reads, plan, shared, shell, through_the_mesh},
    require,
    sandbox::{Daemon, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);
const PROGRAMS: [&str; 5] = ["bash", "curl", "iperf3", "nginx", "openssl"];
const NGINX: Server = Server::new("nginx", 8443);
/// Its control connection takes one client at a time.
const IPERF3: Server = Server {
    name: "iperf3",
    ready: None,
};
/// A meshed pod that lets in anybody.
const OPEN: &str = "nginx-open";

#[test]
fn protocols() -> anyhow::Result<()> {
    if !require::programs(&PROGRAMS)? {
        return Ok(());
    }
    let files = TempDir::with_prefix("culvert-protocols-")?;
    let open = NGINX.pod(files.path(), OPEN)?.meshed();
    let plan = plan("protocols", files.path(), &[NGINX, IPERF3])?.pod(&open)?;
    let mut suite = Suite::new(plan.up()?);
    let mut step = |name: &str, step: fn(&Sandbox, &Path) -> anyhow::Result<()>| {
        suite.step(name, |sandbox| step(sandbox, files.path()));
    };
    step("HTTP/1.1, many connections and one that is kept", http1);
    step("HTTP/2 with prior knowledge", http2);
    step("TLS of the application: names and protocols", own_tls);
    step(
        "TLS of the application: a connection that is kept",
        kept_tls,
    );
    step(
        "TLS of the application: a client's certificate",
        client_certificate,
    );
    step("TLS to a permissive pod is relayed as it is", untouched);
    step("iperf3 with 1 and 16 streams, each way and both", iperf3);
    step("nobody between the nodes reads any of it", unreadable);
    suite.finish()
}

fn ip(sandbox: &Sandbox, server: &str) -> anyhow::Result<String> {
    Ok(sandbox.ip(server)?.to_string())
}

/// Runs curl in a pod with a script's `$server` and `$dir`; `curl` resolves the names to the server.
fn by_curl(
    sandbox: &Sandbox,
    files: &Path,
    (client, server): (&str, &str),
    script: &str,
) -> anyhow::Result<String> {
    let head = r#"
        server=$1 dir=$2 names=()
        for name in one.example two.example named.example; do names+=(--resolve "$name:8443:$server"); done
        curl() { command curl -sSf "${names[@]}" "$@"; }
    "#;
    let args = [&*ip(sandbox, server)?, &*shared(files, server)];
    Ok(shell(sandbox, client, &format!("{head}{script}"), &args)?.stdout)
}

fn nginx(sandbox: &Sandbox, files: &Path, least: u32, script: &str) -> anyhow::Result<Vec<String>> {
    let said = through_the_mesh(sandbox, "nginx", least, || {
        by_curl(sandbox, files, (CLIENT, "nginx"), script)
    })?;
    Ok(said.lines().map(str::to_owned).collect())
}

fn http1(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        curl "http://$server:8080/" | cmp - "$dir/index.html"
        urls=()
        for i in $(seq 400); do urls+=("http://$server:8080/" -o /dev/null); done
        curl -Z --parallel-max 40 -w '%{size_download}\n' "${urls[@]}" | sort | uniq -c | awk '{ print $1, $2 }'
        curl -w '%{num_connects}\n' "${urls[@]}" | awk '{ sum += $1 } END { print sum }'
        curl "http://$server:8080/large" | cmp - "$dir/large"
    "#;
    let said = nginx(sandbox, files, 10, script)?;
    ensure!(said == ["400 12000", "1"], "the script said {said:?}");
    let (logs, client) = (sandbox.logs("nginx")?, ip(sandbox, CLIENT)?);
    let of_client = logs
        .lines()
        .filter(|line| line.starts_with(&format!("{client} ")))
        .count();
    ensure!(
        of_client == 802,
        "{of_client} lines of nginx's log begin with {client}"
    );
    Ok(())
}

/// On a connection each, which become one between the proxies: curl 7.88 fails when it goes on with one
/// that began with HTTP/2.
fn http2(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        url="http://$server:8081/large" urls=()
        for i in $(seq 20); do urls+=("$url" -o /dev/null); done
        curl --http2-prior-knowledge -Z --parallel-immediate -w '%{http_version} %{size_download}\n' "${urls[@]}" |
            sort | uniq -c | awk '{ print $1, $2, $3 }'
        curl --http2-prior-knowledge "$url" | cmp - "$dir/large"
    "#;
    let said = nginx(sandbox, files, 1, script)?;
    ensure!(said == ["20 2 20971520"], "the script said {said:?}");
    Ok(())
}

fn own_tls(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        for name in one.example two.example; do
            curl --cacert "$dir/$name.pem" "https://$name:8443/" -w '%{http_version} %{ssl_verify_result}\n' -o /dev/null
            for version in tls1_2 tls1_3; do
                openssl s_client -connect "$server:8443" -servername $name -alpn h2,http/1.1 -$version -CAfile "$dir/$name.pem" \
                    -verify_return_error < /dev/null 2>&1 |
                    awk '/^subject=/ { print $NF } /^ALPN/ { print $NF } /^New, / { print $2 } /^ *Verify return code/ && !seen++ { print $4 }'
            done
        done
        curl --cacert "$dir/one.example.pem" "https://two.example:8443/" 2>&1 || echo "refused with $?"
    "#;
    let said = nginx(sandbox, files, 7, script)?.join(" ");
    let of = |name: &str| format!("2 0 {name} TLSv1.2, h2 0 {name} TLSv1.3, h2 0");
    let expected = format!("{} {} ", of("one.example"), of("two.example"));
    let rest = said.strip_prefix(&expected);
    let rest =
        rest.with_context(|| format!("openssl and curl said {said:?}, expected {expected:?}"))?;
    ensure!(
        rest.ends_with("refused with 60"),
        "the wrong name was taken: {rest}"
    );
    Ok(())
}

fn kept_tls(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        urls=()
        for i in $(seq 100); do urls+=("https://one.example:8443/" -o /dev/null); done
        for version in --http1.1 --http2; do
            curl --cacert "$dir/one.example.pem" $version -w '%{num_connects}\n' "${urls[@]}" | awk '{ sum += $1 } END { print sum }'
            curl --cacert "$dir/one.example.pem" $version "https://one.example:8443/large" | cmp - "$dir/large"
        done
    "#;
    let said = nginx(sandbox, files, 4, script)?;
    ensure!(said == ["1", "1"], "connections: {said:?}");
    Ok(())
}

fn client_certificate(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        curl --cacert "$dir/named.example.pem" --cert "$dir/client.pem" --key "$dir/client.key" "https://named.example:8443/"
        curl --cacert "$dir/named.example.pem" "https://named.example:8443/" 2> /dev/null || echo "refused with $?"
    "#;
    let said = nginx(sandbox, files, 2, script)?;
    let seen = format!("CN=client {}", ip(sandbox, CLIENT)?);
    ensure!(said == [&*seen, "refused with 22"], "curl said {said:?}");
    Ok(())
}

/// Between an unmeshed client and a meshed pod that lets in anybody, the application's own TLS is
/// nobody's business: its certificate is the application's, and its bytes are those on the wire.
fn untouched(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        curl --cacert "$dir/one.example.pem" https://one.example:8443/large | cmp - "$dir/large"
        openssl s_client -connect "$server:8443" -servername two.example < /dev/null 2> /dev/null |
            openssl x509 -noout -fingerprint -sha256
        openssl x509 -noout -fingerprint -sha256 -in "$dir/two.example.pem"
        curl --cacert "$dir/named.example.pem" --cert "$dir/client.pem" --key "$dir/client.key" https://named.example:8443/
    "#;
    let client = format!("{CLIENT}{PLAIN}");
    let capture = Capture::start(&sandbox.node("n2"))?;
    let said = by_curl(sandbox, files, (&client, OPEN), script);
    let captured = capture.stop()?.of(sandbox.ip(&client)?);
    let said = said?;
    let lines: Vec<_> = said.lines().collect();
    let seen = format!("CN=client {}", ip(sandbox, &client)?);
    let same = matches!(lines[..], [got, own, named] if got == own && named == seen);
    ensure!(same, "the script said {lines:?}");
    ensure!(
        captured.count(b"two.example") > 0,
        "the ClientHello is not the application's"
    );
    let labels = [
        ("direction", "inbound"),
        ("peer", "src"),
        ("pod", OPEN),
        ("tls", "opaque"),
    ];
    sandbox.metric_reaches(Daemon::Proxy("n2"), "tcp_open_total", &labels, 3.0)?;
    through_the_mesh(sandbox, OPEN, 3, || {
        by_curl(sandbox, files, (CLIENT, OPEN), script)
    })?;
    Ok(())
}

fn iperf3(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    for (flags, streams) in [
        (&["-P", "1"][..], 1),
        (&["-P", "1", "-R"], 1),
        (&["-P", "16"], 16),
        (&["-P", "16", "-R"], 16),
        (&["-P", "16", "--bidir"], 32),
    ] {
        let before = Passed::by(sandbox)?;
        let meshed = through_the_mesh(sandbox, "iperf3", streams + 1, || {
            throughput(sandbox, "", flags)
        })?;
        wait_for("the bytes to be counted", SOON, || {
            let now = Passed::by(sandbox)?;
            meshed
                .iter()
                .try_for_each(|moved| now.since(&before, moved))
        })?;
        let (meshed, plain) = (rate(&meshed), rate(&throughput(sandbox, PLAIN, flags)?));
        let ratio = meshed / plain;
        eprintln!("    {flags:?}: {meshed:.2} of {plain:.2} Gbit/s, {ratio:.2}");
    }
    Ok(())
}

/// What moved one way in a second.
#[derive(Debug)]
struct Moved {
    to_server: bool,
    sent: f64,
    received: f64,
}

/// What has passed the proxies: to the server and back, each in the order of the way.
#[derive(Debug)]
struct Passed([Vec<f64>; 2]);

impl Passed {
    fn by(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let near = sandbox.scrape(Daemon::Proxy("n1"))?;
        let far = sandbox.scrape(Daemon::Proxy("n2"))?;
        let server = "spiffe://cluster.local/ns/default/sa/iperf3";
        let of_near = |name: &str, peer: &str| {
            near.sum(
                name,
                &[("pod", CLIENT), ("server_id", server), ("peer", peer)],
            )
        };
        let of_far = |name: &str, peer: &str| {
            far.sum(
                name,
                &[("pod", "iperf3"), ("direction", "inbound"), ("peer", peer)],
            )
        };
        let (read, write) = ("tcp_read_bytes_total", "tcp_write_bytes_total");
        Ok(Self([
            vec![
                of_near(read, "src"),
                of_near(write, "dst"),
                of_far(read, "src"),
                of_far(write, "dst"),
            ],
            vec![
                of_far(read, "dst"),
                of_far(write, "src"),
                of_near(read, "dst"),
                of_near(write, "src"),
            ],
        ]))
    }

    /// On each leg there was no more than on the one before it, and no less than on the one after
    /// it. What iperf3 says on its control connection is beside what it counts.
    fn since(&self, before: &Self, moved: &Moved) -> anyhow::Result<()> {
        const CONTROL: f64 = 65536.0;
        let way = usize::from(!moved.to_server);
        let passed = self.0[way]
            .iter()
            .zip(&before.0[way])
            .map(|(now, before)| now - before);
        let mut chain = vec![moved.sent + CONTROL];
        chain.extend(passed);
        chain.push(moved.received);
        let falls = chain.windows(2).all(|pair| pair[0] >= pair[1]);
        ensure!(falls, "the bytes along the way are {chain:?}");
        Ok(())
    }
}

/// What was sent and not received was on the way at the end.
fn throughput(sandbox: &Sandbox, suffix: &str, flags: &[&str]) -> anyhow::Result<Vec<Moved>> {
    let host = ip(sandbox, &format!("iperf3{suffix}"))?;
    let command = [&["iperf3", "-c", &*host, "-t", "1", "-J"][..], flags].concat();
    let client = format!("{CLIENT}{suffix}");
    let report: Value = wait_for("iperf3", SOON, || sandbox.exec(&client, &command)?.json())?;
    let bytes = |sum: &str, way: &str| report["end"][format!("{sum}{way}")]["bytes"].as_f64();
    let moved = |way: &str, to_server: bool| {
        let (sent, received) = (bytes("sum_sent", way)?, bytes("sum_received", way)?);
        Some(Moved {
            to_server,
            sent,
            received,
        })
    };
    let mut all = vec![moved("", !flags.contains(&"-R")).context("iperf3 counted nothing")?];
    all.extend(moved("_bidir_reverse", false));
    ensure!(
        all.len() == 1 + usize::from(flags.contains(&"--bidir")),
        "iperf3 said {report}"
    );
    ensure!(
        all.iter().all(|one| 0.0 < one.received),
        "nothing moved: {all:?}"
    );
    Ok(all)
}

/// In Gbit/s.
fn rate(moved: &[Moved]) -> f64 {
    moved.iter().map(|one| one.received * 8e-9).sum()
}

/// The names that the application's clients ask for are in its ClientHello, inside the mesh's TLS.
fn unreadable(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    nobody_reads(
        sandbox,
        ("nginx", 8080),
        "/?a-marker-of-protocols",
        |client, ip| {
            let url = format!("http://{ip}:8080/?a-marker-of-protocols");
            sandbox
                .exec(client, &["curl", "-sSf", &url])?
                .ok()
                .map(drop)
        },
    )?;
    nobody_reads(sandbox, ("nginx", 8443), "two.example", |client, _| {
        let suffix = client.strip_prefix(CLIENT).unwrap_or_default();
        let server = format!("nginx{suffix}");
        let script = "curl -k https://two.example:8443/ | wc -c";
        by_curl(sandbox, files, (client, &server), script).map(drop)
    })?;
    // The control connection begins with a cookie and then says what is wanted, as JSON.
    nobody_reads(
        sandbox,
        ("iperf3", 5201),
        "\"client_version\"",
        |client, ip| {
            let command = ["iperf3", "-c", &*ip.to_string(), "-n", "1M", "-J"];
            let _: Value = wait_for("iperf3", SOON, || sandbox.exec(client, &command)?.json())?;
            Ok(())
        },
    )
}
