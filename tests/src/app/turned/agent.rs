// SPDX-License-Identifier: Apache-2.0
//! The agent's protocol, played and broken.

use std::{
    io::{self, BufRead, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use culvert_api::agent::{
    Family, FromAgent, FromProxy, MAX_MESSAGE, SocketKind, SocketPool, VERSIONS,
};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Turned, report, sockets};

/// A connection to the agent.
pub(super) struct Link(Socket);

impl Link {
    pub(super) fn dial(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_read_timeout(Some(Duration::from_secs(6)))?;
        socket.set_write_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self(socket))
    }

    /// As a proxy begins.
    pub(super) fn greet(path: &Path) -> io::Result<Self> {
        let link = Self::dial(path)?;
        link.say(&FromProxy::Hello { versions: VERSIONS })?;
        Ok(link)
    }

    pub(super) fn say(&self, message: &FromProxy) -> io::Result<()> {
        self.send(&serde_json::to_vec(message)?, &[])
    }

    pub(super) fn send(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            flags,
            None,
        )?;
        Ok(())
    }

    /// The next message and its descriptors; `None` when the agent has hung up.
    pub(super) fn hear(&self) -> io::Result<Option<(FromAgent, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut control = vec![0; nix::sys::socket::cmsg_space::<[RawFd; 253]>()];
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<()>(
            self.0.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let mut fds = Vec::new();
        for message in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel just installed these descriptors for this message alone.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        let length = got.bytes;
        match length {
            0 => Ok(None),
            _ => Ok(Some((serde_json::from_slice(&bytes[..length])?, fds))),
        }
    }

    /// Reads until the agent hangs up, or nothing comes for five seconds.
    fn end(&self) -> String {
        loop {
            match self.hear() {
                Ok(Some(_)) => {}
                Ok(None) => return "eof".to_owned(),
                Err(error) => return report::name(&error),
            }
        }
    }
}

/// Each line on stdin is an offence to commit; prints how the connection ended.
pub(super) fn offend(turned: &Turned, mut spare: Vec<Socket>) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let end = match line.as_str() {
            "connect" => Link::greet(&turned.socket).map(|link| {
                kept.push(link);
                "open".to_owned()
            }),
            "let go" => {
                kept.clear();
                Ok("gone".to_owned())
            }
            "spoof" => match spare.pop() {
                Some(socket) => sockets::spoof(socket, sockets::FOREIGN, turned.neighbour)
                    .map(|()| "ok".to_owned()),
                None => Ok("no socket is left".to_owned()),
            },
            offence => commit(offence, &turned.socket, &turned.pod),
        };
        report::say(&end.unwrap_or_else(|error| report::name(&error)))?;
    }
    Ok(())
}

fn commit(offence: &str, path: &Path, pod: &str) -> io::Result<String> {
    let link = match offence {
        "silence" | "no hello" => Link::dial(path)?,
        _ => Link::greet(path)?,
    };
    let null = std::fs::File::open("/dev/null")?;
    let fds = |count| vec![null.as_raw_fd(); count];
    match offence {
        "silence" => {}
        "no hello" => link.say(&FromProxy::Ack { seq: 1 })?,
        "too long" => link.send(&vec![b' '; MAX_MESSAGE + 1], &[])?,
        "too many descriptors" => link.send(br#"{"type":"ack","seq":1}"#, &fds(200))?,
        "descriptors nobody asked for" => {
            for _ in 0..200 {
                link.send(br#"{"type":"ack","seq":1}"#, &fds(60))?;
            }
        }
        "not JSON" => link.send(b"\xff\x00{{{", &[])?,
        "of a later release" => {
            for _ in 0..100 {
                link.send(br#"{"type":"later","seq":1}"#, &[])?;
            }
        }
        "acknowledges what was not sent" => {
            for seq in (0..2000).rev() {
                link.say(&FromProxy::Ack { seq: seq * 7919 })?;
                link.say(&FromProxy::Nack {
                    seq,
                    reason: "x".repeat(1000),
                })?;
            }
        }
        "a key that is no memfd" => {
            let keep = serde_json::json!({"type": "keep", "identity": identity(pod)});
            link.send(keep.to_string().as_bytes(), &fds(1))?;
        }
        "a stranger's key" => {
            let keep = serde_json::json!({"type": "keep", "identity": identity("stranger")});
            link.send(keep.to_string().as_bytes(), &fds(1))?;
        }
        "wants without end" => wants(&link)?,
        other => return Ok(format!("unknown offence {other}")),
    }
    if offence != "silence" {
        link.0.set_read_timeout(Some(Duration::from_secs(1)))?;
    }
    Ok(link.end())
}

fn identity(account: &str) -> serde_json::Value {
    let identity = crate::tls::domain().identity(crate::manifests::NAMESPACE, account);
    serde_json::to_value(identity).unwrap_or_default()
}

fn wants(link: &Link) -> io::Result<()> {
    let mut keys = Vec::new();
    while let Some((message, _)) = link.hear()? {
        match message {
            FromAgent::Pod { key, .. } => keys.push(key),
            FromAgent::SnapshotEnd { .. } => break,
            _ => {}
        }
    }
    let pool = SocketPool {
        kind: SocketKind::OutboundLeg,
        family: Family::V4,
    };
    for _ in 0..500 {
        for key in &keys {
            link.say(&FromProxy::Want {
                key: key.clone(),
                pool,
                count: usize::MAX,
            })?;
        }
    }
    Ok(())
}
