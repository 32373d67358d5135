// SPDX-License-Identifier: Apache-2.0
//! Finding the pod that a user means.

/// A pod that may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The deployment that it is of.
    pub deployment: Option<String>,
}

/// The one pod that `query` means: `name`, `namespace/name`, or the name of a deployment or the
/// beginning of a pod's name up to a dash, with or without a namespace.
pub fn find(query: &str, candidates: Vec<Candidate>) -> Result<Candidate, String> {
    let (namespace, name) = match query.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, query),
    };
    let in_namespace = |one: &&Candidate| namespace.is_none_or(|ns| ns == one.namespace);
    let of = |fits: &dyn Fn(&Candidate) -> bool| -> Vec<Candidate> {
        candidates
            .iter()
            .filter(in_namespace)
            .filter(|one| fits(one))
            .cloned()
            .collect()
    };
    let mut found = of(&|one| one.name == name);
    if found.is_empty() {
        found = of(&|one| one.deployment.as_deref() == Some(name));
    }
    if found.is_empty() {
        let prefix = format!("{}-", name.trim_end_matches('-'));
        found = of(&|one| one.name.starts_with(&prefix));
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(format!(
            "there is no pod {query:?}; there are:{}",
            list(&candidates)
        )),
        several => Err(format!("{query:?} may be any of:{}", list(several))),
    }
}

fn list(candidates: &[Candidate]) -> String {
    if candidates.is_empty() {
        return " none".into();
    }
    candidates
        .iter()
        .map(|one| format!("\n  {}/{}", one.namespace, one.name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, deployment: Option<&str>) -> Candidate {
        Candidate {
            namespace: namespace.into(),
            name: name.into(),
            deployment: deployment.map(str::to_owned),
        }
    }

    fn pods() -> Vec<Candidate> {
        vec![
            pod("shop", "web-abc-1", Some("web")),
            pod("shop", "web-abc-2", Some("web")),
            pod("shop", "db-abc-1", Some("db")),
            pod("shop", "web", None),
            pod("other", "db-xyz-1", Some("db")),
        ]
    }

    #[test]
    fn names_deployments_and_beginnings_are_understood() {
        let name = |query: &str| find(query, pods()).map(|one| one.name);
        assert_eq!(
            name("web"),
            Ok("web".into()),
            "a whole name beats a deployment"
        );
        assert_eq!(name("shop/db"), Ok("db-abc-1".into()));
        assert_eq!(name("other/db-xyz"), Ok("db-xyz-1".into()));
        assert_eq!(name("web-abc-2"), Ok("web-abc-2".into()));
    }

    #[test]
    fn ambiguity_lists_what_may_be_meant() {
        let Err(error) = find("db", pods()) else {
            panic!("one of two was taken");
        };
        assert_eq!(
            error,
            "\"db\" may be any of:\n  shop/db-abc-1\n  other/db-xyz-1"
        );
        assert!(find("we", pods()).is_err_and(|error| error.contains("no pod \"we\"")));
        assert!(find("x", vec![]).is_err_and(|error| error.ends_with("there are: none")));
    }
}
