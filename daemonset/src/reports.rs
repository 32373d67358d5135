// SPDX-License-Identifier: Apache-2.0
//! Where a pod's trouble is told, for who makes events of it.

use tokio::sync::mpsc;

use crate::desired::Problem;

/// What waits to be told. More is dropped: who finds trouble finds it again.
const CAPACITY: usize = 256;

/// Takes trouble. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    sender: Option<mpsc::Sender<Problem>>,
}

// === impl Reports ===

impl Reports {
    /// With somebody who listens.
    pub fn channel() -> (Self, mpsc::Receiver<Problem>) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let sender = Some(sender);
        (Self { sender }, receiver)
    }

    /// Never waits.
    pub fn tell(&self, problem: Problem) {
        if let Some(sender) = &self.sender {
            drop(sender.try_send(problem));
        }
    }
}
