// SPDX-License-Identifier: Apache-2.0
//! What goes wrong with lists and watches.

use std::{io, time::Duration};

use culvert_runtime::log::with_causes;
use kube::core::Status;

/// Of what a server says no more is kept, in characters: it may be a proxy's page.
const LONGEST: usize = 300;

/// Why a list or a watch did not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the API server answered {code}: {message}")]
    Refused { code: u16, message: String },
    /// 410: what happened since is not known any more.
    #[error("the API server no longer knows what happened since: all objects are listed again")]
    Expired,
    #[error("could not reach the API server: {0}")]
    Unreachable(String),
    #[error("the API server said something unreadable: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the watch broke off: {0}")]
    Broken(#[from] io::Error),
    #[error("got nothing from the API server for {0:?}")]
    Stalled(Duration),
    #[error("the API server ended the watch at once")]
    Short,
    #[error("got a list without a resourceVersion, expected an API server")]
    NoVersion,
}

// === impl Fault ===

impl From<kube::Error> for Fault {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::from(*status),
            other => Self::Unreachable(cut(with_causes(&other))),
        }
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        match status.code {
            410 => Self::Expired,
            code => Self::Refused {
                code,
                message: cut(status.message),
            },
        }
    }
}

/// The beginning of a text of somebody else's.
pub(crate) fn cut(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(at);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_is_expired_and_long_texts_are_cut() {
        let status = |code| Status {
            code,
            message: "ä".repeat(1000),
            ..Status::default()
        };
        let fault = |code| Fault::from(kube::Error::Api(Box::new(status(code))));
        assert!(matches!(fault(410), Fault::Expired));
        let text = fault(500).to_string();
        assert!(
            text.starts_with("the API server answered 500: ää"),
            "{text}"
        );
        assert!(text.chars().count() < 350, "{text}");
    }
}
