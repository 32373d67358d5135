// SPDX-License-Identifier: Apache-2.0
//! What each command answers while the agent is away.
//!
//! Fail closed: a pod that is not known to be unmeshed is not started, because it would talk
//! plaintext from its first packet on. The runtime tries again later.

use std::{fs, path::Path};

use culvert_api::cni::{Attachment, Command, OptIn, code};

use crate::{
    config::Settings,
    error::{Error, NoAnswer},
};

/// Why a command may succeed without the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// ADD of a pod that may be opted in later: the agent must hear of it.
    Unmeshed(String),
    /// Nothing that the agent would miss.
    NoMatter(String),
}

/// Says why the command may succeed without the agent, or fails.
pub fn decide(settings: &Settings, command: &Command, reason: NoAnswer) -> Result<Pass, Error> {
    let (code, consequence) = match command {
        Command::Add(attachment) => match known_unmeshed(settings, attachment) {
            Ok(pass) => return Ok(pass),
            Err(consequence) => (code::TRY_AGAIN, consequence),
        },
        Command::Del(_) => {
            return Ok(Pass::NoMatter(format!(
                "{reason}; the agent collects the pod later"
            )));
        }
        Command::Check(_) => (code::TRY_AGAIN, "so the pod can't be checked".to_owned()),
        Command::Gc { .. } => (code::TRY_AGAIN, "so nothing was collected".to_owned()),
        Command::Status => (
            code::NOT_AVAILABLE,
            "so no pod could be added now".to_owned(),
        ),
    };
    Err(Error::Away {
        code,
        socket: settings.agent_socket.clone(),
        reason,
        consequence,
    })
}

/// Why the pod may start without the agent, or why it may not.
fn known_unmeshed(settings: &Settings, attachment: &Attachment) -> Result<Pass, String> {
    let arg = |name| attachment.args.get(name).map(String::as_str);
    let Some(namespace) = arg("K8S_POD_NAMESPACE") else {
        let problem = "the runtime names no pod in CNI_ARGS (K8S_POD_NAMESPACE, K8S_POD_UID), so \
                       nothing is known about it; start culvert-agent";
        return Err(problem.to_owned());
    };
    if settings.never_mesh.iter().any(|never| never == namespace) {
        let why = format!("the namespace {namespace} is never meshed (neverMesh)");
        return Ok(Pass::NoMatter(why));
    }
    let opt_in = settings.opt_in_file.as_deref().map(unmeshed_pods);
    match (arg("K8S_POD_UID"), opt_in) {
        (Some(uid), Some(Ok(pods))) if pods.iter().any(|pod| pod == uid) => {
            Ok(Pass::Unmeshed(format!("pod {uid} is known to be unmeshed")))
        }
        (_, Some(Err(problem))) => Err(unknown(namespace, &format!(" ({problem})"))),
        _ => Err(unknown(namespace, "")),
    }
}

fn unknown(namespace: &str, note: &str) -> String {
    format!(
        "the pod of namespace {namespace} is not known to be unmeshed{note}, so it is not started \
         without the mesh; it will be tried again; start culvert-agent"
    )
}

fn unmeshed_pods(file: &Path) -> Result<Vec<String>, String> {
    let text = fs::read(file).map_err(|e| format!("optInFile {}: {e}", file.display()))?;
    let opt_in: OptIn =
        serde_json::from_slice(&text).map_err(|e| format!("optInFile {}: {e}", file.display()))?;
    Ok(opt_in.unmeshed_pods)
}

#[cfg(test)]
mod tests;
