// SPDX-License-Identifier: Apache-2.0
//! `culvert version`: the releases of this program, of control and of the data plane.

use std::{collections::BTreeMap, io, process::ExitCode};

use serde::Serialize;

use super::{VersionArgs, api::ApiServer, gather::Gather, runtime, versions};
use crate::{args::Format, output};

/// How many pods run which release.
type Running = BTreeMap<String, usize>;

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<Running>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_plane: Option<Running>,
    /// Why the cluster does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Runs `culvert version`. Fails if the cluster was asked and did not tell.
pub fn version(args: &VersionArgs) -> io::Result<ExitCode> {
    let mut versions = Versions {
        client: env!("CARGO_PKG_VERSION"),
        control: None,
        data_plane: None,
        error: None,
    };
    if !args.client
        && let Err(error) = runtime()?.block_on(ask(args, &mut versions))
    {
        versions.error = Some(error);
    }
    match (args.output, args.short) {
        (Format::Json, _) => output::print_json(&versions)?,
        (Format::Table, short) => output::print(&versions.text(short))?,
    }
    if let Some(error) = &versions.error {
        output::error(error);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(args: &VersionArgs, versions: &mut Versions) -> Result<(), String> {
    let api = ApiServer::connect(&args.cluster).await;
    let api = api.map_err(|error| error.to_string())?;
    let namespace = &args.cluster.culvert_namespace;
    let gather = Gather {
        api: &api,
        namespace,
    };
    let (own, admin) = gather.own_pods().await;
    let own = own.map_err(|refusal| refusal.to_string())?;
    versions.control = Some(counted(versions::of_control_plane(&own, &admin)));
    versions.data_plane = Some(counted(versions::of_data_plane(&own)));
    Ok(())
}

fn counted(pods: BTreeMap<String, Vec<String>>) -> Running {
    let counted = pods.into_iter();
    counted
        .map(|(version, pods)| (version, pods.len()))
        .collect()
}

// === impl Versions ===

impl Versions {
    fn text(&self, short: bool) -> String {
        let mut lines = vec![line("Client", self.client, short)];
        let told = [("Control", &self.control), ("Data plane", &self.data_plane)];
        for (of, running) in told {
            let Some(running) = running else { continue };
            lines.push(line(of, &list(running, short), short));
        }
        lines.concat()
    }
}

fn line(of: &str, version: &str, short: bool) -> String {
    if short {
        return format!("{version}\n");
    }
    format!("{:<20}{version}\n", format!("{of} version:"))
}

fn list(running: &Running, short: bool) -> String {
    if running.is_empty() {
        return "not installed".to_owned();
    }
    let each = running.iter().map(|(version, pods)| match short {
        true => version.clone(),
        false => format!("{version} ({pods} pods)"),
    });
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions() -> Versions {
        let running = |running: &[(&str, usize)]| {
            let running = running.iter();
            Some(
                running
                    .map(|(version, pods)| ((*version).to_owned(), *pods))
                    .collect(),
            )
        };
        Versions {
            client: "0.2.0",
            control: running(&[("0.2.0", 1)]),
            data_plane: running(&[("0.1.0", 3), ("0.2.0", 1)]),
            error: None,
        }
    }

    #[test]
    fn versions_are_told_with_how_many_run_them() {
        let expected = "Client version:     0.2.0\nControl version:    0.2.0 (1 pods)\n\
            Data plane version: 0.1.0 (3 pods), 0.2.0 (1 pods)\n";
        assert_eq!(versions().text(false), expected);
        assert_eq!(versions().text(true), "0.2.0\n0.2.0\n0.1.0, 0.2.0\n");
    }

    #[test]
    fn what_was_not_asked_is_not_told() {
        let client = Versions {
            control: None,
            data_plane: None,
            ..versions()
        };
        assert_eq!(client.text(false), "Client version:     0.2.0\n");
    }
}
