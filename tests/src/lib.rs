// SPDX-License-Identifier: Apache-2.0
//! The harness of the integration tests: sandboxes that the real `culvert` binary makes, programs
//! for their pods, and what a test needs to look at them from outside.
//!
//! A test file brings up one [`sandbox::Sandbox`] and runs its steps in a [`suite::Suite`], because
//! steps are cheap and sandboxes are not. Everything is waited for by [`wait::wait_for`], never
//! slept for. The tests build nothing: they run what is in `target/release`, or in
//! `CULVERT_BIN_DIR`.

pub mod app;
pub mod binaries;
pub mod calls;
pub mod capture;
pub mod cluster;
pub mod manifests;
pub mod metrics;
pub mod netns;
pub mod process;
pub mod programs;
pub mod require;
pub mod runtime;
pub mod sandbox;
pub mod suite;
pub mod tls;
pub mod wait;
