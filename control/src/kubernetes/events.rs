// SPDX-License-Identifier: Apache-2.0
//! What an operator is to hear of as Events on control's own pod, said by one replica.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use culvert_api::kubernetes::CONTROL_EVENTS;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{mpsc::UnboundedReceiver, watch},
    time::timeout,
};

use super::retry::Backoff;
use crate::{index::Index, notices::Notice};

/// How long to wait for it to be known who leads.
const ELECTION: Duration = Duration::from_secs(30);

/// How long a request may take, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: u32 = 8;

/// How long a note may be, in bytes.
const MAX_NOTE: usize = 1024;

/// Writes Events.
pub(crate) struct Events {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) replica: String,
    pub(crate) index: Arc<Mutex<Index>>,
    pub(crate) leading: watch::Receiver<bool>,
}

// === impl Events ===

impl Events {
    /// Says each notice for as long as there are any to come. Those that all replicas have are
    /// said by one.
    pub(crate) async fn write(mut self, mut notices: UnboundedReceiver<Notice>) {
        let events = Api::namespaced(self.client.clone(), &self.namespace);
        while let Some(notice) = notices.recv().await {
            if notice.is_own || self.leads().await {
                self.publish(&events, notice).await;
            }
        }
        std::future::pending().await
    }

    async fn leads(&mut self) -> bool {
        let leads = self.leading.wait_for(|leads| *leads);
        matches!(timeout(ELECTION, leads).await, Ok(Ok(_)))
    }

    async fn publish(&self, events: &Api<Event>, notice: Notice) {
        let mut backoff = Backoff::default();
        let event = self.event(notice);
        for _ in 0..TRIES {
            match create(events, &event).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(error, "Could not write an Event"),
            }
            backoff.wait().await;
        }
        tracing::warn!(
            event.reason,
            "Could not write an Event, it is in the log only"
        );
    }

    fn event(&self, notice: Notice) -> Event {
        let now = Timestamp::now();
        let warning = notice.is_warning;
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", self.replica, now.as_nanosecond())),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
            action: Some(notice.reason.to_owned()),
            reason: Some(notice.reason.to_owned()),
            note: Some(shortened(notice.message)),
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(CONTROL_EVENTS.to_owned()),
            reporting_instance: Some(self.replica.clone()),
            regarding: Some(self.pod()),
            ..Event::default()
        }
    }

    fn pod(&self) -> ObjectReference {
        let index = Index::lock(&self.index);
        let view = Arc::clone(&index.view().borrow());
        let uid = view.uid_of(&self.namespace, &self.replica);
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.replica.clone()),
            uid: uid.map(|uid| uid.0.clone()),
            ..ObjectReference::default()
        }
    }
}

async fn create(events: &Api<Event>, event: &Event) -> Result<(), String> {
    let params = PostParams::default();
    match timeout(PATIENCE, events.create(&params, event)).await {
        Ok(Ok(_)) => Ok(()),
        // A try before this one was not in vain.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer of the API server in {PATIENCE:?}")),
    }
}

/// To the 1 kB that the API server takes.
fn shortened(mut note: String) -> String {
    note.truncate(note.floor_char_boundary(MAX_NOTE));
    note
}
