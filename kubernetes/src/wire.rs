// SPDX-License-Identifier: Apache-2.0
//! What the API server says to a list and a watch, read object by object: one that can't be read
//! takes nothing with it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use kube::core::Status;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    fault::{Fault, cut},
    kinds::{Key, Watched, slim},
    source::Scope,
};

/// A part of a list.
pub(crate) struct Page<K: Watched> {
    pub(crate) items: Vec<Item<K>>,
    /// What to watch from once the last page is there.
    pub(crate) version: Option<String>,
    /// Where the next page begins.
    pub(crate) next: Option<String>,
}

/// An object, without what nobody reads.
pub(crate) enum Item<K: Watched> {
    Good(K::Key, Box<K>),
    Bad(Unreadable<K::Key>),
}

/// An object that can't be read.
pub(crate) struct Unreadable<Key> {
    /// What it is known by, if that much could be read.
    pub(crate) key: Option<Key>,
    pub(crate) reason: String,
}

/// An event of a watch.
pub(crate) enum Event<K: Watched> {
    Applied(Item<K>),
    Deleted(K::Key),
    /// Nothing but a newer version, or what this release does not know.
    Bookmark,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type")]
    what: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// As little of an object as tells which it is.
#[derive(Default, Deserialize)]
struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

/// Reads a page of a list.
pub(crate) fn page<K: Watched>(text: &str, scope: &Scope) -> Result<Page<K>, Fault> {
    let page: RawPage<'_> = serde_json::from_str(text)?;
    let items = page.items.unwrap_or_default();
    Ok(Page {
        items: items.into_iter().map(|raw| item(raw, scope).0).collect(),
        version: page.metadata.resource_version.filter(|it| !it.is_empty()),
        next: page.metadata.continue_.filter(|it| !it.is_empty()),
    })
}

/// Reads a line of a watch: the event, and the version that it brought.
pub(crate) fn event<K: Watched>(
    line: &str,
    scope: &Scope,
) -> Result<(Event<K>, Option<String>), Fault> {
    let event: RawEvent<'_> = serde_json::from_str(line)?;
    match event.what.as_str() {
        "ADDED" | "MODIFIED" => {
            let (item, version) = item(event.object, scope);
            Ok((Event::Applied(item), version))
        }
        "ERROR" => Err(Fault::from(serde_json::from_str::<Status>(
            event.object.get(),
        )?)),
        what => {
            let head = head(event.object);
            let version = head.resource_version.clone();
            let key = K::Key::of(&ObjectMeta::from(head));
            let deleted = key.filter(|_| what == "DELETED").map(Event::Deleted);
            Ok((deleted.unwrap_or(Event::Bookmark), version))
        }
    }
}

fn item<K: Watched>(raw: &RawValue, scope: &Scope) -> (Item<K>, Option<String>) {
    let read = serde_json::from_str::<K>(raw.get());
    let reason = match read {
        Ok(object) => {
            let version = object.meta().resource_version.clone();
            match K::Key::of(object.meta()) {
                Some(key) => return (Item::Good(key, Box::new(slim(object, scope))), version),
                None => "it has no name".to_owned(),
            }
        }
        Err(error) => error.to_string(),
    };
    let head = head(raw);
    let version = head.resource_version.clone();
    let unreadable = Unreadable {
        key: K::Key::of(&ObjectMeta::from(head)),
        reason: cut(reason),
    };
    (Item::Bad(unreadable), version)
}

fn head(raw: &RawValue) -> HeadMeta {
    let head: Result<Head, _> = serde_json::from_str(raw.get());
    head.unwrap_or_default().metadata
}

// === impl HeadMeta ===

impl From<HeadMeta> for ObjectMeta {
    fn from(head: HeadMeta) -> Self {
        Self {
            name: head.name,
            namespace: head.namespace,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    const BAD: &str = r#"{"metadata":{"name":"b","namespace":"s","resourceVersion":"8"},"spec":{"containers":7}}"#;

    fn named(item: &Item<Pod>) -> String {
        match item {
            Item::Good(key, _) => key.words(),
            Item::Bad(bad) => format!("bad {}", bad.key.as_ref().map_or("?".into(), Key::words)),
        }
    }

    #[test]
    fn a_bad_object_leaves_the_others_of_its_page() -> Result<(), Fault> {
        let text = format!(
            r#"{{"kind":"PodList","metadata":{{"resourceVersion":"9","continue":"more"}},"items":[
                {{"metadata":{{"name":"a","namespace":"s"}}}},{BAD},{{"metadata":[]}},
                {{"metadata":{{"name":"c","namespace":"s"}}}}]}}"#
        );
        let page = page::<Pod>(&text, &Scope::Cluster)?;
        let names: Vec<_> = page.items.iter().map(named).collect();
        assert_eq!(names, ["s/a", "bad s/b", "bad ?", "s/c"]);
        assert_eq!(page.version.as_deref(), Some("9"));
        assert_eq!(page.next.as_deref(), Some("more"));
        Ok(())
    }

    #[test]
    fn events_of_all_types() -> Result<(), Fault> {
        let line = |what: &str| format!(r#"{{"object":{BAD},"type":"{what}"}}"#);
        let (applied, version) = event::<Pod>(&line("MODIFIED"), &Scope::Cluster)?;
        assert!(matches!(applied, Event::Applied(Item::Bad(_))));
        assert_eq!(version.as_deref(), Some("8"));
        let (deleted, _) = event::<Pod>(&line("DELETED"), &Scope::Cluster)?;
        assert!(matches!(deleted, Event::Deleted(key) if key.words() == "s/b"));
        for other in ["BOOKMARK", "SOMETHING"] {
            let (event, version) = event::<Pod>(&line(other), &Scope::Cluster)?;
            assert!(matches!(event, Event::Bookmark));
            assert_eq!(version.as_deref(), Some("8"));
        }
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#;
        assert!(matches!(
            event::<Pod>(gone, &Scope::Cluster),
            Err(Fault::Expired)
        ));
        assert!(matches!(
            event::<Pod>("{", &Scope::Cluster),
            Err(Fault::Unreadable(_))
        ));
        Ok(())
    }

    #[test]
    fn a_list_without_items_is_empty() -> Result<(), Fault> {
        let page = page::<Pod>(
            r#"{"metadata":{"resourceVersion":"1"},"items":null}"#,
            &Scope::Cluster,
        )?;
        assert!(page.items.is_empty());
        Ok(())
    }
}
