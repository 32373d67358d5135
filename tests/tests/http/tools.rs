// SPDX-License-Identifier: Apache-2.0
//! curl and h2load against nginx.

use std::path::Path;

use anyhow::{Context as _, ensure};
use culvert_tests::{
    programs::{CLIENT, requests::counted, shared, shell},
    sandbox::Sandbox,
};

use super::Step;

pub const STEPS: [Step; 5] = [
    ("curl to nginx: HTTP/1.0, HTTP/1.1, HTTP/2", curl),
    (
        "curl to nginx: ranges, conditions, what is missing",
        conditions,
    ),
    ("h2load to nginx: HTTP/1.1", |sandbox, _| {
        h2load(sandbox, 8080, &["--h1", "-c", "20"])
    }),
    (
        "h2load to nginx: one HTTP/2 connection of 100 streams",
        |s, _| h2load(s, 8081, &["-c", "1", "-m", "100"]),
    ),
    (
        "h2load to nginx: 20 HTTP/2 connections of 50 streams",
        |s, _| h2load(s, 8081, &["-c", "20", "-m", "50"]),
    ),
];

/// Runs a script with `$server` and `$dir`, in which every `get` is a request; its lines.
fn by_curl(
    sandbox: &Sandbox,
    files: &Path,
    sent: u32,
    script: &str,
) -> anyhow::Result<Vec<String>> {
    let head = "server=$1 dir=$2\nget() { curl -sSf \"$@\"; }\n";
    let host = sandbox.ip("nginx")?.to_string();
    let args = [&*host, &*shared(files, "nginx")];
    let said = counted(sandbox, "nginx", || {
        let said = shell(sandbox, CLIENT, &format!("{head}{script}"), &args)?;
        Ok((sent, said.stdout))
    })?;
    Ok(said.lines().map(str::to_owned).collect())
}

fn curl(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        for flag in --http1.0 --http1.1 --http2 --http2-prior-knowledge; do
            port=8080; [ $flag = --http2-prior-knowledge ] && port=8081
            get $flag "http://$server:$port/" -o "$dir/got" -w '%{http_version} %{response_code} %{num_connects}\n'
            cmp "$dir/got" "$dir/index.html"
            get $flag "http://$server:$port/large" | cmp - "$dir/large"
        done
        urls=()
        for i in $(seq 100); do urls+=("http://$server:8080/" -o /dev/null); done
        get -w '%{num_connects}\n' "${urls[@]}" | awk '{ sum += $1 } END { print sum }'
    "#;
    let said = by_curl(sandbox, files, 108, script)?;
    let versions = ["1 200 1", "1.1 200 1", "1.1 200 1", "2 200 1", "1"];
    ensure!(said == versions, "curl said {said:?}");
    Ok(())
}

fn conditions(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        say() { curl -sS -o "$dir/got" -w '%{response_code} %{size_download}\n' "$@"; }
        for version in http1.1 http2-prior-knowledge; do
            url="http://$server:8080/"; [ $version = http2-prior-knowledge ] && url="http://$server:8081/"
            say --$version -r 5-24 "$url"
            tag=$(curl -sSI --$version "$url" | tr -d '\r' | awk 'tolower($1) == "etag:" { print $2 }')
            say --$version -H "If-None-Match: $tag" "$url"
            say --$version "$url/nothing"
            say --$version -I "$url"
            say --$version -X POST "$url"  # without a body: curl 7.88 loses an answer that ends before its request
        done
    "#;
    let said = by_curl(sandbox, files, 12, script)?;
    let statuses: Vec<_> = said
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let one = ["206", "304", "404", "200", "405"];
    ensure!(statuses == [one, one].concat(), "curl said {said:?}");
    ensure!(
        said[0] == "206 20" && said[5] == "206 20",
        "curl said {said:?}"
    );
    Ok(())
}

/// 3,000 requests, which all succeed.
fn h2load(sandbox: &Sandbox, port: u16, flags: &[&str]) -> anyhow::Result<()> {
    const REQUESTS: u32 = 3000;
    let url = format!("http://{}:{port}/", sandbox.ip("nginx")?);
    let count = REQUESTS.to_string();
    let command = [&["h2load", "-n", &count][..], flags, &[&url]].concat();
    let said = counted(sandbox, "nginx", || {
        Ok((REQUESTS, sandbox.exec(CLIENT, &command)?.ok()?.stdout))
    })?;
    let line = said.lines().find(|line| line.starts_with("requests: "));
    let line = line.with_context(|| format!("h2load said {said}"))?;
    let all = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
    ensure!(line.ends_with(&all), "h2load said {line}");
    let finished = said.lines().find(|line| line.starts_with("finished in"));
    eprintln!("    {}", finished.unwrap_or_default());
    Ok(())
}
