// SPDX-License-Identifier: Apache-2.0
//! Asks the API server of a bound ServiceAccount token (TokenReview), and reads its answer.
//!
//! Since Kubernetes 1.30 it names the node of the token's pod; before, the pod only.
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens>

use std::time::Duration;

use culvert_api::workload::PodUid;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::api::{Api, PostParams};
use tokio::{sync::Semaphore, time::timeout};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// How long a review may take, waiting for its turn included: less than a proxy waits for control.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many reviews go on at once: of tokens that were good before, and of those that were not.
/// Each has its own, so that a flood of forged tokens keeps no node's from being reviewed.
const MOST_AT_ONCE: usize = 16;

/// Of whom a token must be, and whom it must be for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The token's audience.
    pub audience: String,
    /// The namespace of its ServiceAccount.
    pub namespace: String,
    /// The name of its ServiceAccount.
    pub service_account: String,
}

/// What the API server vouches for: the token is this pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) pod: String,
    pub(super) uid: PodUid,
    /// Where the pod is scheduled, if the API server says so.
    pub(super) node: Option<String>,
    /// The uid of the ServiceAccount.
    pub(super) account: Option<String>,
}

/// The API server does not vouch for a token, or not for what is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("the API server does not know it, or no longer")]
    NotAuthenticated,
    #[error("it is for the audiences {0:?}")]
    OtherAudience(Vec<String>),
    #[error("it is {0:?}'s")]
    OtherUser(String),
    #[error("it is bound to no pod")]
    NoPod,
}

/// The API server said nothing of a token.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("no answer in {PATIENCE:?}")]
    Late,
    #[error("{0}")]
    Failed(#[from] Box<kube::Error>),
    #[error("an answer without a status")]
    NoStatus,
}

/// The way to the API server.
pub(super) struct Reviews {
    api: Api<TokenReview>,
    expected: Expected,
    of_known: Semaphore,
    of_unknown: Semaphore,
}

// === impl Expected ===

impl Expected {
    /// How the API server names the ServiceAccount.
    pub(super) fn username(&self) -> String {
        let Self {
            namespace,
            service_account,
            ..
        } = self;
        format!("system:serviceaccount:{namespace}:{service_account}")
    }

    fn proof(&self, status: TokenReviewStatus) -> Result<Proof, Denied> {
        if status.authenticated != Some(true) {
            return Err(Denied::NotAuthenticated);
        }
        // A server that knows no audiences says none, and may have passed over ours.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.contains(&self.audience) {
            return Err(Denied::OtherAudience(audiences));
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.clone().unwrap_or_default();
        if name != self.username() {
            return Err(Denied::OtherUser(name));
        }
        let (pod, uid) = said(&user, POD_NAME)
            .zip(said(&user, POD_UID))
            .ok_or(Denied::NoPod)?;
        Ok(Proof {
            pod,
            uid: PodUid(uid),
            node: said(&user, NODE_NAME),
            account: user.uid,
        })
    }
}

fn said(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [one] if !one.is_empty() => Some(one.clone()),
        _ => None,
    }
}

// === impl Reviews ===

impl Reviews {
    pub(super) fn new(client: kube::Client, expected: Expected) -> Self {
        Self {
            api: Api::all(client),
            expected,
            of_known: Semaphore::new(MOST_AT_ONCE),
            of_unknown: Semaphore::new(MOST_AT_ONCE),
        }
    }

    pub(super) fn expected(&self) -> &Expected {
        &self.expected
    }

    /// Asks. `known`: the token was good before.
    pub(super) async fn ask(
        &self,
        token: &str,
        known: bool,
    ) -> Result<Result<Proof, Denied>, Unanswered> {
        let turns = if known {
            &self.of_known
        } else {
            &self.of_unknown
        };
        let asked = async {
            // Nobody closes it.
            let _turn = turns.acquire().await;
            let review = self.review(token);
            self.api.create(&PostParams::default(), &review).await
        };
        let answer = timeout(PATIENCE, asked).await;
        let answer = answer.map_err(|_| Unanswered::Late)?.map_err(Box::new)?;
        let status = answer.status.ok_or(Unanswered::NoStatus)?;
        Ok(self.expected.proof(status))
    }

    fn review(&self, token: &str) -> TokenReview {
        TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.expected.audience.clone()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        }
    }
}
