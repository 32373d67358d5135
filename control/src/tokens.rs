// SPDX-License-Identifier: Apache-2.0
//! Which node calls, by the bearer token that it shows.

mod answers;
mod claims;
mod join;
mod refusals;
mod review;
mod reviewed;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use culvert_api::grpc::TOKEN_METADATA;
use tonic::{Request, Status, metadata::MetadataMap};

pub use self::{
    join::{BadTokens, TokenFile, Tokens},
    review::Expected,
};
use crate::{
    accept::Probation,
    index::{Index, View},
    metrics::Metrics,
};

type Hash = [u8; SHA256_OUTPUT_LEN];

/// Tells nodes by their tokens.
#[derive(Clone, Debug)]
pub struct Authenticator {
    by: By,
}

#[derive(Clone, Debug)]
enum By {
    Join(join::Joined),
    Review(Arc<reviewed::Reviewer>),
}

/// A node that showed its token.
#[derive(Debug)]
pub struct Caller {
    /// The node's name.
    pub node: String,
    standing: Standing,
}

/// Why a caller is who it says, and how that ends.
#[derive(Debug)]
enum Standing {
    Member(join::Membership),
    Followed(reviewed::Followed),
}

// === impl Authenticator ===

impl Authenticator {
    /// Tells nodes by the tokens of the pods of one ServiceAccount, as the API server has them.
    pub fn reviewed(
        client: kube::Client,
        index: &Index,
        expected: Expected,
        metrics: Metrics,
    ) -> Self {
        let reviewer = reviewed::Reviewer::new(client, index, expected, metrics);
        Self {
            by: By::Review(Arc::new(reviewer)),
        }
    }

    /// The nodes that are to know what is reported: those that may have a proxy.
    pub fn nodes(&self, view: &View) -> Vec<String> {
        match &self.by {
            By::Join(joined) => joined.nodes(),
            By::Review(reviewer) => reviewer.nodes(view),
        }
    }

    /// Who calls; its connection may stay open from now on.
    pub fn admit<T>(
        &self,
        request: &Request<T>,
    ) -> impl Future<Output = Result<Caller, Status>> + Send + use<T> {
        let (itself, token) = (self.clone(), bearer(request.metadata()));
        let probation = request.extensions().get::<Probation>().cloned();
        async move {
            let caller = itself.caller(token).await?;
            if let Some(probation) = probation {
                probation.pass();
            }
            Ok(caller)
        }
    }

    /// Who calls, by `authorization: Bearer <token>`.
    async fn caller(&self, token: Option<String>) -> Result<Caller, Status> {
        match &self.by {
            By::Join(joined) => joined
                .caller(&token.ok_or_else(no_token)?)
                .ok_or_else(|| Status::unauthenticated("no node has this token")),
            By::Review(reviewer) => reviewer.caller(token).await,
        }
    }
}

fn no_token() -> Status {
    Status::unauthenticated("expected `authorization: Bearer <token>`")
}

fn bearer(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get(TOKEN_METADATA)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim().to_owned())
}

fn hash_of(token: &str) -> Hash {
    let digest = digest(&SHA256, token.as_bytes());
    let mut hash = Hash::default();
    hash.copy_from_slice(digest.as_ref());
    hash
}

// === impl Caller ===

impl Caller {
    /// Waits until the token no longer counts. Dropping the future loses nothing.
    pub async fn revoked(&mut self) {
        match &mut self.standing {
            Standing::Member(membership) => membership.revoked().await,
            Standing::Followed(followed) => followed.revoked().await,
        }
    }
}
