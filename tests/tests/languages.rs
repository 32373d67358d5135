// SPDX-License-Identifier: Apache-2.0
//! Servers and clients that people write, in the languages that they write them in, through the
//! mesh: Python's asyncio, Node's http and net, Go's net/http.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    process::run,
    programs::{
        CLIENT, Server, nobody_reads, plan, requests::counted, shared, shell, source,
        through_the_mesh,
    },
    require,
    sandbox::Sandbox,
    suite::Suite,
};
use tempfile::TempDir;

const PROGRAMS: [&str; 6] = ["bash", "curl", "go", "node", "openssl", "python3"];
const SERVERS: [Server; 3] = [
    Server::new("python", 9100),
    Server::new("node", 9200),
    Server::new("go", 9301),
];
const BUILD: Duration = Duration::from_secs(180);

#[test]
fn languages() -> anyhow::Result<()> {
    if !require::programs(&PROGRAMS)? {
        return Ok(());
    }
    let files = TempDir::with_prefix("culvert-languages-")?;
    build(files.path())?;
    let mut suite = Suite::new(plan("languages", files.path(), &SERVERS)?.up()?);
    let mut step = |name: &str, step: fn(&Sandbox, &Path) -> anyhow::Result<()>| {
        suite.step(name, |sandbox| step(sandbox, files.path()));
    };
    step("Python: 300 asyncio streams", |sandbox, files| {
        streams(sandbox, files, &["300"])
    });
    step(
        "Python: 100 of them upgraded by start_tls",
        |sandbox, files| streams(sandbox, files, &["100", "tls"]),
    );
    step("Node: 500 requests on kept connections", node_http);
    step("Node: 300 half-closed sockets", node_net);
    step("curl: an upload of 100 MiB in chunks to Node", chunked);
    step("an HTTP/1.1 upgrade to something else", upgrade);
    step("Go: 500 requests by HTTP/1.1", go_http1);
    step("Go: 500 requests by HTTP/2 over its own TLS", go_http2);
    step("nobody between the nodes reads any of it", unreadable);
    suite.finish()
}

/// The Go program, without a network and without a cache that stays.
fn build(files: &Path) -> anyhow::Result<()> {
    let mut go = Command::new("go");
    go.args(["build", "-o"])
        .arg(files.join("http"))
        .arg(source("http.go"))
        .current_dir(files)
        .envs([
            ("CGO_ENABLED", "0"),
            ("GOPROXY", "off"),
            ("GOFLAGS", ""),
            ("GO111MODULE", "off"),
        ])
        .env("HOME", files)
        .env("GOPATH", files.join("go"))
        .env("GOCACHE", files.join("cache"));
    run(&mut go, BUILD)?.ok()?;
    Ok(())
}

fn ip(sandbox: &Sandbox, server: &str) -> anyhow::Result<String> {
    Ok(sandbox.ip(server)?.to_string())
}

fn certificate(files: &Path, server: &str) -> String {
    shared(files, server) + "/cert.pem"
}

/// Runs a client, which says `ok` and numbers; these are returned.
fn counts(sandbox: &Sandbox, command: &[&str]) -> anyhow::Result<Vec<u32>> {
    let said = sandbox.exec(CLIENT, command)?.ok()?.stdout;
    let numbers = said
        .strip_prefix("ok")
        .with_context(|| format!("it said {said:?}"))?;
    Ok(numbers
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?)
}

fn streams(sandbox: &Sandbox, files: &Path, args: &[&str]) -> anyhow::Result<()> {
    let (program, host) = (source("streams.py"), ip(sandbox, "python")?);
    let certificate = certificate(files, "python");
    let command = ["python3", &*program, "connect", &*host, &*certificate];
    let count = args.first().context("no count")?.parse()?;
    let said = through_the_mesh(sandbox, "python", count, || {
        counts(sandbox, &[&command[..], args].concat())
    })?;
    ensure!(said == [count], "it said {said:?}");
    Ok(())
}

fn node_http(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    let (program, host) = (source("node.js"), ip(sandbox, "node")?);
    let said = through_the_mesh(sandbox, "node", 1, || {
        counts(sandbox, &["node", &program, "http", &host, "500"])
    })?;
    let [requests, connections] = said[..] else {
        anyhow::bail!("it said {said:?}");
    };
    // One that the mesh broke would have been opened again.
    ensure!(
        (requests, connections) == (500, 25),
        "{connections} connections"
    );
    Ok(())
}

fn node_net(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    let (program, host) = (source("node.js"), ip(sandbox, "node")?);
    let said = through_the_mesh(sandbox, "node", 300, || {
        counts(sandbox, &["node", &program, "net", &host, "300"])
    })?;
    ensure!(said == [300], "it said {said:?}");
    Ok(())
}

fn chunked(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    let script = r#"
        python3 "$2" 100 2>&3 | curl -sSf -T - -X POST -D >(grep -i '^x-encoding' >&3) "http://$1:9200/"
    "#;
    let script = format!("{{ {script} }} 3>&1");
    let args = [&*ip(sandbox, "node")?, &*source("rows.py")];
    let said = counted(sandbox, "node", || {
        Ok((1, shell(sandbox, CLIENT, &script, &args)?))
    })?
    .stdout;
    let sum = said
        .lines()
        .find(|line| line.len() == 64)
        .context("no checksum")?;
    ensure!(
        said.matches(sum).count() == 2,
        "the checksums differ: {said}"
    );
    ensure!(
        said.contains("x-encoding: chunked"),
        "it was not chunked: {said}"
    );
    Ok(())
}

fn upgrade(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    let (program, host) = (source("upgrade.py"), ip(sandbox, "node")?);
    counted(sandbox, "node", || {
        Ok((1, drop(counts(sandbox, &["python3", &program, &host])?)))
    })
}

fn go(sandbox: &Sandbox, files: &Path, version: &str) -> anyhow::Result<Vec<u32>> {
    let (host, certificate) = (ip(sandbox, "go")?, certificate(files, "go"));
    let program = files.join("http").display().to_string();
    through_the_mesh(sandbox, "go", 1, || {
        counts(sandbox, &[&program, version, &host, "500", &certificate])
    })
}

fn go_http1(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let said = go(sandbox, files, "1")?;
    ensure!(matches!(said[..], [500, 1..=20]), "it said {said:?}");
    Ok(())
}

fn go_http2(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let said = go(sandbox, files, "2")?;
    ensure!(said == [500, 1], "it said {said:?}");
    Ok(())
}

fn unreadable(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let marker = "a-marker-of-languages";
    fs::write(files.join("marker"), marker)?;
    let body = format!("@{}/marker", files.display());
    for (server, port) in [("node", 9200), ("go", 9300)] {
        nobody_reads(sandbox, (server, port), marker, |client, ip| {
            let url = format!("http://{ip}:{port}/");
            let curl = ["curl", "-sSf", "--data-binary", &*body, &*url];
            sandbox.exec(client, &curl)?.ok().map(drop)
        })?;
    }
    // Length, body, and the answer: a checksum and the body.
    let script = r#"
        exec 3<>"/dev/tcp/$1/9100"
        printf '.\0\0\0\25%s' "$2" >&3
        head -c 53 <&3 | tail -c 21 | tr -d '\n'
    "#;
    nobody_reads(sandbox, ("python", 9100), marker, |client, ip| {
        let said = shell(sandbox, client, script, &[&ip.to_string(), marker])?;
        ensure!(said.stdout.trim() == marker, "it said {said:?}");
        Ok(())
    })
}
