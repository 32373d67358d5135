// SPDX-License-Identifier: Apache-2.0
//! The steps of a test file: each is reported by name, and one that fails does not hide the next.

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    time::Instant,
};

use anyhow::anyhow;

use crate::sandbox::Sandbox;

/// Only steps whose name contains the value of this variable are run, or one of several with `|`
/// between them.
const ONLY: &str = "CULVERT_STEP";

/// What steps run over: it is up, and goes down without a trace.
pub trait Ground {
    /// Prints the end of what its processes logged.
    fn print_logs(&self);
    /// Takes it down, and fails if anything of it is left.
    fn down(&mut self) -> anyhow::Result<()>;
}

/// Steps over one sandbox, or another ground.
#[derive(Debug)]
pub struct Suite<G = Sandbox> {
    ground: G,
    failures: Vec<String>,
}

// === impl Ground ===

impl Ground for Sandbox {
    fn print_logs(&self) {
        Self::print_logs(self);
    }

    fn down(&mut self) -> anyhow::Result<()> {
        Self::down(self)
    }
}

// === impl Suite ===

impl<G: Ground> Suite<G> {
    /// Over a sandbox that is up.
    pub fn new(ground: G) -> Self {
        let failures = Vec::new();
        Self { ground, failures }
    }

    /// Runs a step and goes on.
    pub fn step(&mut self, name: &str, step: impl FnOnce(&G) -> anyhow::Result<()>) {
        let wanted = |only: String| only.split('|').any(|part| name.contains(part));
        if !env::var(ONLY).map_or(true, wanted) {
            return;
        }
        let begin = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| step(&self.ground)));
        let result = result.unwrap_or_else(|_| Err(anyhow!("the step panicked")));
        let millis = begin.elapsed().as_millis();
        match result {
            Ok(()) => eprintln!("step {name} ... ok ({millis} ms)"),
            Err(error) => {
                eprintln!("step {name} ... FAILED ({millis} ms): {error:#}");
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Whether a step has failed.
    pub fn has_failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Takes the ground down, checks that nothing is left of it, and fails if a step has.
    pub fn finish(mut self) -> anyhow::Result<()> {
        if !self.failures.is_empty() {
            self.ground.print_logs();
        }
        if let Err(error) = self.ground.down() {
            eprintln!("step down leaves nothing ... FAILED: {error:#}");
            self.failures.push("down leaves nothing".to_owned());
        }
        match self.failures.is_empty() {
            true => Ok(()),
            false => Err(anyhow!(
                "{} steps failed: {}",
                self.failures.len(),
                self.failures.join(", ")
            )),
        }
    }
}
