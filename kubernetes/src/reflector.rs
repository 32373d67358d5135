// SPDX-License-Identifier: Apache-2.0
//! Lists a kind, and watches it from there.
//!
//! kube-runtime's watcher does not serve here: it asks a server that ends watches at once again
//! without a pause, asks for ever from a version that the start of a watch says is gone, and loses
//! a page of a list to one object that can't be read.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{AsyncBufRead, AsyncBufReadExt};
use kube::{
    Client,
    api::{ListParams, VersionMatch, WatchParams},
    core::Request,
};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    backoff::Backoff,
    collected::Collected,
    fault::Fault,
    kinds::Watched,
    source::Scope,
    wire::{self, Event, Item, Page},
};

/// How many objects are asked for at once.
const PAGE: u32 = 500;

/// How long things may take.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    /// A page of a list.
    pub(crate) list: Duration,
    /// Seconds after which the server is to end a watch; picked at random, so that not all begin
    /// again together.
    pub(crate) watch: Range<u32>,
    /// How much longer a watch that nothing comes from is waited for.
    pub(crate) margin: Duration,
    /// A watch that ended sooner than this, with nothing said, is a failure.
    pub(crate) short: Duration,
    /// The first and the longest wait after a failure.
    pub(crate) wait: (Duration, Duration),
}

/// Which of a kind's objects are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// For whom.
    pub(crate) scope: Scope,
    /// A field selector.
    pub(crate) fields: Option<String>,
}

/// Lists and watches the objects of a kind.
pub(crate) struct Reflector {
    client: Client,
    timing: Timing,
    backoff: Backoff,
    selection: Selection,
    collected: Arc<Collected>,
    /// What to watch from; none: all is to be listed.
    watch_from: Option<String>,
    /// The newest version that was seen.
    newest: Option<String>,
    /// The last list failed: the next is a plain one.
    plain: bool,
    /// The last watch ended at once: only one that lasts is well.
    doubtful: bool,
}

// === impl Timing ===

impl Default for Timing {
    fn default() -> Self {
        Self {
            list: Duration::from_mins(3),
            watch: 240..360,
            margin: Duration::from_secs(10),
            short: Duration::from_secs(1),
            wait: (Duration::from_millis(200), Duration::from_secs(15)),
        }
    }
}

impl Timing {
    /// The replicas of control are few, and each waits for what the others see, for 5 s. Nodes are
    /// many.
    pub(crate) fn of(scope: &Scope) -> Self {
        let usual = Self::default();
        match scope {
            Scope::Cluster => Self {
                wait: (usual.wait.0, Duration::from_secs(3)),
                ..usual
            },
            Scope::Node(_) => usual,
        }
    }
}

// === impl Reflector ===

impl Reflector {
    pub(crate) fn new(
        client: Client,
        timing: Timing,
        selection: Selection,
        collected: Arc<Collected>,
    ) -> Self {
        Self {
            client,
            backoff: Backoff::new(timing.wait.0, timing.wait.1),
            timing,
            selection,
            collected,
            watch_from: None,
            newest: None,
            plain: false,
            doubtful: false,
        }
    }

    /// Goes on for ever.
    pub(crate) async fn run<K: Watched>(mut self) {
        loop {
            if let Err(fault) = self.step::<K>().await {
                if matches!(fault, Fault::Expired) {
                    self.watch_from = None;
                }
                self.doubtful = matches!(fault, Fault::Short);
                self.collected.failed::<K>(&fault);
                sleep(self.backoff.wait()).await;
            }
        }
    }

    async fn step<K: Watched>(&mut self) -> Result<(), Fault> {
        match self.watch_from.clone() {
            Some(version) => self.watch::<K>(&version).await,
            None => {
                let listed = self.list::<K>().await;
                self.plain = listed.is_err() && !self.plain;
                listed
            }
        }
    }

    async fn list<K: Watched>(&mut self) -> Result<(), Fault> {
        let mut params = self.list_params();
        let mut items: Vec<Item<K>> = Vec::new();
        loop {
            let page = self.page::<K>(&params).await?;
            items.extend(page.items);
            params.continue_token = page.next;
            if params.continue_token.is_none() {
                let version = page.version.ok_or(Fault::NoVersion)?;
                self.newest = Some(version.clone());
                self.watch_from = Some(version);
                self.collected.listed(items);
                return Ok(());
            }
        }
    }

    async fn page<K: Watched>(&self, params: &ListParams) -> Result<Page<K>, Fault> {
        let request = request::<K>().list(params);
        let request = request.map_err(kube::Error::BuildRequest)?;
        let patience = self.timing.list;
        let text = timeout(patience, self.client.request_text(request)).await;
        let text = text.map_err(|_| Fault::Stalled(patience))??;
        // Megabytes of JSON: not among the tasks that wait for the network.
        let scope = self.selection.scope.clone();
        let page = spawn_blocking(move || wire::page(&text, &scope)).await;
        page.map_err(|error| Fault::Unreachable(error.to_string()))?
    }

    /// Plain lists ask etcd, which is for few: nodes ask the API server's cache, for what is not
    /// older than what was seen.
    fn list_params(&self) -> ListParams {
        let field_selector = self.selection.fields.clone();
        match &self.selection.scope {
            Scope::Node(_) if !self.plain => ListParams {
                field_selector,
                resource_version: Some(self.newest.clone().unwrap_or_else(|| "0".to_owned())),
                version_match: Some(VersionMatch::NotOlderThan),
                ..ListParams::default()
            },
            _ => ListParams {
                field_selector,
                limit: Some(PAGE),
                ..ListParams::default()
            },
        }
    }

    async fn watch<K: Watched>(&mut self, from: &str) -> Result<(), Fault> {
        let seconds = rand::random_range(self.timing.watch.clone());
        let params = WatchParams {
            field_selector: self.selection.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = request::<K>().watch(&params, from);
        let request = request.map_err(kube::Error::BuildRequest)?;
        let patience = Duration::from_secs(seconds.into()) + self.timing.margin;
        let lines = timeout(patience, self.client.request_stream(request)).await;
        let mut lines = Box::pin(lines.map_err(|_| Fault::Stalled(patience))??);
        if !self.doubtful {
            self.collected.well::<K>();
        }
        let begun = Instant::now();
        let mut heard = false;
        while let Some(line) = timeout(patience, next_line(&mut lines))
            .await
            .map_err(|_| Fault::Stalled(patience))??
        {
            self.hear::<K>(&line)?;
            heard = true;
        }
        if !heard && begun.elapsed() < self.timing.short {
            return Err(Fault::Short);
        }
        self.well::<K>();
        Ok(())
    }

    fn hear<K: Watched>(&mut self, line: &str) -> Result<(), Fault> {
        let (event, version) = wire::event::<K>(line, &self.selection.scope)?;
        self.well::<K>();
        match event {
            Event::Applied(item) => self.collected.applied(item),
            Event::Deleted(key) => self.collected.deleted::<K>(&key),
            Event::Bookmark => {}
        }
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            self.newest = Some(version.clone());
            self.watch_from = Some(version);
        }
        Ok(())
    }

    fn well<K: Watched>(&mut self) {
        self.backoff.reset();
        self.doubtful = false;
        self.collected.well::<K>();
    }
}

fn request<K: Watched>() -> Request {
    Request::new(K::url_path(&(), None))
}

/// The next line; none at the end. What breaks off in a line's middle is no line.
async fn next_line(lines: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<String>, Fault> {
    let mut line = String::new();
    match lines.read_line(&mut line).await? {
        0 => Ok(None),
        _ if !line.ends_with('\n') => Ok(None),
        _ => Ok(Some(line)),
    }
}
