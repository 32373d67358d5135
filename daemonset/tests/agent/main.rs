// SPDX-License-Identifier: Apache-2.0
//! The built agent with hand-made pods, a fake CNI plugin and a fake proxy, on the real kernel.

mod closed;
mod cluster;
mod left;
mod life;
mod many;
mod node;
mod probes;
mod proxy;
mod running;
mod runtime;
mod standing;
mod talk;
mod trust;
mod uninstall;
mod versions;
