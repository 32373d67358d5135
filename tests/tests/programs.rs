// SPDX-License-Identifier: Apache-2.0
//! Servers that speak first and protocols that change on the way, unmodified, through the mesh:
//! OpenSMTPD, OpenSSH, rsync.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    programs::{CLIENT, Server, nobody_reads, plan, shared, shell, source, through_the_mesh},
    require,
    sandbox::Sandbox,
    suite::Suite,
    wait::wait_for,
};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const PROGRAMS: [&str; 12] = [
    "bash",
    "curl",
    "openssl",
    "python3",
    "smtpd",
    "sshd",
    "ssh",
    "ssh-keygen",
    "scp",
    "sftp",
    "rsync",
    "diff",
];
const SERVERS: [Server; 4] = [
    Server::new("smtp", 25),
    Server::new("starttls", 587),
    Server::new("ssh", 22),
    Server::new("rsync", 873),
];

#[test]
fn programs() -> anyhow::Result<()> {
    if !require::programs(&PROGRAMS)? {
        return Ok(());
    }
    let files = TempDir::with_prefix("culvert-programs-")?;
    let mut suite = Suite::new(plan("programs", files.path(), &SERVERS)?.up()?);
    let mut step = |name: &str, step: fn(&Sandbox, &Path) -> anyhow::Result<()>| {
        suite.step(name, |sandbox| step(sandbox, files.path()));
    };
    step("SMTP: mail by curl", curl_mail);
    step("SMTP: large mails in one session", long_session);
    step("SMTP: mail under STARTTLS", starttls);
    step("SSH: a command, its input and its status", ssh_command);
    step("SSH: scp and sftp of a large file", ssh_files);
    step("SSH: a forwarded port", ssh_forward);
    step("rsync: a daemon, both ways", rsync_daemon);
    step("rsync: over ssh, both ways", rsync_ssh);
    step("nobody between the nodes reads any of it", unreadable);
    suite.finish()
}

fn ip(sandbox: &Sandbox, server: &str) -> anyhow::Result<String> {
    Ok(sandbox.ip(server)?.to_string())
}

/// The mails with a subject, as they were delivered.
fn delivered(files: &Path, subject: &str) -> anyhow::Result<Vec<String>> {
    let new = Path::new(&shared(files, "smtp")).join("mail/new");
    let mut found = Vec::new();
    for entry in fs::read_dir(new)? {
        let mail = fs::read_to_string(entry?.path())?;
        found.extend(
            mail.contains(&format!("Subject: {subject}"))
                .then_some(mail),
        );
    }
    Ok(found)
}

fn curl_mail(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        printf 'From: <client@client>\nTo: <nobody@mail>\nSubject: by curl\n\ndeep down\n' |
            curl -sSf --crlf "smtp://$1" --mail-from client@client --mail-rcpt nobody@mail -T -
    "#;
    through_the_mesh(sandbox, "smtp", 1, || {
        shell(sandbox, CLIENT, script, &[&ip(sandbox, "smtp")?])
    })?;
    let client = format!("[{}]", ip(sandbox, CLIENT)?);
    wait_for("the mail", SOON, || {
        let mails = delivered(files, "by curl")?;
        let [mail] = &mails[..] else {
            anyhow::bail!("{} mails", mails.len());
        };
        ensure!(mail.ends_with("\n\ndeep down\n"), "{mail}");
        ensure!(mail.contains(&client), "no {client} in {mail}");
        Ok(())
    })
}

fn long_session(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let (program, host) = (source("mail.py"), ip(sandbox, "smtp")?);
    let send = ["python3", &*program, &*host, "one of three", "8000000"];
    let said = through_the_mesh(sandbox, "smtp", 1, || sandbox.exec(CLIENT, &send)?.ok())?;
    wait_for("the mails", SOON, || {
        let mails = delivered(files, "one of three")?;
        ensure!(mails.len() == 3, "{} mails", mails.len());
        for mail in &mails {
            let (_, body) = mail.split_once("\n\n").context("no body")?;
            let sum = sha256(body)?;
            let bytes = body.len();
            ensure!(
                sum == said.stdout.trim(),
                "{bytes} bytes have another checksum"
            );
        }
        Ok(())
    })
}

/// Sends the file `sent` by curl, which takes no answer in the clear for more than the greeting.
const STARTTLS: &str = r#"
    curl -sSf --ssl-reqd --cacert "$2/cert.pem" --resolve "mail:587:$1" smtp://mail:587 \
        --mail-from client@client --mail-rcpt nobody@mail -T "$2/sent"
"#;

fn starttls(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let (host, dir) = (ip(sandbox, "starttls")?, shared(files, "starttls"));
    let mail = format!(
        "Subject: under TLS\r\n\r\n{}",
        "deep down\r\n".repeat(1_000_000)
    );
    fs::write(format!("{dir}/sent"), &mail)?;
    through_the_mesh(sandbox, "starttls", 1, || {
        shell(sandbox, CLIENT, STARTTLS, &[&host, &dir])
    })?;
    let kept = fs::read_to_string(format!("{dir}/mail"))?;
    ensure!(
        kept == mail,
        "{} of {} bytes were kept",
        kept.len(),
        mail.len()
    );
    Ok(())
}

fn sha256(text: &str) -> anyhow::Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    let mut sum = std::process::Command::new("sha256sum");
    let said = culvert_tests::process::run(sum.arg(file.path()), SOON)?
        .ok()?
        .stdout;
    let sum = said.split_whitespace().next().context("no checksum")?;
    Ok(sum.to_owned())
}

/// Runs a script with `$server` the address, `$dir` the directory and `ssh` with the right flags.
fn by_ssh(sandbox: &Sandbox, files: &Path, suffix: &str, script: &str) -> anyhow::Result<String> {
    let pod = format!("ssh{suffix}");
    let head = "server=$1 dir=$2; ssh() { command ssh -F \"$dir/config\" \"$@\"; }\n";
    let args = [&*ip(sandbox, &pod)?, &*shared(files, &pod)];
    let client = format!("{CLIENT}{suffix}");
    Ok(shell(sandbox, &client, &format!("{head}{script}"), &args)?.stdout)
}

fn ssh_command(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        ssh "$server" 'hostname; echo "$SSH_CONNECTION"; exit 3' || echo "status $?"
        echo deep down | ssh "$server" 'cat; sleep 0.2; echo over'
        ssh -tt "$server" 'test -t 0 && echo a terminal' < /dev/null | tr -d '\r'
    "#;
    let said = through_the_mesh(sandbox, "ssh", 3, || by_ssh(sandbox, files, "", script))?;
    let lines: Vec<_> = said.lines().collect();
    let [host, connection, rest @ ..] = &lines[..] else {
        anyhow::bail!("ssh said {said:?}");
    };
    ensure!(*host == "ssh", "the host is {host}");
    let client = format!("{} ", ip(sandbox, CLIENT)?);
    ensure!(
        connection.starts_with(&client),
        "sshd saw {connection}, not {client}"
    );
    ensure!(
        rest == ["status 3", "deep down", "over", "a terminal"],
        "ssh said {rest:?}"
    );
    Ok(())
}

fn ssh_files(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        openssl enc -aes-128-ctr -K 00 -iv 00 -in /dev/zero 2>/dev/null | head -c 200M > "$dir/large" || true
        t0=$EPOCHREALTIME
        scp -q -F "$dir/config" "$dir/large" "$server:$dir/up"
        t1=$EPOCHREALTIME
        scp -q -F "$dir/config" "$server:$dir/up" "$dir/down"
        t2=$EPOCHREALTIME
        printf 'put %s %s\nget %s %s\n' "$dir/down" "$dir/up2" "$dir/up2" "$dir/down2" |
            sftp -q -F "$dir/config" -b - "$server" > /dev/null
        sha256sum "$dir"/{large,up,down,up2,down2} | cut -d ' ' -f 1
        stat -c %s "$dir/down2"
        rm "$dir"/{large,up,down,up2,down2}
        awk "BEGIN { printf \"%.0f %.0f\n\", 200 / ($t1 - $t0), 200 / ($t2 - $t1) }"
    "#;
    let said = through_the_mesh(sandbox, "ssh", 3, || by_ssh(sandbox, files, "", script))?;
    let lines: Vec<_> = said.lines().collect();
    let [first, others @ .., size, rates] = &lines[..] else {
        anyhow::bail!("the script said {said:?}");
    };
    ensure!(
        *size == (200 << 20).to_string(),
        "the file has {size} bytes"
    );
    let same = others.len() == 4 && others.iter().all(|other| other == first);
    ensure!(same, "the checksums are {lines:?}");
    eprintln!("    scp in and out at {rates} MiB/s");
    Ok(())
}

/// To a server that listens on the loopback of the other pod only.
fn ssh_forward(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = r#"
        openssl enc -aes-128-ctr -K 01 -iv 00 -in /dev/zero 2>/dev/null | head -c 50M > "$dir/files/large" || true
        ssh -f -N -o ExitOnForwardFailure=yes -M -S "$dir/control" -L 127.0.0.1:9000:127.0.0.1:8000 "$server" > /dev/null 2>&1
        urls=()
        for i in $(seq 50); do urls+=(http://127.0.0.1:9000/ -o /dev/null); done
        curl -sSf -Z --parallel-max 20 "${urls[@]}" -w '%{http_code}\n' | sort | uniq -c | awk '{ print $1, $2 }'
        curl -sSf http://127.0.0.1:9000/large | sha256sum | cut -d ' ' -f 1
        sha256sum "$dir/files/large" | cut -d ' ' -f 1
        ssh -S "$dir/control" -O exit "$server" 2> /dev/null
    "#;
    let said = through_the_mesh(sandbox, "ssh", 1, || by_ssh(sandbox, files, "", script))?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(
        matches!(lines[..], ["50 200", a, b] if a == b),
        "the script said {lines:?}"
    );
    Ok(())
}

/// A tree with small, empty and large files, links and modes: there, changed, and back again.
const TREES: &str = r#"
    tree=$(mktemp -d "$dir/local-XXXXXX"); back=$(mktemp -d "$dir/back-XXXXXX")
    for i in $(seq 300); do mkdir -p "$tree/$((i % 20))"; echo "number $i" > "$tree/$((i % 20))/$i"; done
    touch "$tree/empty"; ln -s empty "$tree/link"; chmod 751 "$tree/7"
    openssl enc -aes-128-ctr -K 02 -iv 00 -in /dev/zero 2>/dev/null | head -c 60M > "$tree/large" || true
    rsync -a --delete "$tree/" "$remote/"
    echo more >> "$tree/large"; rm -r "$tree/3"; mv "$tree/4" "$tree/moved"
    rsync -a --delete --no-whole-file --stats "$tree/" "$remote/" | awk -F ': ' '/^Literal data/ { print $2 + 0 }'
    rsync -a "$remote/" "$back/"
    diff -r --no-dereference "$tree" "$back" && stat -c %a "$back/7"
    (cd "$back"; find . -type f | wc -l)
    rsync -anic --delete "$tree/" "$remote/" | wc -l
    rm -r "$tree" "$back"
"#;

fn trees(said: &str) -> anyhow::Result<()> {
    let lines: Vec<_> = said.lines().collect();
    let [literal, mode, count, different] = lines[..] else {
        anyhow::bail!("the script said {said:?}");
    };
    ensure!((mode, count, different) == ("751", "287", "0"), "{lines:?}");
    let literal: u64 = literal.replace(',', "").parse()?;
    ensure!(
        literal < 1 << 20,
        "{literal} bytes were sent for what had hardly changed"
    );
    Ok(())
}

fn rsync_daemon(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script = format!("dir=$2 remote=rsync://$1/tree\n{TREES}");
    let args = [&*ip(sandbox, "rsync")?, &*shared(files, "rsync")];
    let said = through_the_mesh(sandbox, "rsync", 4, || {
        shell(sandbox, CLIENT, &script, &args)
    })?;
    trees(&said.stdout)
}

fn rsync_ssh(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let script =
        format!("export RSYNC_RSH=\"ssh -F $dir/config\"; remote=$server:$dir/tree\n{TREES}");
    trees(&through_the_mesh(sandbox, "ssh", 4, || {
        by_ssh(sandbox, files, "", &script)
    })?)
}

/// What these say in the clear before they change to something else.
fn unreadable(sandbox: &Sandbox, files: &Path) -> anyhow::Result<()> {
    let suffix = |client: &str| client.strip_prefix(CLIENT).unwrap_or_default().to_owned();
    nobody_reads(sandbox, ("smtp", 25), "Subject: unread", |client, ip| {
        let send = [
            "python3",
            &*source("mail.py"),
            &*ip.to_string(),
            "unread",
            "100",
        ];
        sandbox.exec(client, &send)?.ok().map(drop)
    })?;
    nobody_reads(sandbox, ("starttls", 587), "STARTTLS", |client, ip| {
        let dir = shared(files, &format!("starttls{}", suffix(client)));
        fs::write(
            format!("{dir}/sent"),
            "Subject: unread\r\n\r\ndeep down\r\n",
        )?;
        shell(sandbox, client, STARTTLS, &[&ip.to_string(), &dir]).map(drop)
    })?;
    nobody_reads(sandbox, ("ssh", 22), "SSH-2.0-OpenSSH", |client, _| {
        by_ssh(sandbox, files, &suffix(client), "ssh \"$server\" true").map(drop)
    })?;
    nobody_reads(sandbox, ("rsync", 873), "@RSYNCD", |client, ip| {
        let list = ["rsync", &*format!("rsync://{ip}/tree/")];
        sandbox.exec(client, &list)?.ok().map(drop)
    })?;
    Ok(())
}
