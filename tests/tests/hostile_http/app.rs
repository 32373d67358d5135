// SPDX-License-Identifier: Apache-2.0
//! An application that speaks HTTP/1.1 and remembers every request that it was sent.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use culvert_tests::sandbox::Sandbox;

/// How much `/pour` answers, in bytes.
pub const POURED: usize = 16 << 20;

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub line: String,
    /// Lower-case names.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The connection ended within it.
    pub cut: bool,
}

/// A listener in a pod, and what it was sent.
#[derive(Debug)]
pub struct App(Arc<Mutex<Vec<Seen>>>);

// === impl App ===

impl App {
    pub fn start(sandbox: &Sandbox, pod: &str, port: u16) -> anyhow::Result<Self> {
        let addr = SocketAddr::from(([0, 0, 0, 0], port));
        let listener = sandbox.pod(pod).run(move || Ok(TcpListener::bind(addr)?))?;
        let seen = Arc::default();
        let app = Self(Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve(stream, &seen));
            }
        });
        Ok(app)
    }

    /// All of it, in order of their ends.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.0).clone()
    }

    /// The requests for a path.
    pub fn of(&self, path: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|one| {
            one.line
                .split(' ')
                .nth(1)
                .is_some_and(|target| target.ends_with(path))
        });
        seen
    }
}

// === impl Seen ===

impl Seen {
    /// The values of a field.
    pub fn field(&self, name: &str) -> Vec<&str> {
        let values = self.fields.iter().filter(|(of, _)| of == name);
        values.map(|(_, value)| value.as_str()).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<Seen>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = Seen::default();
        let read = read(&mut reader, &mut request);
        request.cut = read.is_err();
        let pour = request.line.contains("/pour");
        let head = request.line.starts_with("HEAD ");
        if !request.line.is_empty() {
            lock(seen).push(request);
        }
        read?;
        answer(reader.get_mut(), pour, head)?;
    }
}

fn answer(stream: &mut TcpStream, pour: bool, head: bool) -> io::Result<()> {
    let body = if pour {
        vec![b'p'; POURED]
    } else {
        b"ok".to_vec()
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
    )?;
    if head {
        Ok(())
    } else {
        stream.write_all(&body)
    }
}

/// The plainest reader there is, and a strict one: what it takes differently from the proxy, it cuts.
fn read(reader: &mut BufReader<TcpStream>, request: &mut Seen) -> io::Result<()> {
    request.line = line(reader)?;
    request.fields = fields(reader)?;
    let chunked = request.field("transfer-encoding") == ["chunked"];
    let lengths = request.field("content-length");
    let length = match (chunked, &lengths[..]) {
        (true, []) => return chunks(reader, request),
        (false, []) => 0,
        (false, [length]) => length.parse().map_err(io::Error::other)?,
        _ => return Err(io::Error::other("ambiguous")),
    };
    let took = (&mut *reader).take(length).read_to_end(&mut request.body)?;
    if took as u64 == length {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn chunks(reader: &mut BufReader<TcpStream>, request: &mut Seen) -> io::Result<()> {
    loop {
        let size = u64::from_str_radix(&line(reader)?, 16).map_err(io::Error::other)?;
        if size == 0 {
            request.trailers = fields(reader)?;
            return Ok(());
        }
        let took = (&mut *reader).take(size).read_to_end(&mut request.body)?;
        if took as u64 != size || !line(reader)?.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn fields(reader: &mut BufReader<TcpStream>) -> io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        fields.push((name.to_lowercase(), value.trim().to_owned()));
    }
}

/// A line that ends with CR LF, as nothing else does.
fn line(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    let text = line
        .strip_suffix(b"\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    String::from_utf8(text.to_vec()).map_err(io::Error::other)
}
