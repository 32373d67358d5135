// SPDX-License-Identifier: Apache-2.0
//! Databases and brokers, unmodified, through the mesh: PostgreSQL, MariaDB, Redis, Mosquitto.

use std::{net::IpAddr, time::Duration};

use anyhow::ensure;
use culvert_tests::{
    process::{Output, Running},
    programs::{CLIENT, PLAIN, Server, nobody_reads, plan, shell, source, through_the_mesh},
    require,
    sandbox::Sandbox,
    suite::Suite,
    wait::wait_for,
};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const PROGRAMS: [&str; 13] = [
    "bash",
    "python3",
    "openssl",
    "psql",
    "pgbench",
    "mariadbd",
    "mariadb",
    "mariadb-dump",
    "redis-server",
    "redis-benchmark",
    "mosquitto",
    "mosquitto_pub",
    "mosquitto_sub",
];
const SERVERS: [Server; 4] = [
    Server::new("postgres", 5432),
    // It shuts hosts out that connect and say nothing.
    Server {
        name: "mariadb",
        ready: None,
    },
    Server::new("redis", 6379),
    Server::new("mosquitto", 1883),
];
/// The mesh may cost a greeting the time of its handshakes, but no time-out of anybody.
const NO_DELAY: u64 = 50_000;

/// Connections that say nothing while everything else is going on.
struct Idle {
    postgres: Running,
    redis: Running,
    mosquitto: Running,
}

#[test]
fn databases() -> anyhow::Result<()> {
    let there = require::programs(&PROGRAMS)?;
    if !(require::postgres()? && there) {
        return Ok(());
    }
    let files = TempDir::with_prefix("culvert-databases-")?;
    open_to_all(&files)?;
    let sandbox = plan("databases", files.path(), &SERVERS)?.up()?;
    let idle = Idle::start(&sandbox)?;
    let mut suite = Suite::new(sandbox);
    suite.step("PostgreSQL: a GiB by COPY, in and out", copy);
    suite.step("PostgreSQL: pgbench", pgbench);
    suite.step("PostgreSQL: its own TLS, offered or not", own_tls);
    suite.step("PostgreSQL: a query is cancelled", cancel);
    suite.step("MariaDB speaks first, without a delay", greeting);
    suite.step("MariaDB: its own TLS after the greeting", mariadb_tls);
    suite.step("MariaDB: dump and restore", dump);
    suite.step("Redis: many clients and a pipeline", redis);
    suite.step("Mosquitto: retained, large and every quality", mosquitto);
    suite.step("Mosquitto: a will after an abnormal end", wills);
    suite.step("what was idle all the time still works", |sandbox| {
        idle.wake(sandbox)
    });
    suite.step("nobody between the nodes reads any of it", unreadable);
    suite.finish()
}

/// PostgreSQL is no root.
fn open_to_all(files: &TempDir) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let all = std::fs::Permissions::from_mode(0o755);
    Ok(std::fs::set_permissions(files.path(), all)?)
}

fn ip(sandbox: &Sandbox, server: &str) -> anyhow::Result<String> {
    Ok(sandbox.ip(server)?.to_string())
}

fn psql(sandbox: &Sandbox, flags: &str, sql: &str) -> anyhow::Result<String> {
    let conninfo = format!("host={} user=postgres {flags}", ip(sandbox, "postgres")?);
    let command = [
        "psql",
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        sql,
        &*conninfo,
    ];
    Ok(sandbox.exec(CLIENT, &command)?.ok()?.stdout)
}

// === impl Idle ===

impl Idle {
    fn start(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let conninfo = format!("host={} user=postgres", ip(sandbox, "postgres")?);
        let program = source("notifications.py");
        let postgres = ["python3", &*program, &*conninfo, "depth"];
        let mut postgres = sandbox.spawn(CLIENT, &postgres)?;
        let listening = postgres.line(SOON)?;
        ensure!(listening == "listening", "{listening}");
        let redis = ip(sandbox, "redis")?;
        let redis = ["redis-cli", "-h", &*redis, "blpop", "idle", "0"];
        let mosquitto = ip(sandbox, "mosquitto")?;
        let mosquitto = [
            "mosquitto_sub",
            "-h",
            &*mosquitto,
            "-k",
            "5",
            "-t",
            "idle",
            "-C",
            "1",
            "-v",
        ];
        Ok(Self {
            postgres,
            redis: sandbox.spawn(CLIENT, &redis)?,
            mosquitto: sandbox.spawn(CLIENT, &mosquitto)?,
        })
    }

    fn wake(mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        psql(sandbox, "", "NOTIFY depth, 'twelve'")?;
        let payload = self.postgres.line(SOON)?;
        ensure!(
            payload == "twelve",
            "PostgreSQL's notification was {payload:?}"
        );
        redis_cli(sandbox, &["rpush", "idle", "twelve"])?;
        let popped = [self.redis.line(SOON)?, self.redis.line(SOON)?];
        ensure!(popped == ["idle", "twelve"], "BLPOP gave {popped:?}");
        publish(sandbox, "idle", &["-m", "twelve"])?;
        let message = self.mosquitto.line(SOON)?;
        ensure!(
            message == "idle twelve",
            "Mosquitto's message was {message:?}"
        );
        let logs = sandbox.logs("mosquitto")?;
        ensure!(
            !logs.contains("exceeded timeout"),
            "a keepalive was lost:\n{logs}"
        );
        Ok(())
    }
}

fn copy(sandbox: &Sandbox) -> anyhow::Result<()> {
    through_the_mesh(sandbox, "postgres", 3, || copied(sandbox, "", 1024))?;
    copied(sandbox, PLAIN, 256)
}

/// Rows go in by COPY and come out again as they were.
fn copied(sandbox: &Sandbox, suffix: &str, mebibytes: u32) -> anyhow::Result<()> {
    let script = r#"
        export PGHOST=$1 PGUSER=postgres PGSSLMODE=disable
        psql -Xqc 'CREATE TABLE rows (id text, text text)'
        t0=$EPOCHREALTIME
        { python3 "$3" "$2" 2>&3 | psql -Xqc 'COPY rows FROM STDIN'; } 3>&1
        t1=$EPOCHREALTIME
        psql -Xqc 'COPY rows TO STDOUT' | sha256sum | cut -d ' ' -f 1
        t2=$EPOCHREALTIME
        psql -Xqc 'DROP TABLE rows'
        awk "BEGIN { printf \"%.0f %.0f\n\", $2 / ($t1 - $t0), $2 / ($t2 - $t1) }"
    "#;
    let (host, client) = (
        ip(sandbox, &format!("postgres{suffix}"))?,
        format!("{CLIENT}{suffix}"),
    );
    let args = [&*host, &mebibytes.to_string(), &source("rows.py")];
    let said = shell(sandbox, &client, script, &args)?.stdout;
    let [sent, received, rates] = said.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("the script said {said:?}");
    };
    eprintln!("    COPY of {mebibytes} MiB from {client}: in and out at {rates} MiB/s");
    ensure!(sent == received, "the checksum was {sent}, now {received}");
    Ok(())
}

fn pgbench(sandbox: &Sandbox) -> anyhow::Result<()> {
    let script = r#"
        export PGHOST=$1 PGUSER=postgres
        pgbench -iq -s 1 postgres 2>/dev/null
        pgbench -n -c 16 -j 2 -t 50 -M prepared postgres
        pgbench -n -c 4 -j 2 -t 25 -S -C postgres
    "#;
    let said = through_the_mesh(sandbox, "postgres", 116, || {
        shell(sandbox, CLIENT, script, &[&ip(sandbox, "postgres")?])
    })?;
    for line in [
        "number of transactions actually processed: 800/800",
        "number of transactions actually processed: 100/100",
    ] {
        ensure!(said.stdout.contains(line), "no {line:?} in {}", said.stdout);
    }
    ensure!(
        said.stdout.matches("failed transactions: 0 ").count() == 2,
        "{}",
        said.stdout
    );
    for line in said.stdout.lines().filter(|line| line.starts_with("tps")) {
        eprintln!("    {line}");
    }
    Ok(())
}

/// The server answers the request for TLS with the byte `S` or `N`, and either goes on.
fn own_tls(sandbox: &Sandbox) -> anyhow::Result<()> {
    let ask = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    through_the_mesh(sandbox, "postgres", 1, || {
        let tls = psql(sandbox, "sslmode=require", ask)?;
        ensure!(tls.trim() == "t|TLSv1.3", "it has {tls}");
        Ok(())
    })?;
    psql(sandbox, "", "ALTER SYSTEM SET ssl = off")?;
    psql(sandbox, "", "SELECT pg_reload_conf()")?;
    wait_for("the server to offer no TLS", SOON, || {
        let tls = psql(sandbox, "sslmode=prefer", ask)?;
        ensure!(tls.trim() == "f|", "it has {tls}");
        Ok::<_, anyhow::Error>(())
    })?;
    let refused = psql(sandbox, "sslmode=require", ask).map_err(|error| error.to_string());
    let expected = "server does not support SSL";
    ensure!(
        refused
            .as_ref()
            .is_err_and(|error| error.contains(expected)),
        "{refused:?}"
    );
    psql(sandbox, "", "ALTER SYSTEM RESET ssl")?;
    psql(sandbox, "", "SELECT pg_reload_conf()")?;
    Ok(())
}

/// psql asks on a second connection, which the server closes without a word.
fn cancel(sandbox: &Sandbox) -> anyhow::Result<()> {
    let script = r#"
        export PGHOST=$1 PGUSER=postgres
        exec {said}< <(psql -Xqc 'SELECT pg_sleep(600)' 2>&1 & echo $!; wait $! || true)
        read -r -u $said pid
        until psql -XAtqc "SELECT wait_event FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'" | grep -q PgSleep
        do sleep 0.05; done
        kill -INT $pid
        cat <&$said
    "#;
    let said = through_the_mesh(sandbox, "postgres", 3, || {
        shell(sandbox, CLIENT, script, &[&ip(sandbox, "postgres")?])
    })?;
    for line in [
        "Cancel request sent",
        "canceling statement due to user request",
    ] {
        ensure!(said.stdout.contains(line), "no {line:?} in {said:?}");
    }
    Ok(())
}

fn greeting(sandbox: &Sandbox) -> anyhow::Result<()> {
    let greeted = |suffix: &str| {
        wait_for("MariaDB", SOON, || {
            let at = sandbox.at(&format!("mariadb{suffix}"), 3306)?;
            let flags = ["--exchange", "greeting", "--count", "20"];
            let report = sandbox.connect(&format!("{CLIENT}{suffix}"), &at, &flags)?;
            let greeting = &report.seen()?.reply;
            ensure!(greeting.contains("MariaDB"), "the greeting is {greeting:?}");
            Ok::<_, anyhow::Error>(report.exchange.p50_us)
        })
    };
    let meshed = through_the_mesh(sandbox, "mariadb", 20, || greeted(""))?;
    let plain = greeted(PLAIN)?;
    eprintln!("    first byte after {meshed} µs, beside the mesh {plain} µs");
    let extra = meshed.saturating_sub(plain);
    ensure!(
        extra < NO_DELAY,
        "the mesh delays the greeting by {extra} µs"
    );
    Ok(())
}

fn mariadb_tls(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (host, ask) = (
        ip(sandbox, "mariadb")?,
        "SHOW SESSION STATUS LIKE 'Ssl_version'",
    );
    let ask = [
        "mariadb",
        "--no-defaults",
        "--ssl",
        "-h",
        &*host,
        "-u",
        "root",
        "-NBe",
        ask,
    ];
    let said = through_the_mesh(sandbox, "mariadb", 1, || sandbox.exec(CLIENT, &ask)?.ok())?;
    ensure!(
        said.stdout.trim() == "Ssl_version\tTLSv1.3",
        "it has {:?}",
        said.stdout
    );
    Ok(())
}

fn dump(sandbox: &Sandbox) -> anyhow::Result<()> {
    let script = r#"
        call() { program=$1; shift; "$program" --no-defaults --skip-ssl -h "$host" -u root "$@"; }
        host=$1
        call mariadb -e "CREATE DATABASE a; CREATE DATABASE b; USE a; CREATE TABLE t (id INT PRIMARY KEY, body LONGTEXT);
            INSERT INTO t SELECT seq, REPEAT(MD5(seq), 128) FROM seq_1_to_16000;
            INSERT INTO t VALUES (0, REPEAT('one large row ', 500000))"
        call mariadb-dump --max-allowed-packet=64M a | call mariadb --max-allowed-packet=64M b
        call mariadb -NBe 'CHECKSUM TABLE a.t, b.t' | cut -f 2
    "#;
    let said = through_the_mesh(sandbox, "mariadb", 4, || {
        shell(sandbox, CLIENT, script, &[&ip(sandbox, "mariadb")?])
    })?;
    let sums: Vec<_> = said.stdout.lines().collect();
    let same = matches!(sums[..], [a, b] if a == b && a.parse().is_ok_and(|sum: u64| sum > 0));
    ensure!(same, "the checksums of the tables are {sums:?}");
    Ok(())
}

fn redis_cli(sandbox: &Sandbox, args: &[&str]) -> anyhow::Result<Output> {
    let host = ip(sandbox, "redis")?;
    let command = [&["redis-cli", "-h", &*host][..], args].concat();
    sandbox.exec(CLIENT, &command)?.ok()
}

fn redis(sandbox: &Sandbox) -> anyhow::Result<()> {
    let host = ip(sandbox, "redis")?;
    through_the_mesh(sandbox, "redis", 50, || {
        let benchmark = [
            "redis-benchmark",
            "-h",
            &host,
            "-q",
            "-n",
            "20000",
            "-c",
            "50",
            "-P",
            "8",
            "-t",
            "set,get",
        ];
        let said = sandbox.exec(CLIENT, &benchmark)?.ok()?.stdout;
        ensure!(said.contains("SET:") && said.contains("GET:"), "{said}");
        Ok(())
    })?;
    let pipeline =
        r#"seq 100000 | awk '{ print "RPUSH pipeline " $1 }' | redis-cli -h "$1" --pipe"#;
    let said = shell(sandbox, CLIENT, pipeline, &[&host])?.stdout;
    ensure!(said.contains("errors: 0, replies: 100000"), "{said}");
    let length = redis_cli(sandbox, &["llen", "pipeline"])?.stdout;
    ensure!(length.trim() == "100000", "the list has {length}");
    publish_to_redis(sandbox, &host)
}

fn publish_to_redis(sandbox: &Sandbox, host: &str) -> anyhow::Result<()> {
    let mut subscriber =
        sandbox.spawn(CLIENT, &["redis-cli", "-h", host, "subscribe", "channel"])?;
    for expected in ["subscribe", "channel", "1"] {
        let line = subscriber.line(SOON)?;
        ensure!(line == expected, "got {line:?}, expected {expected:?}");
    }
    for message in 0..100 {
        redis_cli(sandbox, &["publish", "channel", &message.to_string()])?;
        for expected in ["message", "channel", &message.to_string()] {
            let line = subscriber.line(SOON)?;
            ensure!(line == expected, "got {line:?}, expected {expected:?}");
        }
    }
    Ok(())
}

fn publish(sandbox: &Sandbox, topic: &str, flags: &[&str]) -> anyhow::Result<Output> {
    let host = ip(sandbox, "mosquitto")?;
    let command = [&["mosquitto_pub", "-h", &*host, "-t", topic][..], flags].concat();
    sandbox.exec(CLIENT, &command)?.ok()
}

fn mosquitto(sandbox: &Sandbox) -> anyhow::Result<()> {
    let host = ip(sandbox, "mosquitto")?;
    through_the_mesh(sandbox, "mosquitto", 4, || {
        for quality in ["0", "1", "2"] {
            let topic = format!("retained/{quality}");
            publish(sandbox, &topic, &["-r", "-q", quality, "-m", "twelve"])?;
            let subscribe = [
                "mosquitto_sub",
                "-h",
                &host,
                "-t",
                &topic,
                "-q",
                quality,
                "-C",
                "1",
                "-W",
                "10",
            ];
            let got = sandbox.exec(CLIENT, &subscribe)?.ok()?.stdout;
            ensure!(got.trim() == "twelve", "at quality {quality} got {got:?}");
        }
        let large = r#"
            python3 "$2" 32 2>/dev/null | mosquitto_pub -h "$1" -t large -q 1 -r -s
            mosquitto_sub -h "$1" -t large -q 1 -C 1 -N -W 60 | sha256sum
            python3 "$2" 32 2>/dev/null | sha256sum
        "#;
        let said = shell(sandbox, CLIENT, large, &[&host, &source("rows.py")])?.stdout;
        let sums: Vec<_> = said.lines().collect();
        ensure!(
            matches!(sums[..], [a, b] if a == b),
            "the checksums are {sums:?}"
        );
        Ok(())
    })
}

/// The broker speaks the will of a client that is gone: by RST, and by a FIN that no DISCONNECT
/// came before. Both clients have a keepalive that ends long after the test.
fn wills(sandbox: &Sandbox) -> anyhow::Result<()> {
    let host = ip(sandbox, "mosquitto")?;
    publish(sandbox, "will/open", &["-r", "-m", "open"])?;
    let subscribe = ["mosquitto_sub", "-h", &*host, "-k", "600", "-t"];
    let mut heir = sandbox.spawn(CLIENT, &[&subscribe[..], &["will/#"]].concat())?;
    let expect = |client: &mut Running, expected: &str| {
        let line = client.line(SOON)?;
        ensure!(line == expected, "got {line:?}, expected {expected:?}");
        Ok(())
    };
    expect(&mut heir, "open")?;
    let program = source("will.py");
    let resets = ["python3", &program, &host, "will/rst", "after RST"];
    sandbox.exec(CLIENT, &resets)?.ok()?;
    expect(&mut heir, "after RST")?;
    let will = [
        "will/open",
        "--will-topic",
        "will/fin",
        "--will-payload",
        "after FIN",
    ];
    let mut killed = sandbox.spawn(CLIENT, &[&subscribe[..], &will].concat())?;
    expect(&mut killed, "open")?;
    drop(killed);
    expect(&mut heir, "after FIN")
}

fn unreadable(sandbox: &Sandbox) -> anyhow::Result<()> {
    let marker = "a-marker-of-databases";
    let run = |client: &str, command: &[&str]| sandbox.exec(client, command)?.ok().map(drop);
    let sql = format!("SELECT '{marker}'");
    let host = |ip: IpAddr| ip.to_string();
    nobody_reads(sandbox, ("postgres", 5432), marker, |client, ip| {
        let conninfo = format!("host={ip} user=postgres sslmode=disable");
        run(client, &["psql", "-XAtqc", &sql, &conninfo])
    })?;
    nobody_reads(sandbox, ("mariadb", 3306), marker, |client, ip| {
        run(
            client,
            &[
                "mariadb",
                "--no-defaults",
                "--skip-ssl",
                "-h",
                &host(ip),
                "-u",
                "root",
                "-e",
                &sql,
            ],
        )
    })?;
    nobody_reads(sandbox, ("redis", 6379), marker, |client, ip| {
        run(client, &["redis-cli", "-h", &host(ip), "echo", marker])
    })?;
    nobody_reads(sandbox, ("mosquitto", 1883), marker, |client, ip| {
        run(
            client,
            &["mosquitto_pub", "-h", &host(ip), "-t", "t", "-m", marker],
        )
    })
}
