//! `barycenter serve`.

use crate::hub;
use anyhow::Result;
use barycenter_model::ModelFiles;
use barycenter_server::{DataDir, ServerConfig, serve};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `barycenter serve`.
#[derive(clap::Args)]
pub struct Options {
    /// Where to listen; port 0 takes the last one used, else a free one.
    #[arg(long, default_value = "0.0.0.0:0")]
    listen: SocketAddr,
    /// Folder for everything that is kept (default: the platform's data folder).
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder with models in Hugging Face form, one sub-folder each; a .gguf file; or a name on the hub (org/name). May be
    /// repeated.
    #[arg(long)]
    models: Vec<PathBuf>,
    /// Your own certificate chain, PEM (with --key).
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    /// Name or address to put into the invitation.
    #[arg(long)]
    host: Option<String>,
    /// Serve pages from this folder (for work on them).
    #[arg(long)]
    web: Option<PathBuf>,
    /// Do not open the dashboard in a browser.
    #[arg(long)]
    no_open: bool,
}

/// Serves until Ctrl-C.
#[tokio::main]
pub async fn run(options: Options) -> Result<ExitCode> {
    let data = options.data.unwrap_or_else(DataDir::default_path);
    let models = options.models.clone();
    let folders = data.join("converted");
    let hints: Vec<String> = models.iter().filter_map(|named| hint(named)).collect();
    let model_dirs = tokio::task::spawn_blocking(move || models.iter().map(|named| model_folder(named, &folders)).collect::<Result<Vec<_>>>()).await??;
    let config = ServerConfig {
        listen: options.listen,
        model_dirs,
        certificate: options.cert.zip(options.key),
        web_dir: options.web,
        host: options.host,
        ..ServerConfig::new(data)
    };
    let mut server = serve(config).await?;
    println!("\nBarycenter is ready. On every other device, scan this code or open the address:\n");
    println!("{}", server.terminal_qr_code());
    println!("  {}\n", server.invite_url());
    println!("The dashboard on this computer:\n\n  {}\n", server.local_url());
    println!("Browsers warn once about the certificate, which this computer made itself: choose \"Advanced\", then \"Proceed\"");
    println!("(on an iPhone or iPad \"Show Details\", then \"visit this website\").");
    for hint in hints {
        println!("{hint}");
    }
    println!("Whoever has the address can join and see the data. Ctrl-C ends the server; a run goes on at the next start.");
    if !options.no_open {
        open_in_browser(&server.local_url());
    }
    tokio::select! {
        result = server.wait() => result?,
        _ = tokio::signal::ctrl_c() => server.shutdown().await,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a person should know of a folder of `--models` that offers less than they may think.
fn hint(folder: &Path) -> Option<String> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let has_model = |folder: &Path| folder.join("config.json").is_file();
    if let Some(gguf) = entries.iter().find(|path| path.extension().is_some_and(|ending| ending == "gguf")) {
        return Some(format!("GGUF files within {} are not offered: name each by itself, as in --models {}", folder.display(), gguf.display()));
    }
    let empty = !has_model(folder) && !entries.iter().any(|path| has_model(path));
    empty.then(|| format!("{} holds no model: a folder with config.json, model.safetensors and tokenizer.json is one, or a folder of such folders", folder.display()))
}

/// The folder that a `--models` leads to: devices fetch ranges of safetensors files, so a GGUF file is converted, once.
fn model_folder(named: &Path, folders: &Path) -> Result<PathBuf> {
    let path = hub::locate(named)?;
    let ModelFiles::Gguf(gguf) = ModelFiles::open(&path)? else { return Ok(path) };
    let about = std::fs::metadata(&path)?;
    let modified = about.modified()?.duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    // The last part is the name that people see.
    let folder = folders.join(format!("{}-{modified}", about.len())).join(path.file_stem().unwrap_or_default());
    if !folder.join("config.json").is_file() {
        println!("converting {} to f16 for the devices", path.display());
        gguf.write_folder(&folder)?;
    }
    Ok(folder)
}

/// Best effort: the address is printed anyway.
fn open_in_browser(url: &str) {
    let (program, arguments): (&str, &[&str]) = if cfg!(target_os = "macos") {
        ("open", &[])
    } else if cfg!(target_os = "windows") {
        ("rundll32", &["url.dll,FileProtocolHandler"])
    } else {
        ("xdg-open", &[])
    };
    let null = std::process::Stdio::null;
    let _ = std::process::Command::new(program).args(arguments).arg(url).stdin(null()).stdout(null()).stderr(null()).spawn();
}
