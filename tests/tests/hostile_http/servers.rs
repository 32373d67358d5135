// SPDX-License-Identifier: Apache-2.0
//! Applications whose answers mean harm.

use std::{
    io::{self, BufRead, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use culvert_tests::sandbox::Sandbox;

use crate::ground::{EVIL, Ground, WAYS, Way};

/// No answer waits for a time-out.
const AT_ONCE: Duration = Duration::from_secs(3);

/// What a client must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    /// 502, instead.
    Nothing,
    /// `ok`, and not another byte.
    Ok,
    /// A body that is visibly incomplete.
    Part,
}

type Answers = Arc<Vec<(&'static str, Vec<u8>, Gets)>>;

fn table() -> Answers {
    let ok = |head: &str| format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\nok").into_bytes();
    let hidden = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    let flood = "HTTP/1.1 102 Processing\r\n\r\n".repeat(50_000);
    Arc::new(vec![
        ("two lengths", ok("Content-Length: 2\r\nContent-Length: 3"), Gets::Nothing),
        ("a list of lengths", ok("Content-Length: 2, 2"), Gets::Nothing),
        ("a plus", ok("Content-Length: +2"), Gets::Nothing),
        ("gzip", ok("Transfer-Encoding: gzip"), Gets::Nothing),
        ("gzip and chunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec(), Gets::Nothing),
        ("chunked in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec(), Gets::Nothing),
        ("obs-fold", ok("Content-Length: 2\r\nX: a\r\n b"), Gets::Nothing),
        ("NUL", ok("Content-Length: 2\r\nX: a\0"), Gets::Nothing),
        ("a space before the colon", ok("Content-Length : 2"), Gets::Nothing),
        ("HTTP/0.9", b"hello".to_vec(), Gets::Nothing),
        ("HTTP/2.0", b"HTTP/2.0 200 OK\r\n\r\n".to_vec(), Gets::Nothing),
        ("another protocol, unasked", b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nsmuggled".to_vec(), Gets::Nothing),
        ("5,000 fields", ok(&format!("Content-Length: 2\r\n{}a: b", "a: b\r\n".repeat(5_000))), Gets::Nothing),
        ("a field of 200 KiB", ok(&format!("Content-Length: 2\r\na: {}", "x".repeat(200 << 10))), Gets::Nothing),
        ("nothing", Vec::new(), Gets::Nothing),
        ("half a head", b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(), Gets::Nothing),
        ("a length and chunked", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec(), Gets::Ok),
        ("an answer behind the answer", [&ok("Content-Length: 2"), hidden.as_bytes()].concat(), Gets::Ok),
        ("words before the answer", [flood.as_bytes(), &ok("Content-Length: 2")].concat(), Gets::Ok),
        ("fields that only a proxy may say", ok("Content-Length: 2\r\nL5d-Proxy-Error: forged\r\nL5d-Proxy-Connection: close"), Gets::Ok),
        ("less than it said", ok("Content-Length: 9"), Gets::Part),
        ("chunks without an end", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n".to_vec(), Gets::Part),
        ("a chunk that is none", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nxyz\r\n".to_vec(), Gets::Part),
    ])
}

pub fn answers(ground: &Ground<'_>) -> anyhow::Result<()> {
    let table = table();
    for pod in ["open", "strict"] {
        listen(ground.sandbox, pod, &table)?;
    }
    for way in WAYS {
        for (number, (what, _, gets)) in table.iter().enumerate() {
            let begun = Instant::now();
            play(ground, way, number, *gets).with_context(|| format!("{way:?}, {what}"))?;
            let took = begun.elapsed();
            ensure!(took < AT_ONCE, "{way:?}, {what}: the answer took {took:?}");
        }
    }
    Ok(())
}

fn listen(sandbox: &Sandbox, pod: &str, table: &Answers) -> anyhow::Result<()> {
    let addr = SocketAddr::from(([0, 0, 0, 0], EVIL));
    let listener = sandbox.pod(pod).run(move || Ok(TcpListener::bind(addr)?))?;
    let table = Arc::clone(table);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let table = Arc::clone(&table);
            thread::spawn(move || serve(&stream, &table));
        }
    });
    Ok(())
}

/// Says what the path asks for, and FIN.
fn serve(mut stream: &TcpStream, table: &Answers) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let number = first
        .split(['/', ' '])
        .filter_map(|word| word.parse::<usize>().ok())
        .next();
    let answer = number.and_then(|number| table.get(number));
    let answer = answer.map(|(_, bytes, _)| &bytes[..]);
    stream.write_all(answer.unwrap_or(b"HTTP/1.1 404 ?\r\n\r\n"))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}

fn play(ground: &Ground<'_>, way: Way, number: usize, gets: Gets) -> anyhow::Result<()> {
    let mut wire = way.dial(ground.sandbox, EVIL)?;
    write!(
        wire,
        "GET /{number} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    let broke = wire.read_to_end(&mut bytes).is_err();
    let text = String::from_utf8_lossy(&bytes).to_lowercase();
    ensure!(
        !text.contains("smuggled") && !text.contains("forged"),
        "{text:?}"
    );
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("no answer: {text:?}"))?;
    let status = head.get(9..12).unwrap_or_default();
    let chunked = head.contains("transfer-encoding: chunked");
    ensure!(
        !chunked || !head.contains("content-length"),
        "two lengths: {text:?}"
    );
    let right = match gets {
        Gets::Nothing => status == "502",
        Gets::Ok if chunked => status == "200" && body == "2\r\nok\r\n0\r\n\r\n",
        Gets::Ok => status == "200" && body == "ok",
        Gets::Part => {
            status == "502"
                || broke
                || !body.ends_with("0\r\n\r\n") && chunked
                || head.contains("content-length: 9")
        }
    };
    ensure!(right, "{text:?}, which broke off: {broke}");
    Ok(())
}
