// SPDX-License-Identifier: Apache-2.0
//! An application that speaks HTTP/2 and counts its requests.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use culvert_tests::sandbox::Sandbox;

use crate::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, STATUS_200, WINDOW_UPDATE, frame,
    read,
};

/// A listener in a pod, and what it was sent.
#[derive(Clone, Debug, Default)]
pub struct App {
    /// Requests that came to their end.
    whole: Arc<AtomicUsize>,
    /// Requests that began, trailers aside.
    begun: Arc<AtomicUsize>,
}

// === impl App ===

impl App {
    pub fn start(sandbox: &Sandbox, pod: &str, port: u16) -> anyhow::Result<Self> {
        let addr = SocketAddr::from(([0, 0, 0, 0], port));
        let listener = sandbox.pod(pod).run(move || Ok(TcpListener::bind(addr)?))?;
        let app = Self::default();
        let serving = app.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                thread::spawn(move || serving.serve(stream));
            }
        });
        Ok(app)
    }

    pub fn whole(&self) -> usize {
        self.whole.load(Relaxed)
    }

    pub fn begun(&self) -> usize {
        self.begun.load(Relaxed)
    }

    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface)?;
        stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
        let mut last = 0;
        while let Some(got) = read(&mut stream)? {
            got.acknowledge(&mut stream)?;
            if got.kind == HEADERS && got.stream > last {
                last = got.stream;
                self.begun.fetch_add(1, Relaxed);
            }
            if got.kind == DATA && !got.payload.is_empty() {
                let more = (got.payload.len() as u32).to_be_bytes();
                stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &more))?;
                stream.write_all(&frame(WINDOW_UPDATE, 0, got.stream, &more))?;
            }
            if matches!(got.kind, HEADERS | DATA) && got.has(END_STREAM) {
                self.whole.fetch_add(1, Relaxed);
                stream.write_all(&frame(HEADERS, END_HEADERS, got.stream, STATUS_200))?;
                stream.write_all(&frame(DATA, END_STREAM, got.stream, &[b'a'; 1 << 10]))?;
            }
        }
        Ok(())
    }
}
