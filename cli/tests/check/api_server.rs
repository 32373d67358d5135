// SPDX-License-Identifier: Apache-2.0
//! An API server on loopback that has what a test gives it, and the certificates that it needs.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;

pub type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A status and a body.
    Says(u16, Value),
    /// The same in words, as admin servers behind it do.
    Text(u16, &'static str),
    /// Nothing, for ever.
    Hangs,
}

/// A server that goes on until the process ends.
pub struct ApiServer {
    answers: Arc<Mutex<BTreeMap<String, VecDeque<Answer>>>>,
    asked: Arc<Mutex<Vec<String>>>,
    dir: TempDir,
}

// === impl ApiServer ===

impl ApiServer {
    /// One that knows nothing but its version.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = Self {
            answers: Arc::default(),
            asked: Arc::default(),
            dir: tempfile::tempdir()?,
        };
        std::fs::write(server.kubeconfig(), kubeconfig(&listener)?.to_string())?;
        let (answers, asked) = (Arc::clone(&server.answers), Arc::clone(&server.asked));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
                // Who hangs up early is tested on purpose.
                thread::spawn(move || _ = serve(stream, &answers, &asked));
            }
        });
        let version = json!({"major": "1", "minor": "31", "gitVersion": "v1.31.2"});
        server.says("/version", version);
        Ok(server)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// From now on this path has this object.
    pub fn says(&self, path: &str, object: Value) {
        self.answers(path, Answer::Says(200, object));
    }

    /// From now on this is the answer to a path, or to a method and a path.
    pub fn answers(&self, path: &str, answer: Answer) {
        self.answers_each(path, [answer]);
    }

    /// The same, one answer after the other; the last one stays.
    pub fn answers_each(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        let answers = answers.into_iter().collect();
        lock(&self.answers).insert(path.to_owned(), answers);
    }

    /// A list of everything at this path.
    pub fn lists(&self, path: &str, items: Vec<Value>) {
        self.says(path, list(items));
    }

    /// The requests so far, such as "GET /version".
    pub fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }

    /// Runs the command line against this server.
    pub fn culvert(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(args).output()?)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
        command
            .env_remove("KUBECONFIG")
            .env_remove("CULVERT_NAMESPACE");
        command
            .args(args)
            .arg("--kubeconfig")
            .arg(self.kubeconfig());
        command
    }
}

pub fn list(items: Vec<Value>) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kubeconfig(listener: &TcpListener) -> Result<Value> {
    let server = format!("http://{}", listener.local_addr()?);
    Ok(json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }))
}

fn serve(
    mut stream: TcpStream,
    answers: &Mutex<BTreeMap<String, VecDeque<Answer>>>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let (request, body) = read(&stream)?;
    lock(asked).push(format!("{request} {body}").trim().to_owned());
    let (method, target) = request.split_once(' ').unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    // A method with its path counts first, then a question with its selectors, then the path alone.
    let of_method = format!("{method} {path}");
    let keys = [&*of_method, target, path];
    let answer = {
        let mut known = lock(answers);
        let key = keys.into_iter().find(|key| known.contains_key(*key));
        key.and_then(|key| known.get_mut(key)).and_then(next)
    };
    let (status, kind, body) = match answer.unwrap_or_else(|| not_found(path)) {
        Answer::Says(status, object) => (status, "application/json", object.to_string()),
        Answer::Text(status, text) => (status, "text/plain", text.to_owned()),
        Answer::Hangs => return hang(),
    };
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nconnection: close\r\ndate: {}\r\n\
         content-length: {}\r\n\r\n{body}",
        now(),
        body.len()
    )
}

fn next(answers: &mut VecDeque<Answer>) -> Option<Answer> {
    match answers.len() {
        0 | 1 => answers.front().cloned(),
        _ => answers.pop_front(),
    }
}

fn hang() -> std::io::Result<()> {
    thread::sleep(Duration::from_secs(600));
    Ok(())
}

fn now() -> String {
    let now = k8s_openapi::jiff::Zoned::now().with_time_zone(k8s_openapi::jiff::tz::TimeZone::UTC);
    now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The request line without its version, and the body.
fn read(stream: &TcpStream) -> std::io::Result<(String, String)> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = first.trim_end().trim_end_matches(" HTTP/1.1");
    Ok((
        request.to_owned(),
        String::from_utf8_lossy(&body).into_owned(),
    ))
}

fn not_found(path: &str) -> Answer {
    status(404, "NotFound", &format!("{path} not found"))
}

/// A Status, as API servers refuse.
pub fn status(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    Answer::Says(code, status)
}

/// A trust anchor and an issuer that it signed, with its key.
pub struct Identity {
    pub anchor: String,
    pub issuer: String,
    pub key: String,
}

// === impl Identity ===

impl Identity {
    /// Valid for years.
    pub fn create() -> Result<Self> {
        let (anchor_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let anchor = authority("root");
        let signed = anchor.self_signed(&anchor_key)?;
        let signer = Issuer::from_params(&anchor, &anchor_key);
        Ok(Self {
            anchor: signed.pem(),
            issuer: authority("issuer").signed_by(&key, &signer)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}
