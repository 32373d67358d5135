// SPDX-License-Identifier: Apache-2.0
//! How bytes are sent and streams end, in a meshed pod against strict servers and in an unmeshed pod
//! against unmeshed ones: the mesh must not be noticed. And peers that pause, or are gone.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{call::Called, hold::Held, report::Report},
    calls::{ended, nothing_more, same},
    manifests::Pod,
    process::Running,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(15);
/// A peer that vanished is given up after 30 seconds of silence, and looked at every ten.
const LATE: Duration = Duration::from_secs(90);
const LISTEN: [&str; 8] = [
    "7000=echo",
    "7003=count",
    "7005=close",
    "7012=echo+inline",
    "7013=pour",
    "7014=break",
    "7015=pause+tiny",
    "7017=pour",
];

#[test]
fn streams() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let sandbox = sandbox()?;
    // What takes long goes on beside all the rest.
    let mut slow = Slow::start(&sandbox)?;
    let vanished = Vanished::start(&sandbox)?;
    let mut suite = Suite::new(sandbox);
    suite.step("sendfile() and splice()", without_copying);
    suite.step("an urgent byte stays in the stream", urgent);
    suite.step("either side says FIN first", fin_first);
    suite.step("RST in the middle of a stream", reset_midway);
    suite.step("a reader that pauses for long", move |s| slow.end(s));
    suite.step("a peer that vanishes", move |s| vanished.end(s));
    suite.finish()
}

/// `client` on the first node, `server` on the second, `far` on the third; the same unmeshed with
/// `-plain`.
fn sandbox() -> anyhow::Result<Sandbox> {
    let mut plan = Plan::new("streams")?.nodes(3);
    let app = plan.testapp().to_owned();
    for (name, node) in [("client", "n1"), ("server", "n2")] {
        let pod = |name: &str| Pod::serving(name, node, &app, &LISTEN);
        plan = plan.pod(&pod(name).strict())?;
        plan = plan.pod(&pod(&format!("{name}-plain")))?;
    }
    let far = Pod::serving("far", "n3", &app, &["7000=echo"]).strict();
    let sandbox = plan.pod(&far)?.up()?;
    sandbox.answers("client", "server", 7000)?;
    Ok(sandbox)
}

fn without_copying(sandbox: &Sandbox) -> anyhow::Result<()> {
    let whole = "the same came back: true";
    let sendfile = ["connect: ok", "send: ok", "receive: ok", whole];
    same(sandbox, "sendfile", 7000, nothing_more, &sendfile)?;
    let splice = ["connect: ok", "splice: ok", whole];
    same(sandbox, "splice", 7000, nothing_more, &splice)
}

/// TLS has no urgent pointer, so a receiver that asks for MSG_OOB gets nothing; the byte is not lost.
fn urgent(sandbox: &Sandbox) -> anyhow::Result<()> {
    let byte = ["send: ok", "receive: ok"];
    let expected = [
        &["connect: ok"][..],
        &byte,
        &byte,
        &byte,
        &["received: ab!cd"],
    ]
    .concat();
    same(sandbox, "urgent", 7012, nothing_more, &expected)
}

fn fin_first(sandbox: &Sandbox) -> anyhow::Result<()> {
    let expected = [
        "connect: ok",
        "send: ok",
        "receive: ok",
        "bytes before FIN: 0",
        "send: ok",
        "shutdown: ok",
    ];
    same(sandbox, "send-after-fin", 7005, nothing_more, &expected)?;
    for suffix in ["", "-plain"] {
        let (client, server) = (format!("client{suffix}"), format!("server{suffix}"));
        ended(sandbox, &server, 7005, &["fin"], 1 + (1 << 20))?;
        let flags = ["--exchange", "half-close", "--bytes", "1000000"];
        let report = sandbox.connect(&client, &sandbox.at(&server, 7003)?, &flags)?;
        ensure!(report.seen()?.reply == "1000000\n", "{report:?}");
        // The client has ended before the server says its eight megabytes.
        let flags = ["--exchange", "half-close", "--send", ""];
        let report = sandbox.connect(&client, &sandbox.at(&server, 7013)?, &flags)?;
        ensure!(report.seen()?.reply.len() == 4096, "{report:?}");
    }
    Ok(())
}

fn reset_midway(sandbox: &Sandbox) -> anyhow::Result<()> {
    let expected = ["connect: ok", "receive: ok", "SO_LINGER: ok"];
    same(sandbox, "reset-midway", 7017, nothing_more, &expected)?;
    for suffix in ["", "-plain"] {
        let (client, server) = (format!("client{suffix}"), format!("server{suffix}"));
        ended(sandbox, &server, 7017, &["ECONNRESET", "EPIPE"], 0)?;
        let to = sandbox.at(&server, 7014)?;
        let report = sandbox.connect(&client, &to, &["--exchange", "to-end"])?;
        report.none("read: ECONNRESET")?;
    }
    Ok(())
}

/// A reader in the client, and one in the server, that read nothing for 40 seconds.
struct Slow {
    clients: Vec<(&'static str, Running)>,
    servers: Vec<(&'static str, Running)>,
}

// === impl Slow ===

impl Slow {
    fn start(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let mut slow = Self {
            clients: Vec::new(),
            servers: Vec::new(),
        };
        for (client, server) in [("client", "server"), ("client-plain", "server-plain")] {
            let to = sandbox.at(server, 7013)?;
            let reader = sandbox.spawn_app(client, &["call", "slow-reader", &to])?;
            slow.clients.push((client, reader));
            let to = sandbox.at(server, 7015)?;
            let flags = [
                "--exchange",
                "half-close",
                "--bytes",
                "8000000",
                "--patience",
                "100",
            ];
            let writer = sandbox.spawn_app(client, &[&["connect", &to][..], &flags].concat())?;
            slow.servers.push((server, writer));
        }
        Ok(slow)
    }

    fn end(&mut self, _: &Sandbox) -> anyhow::Result<()> {
        let bytes = format!("bytes: {}", 8 << 20);
        for (pod, reader) in self.clients.drain(..) {
            let called: Called = reader.finish(LATE)?.json()?;
            let expected = ["connect: ok", "receive: ok", &bytes];
            called
                .expect(&expected)
                .with_context(|| format!("{pod} pauses"))?;
        }
        for (pod, writer) in self.servers.drain(..) {
            let report: Report = writer.finish(LATE)?.json()?;
            let reply = &report
                .seen()
                .with_context(|| format!("{pod} pauses"))?
                .reply;
            ensure!(reply == "8000000\n", "{pod} got {reply:?}");
        }
        Ok(())
    }
}

/// The legs to another node are probed with keepalives, whatever the application asked for.
fn probed(sandbox: &Sandbox, pod: &str) -> anyhow::Result<()> {
    let far = sandbox.ip("far")?.to_string();
    wait_for("keepalive timers", SOON, || {
        let shown = sandbox
            .exec(pod, &["ss", "-Htno", "dst", &far])?
            .ok()?
            .stdout;
        let probed = shown.lines().filter(|line| line.contains("keepalive"));
        ensure!(probed.count() >= 3, "{shown}");
        Ok(())
    })
}

/// Connections with a pod whose node is gone from the network.
struct Vanished {
    idle: Running,
    inbound: Running,
    unanswered: Running,
}

// === impl Vanished ===

impl Vanished {
    fn start(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let (far, server) = (sandbox.at("far", 7000)?, sandbox.at("server", 7000)?);
        let mut vanished = Self {
            idle: sandbox.spawn_app("client", &["hold", &far, "--connections", "3"])?,
            inbound: sandbox.spawn_app("far", &["hold", &server, "--connections", "3"])?,
            unanswered: sandbox.spawn_app("client", &["hold", &far, "--connections", "1"])?,
        };
        for hold in [
            &mut vanished.idle,
            &mut vanished.inbound,
            &mut vanished.unanswered,
        ] {
            let held: Held = hold.next(SOON)?;
            ensure!(held.broken.is_empty(), "{held:?}");
        }
        for pod in ["client", "server"] {
            probed(sandbox, pod)?;
        }
        sandbox.node("n3").run(|| {
            let mut ip = std::process::Command::new("ip");
            let down = ip.args(["link", "set", "eth0", "down"]).status()?;
            ensure!(down.success(), "the link stays up");
            Ok(())
        })?;
        vanished.unanswered.say("is anybody there")?;
        Ok(vanished)
    }

    fn end(self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let far = sandbox.ip("far")?.to_string();
        for (node, pod, direction, count) in [
            ("n1", "client", "outbound", 4.0),
            ("n2", "server", "inbound", 3.0),
        ] {
            let labels = [
                ("pod", pod),
                ("direction", direction),
                ("errno", "ETIMEDOUT"),
            ];
            wait_for(&format!("{pod} to be rid of {far}"), LATE, || {
                let closed = sandbox.metric(Daemon::Proxy(node), "tcp_close_total", &labels)?;
                ensure!(closed >= count, "{closed} of {count} connections timed out");
                let left = sandbox
                    .exec(pod, &["ss", "-Htn", "dst", &far])?
                    .ok()?
                    .stdout;
                ensure!(left.is_empty(), "{left}");
                Ok(())
            })?;
        }
        ended(sandbox, "server", 7000, &["ECONNRESET"], 4)?;
        let errors = [("pod", "client"), ("error", "peer timeout")];
        sandbox.metric_reaches(
            Daemon::Proxy("n1"),
            "outbound_tcp_errors_total",
            &errors,
            1.0,
        )?;
        Ok(())
    }
}
