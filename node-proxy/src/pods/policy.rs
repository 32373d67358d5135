// SPDX-License-Identifier: Apache-2.0
//! Which policy is in force: what control asks for, and when it can't be yet or any more.

use std::sync::{Arc, LazyLock};

use culvert_api::policy::InboundPolicy;

static STRICT: LazyLock<Arc<InboundPolicy>> = LazyLock::new(|| Arc::new(InboundPolicy::strict()));
static PERMISSIVE: LazyLock<Arc<InboundPolicy>> =
    LazyLock::new(|| Arc::new(InboundPolicy::permissive()));

/// Where a pod is on its way into and out of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    /// It ran before it was enrolled, so that its peers still dial it in plaintext.
    pub(super) live: bool,
    /// Every peer knows that it is meshed, and has for a while.
    pub(super) reported: bool,
    /// It leaves, so that its peers begin to dial it in plaintext.
    pub(super) withdrawing: bool,
}

/// The policy in force. Unknown is strict; while peers rightly dial in plaintext nothing is. What the
/// ports speak and how requests are logged holds at every stage.
pub(super) fn effective(asked: Option<&Arc<InboundPolicy>>, stage: Stage) -> Arc<InboundPolicy> {
    let Stage {
        live,
        reported,
        withdrawing,
    } = stage;
    let open = withdrawing || (live && !reported);
    match asked {
        None if open => PERMISSIVE.clone(),
        None => STRICT.clone(),
        Some(asked) if open => Arc::new(InboundPolicy {
            rules: PERMISSIVE.rules.clone(),
            ..InboundPolicy::clone(asked)
        }),
        Some(asked) => asked.clone(),
    }
}

#[cfg(test)]
mod tests {
    use culvert_api::{
        policy::AccessLogFormat,
        protocol::{Hint, PortHint, PortHints},
    };

    use super::*;

    #[test]
    fn ports_and_logs_are_the_pods_at_every_stage() {
        let asked = Arc::new(InboundPolicy {
            ports: PortHints::new(vec![PortHint::one(80, Hint::Opaque)]),
            access_log: Some(AccessLogFormat::Json),
            ..InboundPolicy::strict()
        });
        for withdrawing in [false, true] {
            let stage = Stage {
                live: false,
                reported: true,
                withdrawing,
            };
            let got = effective(Some(&asked), stage);
            assert_eq!(got.requires_identity(), !withdrawing);
            let hints = [80, 25].map(|port| got.protocol(port));
            assert_eq!(hints, [Hint::Opaque, Hint::Detect]);
            assert_eq!(got.access_log, Some(AccessLogFormat::Json));
            assert_eq!(effective(None, stage).protocol(25), Hint::Opaque);
        }
    }

    #[test]
    fn strict_needs_peers_that_know() {
        let (strict, permissive) = (InboundPolicy::strict(), InboundPolicy::permissive());
        let known = [None, Some(Arc::new(strict)), Some(Arc::new(permissive))];
        // (live, reported, withdrawing) and whether an identity is required with each of `known`.
        let table = [
            ((false, false, false), [true, true, false]),
            ((false, true, false), [true, true, false]),
            ((true, false, false), [false, false, false]),
            ((true, true, false), [true, true, false]),
            ((false, false, true), [false, false, false]),
            ((false, true, true), [false, false, false]),
            ((true, true, true), [false, false, false]),
        ];
        for ((live, reported, withdrawing), expected) in table {
            let stage = Stage {
                live,
                reported,
                withdrawing,
            };
            let got = known
                .each_ref()
                .map(|asked| effective(asked.as_ref(), stage));
            assert_eq!(
                got.map(|policy| policy.requires_identity()),
                expected,
                "{stage:?}"
            );
        }
    }
}
