// SPDX-License-Identifier: Apache-2.0
//! Certificates are renewed in time, and no connection notices.

use std::time::Duration;

use anyhow::ensure;
use culvert_tests::{
    app::hold::Held,
    manifests::Pod,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(20);
/// Renewed at 70 %, three times before this test is over.
const LIFETIME: &str = "8s";
const RENEWALS: Duration = Duration::from_secs(40);

#[test]
fn renewal() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let plan = Plan::new("renewal")?
        .flag("--control-arg=--issuance-lifetime")
        .flag(&format!("--control-arg={LIFETIME}"));
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo"]).strict();
    let sandbox = plan
        .pod(&pod("client", "n1"))?
        .pod(&pod("server", "n2"))?
        .up()?;
    sandbox.answers("client", &sandbox.at("server", 7000)?)?;
    let mut suite = Suite::new(sandbox);
    suite.step("renewed three times under an open connection", renewed);
    suite.finish()
}

fn renewed(sandbox: &Sandbox) -> anyhow::Result<()> {
    let at = sandbox.at("server", 7000)?;
    let mut hold = sandbox.spawn_app("client", &["hold", &at, "--connections", "3"])?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 3, "{held:?}");
    for (node, pod) in [("n1", "client"), ("n2", "server")] {
        let id = format!("spiffe://cluster.local/ns/default/sa/{pod}");
        wait_for(&format!("three renewals of {pod}"), RENEWALS, || {
            sandbox.connect("client", &at, &["--count", "5"])?.all()?;
            let scrape = sandbox.scrape(Daemon::Proxy(node))?;
            let name = "control_identity_cert_refreshes_total";
            let labels = [("identity", id.as_str()), ("result", "success")];
            let renewed = scrape.sum(name, &labels);
            ensure!(
                renewed >= 4.0,
                "{renewed} issues; {}",
                scrape.nearest(name, &labels)
            );
            Ok(())
        })?;
    }
    hold.say("still the same connections")?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 3, "{held:?}");
    hold.finish(SOON)?.ok()?;
    Ok(())
}
