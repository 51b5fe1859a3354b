//! Models by their name on the hub (`org/name`, or `org/name/file.gguf`): fetched once, resumed, checked.
//!
//! The `hf-hub` crate speaks the protocol and keeps files where other programs look for them (`HF_HOME`, else
//! `~/.cache/huggingface`), resumes what was cut off, and honours `HF_ENDPOINT`. Added here: `HF_TOKEN`, trying again when
//! a transfer breaks, and the check of every file against the hash its etag names.

use anyhow::{Context, Result, bail, ensure};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a transfer that breaks is taken up again.
const ATTEMPTS: u32 = 5;
/// Wait before the next attempt, times its number.
const ATTEMPT_MILLIS: u64 = 100;
/// Bytes hashed at a time.
const HASH_BYTES: usize = 1 << 20;
/// Files of a model folder besides the weights.
const FILES: [&str; 2] = ["config.json", "tokenizer.json"];
/// What a folder may have besides: where answers end, the chat template, and what `--method full` hands on.
const OPTIONAL: [&str; 4] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The folder or file that a `--model` leads to: a path that exists is taken as it is; a name of the hub is fetched.
pub fn locate(named: &Path) -> Result<PathBuf> {
    match named.to_str().filter(|_| !named.exists()).and_then(HubName::parse) {
        Some(name) => fetch(&name).with_context(|| format!("{} is no path on this computer, so it was looked for on the hub", named.display())),
        None => Ok(named.to_path_buf()),
    }
}

/// `org/name`, and a GGUF file of it.
#[derive(Debug, PartialEq, Eq)]
struct HubName<'a> {
    repository: &'a str,
    gguf: Option<&'a str>,
}

impl<'a> HubName<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let part = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && !part.starts_with('.') && part.len() <= 96 && part.chars().all(plain)
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|text| part(text)) {
            return None;
        }
        match parts.as_slice() {
            [_, _] => Some(Self { repository: text, gguf: None }),
            [org, name, file] if file.ends_with(".gguf") => Some(Self { repository: &text[..org.len() + 1 + name.len()], gguf: Some(file) }),
            _ => None,
        }
    }
}

fn fetch(name: &HubName) -> Result<PathBuf> {
    let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|url| !url.is_empty()).unwrap_or_else(|| "https://huggingface.co".into());
    let api = client(&endpoint)?;
    let hub = Hub { repo: api.model(name.repository.to_string()), name: name.repository, endpoint };
    let Some(gguf) = name.gguf else { return hub.folder() };
    hub.file(gguf)
}

fn client(endpoint: &str) -> Result<Api> {
    let mut builder = ApiBuilder::from_env().with_endpoint(endpoint.trim_end_matches('/').to_string()).with_progress(std::io::stderr().is_terminal());
    if let Some(token) = std::env::var("HF_TOKEN").ok().map(|token| token.trim().to_string()).filter(|token| !token.is_empty()) {
        ensure!(token.chars().all(|c| c.is_ascii_graphic()), "HF_TOKEN holds a character that no token has: copy it again from the hub's settings");
        builder = builder.with_token(Some(token));
    }
    builder.build().context("the hub's client cannot be set up")
}

struct Hub<'a> {
    repo: ApiRepo,
    name: &'a str,
    endpoint: String,
}

impl Hub<'_> {
    /// Everything a model folder needs; the folder it lies in. One that is complete is taken without asking the hub.
    fn folder(&self) -> Result<PathBuf> {
        if let Some(folder) = self.complete_folder() {
            return Ok(folder);
        }
        let info = self.repo.info().map_err(|error| self.sentence("its list of files", &error))?;
        let files: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let has = |name: &str| files.contains(&name);
        if !has(SINGLE) && !has(INDEX) {
            let ggufs: Vec<&str> = files.iter().copied().filter(|file| file.ends_with(".gguf") && !file.contains('/')).collect();
            match ggufs.first() {
                Some(gguf) => bail!("{} on the hub has no {SINGLE}, but GGUF files: name one of them, as in {}/{gguf}", self.name, self.name),
                None => bail!("{} on the hub has no {SINGLE}: choose a model with weights in safetensors files", self.name),
            }
        }
        for file in FILES {
            ensure!(has(file), "{} on the hub has no {file}: choose a model that comes with it", self.name);
        }
        let mut folder = None;
        for file in FILES {
            folder = self.file(file)?.parent().map(Path::to_path_buf);
        }
        for file in OPTIONAL.into_iter().filter(|file| has(file)) {
            self.file(file)?;
        }
        if has(SINGLE) {
            self.file(SINGLE)?;
        } else {
            for part in parts(&self.file(INDEX)?)? {
                ensure!(has(&part), "{INDEX} of {} names the file {part}, which is not there: choose another copy of the model", self.name);
                self.file(&part)?;
            }
        }
        folder.context("a fetched file lies in a folder")
    }

    fn complete_folder(&self) -> Option<PathBuf> {
        let folder = FILES.map(|file| self.cached(file)).into_iter().collect::<Option<Vec<_>>>()?[0].parent()?.to_path_buf();
        if self.cached(SINGLE).is_none() {
            parts(&self.cached(INDEX)?).ok()?.iter().map(|part| self.cached(part)).collect::<Option<Vec<_>>>()?;
        }
        Some(folder)
    }

    /// One file: from the cache, or fetched, taken up again where it was cut off, and checked.
    fn file(&self, file: &str) -> Result<PathBuf> {
        let url = self.repo.url(file);
        if let Some(path) = self.cached(file) {
            return Ok(path);
        }
        log::info!("fetching {file} of {}", self.name);
        eprintln!("fetching {file} of {} from {}", self.name, self.endpoint);
        let mut attempt = 1;
        let path = loop {
            match self.repo.download(file) {
                Ok(path) => break path,
                Err(error) if attempt < ATTEMPTS && leads_nowhere(&error) => {
                    self.remove_parts();
                    attempt += 1;
                }
                Err(error) if attempt < ATTEMPTS && breaks(&error) => {
                    eprintln!("the transfer of {file} broke ({error}): taking it up again");
                    std::thread::sleep(Duration::from_millis(ATTEMPT_MILLIS * u64::from(attempt)));
                    attempt += 1;
                }
                Err(error) => return Err(self.sentence(file, &error)),
            }
        };
        check_hash(&path).with_context(|| format!("{url} did not arrive as it was sent"))?;
        Ok(path)
    }

    fn cached(&self, file: &str) -> Option<PathBuf> {
        hf_hub::Cache::from_env().model(self.name.to_string()).get(file)
    }

    /// Removes what earlier transfers left.
    fn remove_parts(&self) {
        let Some(blobs) = hf_hub::Cache::from_env().model(self.name.to_string()).blob_path("x").parent().map(Path::to_path_buf) else { return };
        for entry in std::fs::read_dir(blobs).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "part") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn sentence(&self, file: &str, error: &ApiError) -> anyhow::Error {
        let (name, endpoint) = (self.name, &self.endpoint);
        let sentence = match status(error) {
            Some(401 | 403) => format!("{endpoint} does not give {file} of {name} to you: set HF_TOKEN to a token of an account that may read it"),
            Some(404) => format!("{endpoint} has no {file} of {name}: check the name, and HF_TOKEN if the model is private"),
            Some(status) => format!("{endpoint} answered {status} when asked for {file} of {name}: try again later"),
            None => format!("{file} of {name} could not be fetched from {endpoint} ({error}): check the connection, what has arrived is kept"),
        };
        anyhow::Error::msg(sentence.replace('\n', " "))
    }
}

/// The hub's answer, if there was one.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match error.as_ref() {
            ureq::Error::StatusCode(status) => Some(*status),
            _ => None,
        },
        _ => None,
    }
}

/// The weight files that an index lists.
fn parts(index: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(index).with_context(|| format!("{} cannot be read", index.display()))?;
    let json: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", index.display()))?;
    let mut parts: Vec<String> = json["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| Some(file.as_str()?.to_string())).collect();
    parts.sort_unstable();
    parts.dedup();
    for part in &parts {
        ensure!(!part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', ':']), "{} names the file {part}, which is not in the model's folder: choose another copy of the model", index.display());
    }
    Ok(parts)
}

/// Whether what an earlier transfer left is as long as the file, or longer: nothing can follow it.
fn leads_nowhere(error: &ApiError) -> bool {
    matches!(error, ApiError::InvalidResume) || status(error) == Some(416)
}

/// Whether trying again may help.
fn breaks(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(_) => status(error).is_none_or(|status| status >= 500),
        ApiError::IoError(_) => true,
        _ => false,
    }
}

/// Compares a file of the cache with the hash in its name: SHA-256 of large files, git's SHA-1 of small ones.
///
/// A file that differs is removed, so that the next attempt starts anew. A name of another form cannot be checked.
fn check_hash(path: &Path) -> Result<()> {
    let blob = std::fs::canonicalize(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let expected = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_hex = |len: usize| expected.len() == len && expected.chars().all(|c| c.is_ascii_hexdigit());
    let len = std::fs::metadata(&blob)?.len();
    let got = if is_hex(64) {
        hash::<Sha256>(&blob, "")?
    } else if is_hex(40) {
        hash::<Sha1>(&blob, &format!("blob {len}\0"))?
    } else {
        log::warn!("the etag {expected} is no hash: {} is not checked", path.display());
        return Ok(());
    };
    if got.eq_ignore_ascii_case(&expected) {
        return Ok(());
    }
    for file in [path, blob.as_path()] {
        let _ = std::fs::remove_file(file);
    }
    bail!("the hash of its {len} bytes is {got}, the hub names {expected}: it was removed, fetch it again");
}

fn hash<H: Digest>(path: &Path, prefix: &str) -> Result<String> {
    let mut hasher = H::new();
    hasher.update(prefix.as_bytes());
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        assert_eq!(HubName::parse("Qwen/Qwen2.5-0.5B"), Some(HubName { repository: "Qwen/Qwen2.5-0.5B", gguf: None }));
        assert_eq!(HubName::parse("org/name/m-q8_0.gguf"), Some(HubName { repository: "org/name", gguf: Some("m-q8_0.gguf") }));
        for path in ["model", "/no/such", "./a/b", "../a", "a/../b", "a/b/c", "C:\\a", "a//b", "a/b c"] {
            assert_eq!(HubName::parse(path), None, "{path}");
        }
    }
}
