// SPDX-License-Identifier: Apache-2.0
//! A proxy that was taken over. It is played by a process with the user, the capabilities, the very
//! seccomp filters and the network namespace of the real one, on sockets that the agent handed to it.
//!
//! What is refused is shown to be possible without the protection: a process of the same user, with
//! every capability and without the filters, tries the same.

mod attempts;
mod identities;
mod offences;
mod spoof;
mod stage;

use std::time::Duration;

use culvert_tests::{
    manifests::Pod,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
};

const SOON: Duration = Duration::from_secs(10);
const LATER: Duration = Duration::from_secs(60);
const AGENT: Daemon<'_> = Daemon::Agent("n1");
const PROXY: Daemon<'_> = Daemon::Proxy("n1");

#[test]
fn compromised() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step(
        "what a proxy can't do, it can't do taken over",
        attempts::attempts,
    );
    suite.step(
        "no packet from a foreign address leaves the pod",
        spoof::spoofs,
    );
    suite.step(
        "offences against the agent cost their own connection",
        offences::offences,
    );
    suite.step(
        "nobody but the proxy's user talks to the agent",
        offences::other_users,
    );
    suite.step(
        "a node's token gets nobody else's identity",
        identities::stolen,
    );
    suite.finish()
}

fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("compromised")?;
    let app = plan.testapp().to_owned();
    let sandbox = plan
        .pod(&Pod::serving("victim", "n1", &app, &["7000=echo", "127.0.0.1:7001=echo"]).strict())?
        .pod(&Pod::serving("near", "n1", &app, &["7000=echo"]))?
        .pod(&Pod::serving("mesh", "n2", &app, &["7000=echo"]).meshed())?
        .pod(&Pod::serving("plain", "n2", &app, &["7000=echo"]))?
        .up()?;
    sandbox.answers("mesh", "victim", 7000)?;
    sandbox.answers("victim", "plain", 7000)?;
    Ok(sandbox)
}
