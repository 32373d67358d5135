// SPDX-License-Identifier: Apache-2.0
//! A node's token, asked to prove more than it does: control is asked over the network of the node,
//! through TLS and gRPC.

use std::fs;

use anyhow::{Context as _, ensure};
use culvert_api::grpc::{
    TOKEN_METADATA, VERSIONS,
    v1::{
        CertifyRequest, Hello, WatchRequest, discovery_client::DiscoveryClient,
        identity_client::IdentityClient, watch_request::Kind,
    },
};
use culvert_tests::{
    manifests::Pod,
    sandbox::{Daemon, Sandbox},
    wait::wait_for,
};
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::Value;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::SOON;

const CONTROL: &str = "https://10.245.0.254:8086";
const NAME: &str = "culvert-control.culvert.serviceaccount.identity.culvert.cluster.local";

/// Control, with what a taken over proxy of `n1` can read.
struct Thief<'a> {
    sandbox: &'a Sandbox,
    anchors: String,
    token: String,
}

impl<'a> Thief<'a> {
    fn new(sandbox: &'a Sandbox) -> anyhow::Result<Self> {
        let own = sandbox.node_root("n1");
        Ok(Self {
            sandbox,
            anchors: fs::read_to_string(own.join("trust-anchors.pem"))?,
            token: fs::read_to_string(own.join("token"))?,
        })
    }

    /// Runs a call on the node's network.
    fn call<T: Send + 'static>(
        &self,
        token: &str,
        call: impl AsyncFnOnce(Channel, String) -> Result<T, Status> + Send + 'static,
    ) -> anyhow::Result<Result<T, Status>> {
        let anchors = Certificate::from_pem(&self.anchors);
        let tls = ClientTlsConfig::new()
            .ca_certificate(anchors)
            .domain_name(NAME);
        let endpoint = Endpoint::from_static(CONTROL)
            .timeout(SOON)
            .tls_config(tls)?;
        let bearer = format!("Bearer {}", token.trim());
        self.sandbox.node("n1").run(move || {
            let tasks = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            tasks.block_on(async {
                let channel = endpoint
                    .connect()
                    .await
                    .context("control does not answer")?;
                Ok(call(channel, bearer).await)
            })
        })
    }

    fn certify(&self, token: &str, uid: &str, uris: &[&str]) -> anyhow::Result<Result<(), Status>> {
        let (pod_uid, csr) = (uid.to_owned(), request(uris)?);
        self.call(token, async move |channel, bearer| {
            let request = with(CertifyRequest { pod_uid, csr }, &bearer)?;
            let answer = IdentityClient::new(channel).certify(request).await?;
            let chain = answer.into_inner().chain;
            (!chain.is_empty())
                .then_some(())
                .ok_or_else(|| Status::unknown("no certificate"))
        })
    }

    fn watch_as(&self, node: &str) -> anyhow::Result<Result<(), Status>> {
        let node = node.to_owned();
        self.call(&self.token, async move |channel, bearer| {
            let hello = Hello {
                node,
                ..VERSIONS.into()
            };
            let kind = Some(Kind::Hello(hello));
            let request = with(
                tonic::codegen::tokio_stream::once(WatchRequest { kind }),
                &bearer,
            )?;
            let mut answers = DiscoveryClient::new(channel)
                .watch(request)
                .await?
                .into_inner();
            answers.message().await.map(drop)
        })
    }
}

fn with<T>(message: T, bearer: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let bearer = bearer
        .parse()
        .map_err(|_| Status::unknown("the token is not ASCII"))?;
    request.metadata_mut().insert(TOKEN_METADATA, bearer);
    Ok(request)
}

/// A CSR for these URIs.
fn request(uris: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    for uri in uris {
        let uri = SanType::URI((*uri).try_into()?);
        params.subject_alt_names.push(uri);
    }
    let request = params.serialize_request(&KeyPair::generate()?)?;
    Ok(request.der().to_vec())
}

/// The uid of a pod, from the agent's record of it.
fn uid(sandbox: &Sandbox, node: &str, pod: &str) -> anyhow::Result<String> {
    for entry in fs::read_dir(sandbox.node_root(node).join("state/pods"))? {
        let record: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        if record["workload"]["name"] == pod {
            return Ok(record["workload"]["uid"]
                .as_str()
                .context("no uid")?
                .to_owned());
        }
    }
    anyhow::bail!("the agent of {node} has no record of {pod}")
}

fn certified(sandbox: &Sandbox, result: &str) -> anyhow::Result<f64> {
    let labels = [("result", result)];
    sandbox.metric(Daemon::Control, "culvert_control_certify_total", &labels)
}

/// Who asks for what, how control answers and counts it, and what its log says.
struct Theft<'a> {
    what: &'static str,
    token: &'a str,
    uid: &'a str,
    uris: Vec<&'a str>,
    answer: (Code, &'static str),
    logged: &'a str,
}

impl Theft<'_> {
    fn is_refused(&self, thief: &Thief<'_>) -> anyhow::Result<()> {
        let (code, counted) = self.answer;
        let before = certified(thief.sandbox, counted)?;
        let answer = thief.certify(self.token, self.uid, &self.uris)?;
        let status = answer.err().context("it got a certificate")?;
        ensure!(status.code() == code, "{status}, expected {code}");
        let after = certified(thief.sandbox, counted)?;
        ensure!(
            after == before + 1.0,
            "{after} requests are {counted}, {before} before"
        );
        is_logged(thief.sandbox, self.logged)
    }
}

fn is_logged(sandbox: &Sandbox, text: &str) -> anyhow::Result<()> {
    wait_for("control to log it", SOON, || {
        let log = sandbox.logs("control")?;
        ensure!(log.contains(text), "control's log does not say {text:?}");
        Ok::<_, anyhow::Error>(())
    })
}

pub fn stolen(sandbox: &Sandbox) -> anyhow::Result<()> {
    let thief = Thief::new(sandbox)?;
    let own = uid(sandbox, "n1", "victim")?;
    let others = uid(sandbox, "n2", "mesh")?;
    let gone = gone(sandbox, &thief)?;
    let denied = (Code::PermissionDenied, "denied");
    let invalid = (Code::InvalidArgument, "invalid");
    let mesh = "spiffe://cluster.local/ns/default/sa/mesh";
    let victim = "spiffe://cluster.local/ns/default/sa/victim";
    let elsewhere = "spiffe://elsewhere.local/ns/default/sa/victim";
    thief
        .certify(&thief.token, &own, &[victim])?
        .context("its own pod's certificate")?;
    let logged = ["n2", "no pod has this uid", mesh, elsewhere];
    let theft = |what, uid, uris, answer, logged| Theft {
        what,
        token: &thief.token,
        uid,
        uris,
        answer,
        logged,
    };
    let both = vec![victim, mesh];
    let thefts = [
        theft(
            "a pod of another node",
            &others,
            vec![mesh],
            denied,
            logged[0],
        ),
        theft("a pod that is gone", &gone, Vec::new(), denied, logged[1]),
        theft("nobody", "no-such-uid", Vec::new(), denied, "no-such-uid"),
        theft(
            "another ServiceAccount",
            &own,
            vec![mesh],
            invalid,
            logged[2],
        ),
        theft("another one beside its own", &own, both, invalid, logged[2]),
        theft(
            "another trust domain",
            &own,
            vec![elsewhere],
            invalid,
            logged[3],
        ),
        Theft {
            token: "00000000000000000000000000000000",
            ..theft(
                "no token",
                &own,
                Vec::new(),
                (Code::Unauthenticated, "unauthenticated"),
                "",
            )
        },
    ];
    for theft in &thefts {
        theft.is_refused(&thief).context(theft.what)?;
    }
    impostor(sandbox, &thief)?;
    sandbox.answers("mesh", "victim", 7000)
}

/// A pod that had a certificate, and that control knows to be gone.
fn gone(sandbox: &Sandbox, thief: &Thief<'_>) -> anyhow::Result<String> {
    let pod = Pod::serving("gone", "n1", sandbox.testapp(), &["7000=echo"]).meshed();
    sandbox.apply(&pod)?;
    sandbox.answers("mesh", "gone", 7000)?;
    let uid = uid(sandbox, "n1", "gone")?;
    sandbox.delete_pod("gone")?;
    wait_for("control to know that the pod is gone", SOON, || {
        let answer = thief.certify(&thief.token, &uid, &[])?;
        ensure!(answer.is_err(), "it got a certificate");
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(uid)
}

/// The token says which node it is.
fn impostor(sandbox: &Sandbox, thief: &Thief<'_>) -> anyhow::Result<()> {
    let count = || sandbox.metric(Daemon::Control, "culvert_control_impostors_total", &[]);
    let before = count()?;
    let status = thief.watch_as("n2")?.err().context("it is taken for n2")?;
    ensure!(status.code() == Code::PermissionDenied, "{status}");
    ensure!(count()? == before + 1.0, "it was not counted");
    is_logged(sandbox, "A node claimed to be another")
}
