// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox up`.

use std::{
    fs::{self, File},
    io::{self, IsTerminal},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use culvert_runtime::log;

use super::{
    api::{self, Request, Status},
    binaries::{self, Binaries},
    error::{Doing, Error, Result},
    layout::{Layout, Name},
    options::{Extra, Options},
    supervisor,
};
use crate::{
    args::{StartOptions, Up},
    output::{self, Progress},
};

const POLL: Duration = Duration::from_millis(100);

/// How long a supervisor may take to set up control and the nodes.
const SET_UP: Duration = Duration::from_secs(60);

/// Runs the command.
pub fn run(args: Up) -> Result<()> {
    let dir = manifests_dir(&args.dir)?;
    let options = options(dir, args.nodes, args.start)?;
    let layout = Layout::new(args.target.name);
    let status = bring_up(&layout, options, args.timeout)?;
    let (nodes, pods) = (status.nodes.len(), status.pods.len());
    let state = if status.ready { "ready" } else { "starting" };
    let name = &status.name;
    let (nodes, pods) = (count(nodes, "node"), count(pods, "pod"));
    let text = format!("The sandbox {name:?} is {state}: {nodes}, {pods}.\n");
    for problem in status.problems.iter().filter(|problem| !problem.refused) {
        eprintln!("note: {}: {}", problem.place, problem.reason);
    }
    output::print(&text).doing(|| "print".into())
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The options of a sandbox from the command line.
pub fn options(dir: PathBuf, nodes: u8, start: StartOptions) -> Result<Options> {
    Ok(Options {
        dir,
        nodes,
        ip_families: start.ip_families.unwrap_or_default(),
        bin_dir: Binaries::find(start.bin_dir.as_deref())?.dir,
        log: start.log,
        extra: Extra {
            control: start.control_arg,
            agent: start.agent_arg,
            proxy: start.proxy_arg,
        },
    })
}

/// Starts a sandbox or changes the one that runs, and waits until it is ready.
pub fn bring_up(layout: &Layout, options: Options, patience: Duration) -> Result<Status> {
    let binaries = Binaries {
        dir: options.bin_dir.clone(),
    };
    binaries::check(&binaries, &layout.name)?;
    let mut progress = Progress::start();
    let until = Instant::now() + patience;
    apply(layout, options, &mut progress)?;
    let ready = wait_until_ready(layout, until, &mut progress);
    progress.end();
    ready
}

/// Asks the supervisor that runs, or starts one.
fn apply(layout: &Layout, options: Options, progress: &mut Progress) -> Result<()> {
    let request = Request::Apply {
        options: options.clone(),
    };
    match api::ask(layout, &request) {
        Err(Error::NotRunning { .. }) => start(layout, &options, progress),
        applied => {
            applied?;
            options.save(layout).doing(|| "keep the options".into())
        }
    }
}

fn start(layout: &Layout, options: &Options, progress: &mut Progress) -> Result<()> {
    fs::create_dir_all(layout.logs()).doing(|| format!("make {}", layout.logs().display()))?;
    options.save(layout).doing(|| "keep the options".into())?;
    let mut supervisor = spawn(layout).doing(|| "start the supervisor".into())?;
    let until = Instant::now() + SET_UP;
    loop {
        match api::ask_status(layout) {
            Err(Error::NotRunning { .. }) => {}
            answered => return answered.map(|_| ()),
        }
        if let Some(status) = supervisor
            .try_wait()
            .doing(|| "wait for the supervisor".into())?
        {
            return Err(Error::Supervisor(format!(
                "the supervisor ended with {status}: {}",
                last_words(layout)
            )));
        }
        if Instant::now() > until {
            let log = layout.supervisor_log();
            let message = format!("the supervisor does not answer: see {}", log.display());
            return Err(Error::Supervisor(message));
        }
        progress.say("starting control and the nodes");
        thread::sleep(POLL);
    }
}

/// A process of its own session, whose output goes to a log.
fn spawn(layout: &Layout) -> io::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(layout.supervisor_log())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["sandbox", "supervise", "--name", layout.name.as_str()]);
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.process_group(0);
    super::process::before_exec(&mut command, || {
        Ok(nix::unistd::setsid().map(|_| ()).or_else(leads)?)
    });
    command.spawn()
}

/// Already the leader of its group: EPERM.
fn leads(error: nix::Error) -> nix::Result<()> {
    if error == nix::Error::EPERM {
        Ok(())
    } else {
        Err(error)
    }
}

fn last_words(layout: &Layout) -> String {
    let log = layout.supervisor_log();
    let text = fs::read_to_string(&log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    match last {
        Some(line) => line.trim_start_matches("error: ").to_owned(),
        None => format!("see {}", log.display()),
    }
}

fn wait_until_ready(layout: &Layout, until: Instant, progress: &mut Progress) -> Result<Status> {
    let impatient = until <= Instant::now();
    loop {
        let status = api::ask_status(layout)?;
        let waiting = status.waiting_for();
        if waiting.is_empty() || impatient {
            return Ok(status);
        }
        let hopeless = status.problems.iter().any(|problem| problem.refused)
            && waiting.len()
                == status
                    .problems
                    .iter()
                    .filter(|problem| problem.refused)
                    .count();
        if hopeless || Instant::now() > until {
            return Err(Error::NotReady {
                name: status.name,
                reasons: waiting,
            });
        }
        progress.say(&waits(&waiting));
        thread::sleep(POLL);
    }
}

fn waits(waiting: &[String]) -> String {
    match waiting {
        [one] => format!("waiting for {one}"),
        [first, rest @ ..] if io::stderr().is_terminal() => {
            format!("waiting for {} more and {first}", rest.len())
        }
        several => format!("waiting for {} processes and pods", several.len()),
    }
}

fn manifests_dir(dir: &Path) -> Result<PathBuf> {
    let path = match dir.canonicalize() {
        Ok(path) => path,
        Err(error) => {
            return Err(Error::Usage(format!(
                "can't read {}: {error}",
                dir.display()
            )));
        }
    };
    if !path.is_dir() {
        let message = format!(
            "{} is no directory: give the directory that holds it",
            dir.display()
        );
        return Err(Error::Usage(message));
    }
    Ok(path)
}

/// The hidden command that `up` starts.
pub fn supervise(name: Name) -> Result<()> {
    let layout = Layout::new(name);
    let options = Options::load(&layout).doing(|| format!("read {}", layout.state().display()))?;
    let started = log::init(&options.log, log::Format::Plain);
    started.map_err(|error| Error::Usage(format!("--log {:?}: {error}", options.log)))?;
    supervisor::run(layout, options)
}
