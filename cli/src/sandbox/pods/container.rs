// SPDX-License-Identifier: Apache-2.0
//! A container: a process of this machine in the pod's namespaces and cgroup, started again as the
//! pod's restart policy has it.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::Child,
    time::{sleep, timeout},
};

use super::{
    PATH, Task,
    state::{Doing, Terminated, service_account},
};
use crate::sandbox::{
    backoff::Backoff,
    expansion::expand,
    probes,
    process::{FILES, Launch, Private, find_program},
    services,
};

const FIRST_RESTART: Duration = Duration::from_millis(200);
const LAST_RESTART: Duration = Duration::from_secs(10);

/// The soft limit: programs that close every descriptor that they may have would take long with more.
const SOFT_FILES: u64 = 65536;

/// A command with its environment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The program, then its arguments.
    pub argv: Vec<String>,
    /// All of the environment.
    pub env: Vec<(String, String)>,
}

impl Task {
    /// Runs a container until it ended for good.
    pub(super) async fn run_container(&self, container: &Container, spec: &PodSpec) -> Terminated {
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        let mut backoff = Backoff::new(FIRST_RESTART, LAST_RESTART);
        loop {
            let code = self.run_once(container, spec).await;
            let again = policy == "Always" || (policy == "OnFailure" && code != Ok(0));
            if !again {
                return self.ended_for_good(container, code);
            }
            self.wait_to_restart(container, code, &mut backoff).await;
        }
    }

    /// Runs an init container until it succeeded, or failed for good.
    pub(super) async fn run_init_container(&self, one: &Container, spec: &PodSpec) -> Terminated {
        let never = spec.restart_policy.as_deref() == Some("Never");
        let mut backoff = Backoff::new(FIRST_RESTART, LAST_RESTART);
        loop {
            let code = self.run_once(one, spec).await;
            if code == Ok(0) || never {
                return Terminated {
                    code: code.unwrap_or(128),
                };
            }
            self.shared
                .set_reason(format!("initContainer {}: {}", one.name, why(&code)));
            self.publish();
            sleep(backoff.wait()).await;
        }
    }

    /// Its exit status, or why it could not be started.
    async fn run_once(&self, container: &Container, spec: &PodSpec) -> Result<i32, String> {
        let command_line = self.command_line(container, spec);
        let env = command_line.env.clone();
        let launch = self
            .launch(container, spec, command_line)
            .map_err(|e| e.to_string())?;
        let program = launch.program.clone();
        let failed = |error: io::Error| format!("can't start {}: {error}", program.display());
        let command = launch.command().map_err(failed)?;
        let mut child = tokio::process::Command::from(command)
            .spawn()
            .map_err(failed)?;
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return Err("ended at once".into());
        };
        self.note_start(container, pid, env);
        let ended = self.attend(container, pid, &mut child).await;
        // What it started and left behind ends with it.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        ended.map(exit_code).map_err(|error| error.to_string())
    }

    /// Probes the container while it runs.
    async fn attend(
        &self,
        container: &Container,
        pid: i32,
        child: &mut Child,
    ) -> io::Result<ExitStatus> {
        let target = self.target(container, pid);
        let ready = |result: Result<(), String>| self.note_readiness(container, result);
        let readiness =
            probes::follow_readiness(container.readiness_probe.as_ref(), &target, ready);
        let dead = probes::wait_for_death(container.liveness_probe.as_ref(), &target);
        tokio::select! {
            ended = child.wait() => return ended,
            () = readiness => {}
            why = dead => return self.end_unwell(container, pid, &why, child).await,
        }
        child.wait().await
    }

    /// SIGTERM, and SIGKILL when the pod's grace is over.
    async fn end_unwell(
        &self,
        container: &Container,
        pid: i32,
        why: &str,
        child: &mut Child,
    ) -> io::Result<ExitStatus> {
        let (name, group) = (&container.name, Pid::from_raw(pid));
        tracing::warn!(pod.name = %self.placement.key.1, container = %name, why, "A liveness probe failed");
        // It may have ended by itself.
        let _ = killpg(group, Signal::SIGTERM);
        if let Ok(ended) = timeout(self.grace(), child.wait()).await {
            return ended;
        }
        let _ = killpg(group, Signal::SIGKILL);
        child.wait().await
    }

    fn target(&self, container: &Container, pid: i32) -> probes::Target<'_> {
        let ports = container.ports.iter().flatten();
        let ports = ports.filter_map(|port| Some((port.name.clone()?, port.container_port)));
        probes::Target {
            node: &self.placement.network.node,
            ip: self.shared.ips().first().copied(),
            ports: ports.collect(),
            exec: Box::new(move |argv| self.exec_launch(pid, argv)),
        }
    }

    fn note_start(&self, container: &Container, pid: i32, env: Vec<(String, String)>) {
        self.shared.container(&container.name, |info| {
            info.doing = Doing::Running { pid };
            info.env = env;
            info.ready = container.readiness_probe.is_none();
            info.unready = "not probed yet".into();
        });
        self.publish();
    }

    fn note_readiness(&self, container: &Container, result: Result<(), String>) {
        self.shared.container(&container.name, |info| {
            info.ready = result.is_ok();
            info.unready = result.err().unwrap_or_default();
        });
        self.publish();
    }

    fn ended_for_good(&self, container: &Container, code: Result<i32, String>) -> Terminated {
        let ended = Terminated {
            code: code.unwrap_or(128),
        };
        self.shared.container(&container.name, |info| {
            info.doing = Doing::Terminated(ended);
            info.ready = false;
        });
        self.publish();
        ended
    }

    async fn wait_to_restart(
        &self,
        container: &Container,
        code: Result<i32, String>,
        backoff: &mut Backoff,
    ) {
        self.shared.container(&container.name, |info| {
            info.doing = Doing::Waiting {
                reason: format!("{}; started again with back-off", why(&code)),
            };
            info.ready = false;
            info.restarts += 1;
        });
        self.publish();
        sleep(backoff.wait()).await;
    }

    fn launch(
        &self,
        container: &Container,
        spec: &PodSpec,
        command_line: CommandLine,
    ) -> io::Result<Launch> {
        let CommandLine { mut argv, env } = command_line;
        let path = env.iter().rev().find(|(name, _)| name == "PATH");
        let path = path.map_or(PATH, |(_, path)| path.as_str());
        let program = argv.first().map_or("", String::as_str);
        let program = find_program(program, path)?;
        argv.drain(..argv.len().min(1));
        let netns = crate::sandbox::netns::Netns::open(&self.netns())?;
        Ok(Launch {
            program,
            args: argv.into_iter().map(Into::into).collect(),
            env,
            cwd: Some(container.working_dir.as_deref().unwrap_or("/").into()),
            log: self.log(container),
            cgroup: self.cgroup(),
            netns: netns.descriptor()?,
            unprivileged: None,
            private: Some(Private::New {
                hosts: self.etc().join("hosts"),
                resolv_conf: self.etc().join("resolv.conf"),
                hostname: self.hostname(spec),
            }),
            files: (SOFT_FILES, FILES),
        })
    }

    /// A further process beside one that runs, in all its namespaces.
    fn exec_launch(&self, pid: i32, mut argv: Vec<String>) -> io::Result<Launch> {
        let program = find_program(argv.first().map_or("", String::as_str), PATH)?;
        argv.drain(..argv.len().min(1));
        let netns = crate::sandbox::netns::Netns::open(&self.netns())?;
        Ok(Launch {
            program,
            args: argv.into_iter().map(Into::into).collect(),
            env: vec![("PATH".into(), PATH.into())],
            cwd: Some("/".into()),
            log: "/dev/null".into(),
            cgroup: self.cgroup(),
            netns: netns.descriptor()?,
            unprivileged: None,
            private: Some(Private::Of(crate::sandbox::process::pidfd(pid)?)),
            files: (SOFT_FILES, FILES),
        })
    }

    fn command_line(&self, container: &Container, spec: &PodSpec) -> CommandLine {
        let object = self.shared.object(&self.placement, &self.wanted.borrow());
        let path = format!("{}:{PATH}", self.world.site.binaries.dir.display());
        let mut env = vec![
            ("PATH".to_owned(), path),
            ("HOME".to_owned(), "/root".to_owned()),
            ("HOSTNAME".to_owned(), self.hostname(spec)),
        ];
        if spec.enable_service_links != Some(false) {
            let services = &self.world.directory.borrow().services;
            env.extend(services::environment(&self.placement.key.0, services));
        }
        command_line(container, &object, env)
    }
}

/// Expands a container's command, arguments and variables over the given environment.
fn command_line(container: &Container, pod: &Pod, env: Vec<(String, String)>) -> CommandLine {
    let mut env = env;
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(from) => {
                let field = from
                    .field_ref
                    .as_ref()
                    .map(|field| field.field_path.as_str());
                field.map(|path| field_value(pod, path)).unwrap_or_default()
            }
            None => expand(variable.value.as_deref().unwrap_or_default(), lookup(&env)),
        };
        env.retain(|(name, _)| *name != variable.name);
        env.push((variable.name.clone(), value));
    }
    let words = container
        .command
        .iter()
        .flatten()
        .chain(container.args.iter().flatten());
    let argv = words.map(|word| expand(word, lookup(&env))).collect();
    CommandLine { argv, env }
}

fn lookup(env: &[(String, String)]) -> impl Fn(&str) -> Option<String> {
    |name| {
        env.iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    }
}

/// The value of one of the fields that `supported` lets through.
fn field_value(pod: &Pod, path: &str) -> String {
    let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.map(|spec| service_account(spec).to_owned()),
        "status.hostIP" => status.and_then(|status| status.host_ip.clone()),
        "status.podIP" => status.and_then(|status| status.pod_ip.clone()),
        "status.podIPs" => status.map(|status| {
            let ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
            ips.collect::<Vec<_>>().join(",")
        }),
        _ => None,
    };
    value.unwrap_or_default()
}

fn exit_code(status: ExitStatus) -> i32 {
    let by_signal = || status.signal().map(|signal| 128 + signal);
    status.code().or_else(by_signal).unwrap_or(128)
}

fn why(code: &Result<i32, String>) -> String {
    match code {
        Ok(code) => format!("ended with exit status {code}"),
        Err(reason) => reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_are_expanded_in_order() {
        let container = json!({
            "name": "c",
            "command": ["sh", "-c"],
            "args": ["echo $(URL) $(LATER) $$(URL) $(DB_SERVICE_HOST)"],
            "env": [
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "URL", "value": "http://$(IP):$(DB_SERVICE_PORT)/$(LATER)"},
                {"name": "DB_SERVICE_PORT", "value": "1"},
            ],
        });
        let container = serde_json::from_value(container).unwrap_or_else(|e| panic!("{e}"));
        let pod = json!({"metadata": {"name": "p"}, "status": {"podIP": "10.244.1.2"}});
        let pod = serde_json::from_value(pod).unwrap_or_else(|e| panic!("{e}"));
        let service = |name: &str, value: &str| (format!("DB_SERVICE_{name}"), value.to_owned());
        let env = vec![service("HOST", "10.96.0.1"), service("PORT", "80")];
        let got = command_line(&container, &pod, env);
        let url = "http://10.244.1.2:80/$(LATER)";
        assert_eq!(got.argv[2], format!("echo {url} $(LATER) $(URL) 10.96.0.1"));
        assert_eq!(got.env.len(), 4);
        assert!(got.env.contains(&("DB_SERVICE_PORT".into(), "1".into())));
    }
}
