// SPDX-License-Identifier: Apache-2.0
//! What an operator is to hear of, beside the log: on Kubernetes it becomes an Event.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Something that an operator is to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Why, in CamelCase.
    pub reason: &'static str,
    /// What, in a sentence.
    pub message: String,
    /// Whether something is to be done about it.
    pub is_warning: bool,
    /// Whether only this replica has it; the others' are the same, and one of them says it.
    pub is_own: bool,
}

/// Where notices go. Clones share it.
#[derive(Clone, Debug)]
pub struct Notices {
    to: UnboundedSender<Notice>,
}

// === impl Notice ===

impl Notice {
    /// For information.
    pub fn normal(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            is_warning: false,
            is_own: false,
        }
    }

    /// Something is to be done.
    pub fn warning(reason: &'static str, message: String) -> Self {
        Self {
            is_warning: true,
            ..Self::normal(reason, message)
        }
    }

    /// Something is to be done, and no other replica says so.
    pub fn own_warning(reason: &'static str, message: String) -> Self {
        Self {
            is_own: true,
            ..Self::warning(reason, message)
        }
    }
}

// === impl Notices ===

impl Notices {
    /// Notices, and who hears them. They are few: each is said when it is new, or once a day.
    pub fn new() -> (Self, UnboundedReceiver<Notice>) {
        let (to, heard) = unbounded_channel();
        (Self { to }, heard)
    }

    /// Says it. Nobody may listen: without Kubernetes there is the log alone.
    pub fn say(&self, notice: Notice) {
        let _ = self.to.send(notice);
    }
}
