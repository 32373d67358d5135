// SPDX-License-Identifier: Apache-2.0
//! The steps of a test file: each is reported by name, and one that fails does not hide the next.

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    time::Instant,
};

use anyhow::anyhow;

use crate::sandbox::Sandbox;

/// Only steps whose name contains the value of this variable are run.
const ONLY: &str = "CULVERT_STEP";

/// Steps over one sandbox.
#[derive(Debug)]
pub struct Suite {
    sandbox: Sandbox,
    failures: Vec<String>,
}

// === impl Suite ===

impl Suite {
    /// Over a sandbox that is up.
    pub fn new(sandbox: Sandbox) -> Self {
        let failures = Vec::new();
        Self { sandbox, failures }
    }

    /// Runs a step and goes on.
    pub fn step(&mut self, name: &str, step: impl FnOnce(&Sandbox) -> anyhow::Result<()>) {
        if env::var(ONLY).is_ok_and(|only| !name.contains(&only)) {
            return;
        }
        let begin = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| step(&self.sandbox)));
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

    /// Takes the sandbox down, checks that nothing is left of it, and fails if a step has.
    pub fn finish(mut self) -> anyhow::Result<()> {
        if !self.failures.is_empty() {
            self.sandbox.print_logs();
        }
        if let Err(error) = self.sandbox.down() {
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
