//! Models by their name on the hub, fetched from a server on this computer that answers as the hub does.
//!
//! ```text
//!  barycenter generate --model org/name          this test
//!    │ GET /api/models/org/name/revision/main      list of files
//!    │ GET /org/name/resolve/main/config.json      the file, its etag git's SHA-1
//!    │ GET /org/name/resolve/main/model.safetensors   302 to /cdn/…, x-linked-etag the SHA-256
//!    │ GET /cdn/model.safetensors  Range: bytes=n-    the bytes, cut off now and then
//! ```

use sha1::Digest;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const WEIGHTS: &str = "model.safetensors";
/// A file that a model may have.
const TEMPLATE: &str = "chat_template.jinja";

/// What the server does with the next transfers of the weights.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// So many transfers end in the middle.
    cuts: u32,
    /// One byte is another.
    damaged: bool,
    /// Status of every answer, if not the right one.
    refuse: Option<u16>,
}

#[derive(Clone, Debug)]
struct Request {
    path: String,
    range: Option<String>,
    authorization: Option<String>,
}

struct Hub {
    address: String,
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<Request>>,
}

impl Hub {
    /// Serves the demo model as `org/name` for as long as the test runs.
    fn start(faults: Faults) -> Arc<Self> {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo");
        let read = |name: &str| (name.to_string(), std::fs::read(demo.join(name)).expect("the demo model is there"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let hub = Arc::new(Self {
            address: format!("http://{}", listener.local_addr().expect("bound")),
            files: ["config.json", "tokenizer.json", WEIGHTS].map(read).into_iter().chain([(TEMPLATE.to_string(), b"{{ messages }}".to_vec())]).collect(),
            faults: Mutex::new(faults),
            requests: Mutex::default(),
        });
        let served = Arc::clone(&hub);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = Arc::clone(&served);
                std::thread::spawn(move || hub.converse(stream));
            }
        });
        hub
    }

    fn converse(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut stream = stream;
        while let Some(request) = read_request(&mut reader) {
            self.requests.lock().expect("no panic").push(request.clone());
            if self.answer(&mut stream, &request).is_err() {
                return;
            }
        }
    }

    /// An error ends the connection.
    fn answer(&self, stream: &mut TcpStream, request: &Request) -> std::io::Result<()> {
        let faults = *self.faults.lock().expect("no panic");
        if let Some(status) = faults.refuse {
            return write!(stream, "HTTP/1.1 {status} Refused\r\ncontent-length: 0\r\n\r\n");
        }
        if request.path == "/api/models/org/name/revision/main" {
            let siblings: Vec<_> = self.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "siblings": siblings, "sha": "0".repeat(40) }).to_string();
            return write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
        if request.path.ends_with(WEIGHTS) && request.path.starts_with("/org/name/resolve/main/") {
            let etag = hex::encode(sha2::Sha256::digest(&self.files[WEIGHTS]));
            let commit = "0".repeat(40);
            return write!(stream, "HTTP/1.1 302 Found\r\nlocation: {}/cdn/{WEIGHTS}\r\nx-linked-etag: \"{etag}\"\r\nx-repo-commit: {commit}\r\ncontent-length: 0\r\n\r\n", self.address);
        }
        let name = request.path.rsplit('/').next().unwrap_or_default();
        let Some(bytes) = self.files.get(name) else {
            return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        };
        self.send(stream, request, name, bytes, faults)
    }

    fn send(&self, stream: &mut TcpStream, request: &Request, name: &str, bytes: &[u8], faults: Faults) -> std::io::Result<()> {
        let range = request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (first, last) = range.expect("the client asks for ranges");
        let first: usize = first.parse().expect("a number");
        let end = last.parse::<usize>().map_or(bytes.len(), |last| (last + 1).min(bytes.len()));
        if first >= end {
            return write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\n\r\n");
        }
        let etag = hex::encode(sha1::Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()));
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\netag: \"{etag}\"\r\nx-repo-commit: {}\r\ncontent-range: bytes {first}-{}/{}\r\ncontent-length: {}\r\n\r\n",
            "0".repeat(40),
            end - 1,
            bytes.len(),
            end - first
        );
        stream.write_all(head.as_bytes())?;
        let mut body = bytes[first..end].to_vec();
        if name == WEIGHTS && body.len() > 1 {
            if faults.damaged {
                let last = body.len() - 1;
                body[last] ^= 1;
            }
            if faults.cuts > 0 {
                self.faults.lock().expect("no panic").cuts -= 1;
                stream.write_all(&body[..body.len() / 2])?;
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
        }
        stream.write_all(&body)
    }

    /// Starts of the transfers of the weights, the one-byte question for their length left out.
    fn starts(&self) -> Vec<usize> {
        let requests = self.requests.lock().expect("no panic");
        let start = |request: &Request| request.range.as_deref()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok();
        requests.iter().filter(|request| request.path == format!("/cdn/{WEIGHTS}")).filter_map(start).collect()
    }

    fn generate(&self, home: &Path, name: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_barycenter"))
            .args(["generate", "--device", "cpu", "--max-new-tokens", "2", "--model", name, "lamp on"])
            .env("HF_HOME", home)
            .env("HF_ENDPOINT", &self.address)
            .env("HF_TOKEN", "hf_secret")
            .current_dir(home)
            .output()
            .expect("the program starts")
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_string();
    let mut request = Request { path, range: None, authorization: None };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else { return Some(request) };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_string()),
            "authorization" => request.authorization = Some(value.to_string()),
            _ => {}
        }
    }
}

/// It worked, and said these things on the way.
fn worked(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}: {said}", output.status);
    said
}

/// It failed by itself with one sentence that has each of the parts.
fn refused(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code > 0), "{:?}: {said}", output.status);
    assert!(!said.contains("panicked"), "{said}");
    let sentence = said.lines().find(|line| line.starts_with("barycenter: ")).unwrap_or_else(|| panic!("no sentence: {said}"));
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    }
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn a_model_is_fetched_once_with_the_token_and_taken_up_where_it_was_cut_off() {
    let (hub, home) = (Hub::start(Faults { cuts: 2, ..Faults::default() }), home());
    let said = worked(&hub.generate(home.path(), "org/name"));
    assert!(said.contains("fetching model.safetensors of org/name"), "{said}");
    let len = hub.files[WEIGHTS].len();
    assert_eq!(hub.starts(), [0, len / 2, len / 2 + (len - len / 2) / 2], "each transfer begins where the last one ended");
    let requests = std::mem::take(&mut *hub.requests.lock().expect("no panic"));
    let asked_hub = requests.iter().filter(|request| !request.path.starts_with("/cdn/"));
    assert!(asked_hub.into_iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_secret")), "{requests:?}");
    let folder = home.path().join("hub/models--org--name/snapshots").join("0".repeat(40));
    assert!(folder.join(TEMPLATE).is_file(), "chats need it");
    assert!(std::fs::read(folder.join(WEIGHTS)).expect("kept where other programs look") == hub.files[WEIGHTS]);
    // The second time there is only the list of files.
    worked(&hub.generate(home.path(), "org/name"));
    let again: Vec<String> = hub.requests.lock().expect("no panic").iter().map(|request| request.path.clone()).collect();
    assert_eq!(again, Vec::<String>::new(), "a model that is there needs no hub");
}

#[test]
fn a_transfer_that_a_process_gave_up_is_finished_by_the_next() {
    let (hub, home) = (Hub::start(Faults { cuts: 5, ..Faults::default() }), home());
    refused(&hub.generate(home.path(), "org/name"), &["model.safetensors of org/name", "what has arrived is kept"]);
    worked(&hub.generate(home.path(), "org/name"));
    let starts = hub.starts();
    assert_eq!(starts.len(), 6, "{starts:?}");
    assert!(starts.is_sorted() && starts[5] > hub.files[WEIGHTS].len() * 9 / 10, "{starts:?}");
}

#[test]
fn a_file_with_another_hash_is_removed_and_named() {
    let (hub, home) = (Hub::start(Faults { damaged: true, ..Faults::default() }), home());
    refused(&hub.generate(home.path(), "org/name"), &["model.safetensors", "hash", "fetch it again"]);
    hub.faults.lock().expect("no panic").damaged = false;
    worked(&hub.generate(home.path(), "org/name"));
}

#[test]
fn a_leftover_that_cannot_be_taken_up_is_fetched_anew() {
    let (hub, home) = (Hub::start(Faults::default()), home());
    let blobs = home.path().join("hub/models--org--name/blobs");
    std::fs::create_dir_all(&blobs).expect("made");
    let part = blobs.join(format!("{}.part", hex::encode(sha2::Sha256::digest(&hub.files[WEIGHTS]))));
    for len in [hub.files[WEIGHTS].len(), hub.files[WEIGHTS].len() + 7] {
        std::fs::write(&part, vec![0; len]).expect("written");
        worked(&hub.generate(home.path(), "org/name"));
        std::fs::remove_dir_all(home.path().join("hub/models--org--name/snapshots")).expect("removed");
        std::fs::remove_file(part.with_extension("")).expect("removed");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let hub = Hub::start(Faults::default());
    for (status, parts) in [(401, ["HF_TOKEN", "org/name"]), (403, ["HF_TOKEN", "org/name"]), (404, ["check the name", "org/name"]), (500, ["500", "try again later"])] {
        hub.faults.lock().expect("no panic").refuse = Some(status);
        refused(&hub.generate(home().path(), "org/name"), &parts);
    }
    hub.faults.lock().expect("no panic").refuse = None;
    refused(&hub.generate(home().path(), "org/name/absent-q8_0.gguf"), &["404", "absent-q8_0.gguf"].map(|part| part.trim_start_matches("404")));
}
