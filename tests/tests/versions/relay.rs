// SPDX-License-Identifier: Apache-2.0
//! Between a real agent and a real proxy: passes on only what a recorded release knows of each
//! message, with the descriptors, and notes what that release would miss.

use std::{
    collections::BTreeSet,
    fs,
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, anyhow, ensure};
use nix::{
    libc,
    sys::socket::{
        self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
        SockType, UnixAddr,
    },
};
use serde_json::{Map, Value};

const RELEASE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/recorded/0.1.0/agent-proxy.jsonl"
);
const PROXY_UID: libc::uid_t = 2102;
const MAX_MESSAGE: usize = 64 << 10;
const MAX_FDS: usize = 253;

/// A relay. Its threads end with its peers.
#[derive(Debug)]
pub struct Relay {
    heard: Arc<Heard>,
}

#[derive(Debug)]
struct Heard {
    recorded: Vec<Value>,
    kinds: Mutex<BTreeSet<String>>,
    missed: Mutex<Vec<String>>,
}

// === impl Relay ===

impl Relay {
    /// Takes proxies at `path`, and connects each to the agent at `real`.
    pub fn start(path: &Path, real: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(RELEASE).context(RELEASE)?;
        let recorded = text.lines().map(serde_json::from_str);
        let heard = Arc::new(Heard {
            recorded: recorded.collect::<Result<_, _>>()?,
            kinds: Mutex::default(),
            missed: Mutex::default(),
        });
        let listener = seqpacket()?;
        socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        socket::listen(&listener, Backlog::new(8)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        let (shared, real) = (Arc::clone(&heard), real.to_owned());
        thread::spawn(move || serve(&listener, &real, &shared));
        Ok(Self { heard })
    }

    /// Nothing was missed, and these kinds of messages were among those that passed.
    pub fn verdict(&self, kinds: &[&str]) -> anyhow::Result<()> {
        let missed = self
            .heard
            .missed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(
            missed.is_empty(),
            "the earlier release would miss: {missed:?}"
        );
        let heard = self
            .heard
            .kinds
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for kind in kinds {
            ensure!(heard.contains(*kind), "no {kind} passed, only {heard:?}");
        }
        Ok(())
    }
}

fn serve(listener: &OwnedFd, real: &Path, heard: &Arc<Heard>) -> anyhow::Result<()> {
    loop {
        let proxy = owned(socket::accept4(
            listener.as_raw_fd(),
            SockFlag::SOCK_CLOEXEC,
        )?);
        let Ok(agent) = connect(real.to_owned()) else {
            continue;
        };
        let (proxy, agent) = (Arc::new(proxy), Arc::new(agent));
        for (from, to, who) in [(&proxy, &agent, "proxy"), (&agent, &proxy, "agent")] {
            let (from, to, heard) = (Arc::clone(from), Arc::clone(to), Arc::clone(heard));
            thread::spawn(move || {
                // Either end closed.
                let _ = pump(&from, &to, who, &heard);
                let _ = socket::shutdown(from.as_raw_fd(), socket::Shutdown::Both);
                let _ = socket::shutdown(to.as_raw_fd(), socket::Shutdown::Both);
            });
        }
    }
}

/// As the proxy's user: only this thread, which ends, since the C library changes all.
fn connect(real: PathBuf) -> anyhow::Result<OwnedFd> {
    let connecting = thread::spawn(move || {
        // SAFETY: setresuid takes three numbers.
        let set = unsafe { libc::syscall(libc::SYS_setresuid, -1, PROXY_UID, -1) };
        ensure!(set == 0, "setresuid: {}", std::io::Error::last_os_error());
        let agent = seqpacket()?;
        socket::connect(agent.as_raw_fd(), &UnixAddr::new(&real)?)?;
        Ok(agent)
    });
    connecting.join().map_err(|_| anyhow!("it panicked"))?
}

fn pump(from: &OwnedFd, to: &OwnedFd, who: &str, heard: &Heard) -> anyhow::Result<()> {
    loop {
        let (message, fds) = receive(from)?;
        let passed = heard.hear(who, &message);
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let bytes = serde_json::to_vec(&passed)?;
        let flags = MsgFlags::MSG_NOSIGNAL;
        socket::sendmsg::<()>(
            to.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            flags,
            None,
        )?;
    }
}

fn receive(from: &OwnedFd) -> anyhow::Result<(Value, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut control = vec![0; socket::cmsg_space::<[RawFd; MAX_FDS]>()];
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = socket::recvmsg::<()>(from.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for message in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            fds.extend(raw.into_iter().map(owned));
        }
    }
    let length = message.bytes;
    ensure!(length > 0, "closed");
    Ok((serde_json::from_slice(&bytes[..length])?, fds))
}

fn seqpacket() -> nix::Result<OwnedFd> {
    let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    socket::socket(AddressFamily::Unix, kind, flags, None)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just gave this descriptor to this function's caller alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

// === impl Heard ===

impl Heard {
    /// The message as the recorded release reads it.
    fn hear(&self, who: &str, message: &Value) -> Value {
        let kind = &message["type"];
        let same = |line: &&Value| line["from"] == who && line["message"]["type"] == *kind;
        let reduced = match self.recorded.iter().find(same) {
            Some(line) => reduced(message, &line["message"]),
            None => Err(format!("{who} says {kind}")),
        };
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.extend(kind.as_str().map(str::to_owned));
        reduced.unwrap_or_else(|miss| {
            let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
            missed.push(format!("{miss} in {message}"));
            message.clone()
        })
    }
}

/// With the fields that `known` has, all of which must be there and of the same kind.
fn reduced(now: &Value, known: &Value) -> Result<Value, String> {
    match (now, known) {
        (Value::Object(now), Value::Object(known)) => {
            let mut fields = Map::new();
            for (name, known) in known {
                let now = now.get(name).ok_or_else(|| format!("no {name}"))?;
                let field = reduced(now, known).map_err(|miss| format!("{name}: {miss}"))?;
                fields.insert(name.clone(), field);
            }
            Ok(Value::Object(fields))
        }
        (Value::Array(now), Value::Array(known)) => {
            let known = known.first();
            let each = now
                .iter()
                .map(|now| known.map_or(Ok(now.clone()), |known| reduced(now, known)));
            each.collect::<Result<_, _>>().map(Value::Array)
        }
        _ if std::mem::discriminant(now) == std::mem::discriminant(known) => Ok(now.clone()),
        _ => Err(format!("{now} instead of {known}")),
    }
}

#[test]
fn what_an_earlier_release_would_miss_is_told() {
    let known = serde_json::json!({"seq": 1, "listeners": [{"family": "v4"}]});
    let now =
        serde_json::json!({"seq": 7, "new": 1, "listeners": [{"family": "v6"}, {"family": "v4"}]});
    let cut = serde_json::json!({"seq": 7, "listeners": [{"family": "v6"}, {"family": "v4"}]});
    assert_eq!(reduced(&now, &known), Ok(cut));
    for miss in [
        serde_json::json!({"listeners": []}),
        serde_json::json!({"seq": "7", "listeners": []}),
        serde_json::json!({"seq": 7, "listeners": [{}]}),
    ] {
        assert!(reduced(&miss, &known).is_err(), "{miss}");
    }
}
