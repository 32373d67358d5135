// SPDX-License-Identifier: Apache-2.0
//! One question to the API server, with a time-out and a reason when there is no answer.

use std::{fmt::Debug, future::Future, time::Duration};

use http_body_util::BodyExt;
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822};
use kube::{
    Api, Client, Error, Resource,
    api::{ListParams, PostParams},
    client::Body,
};
use serde::{Serialize, de::DeserializeOwned};

use super::facts::{Answer, Clock, Reason, Refusal, Server};
use crate::cluster::{ClusterArgs, NoCluster, deep};

/// How much longer all pages of a list may take than one question.
const PAGES: u32 = 6;
const PAGE: u32 = 500;

/// Whom to ask, and how long to wait.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
    patience: Duration,
}

// === impl ApiServer ===

impl ApiServer {
    /// The one that the user means. Nothing was asked yet.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, NoCluster> {
        let (client, patience) = (args.connect().await?, args.request_timeout);
        Ok(Self { client, patience })
    }

    /// The objects of a kind in a namespace.
    pub fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The objects of a kind in the whole cluster.
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// The server itself; without it nothing else can be asked.
    pub async fn server(&self) -> Answer<Server> {
        self.within("query the Kubernetes API", self.version())
            .await
    }

    async fn version(&self) -> Result<Server, Error> {
        let before = Timestamp::now();
        let response = self.client.send(get("/version")?).await?;
        let after = Timestamp::now();
        let date = response.headers().get(http::header::DATE);
        let theirs = date.and_then(|date| rfc2822::parse(date.to_str().ok()?).ok());
        let clock = theirs.map(|theirs| Clock {
            theirs: theirs.timestamp(),
            before,
            after,
        });
        let body = text(response).await?;
        let version = serde_json::from_str(&body).map_err(Error::SerdeError)?;
        Ok(Server { version, clock })
    }

    /// All of a list, page by page.
    pub async fn list<K>(&self, asked: &str, api: Api<K>, of: ListParams) -> Answer<Vec<K>>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let patient = self.patience * PAGES;
        within(patient, asked, pages(&api, of)).await
    }

    /// One object.
    pub async fn get<K>(&self, api: Api<K>, name: &str) -> Answer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let asked = format!("get {} {name}", K::kind(&()));
        self.within(&asked, api.get(name)).await
    }

    /// A review, with its answer.
    pub async fn review<K>(&self, asked: &str, review: &K) -> Answer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
    {
        let api = self.all();
        self.within(asked, api.create(&PostParams::default(), review))
            .await
    }

    /// What a pod's admin server says, through the API server's proxy. What it waits for comes with
    /// 503, as the API server's own troubles do.
    pub async fn admin(&self, namespace: &str, pod: &str, port: u16, path: &str) -> Answer<String> {
        let target = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/{path}");
        self.within(&format!("get /{path} of pod {pod}"), async {
            let response = self.client.send(get(&target)?).await?;
            text(response).await
        })
        .await
    }

    async fn within<T>(
        &self,
        asked: &str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Answer<T> {
        within(self.patience, asked, answer).await
    }
}

fn get(target: &str) -> Result<http::Request<Body>, Error> {
    let request = http::Request::get(target).body(Body::empty());
    request.map_err(Error::HttpError)
}

async fn text(response: http::Response<Body>) -> Result<String, Error> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() || body.starts_with("waiting for") {
        return Ok(body);
    }
    Err(match serde_json::from_str(&body) {
        Ok(told) => Error::Api(Box::new(told)),
        Err(_) => Error::Service(format!("it answered {status}: {}", body.trim()).into()),
    })
}

async fn pages<K>(api: &Api<K>, of: ListParams) -> Result<Vec<K>, Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut items = Vec::new();
    let mut params = of.limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

async fn within<T>(
    patience: Duration,
    asked: &str,
    answer: impl Future<Output = Result<T, Error>>,
) -> Answer<T> {
    let answered = tokio::time::timeout(patience, answer).await;
    let reason = match answered {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => reason(&error),
        Err(_) => Reason::Late(patience),
    };
    Err(Refusal {
        asked: asked.to_owned(),
        reason,
    })
}

fn reason(error: &Error) -> Reason {
    let status = match error {
        Error::Api(status) => status,
        Error::Service(error) => return Reason::Other(deep(&**error)),
        error => return Reason::Other(deep(error)),
    };
    match status.code {
        401 => Reason::Unauthorized(status.message.clone()),
        403 => Reason::Forbidden(status.message.clone()),
        404 => Reason::NotFound,
        code => Reason::Other(format!("{} ({code})", status.message)),
    }
}
