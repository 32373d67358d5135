// SPDX-License-Identifier: Apache-2.0
//! What the user must be allowed to do for the installation, and the namespace that it wants.

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Namespace};

use super::{
    facts::{Answer, Permission, Reason},
    report::Check,
    unanswered,
};

const RBAC: &str = "rbac.authorization.k8s.io";

/// What `culvert install | kubectl apply -f -` makes. Whoever makes a role must hold what it
/// gives, or may `escalate`: cluster administrators do.
pub const NEEDED: [Permission; 12] = [
    cluster("create", "", "namespaces"),
    cluster("create", RBAC, "clusterroles"),
    cluster("create", RBAC, "clusterrolebindings"),
    cluster("escalate", RBAC, "clusterroles"),
    own("create", RBAC, "roles"),
    own("create", RBAC, "rolebindings"),
    own("create", "", "serviceaccounts"),
    own("create", "", "configmaps"),
    own("create", "", "secrets"),
    own("create", "", "services"),
    own("create", "apps", "deployments"),
    own("create", "apps", "daemonsets"),
];

const fn cluster(verb: &'static str, group: &'static str, resource: &'static str) -> Permission {
    Permission {
        verb,
        group,
        resource,
        namespaced: false,
    }
}

const fn own(verb: &'static str, group: &'static str, resource: &'static str) -> Permission {
    Permission {
        namespaced: true,
        ..cluster(verb, group, resource)
    }
}

/// One line for each permission.
pub fn checks(permissions: &[(Permission, Answer<bool>)]) -> Vec<Check> {
    permissions.iter().map(check).collect()
}

fn check((permission, allowed): &(Permission, Answer<bool>)) -> Check {
    let description = format!("can {} {}", permission.verb, permission.resource);
    match allowed {
        Ok(true) => Check::good(description),
        Ok(false) if permission.verb == "escalate" => Check::warning(
            description,
            vec!["you may not give permissions that you do not have yourself".to_owned()],
            "if the installation is refused for that, let a cluster administrator do it",
        ),
        Ok(false) => Check::failed(
            description,
            vec!["not allowed".to_owned()],
            "install as a cluster administrator, or with --as",
        ),
        Err(refusal) => unanswered(description, refusal),
    }
}

/// Whether the namespace can be taken.
pub fn namespace(name: &str, existing: &Answer<Namespace>, control: &Answer<Deployment>) -> Check {
    let description = format!("namespace {name} is free");
    if control.is_ok() {
        return Check::failed(
            description,
            vec!["Culvert is installed in it".to_owned()],
            "bring it to this release with `culvert upgrade`, or look at it with `culvert check`",
        );
    }
    match existing {
        Ok(found) if found.metadata.deletion_timestamp.is_some() => Check::failed(
            description,
            vec!["it is being deleted".to_owned()],
            "wait until it is gone",
        )
        .heals(),
        Ok(_) => Check::warning(
            description,
            vec!["it is there already".to_owned()],
            "fine if you made it for this; what else is in it may use Culvert's Secrets",
        ),
        Err(refusal) if refusal.reason == Reason::NotFound => Check::good(description),
        Err(refusal) => unanswered(description, refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{facts::Refusal, report::Outcome};

    fn refused<T>(reason: Reason) -> Answer<T> {
        let asked = "get it".to_owned();
        Err(Refusal { asked, reason })
    }

    #[test]
    fn each_permission_has_a_line() {
        let answers = [Ok(true), Ok(false), refused(Reason::Other("x".to_owned()))];
        let asked = cluster("create", "", "namespaces");
        let checks = checks(&answers.map(|answer| (asked.clone(), answer)));
        let outcomes: Vec<_> = checks.iter().map(|check| check.outcome).collect();
        assert_eq!(outcomes, [Outcome::Success, Outcome::Error, Outcome::Error]);
        assert_eq!(checks[0].description, "can create namespaces");
        assert_eq!(checks[2].found, ["could not get it: x"]);
    }

    #[test]
    fn who_may_not_escalate_is_warned_only() {
        let asked = cluster("escalate", RBAC, "clusterroles");
        assert_eq!(check(&(asked, Ok(false))).outcome, Outcome::Warning);
    }

    #[test]
    fn a_namespace_is_free_taken_or_made_by_hand() {
        let outcome = |existing: &Answer<Namespace>, control: &Answer<Deployment>| {
            namespace("culvert", existing, control).outcome
        };
        let none = refused(Reason::NotFound);
        assert_eq!(outcome(&refused(Reason::NotFound), &none), Outcome::Success);
        assert_eq!(outcome(&Ok(Namespace::default()), &none), Outcome::Warning);
        let control = Ok(Deployment::default());
        assert_eq!(outcome(&Ok(Namespace::default()), &control), Outcome::Error);
        let forbidden = refused(Reason::Forbidden("no".to_owned()));
        assert_eq!(outcome(&forbidden, &none), Outcome::Error);
        let mut leaving = Namespace::default();
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
        leaving.metadata.deletion_timestamp = Some(now);
        assert_eq!(outcome(&Ok(leaving), &none), Outcome::Error);
    }
}
