// SPDX-License-Identifier: Apache-2.0
//! One invocation of the plugin, from its input to its outcome.

use std::{io::Read, time::Duration};

use culvert_api::cni::{Attachment, Command, Response, code};

use crate::{
    agent,
    away::{self, Pass},
    config::{self, Config, Fields, Settings},
    error::Error,
    input::{Environment, Verb},
    note,
    reply::{Outcome, Success},
};

/// An agent that is starting waits for its first snapshot; kubelet gives a sandbox minutes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Runtimes ask for STATUS every few seconds.
const QUICK: Duration = Duration::from_secs(2);

/// Carries out one command.
pub fn run(environment: &Environment, stdin: impl Read) -> Outcome {
    let (version, fields) = match read(environment, stdin) {
        Ok(read) => read,
        Err(error) => return Outcome::of_unknown_version(error),
    };
    Outcome {
        result: carry_out(environment, &version, fields),
        version,
    }
}

fn read(environment: &Environment, mut stdin: impl Read) -> Result<(String, Fields), Error> {
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes).map_err(Error::Stdin)?;
    // VERSION had no input before 0.4.0, and some runtimes still send none.
    if bytes.is_empty() && environment.verb()? == Verb::Version {
        return Ok((config::NEWEST.to_owned(), Fields::new()));
    }
    let fields = config::fields(&bytes)?;
    let version = config::version(&fields);
    let expected = || {
        Error::config(
            "cniVersion",
            "is missing; expected a string such as \"1.0.0\"",
        )
    };
    Ok((version.ok_or_else(expected)?, fields))
}

fn carry_out(environment: &Environment, version: &str, fields: Fields) -> Result<Success, Error> {
    let verb = environment.verb()?;
    if verb == Verb::Version {
        return Ok(Success::Versions);
    }
    speaks(verb, version)?;
    let config = config::parse(fields)?;
    // A pod must be deletable under the configuration of another release.
    if verb != Verb::Del {
        config.refuse_unknown()?;
    }
    if verb == Verb::Add && config.prev_result.is_none() {
        return Err(not_chained());
    }
    let command = command(environment, verb, &config)?;
    match is_no_pod(&command) {
        true => eprintln!("culvert-cni: CNI_ARGS names no pod of Kubernetes: left as it is"),
        false => obey(&config, command)?,
    }
    Ok(match (verb, config.prev_result) {
        (Verb::Add, Some(result)) => Success::Result(result),
        _ => Success::Silent,
    })
}

/// A container that podman or another runtime without Kubernetes starts on the node's network: no
/// manifest can opt it in, so it is nobody's business whether the agent is there. podman gives
/// `K8S_POD_NAME` for its DNS plugin
/// (<https://github.com/containers/podman/issues/12083>). DEL is the
/// agent's to judge, which knows what was added.
fn is_no_pod(command: &Command) -> bool {
    let (Command::Add(Attachment { args, .. }) | Command::Check(Attachment { args, .. })) = command
    else {
        return false;
    };
    let has = |name| args.get(name).is_some_and(|value| !value.is_empty());
    !has("K8S_POD_NAMESPACE") && !has("K8S_POD_UID")
}

fn speaks(verb: Verb, version: &str) -> Result<(), Error> {
    let wrong = |expected| Error::Version {
        got: version.to_owned(),
        expected,
    };
    if !config::SUPPORTED.contains(&version) {
        return Err(wrong("cniVersion 0.3.0, 0.3.1, 0.4.0, 1.0.0 or 1.1.0"));
    }
    if matches!(verb, Verb::Gc | Verb::Status) && version != config::NEWEST {
        return Err(wrong("cniVersion 1.1.0, the first that has GC and STATUS"));
    }
    Ok(())
}

fn not_chained() -> Error {
    let problem = "is missing: culvert-cni makes no interface and must be chained after a plugin \
                   that does; put it behind your network's plugin in the conflist";
    Error::config("prevResult", problem)
}

fn command(environment: &Environment, verb: Verb, config: &Config) -> Result<Command, Error> {
    let network = &config.network;
    Ok(match verb {
        Verb::Add => Command::Add(environment.attachment(network)?),
        Verb::Del => Command::Del(environment.old_attachment(network)?),
        Verb::Check => Command::Check(environment.attachment(network)?),
        Verb::Gc => Command::Gc {
            network: network.clone(),
            valid: valid(config)?,
        },
        Verb::Status | Verb::Version => Command::Status,
    })
}

/// Without the list nothing is valid and every pod would be let go of: not by an oversight.
fn valid(config: &Config) -> Result<Vec<(String, String)>, Error> {
    let missing = || Error::config("cni.dev/valid-attachments", "is missing; GC needs it");
    let list = config.valid_attachments.as_ref().ok_or_else(missing)?;
    let pair = |a: &config::GcAttachment| (a.container_id.clone(), a.ifname.clone());
    Ok(list.iter().map(pair).collect())
}

fn obey(config: &Config, command: Command) -> Result<(), Error> {
    let settings = &config.settings;
    let patience = match command {
        Command::Status => QUICK,
        _ => PATIENCE,
    };
    let reason = match agent::ask(&settings.agent_socket, command.clone(), patience) {
        Ok(response) => return carried_out(settings, &command, response),
        Err(reason) => reason,
    };
    match (&command, away::decide(settings, &command, reason)?) {
        (Command::Add(attachment), Pass::Unmeshed(why)) => {
            eprintln!("culvert-cni: culvert-agent is away: {why}");
            pass(settings, attachment)
        }
        (_, Pass::NoMatter(why) | Pass::Unmeshed(why)) => {
            eprintln!("culvert-cni: culvert-agent is away: {why}");
            forget(settings, &command);
            Ok(())
        }
    }
}

/// An agent that came up just now may have looked for notes before this one was there: it is asked
/// once more.
fn pass(settings: &Settings, attachment: &Attachment) -> Result<(), Error> {
    if let Err(error) = note::leave(settings, attachment) {
        eprintln!("culvert-cni: the agent will not hear of this pod: {error}");
    }
    let command = Command::Add(attachment.clone());
    match agent::ask(&settings.agent_socket, command.clone(), QUICK) {
        Ok(response) => carried_out(settings, &command, response),
        Err(_) => Ok(()),
    }
}

/// The agent knows better than an earlier note, and what is deleted needs none.
fn forget(settings: &Settings, command: &Command) {
    if let Command::Add(attachment) | Command::Del(attachment) = command
        && let Err(error) = note::take_back(settings, attachment)
    {
        eprintln!("culvert-cni: an old note for the agent stays: {error}");
    }
}

fn carried_out(settings: &Settings, command: &Command, response: Response) -> Result<(), Error> {
    forget(settings, command);
    match response {
        Response::Done { steered: _ } => Ok(()),
        // An agent of another release: like one that is away, it collects the pod by itself.
        Response::Failed { code, message, .. }
            if code == code::NOT_AVAILABLE && matches!(command, Command::Del(_)) =>
        {
            eprintln!("culvert-cni: {message}; the agent collects the pod later");
            Ok(())
        }
        Response::Failed {
            code,
            message,
            details,
        } => Err(Error::Agent {
            code,
            message,
            details,
        }),
    }
}
