//! A hub on this machine: as much of the hub's protocol as a download needs, over plain sockets.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use gemma3::hub::{FetchOptions, Token};
use sha2::{Digest, Sha256};

pub const ID: &str = "tester/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// No request of a client has more header lines than this, or longer ones.
const HEADER_LIMIT_BYTES: u64 = 16 << 10;

pub struct Request {
    pub path: String,
    pub authorization: Option<String>,
    range_start: usize,
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Send only so many bytes of the body, and close.
    pub sent_bytes: usize,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), sent_bytes: usize::MAX }
    }

    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// The files of the repository [`ID`], at [`COMMIT`].
#[derive(Clone, Default)]
pub struct Repository {
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Repository {
    /// The tiny checkpoint of the fixtures.
    pub fn tiny_text() -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-text");
        let mut repository = Self::default();
        for entry in std::fs::read_dir(&folder).expect("the fixtures have a folder tiny-text") {
            let entry = entry.expect("a file of tiny-text");
            let name = entry.file_name().into_string().expect("a plain name");
            let bytes = std::fs::read(entry.path()).expect("a readable file");
            repository.files.insert(name, bytes);
        }
        repository
    }

    pub fn with(mut self, file: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(file.to_owned(), bytes.into());
        self
    }

    /// What the hub would answer.
    pub fn reply(&self, request: &Request) -> Reply {
        if request.path.starts_with(&format!("/api/models/{ID}/revision/")) {
            let files: Vec<_> =
                self.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let json = serde_json::json!({ "sha": COMMIT, "siblings": files });
            return Reply::status(200).with_body(json.to_string());
        }
        let prefix = format!("/{ID}/resolve/{COMMIT}/");
        match request.path.strip_prefix(&prefix).and_then(|file| self.files.get(file)) {
            Some(bytes) => file_reply(bytes, request.range_start),
            None => Reply::status(404),
        }
    }
}

fn file_reply(bytes: &[u8], start: usize) -> Reply {
    if start >= bytes.len() {
        return Reply::status(416);
    }
    // The hub names large files by their SHA-256; here all are.
    let etag = sha256(bytes);
    let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
    Reply::status(206)
        .with_header("etag", format!("\"{etag}\""))
        .with_header("x-repo-commit", COMMIT)
        .with_header("content-range", range)
        .with_body(&bytes[start..])
}

/// In lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The server; it ends when dropped.
pub struct MockHub {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    is_ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MockHub {
    pub fn serving(repository: Repository) -> Self {
        Self::answering(move |request| repository.reply(request))
    }

    pub fn answering(reply: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the port");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let is_ending = Arc::new(AtomicBool::new(false));
        let (log, ending) = (requests.clone(), is_ending.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                // A client that goes away is its own affair.
                if let Ok(stream) = stream {
                    let _ = serve(stream, &reply, &log);
                }
            }
        });
        Self { address, requests, is_ending, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Options for this hub, a cache, and nothing from the environment.
    pub fn options(&self, cache: &tempfile::TempDir) -> FetchOptions {
        FetchOptions {
            cache_dir: Some(cache.path().to_owned()),
            endpoint: Some(self.endpoint()),
            token: Token::Anonymous,
            revision: None,
            offline: Some(false),
        }
    }

    pub fn request_count(&self) -> usize {
        self.requests.lock().expect("no panic in the server").len()
    }

    pub fn authorizations(&self) -> Vec<Option<String>> {
        let requests = self.requests.lock().expect("no panic in the server");
        requests.iter().map(|r| r.authorization.clone()).collect()
    }
}

impl Drop for MockHub {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::SeqCst);
        // Wakes the server from its wait for a client.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An address at which nothing listens.
pub fn dead_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("the port");
    drop(listener);
    format!("http://{address}")
}

fn serve(
    mut stream: TcpStream,
    reply: &impl Fn(&Request) -> Reply,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let request = read_request(&stream)?;
    let reply = reply(&request);
    log.lock().expect("no panic in the server").push(request);

    let mut head = format!("HTTP/1.1 {} Mock\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", reply.body.len());
    stream.write_all(head.as_bytes())?;
    let sent = reply.sent_bytes.min(reply.body.len());
    stream.write_all(&reply.body[..sent])?;
    stream.flush()
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream.take(HEADER_LIMIT_BYTES)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut request = Request {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        authorization: None,
        range_start: 0,
    };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            "range" => {
                let start = value.trim().trim_start_matches("bytes=");
                let start = start.split('-').next().unwrap_or_default();
                request.range_start = start.parse().unwrap_or(0);
            }
            _ => {}
        }
    }
    Ok(request)
}
