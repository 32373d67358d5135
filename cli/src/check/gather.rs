// SPDX-License-Identifier: Apache-2.0
//! Gathers the facts: few questions to the API server, at once.

use std::{collections::BTreeMap, fmt::Debug};

use culvert_api::kubernetes::AGENT_EVENTS;
use futures_util::{StreamExt, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        authorization::v1::{
            ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
        },
        core::v1::{Event, Pod},
    },
    jiff::Timestamp,
};
use kube::{Resource, api::ListParams};
use serde::de::DeserializeOwned;

use super::{
    api::ApiServer,
    certificates::{ISSUER, TRUST_ROOTS},
    data_plane,
    facts::{AdminAnswer, After, Answer, Before, Leases, Permission, Server},
    named,
    permissions::NEEDED,
    processes::{AGENT, CONTROL, PROXY, is_of_set, is_ready, of_control},
    trust::MOST_ASKED,
};

/// How many questions of one kind are open at once.
const AT_ONCE: usize = 8;
/// Of more pods in trouble nobody reads why.
const MOST_QUESTIONED: usize = 20;
/// Control's port of `/ready` and `/version`.
const ADMIN_PORT: u16 = 9990;
/// The proxies' port of `/metrics`.
const PROXY_PORT: u16 = 4191;

/// The cluster, and Culvert's namespace in it.
pub struct Gather<'a> {
    /// Whom to ask.
    pub api: &'a ApiServer,
    /// Where Culvert is, or will be.
    pub namespace: &'a str,
}

// === impl Gather ===

impl Gather<'_> {
    /// What there is before the installation.
    pub async fn before(&self, server: Server) -> Before {
        let (nodes, leases, existing, control, permissions) = tokio::join!(
            self.list("list nodes"),
            self.leases(),
            self.api.get(self.api.all(), self.namespace),
            self.own(CONTROL),
            self.permissions(),
        );
        Before {
            namespace: self.namespace.to_owned(),
            server,
            nodes,
            leases,
            existing,
            control,
            permissions,
        }
    }

    /// What there is after the installation. Pods are those of `of`, or all.
    pub async fn after(&self, of: Option<&str>, expected_version: &str, server: Server) -> After {
        let lists = async {
            tokio::join!(
                self.list("list nodes"),
                self.leases(),
                self.list("list namespaces"),
                self.pods(of),
                self.own_pods(),
                self.warnings(of),
                self.own_events(),
            )
        };
        let objects = async {
            tokio::join!(
                self.own(CONTROL),
                self.own(CONTROL),
                self.own(AGENT),
                self.own(PROXY),
                self.own(TRUST_ROOTS),
                self.own(ISSUER),
            )
        };
        let (lists, objects) = tokio::join!(lists, objects);
        let (nodes, leases, namespaces, pods, (own, admin), warnings, own_events) = lists;
        let (control, service, agent, proxy, anchors, issuer) = objects;
        let mut facts = After {
            namespace: self.namespace.to_owned(),
            expected_version: expected_version.to_owned(),
            now: Timestamp::now(),
            server,
            nodes,
            leases,
            namespaces,
            pods,
            own,
            events: Ok(Vec::new()),
            own_events,
            warnings,
            control,
            service,
            agent,
            proxy,
            anchors,
            issuer,
            admin,
            proxies: BTreeMap::new(),
        };
        let questioned = data_plane::in_question(&facts);
        let proxies = facts.own.as_deref().unwrap_or_default();
        let (events, proxies) = tokio::join!(self.events(&questioned), self.proxies(proxies));
        (facts.events, facts.proxies) = (events, proxies);
        facts
    }

    async fn list<K>(&self, asked: &str) -> Answer<Vec<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let all = ListParams::default();
        self.api.list(asked, self.api.all(), all).await
    }

    /// The kubelets' leases.
    async fn leases(&self) -> Answer<Leases> {
        let namespace = "kube-node-lease";
        let (asked, api) = (
            format!("list leases in {namespace}"),
            self.api.namespaced(namespace),
        );
        let leases = self.api.list(&asked, api, ListParams::default()).await?;
        let at = Timestamp::now();
        Ok(Leases { at, leases })
    }

    async fn pods(&self, of: Option<&str>) -> Answer<Vec<Pod>> {
        let Some(of) = of else {
            return self.list("list pods").await;
        };
        let (asked, api) = (format!("list pods in {of}"), self.api.namespaced(of));
        self.api.list(&asked, api, ListParams::default()).await
    }

    /// An object in Culvert's namespace.
    async fn own<K>(&self, name: &str) -> Answer<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let api = self.api.namespaced(self.namespace);
        self.api.get(api, name).await
    }

    /// Culvert's own pods, and what those of control answer.
    pub async fn own_pods(&self) -> (Answer<Vec<Pod>>, BTreeMap<String, AdminAnswer>) {
        let own = self.pods(Some(self.namespace)).await;
        let control = of_control(own.as_deref().unwrap_or_default());
        let running = control.filter(|pod| {
            let status = pod.status.as_ref();
            status.and_then(|status| status.phase.as_deref()) == Some("Running")
        });
        let names: Vec<_> = running.map(|pod| named(&pod.metadata).to_owned()).collect();
        let asked = stream::iter(names).map(|name| self.admin(name));
        (own, asked.buffer_unordered(AT_ONCE).collect().await)
    }

    async fn admin(&self, pod: String) -> (String, AdminAnswer) {
        let ask = |path| self.api.admin(self.namespace, &pod, ADMIN_PORT, path);
        let (ready, version) = tokio::join!(ask("ready"), ask("version"));
        (pod, AdminAnswer { ready, version })
    }

    /// What ready proxies measure, of some if there are many.
    async fn proxies(&self, own: &[Pod]) -> BTreeMap<String, Answer<String>> {
        let ready = own
            .iter()
            .filter(|pod| is_of_set(pod, PROXY) && is_ready(pod));
        let asked = ready.take(MOST_ASKED).map(|pod| async {
            let name = named(&pod.metadata);
            let metrics = self.api.admin(self.namespace, name, PROXY_PORT, "metrics");
            (format!("pod {name}"), metrics.await)
        });
        stream::iter(asked)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// What agents warned of.
    async fn warnings(&self, of: Option<&str>) -> Answer<Vec<Event>> {
        let api = match of {
            Some(of) => self.api.namespaced(of),
            None => self.api.all(),
        };
        let selected = format!("type=Warning,source={AGENT_EVENTS}");
        let selected = ListParams::default().fields(&selected);
        self.api.list("list events", api, selected).await
    }

    /// What was warned of in Culvert's namespace.
    async fn own_events(&self) -> Answer<Vec<Event>> {
        let asked = format!("list events in {}", self.namespace);
        let api = self.api.namespaced(self.namespace);
        let warnings = ListParams::default().fields("type=Warning");
        self.api.list(&asked, api, warnings).await
    }

    /// What was said of these pods.
    async fn events(&self, pods: &[&Pod]) -> Answer<Vec<Event>> {
        let questioned = pods.iter().take(MOST_QUESTIONED);
        let asked = questioned.map(|pod| self.events_of(pod));
        let answers = stream::iter(asked).buffer_unordered(AT_ONCE);
        let answers: Vec<_> = answers.collect().await;
        let answers: Answer<Vec<_>> = answers.into_iter().collect();
        Ok(answers?.into_iter().flatten().collect())
    }

    async fn events_of(&self, pod: &Pod) -> Answer<Vec<Event>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let of = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        let asked = format!("list events in {namespace}");
        let api = self.api.namespaced(namespace);
        self.api.list(&asked, api, of).await
    }

    /// The server's word on each permission that the installation needs.
    async fn permissions(&self) -> Vec<(Permission, Answer<bool>)> {
        let asked = NEEDED.map(|permission| async move {
            let allowed = self.allowed(&permission).await;
            (permission, allowed)
        });
        stream::iter(asked).buffered(AT_ONCE).collect().await
    }

    async fn allowed(&self, permission: &Permission) -> Answer<bool> {
        let attributes = ResourceAttributes {
            verb: Some(permission.verb.to_owned()),
            group: Some(permission.group.to_owned()),
            resource: Some(permission.resource.to_owned()),
            namespace: permission.namespaced.then(|| self.namespace.to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview {
            spec,
            ..SelfSubjectAccessReview::default()
        };
        let reviewed = self.api.review("review access", &review).await?;
        Ok(reviewed.status.is_some_and(|status| status.allowed))
    }
}
