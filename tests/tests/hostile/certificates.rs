// SPDX-License-Identifier: Apache-2.0
//! Clients whose certificates are wrong in one thing.

use anyhow::{Context as _, ensure};
use culvert_tests::{
    sandbox::Sandbox,
    tls::{
        self, Credentials, Ending, Hello,
        forge::{self, Side},
    },
};

use crate::ground::{among_bystanders, at, authority, counted};

const PAYLOAD: &[u8] = b"let me in";

fn ending(sandbox: &Sandbox, pod: &str, own: Credentials) -> anyhow::Result<Ending> {
    let hello = Hello::mesh(pod, PAYLOAD);
    tls::connect(&sandbox.pod("plain"), at(sandbox, pod)?, &hello, Some(own))
}

fn is_refused(sandbox: &Sandbox, pod: &str, own: Credentials, alert: &str) -> anyhow::Result<()> {
    let ending = counted(sandbox, pod, ("tls", 1), || ending(sandbox, pod, own))?;
    let alert = format!("received fatal alert: {alert}");
    ensure!(
        ending == Ending::Refused(alert.clone()),
        "{ending:?}, expected {alert}"
    );
    Ok(())
}

pub fn forged(sandbox: &Sandbox) -> anyhow::Result<()> {
    let authority = authority(sandbox)?;
    among_bystanders(sandbox, || {
        for pod in ["strict", "open"] {
            for forged in forge::all(&authority, "plain", Side::Client)? {
                is_refused(sandbox, pod, forged.credentials, forged.alert)
                    .with_context(|| format!("{pod}, a certificate that {}", forged.what))?;
            }
        }
        Ok(())
    })
}

/// Shows that the others are refused for what is wrong with them.
pub fn unusual(sandbox: &Sandbox) -> anyhow::Result<()> {
    let authority = authority(sandbox)?;
    for pod in ["strict", "open"] {
        for (what, own) in forge::unusual(&authority, "plain")? {
            let ending = ending(sandbox, pod, own)?;
            let answered = ending == Ending::Answered(PAYLOAD.to_vec());
            ensure!(answered, "{pod}, {what}: {ending:?}");
        }
    }
    Ok(())
}

/// Twenty certificates of a right chain fit; what fits no more is refused before it is read.
pub fn long_chains(sandbox: &Sandbox) -> anyhow::Result<()> {
    let authority = authority(sandbox)?;
    among_bystanders(sandbox, || {
        for pod in ["strict", "open"] {
            let twenty = ending(sandbox, pod, authority.sign("plain")?.with_chain_of(20))?;
            ensure!(
                twenty == Ending::Answered(PAYLOAD.to_vec()),
                "{pod}: {twenty:?}"
            );
            for more in [200, 1000] {
                let own = authority.sign("plain")?.with_chain_of(more);
                let ended = counted(sandbox, pod, ("tls", 1), || ending(sandbox, pod, own));
                let ended = ended.with_context(|| format!("{pod}, {more} certificates"))?;
                // Without an alert: rustls has none for a message that is too long.
                ensure!(
                    matches!(ended, Ending::Refused(_)),
                    "{pod}, {more}: {ended:?}"
                );
            }
        }
        Ok(())
    })
}
