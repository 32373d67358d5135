// SPDX-License-Identifier: Apache-2.0
//! One look at the files, and what it takes to put them right.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use culvert_api::kubernetes::CniStatus;
use tokio::sync::watch;

use super::{
    Install, Look,
    chain::{self, Changed},
    directory::{self, Others, Primary, Unusable},
    files::{self, Stamp},
    list::List,
    metrics::Metrics,
    pace::Pace,
};

/// The permissions of a program.
const PROGRAM: u32 = 0o755;

/// Keeps the files.
#[derive(Debug)]
pub struct Keeper {
    install: Install,
    metrics: Metrics,
    status: watch::Sender<CniStatus>,
    /// What this agent wrote last.
    written: Option<String>,
    pace: Pace,
    /// Of two programs that are known to be the same.
    programs: Option<[Stamp; 2]>,
    /// What was said already.
    told: BTreeSet<String>,
}

/// Why the chain is not as it should be.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("could not {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "no network is configured in {}: install a CNI plugin, or say where its configuration is \
         (--cni-net-dir)", dir.display()
    )]
    NoPrimary { dir: PathBuf },
    #[error("could not chain after {}: {broken}; ours stays as it is", path.display())]
    Primary { path: PathBuf, broken: Unusable },
    #[error(
        "{before} sorts before {ours}, so the runtime uses it and pods start without the mesh: \
         rename it, or give ours another name (--cni-conflist)"
    )]
    Shadowed { before: String, ours: String },
    #[error(
        "something keeps changing {}, which is put right every few seconds only, and pods that \
         start meanwhile are not meshed from their first packet: find out what it is (Cilium: set \
         cni.exclusive=false)", path.display()
    )]
    Disturbed { path: PathBuf },
    #[error(
        "nobody keeps it for some seconds: its keeper panicked, see the agent's log before this, \
         and report it"
    )]
    Panicked,
}

/// What a look at the configurations found.
#[derive(Debug, Default)]
struct Looked {
    primary: String,
    faults: Vec<Fault>,
    /// How long a repair has to wait.
    wait: Option<Duration>,
    /// Whether ours is there, and says what it should.
    is_right: bool,
}

/// What ours should say.
struct Wanted {
    text: String,
    mode: u32,
    version: Option<Changed>,
}

// === impl Keeper ===

impl Look for Keeper {
    fn look(&mut self, now: Instant) -> Option<Duration> {
        let program = self.keep_program();
        // A runtime that finds the configuration without the program fails every pod.
        let mut looked = match self.install.program().exists() {
            true => self.keep_conflist(now),
            false => Looked::default(),
        };
        looked.faults.extend(program.err());
        self.tell(&looked);
        looked.wait
    }

    fn anew(&self) -> Self {
        let (install, metrics) = (self.install.clone(), self.metrics.clone());
        Self::new(install, metrics, self.status.clone())
    }

    fn fallen(&self) {
        let mut looked = Looked::default();
        looked.faults.push(Fault::Panicked);
        // It is told again when it happens again.
        self.anew().tell(&looked);
    }
}

impl Keeper {
    /// Has not looked yet.
    pub fn new(install: Install, metrics: Metrics, status: watch::Sender<CniStatus>) -> Self {
        Self {
            install,
            metrics,
            status,
            written: None,
            pace: Pace::default(),
            programs: None,
            told: BTreeSet::new(),
        }
    }

    fn keep_program(&mut self) -> Result<(), Fault> {
        let (from, to) = (&self.install.plugin, self.install.program());
        let stamps = || Ok::<_, io::Error>([Stamp::of(from)?, Stamp::of(&to)?]);
        let now = stamps().ok();
        if now.is_some() && now == self.programs {
            return Ok(());
        }
        let content = fs::read(from).map_err(io_fault("read", from))?;
        if fs::read(&to).ok().as_ref() != Some(&content) {
            files::replace(&to, &content, PROGRAM).map_err(io_fault("install", &to))?;
            if self.programs.is_some() {
                self.metrics.repair("program");
                tracing::warn!(path = %to.display(), "Installed the CNI plugin again: somebody changed it");
            } else {
                tracing::info!(path = %to.display(), "Installed the CNI plugin");
            }
        }
        self.programs = stamps().ok();
        Ok(())
    }

    fn keep_conflist(&mut self, now: Instant) -> Looked {
        let mut looked = Looked::default();
        if let Err(fault) = self.try_conflist(now, &mut looked) {
            looked.faults.push(fault);
        }
        looked
    }

    fn try_conflist(&mut self, now: Instant, looked: &mut Looked) -> Result<(), Fault> {
        let (dir, path) = (&self.install.net_dir, self.install.conflist());
        let others = directory::others(dir, &self.install.file);
        let others = others.map_err(io_fault("look into", dir))?;
        let current = directory::text(&path).map_err(io_fault("read", &path))?;
        if let Some(before) = &others.before {
            looked.faults.push(Fault::Shadowed {
                before: before.clone(),
                ours: self.install.file.clone(),
            });
        }
        let Some(wanted) = self.wanted(others, current.as_deref(), looked) else {
            return Ok(());
        };
        let is_right = |text: &[u8]| chain::same(text, wanted.text.as_bytes());
        if current.as_deref().is_some_and(is_right) {
            self.written = Some(wanted.text);
            looked.is_right = true;
            return Ok(());
        }
        self.put_right(&wanted, current.as_deref(), now, looked)
    }

    /// None: ours is left as it is.
    fn wanted(
        &self,
        others: Others,
        current: Option<&[u8]>,
        looked: &mut Looked,
    ) -> Option<Wanted> {
        let at = |name: &str| self.install.net_dir.join(name);
        let (name, broken) = match others.primary {
            Primary::Missing => {
                let dir = self.install.net_dir.clone();
                looked.faults.push(Fault::NoPrimary { dir });
                return None;
            }
            Primary::Broken { name, broken } => (name, broken),
            Primary::Found { name, list, mode } => {
                let ours = current.and_then(|text| List::read(&self.install.file, text).ok());
                let kept = ours.as_ref().map(chain::added).unwrap_or_default();
                let settings = self.install.settings.entry();
                match chain::chain(&name, &list, others.found, kept, &settings) {
                    Ok(chained) => {
                        looked.primary = at(&name).display().to_string();
                        return Some(Wanted {
                            text: chained.text,
                            mode,
                            version: chained.version,
                        });
                    }
                    Err(broken) => (name, broken.into()),
                }
            }
        };
        let path = at(&name);
        looked.faults.push(Fault::Primary { path, broken });
        self.last()
    }

    /// What was written last is better than nothing, when there is something behind it.
    fn last(&self) -> Option<Wanted> {
        Some(Wanted {
            text: self.written.clone()?,
            mode: 0o600,
            version: None,
        })
    }

    fn put_right(
        &mut self,
        wanted: &Wanted,
        current: Option<&[u8]>,
        now: Instant,
        looked: &mut Looked,
    ) -> Result<(), Fault> {
        let path = self.install.conflist();
        let is_ours = |written: &String| {
            current.is_some_and(|current| chain::same(current, written.as_bytes()))
        };
        let is_repair = self
            .written
            .as_ref()
            .is_some_and(|written| !is_ours(written));
        if is_repair {
            let wait = self.pace.wait(now);
            if !wait.is_zero() {
                looked.wait = Some(wait);
                looked.faults.push(Fault::Disturbed { path });
                return Ok(());
            }
        }
        let written = files::replace(&path, wanted.text.as_bytes(), wanted.mode);
        written.map_err(io_fault("write", &path))?;
        self.written = Some(wanted.text.clone());
        looked.is_right = true;
        self.note(is_repair, current.is_none(), wanted, looked);
        if is_repair && self.pace.note(now) {
            looked.faults.push(Fault::Disturbed { path });
        }
        Ok(())
    }

    fn note(&self, is_repair: bool, was_gone: bool, wanted: &Wanted, looked: &Looked) {
        let (path, primary) = (self.install.conflist(), &looked.primary);
        let path = path.display();
        if is_repair {
            self.metrics.repair("conflist");
            tracing::warn!(%path, was_gone, "Put the CNI configuration right: somebody changed it");
        } else {
            tracing::info!(%path, primary, "Chained culvert-cni after the network's plugins");
        }
        if let Some(Changed { got, to }) = &wanted.version {
            tracing::warn!(
                primary,
                got,
                to,
                "Changed cniVersion: plugins are chained in 0.3.0 to 1.1.0 only"
            );
        }
    }

    /// Each fault once, and again when it came back.
    fn tell(&mut self, looked: &Looked) {
        let all: BTreeSet<_> = looked.faults.iter().map(ToString::to_string).collect();
        for problem in all.difference(&self.told) {
            tracing::error!(problem, "The CNI configuration is not as it should be");
        }
        let status = CniStatus {
            chained: looked.is_right && all.is_empty(),
            conflist: self.install.conflist().display().to_string(),
            primary: looked.primary.clone(),
            problem: all.iter().cloned().collect::<Vec<_>>().join("; "),
        };
        self.metrics.chained.set(status.chained.into());
        self.told = all;
        self.status.send_if_modified(|told| {
            let changed = *told != status;
            *told = status;
            changed
        });
    }
}

fn io_fault(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Fault {
    let path = path.to_owned();
    move |source| Fault::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
