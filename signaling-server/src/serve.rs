//! Starts and stops a server.

use crate::data_dir::DataDir;
use crate::datasets::Datasets;
use crate::error::ServerError;
use crate::host::{self, Command, HostHandle, Material};
use crate::models::Models;
use crate::pages::Pages;
use crate::plain_http::ToHttps;
use crate::routes::{self, App};
use crate::store::Store;
use crate::{address, checkpoint, invite, tls};
use axum_server::tls_rustls::RustlsAcceptor;
use barycenter_protocol::auth::{Invitation, RoomSecret};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long answers under way may take when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen. Port 0: the port of the last start, else a free one.
    pub listen: SocketAddr,
    /// Where everything is kept; see [`DataDir::default_path`].
    pub data_dir: PathBuf,
    /// Folders whose sub-folders are models (or which are one).
    pub model_dirs: Vec<PathBuf>,
    /// The user's own certificate chain and key, PEM.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Pages from this folder in place of the embedded ones.
    pub web_dir: Option<PathBuf>,
    /// Name or address for the invitation, in place of the one found.
    pub host: Option<String>,
}

impl ServerConfig {
    /// All interfaces, port 0, nothing special.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            data_dir: data_dir.into(),
            model_dirs: Vec::new(),
            certificate: None,
            web_dir: None,
            host: None,
        }
    }
}

/// A server that runs until it is shut down or dropped.
pub struct RunningServer {
    address: SocketAddr,
    invitation: Invitation,
    host: HostHandle,
    handle: axum_server::Handle<SocketAddr>,
    task: JoinHandle<std::io::Result<()>>,
    /// Held, never read.
    _lock: std::fs::File,
}

impl RunningServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL to scan: join page, secret and certificate hash in the fragment.
    pub fn invite_url(&self) -> String {
        self.invitation.url()
    }

    /// The dashboard on this computer, secret in the fragment.
    pub fn local_url(&self) -> String {
        let url = self.local_invitation().url();
        url.replacen("/join#", "/#", 1)
    }

    /// The invitation with this computer's own name, for programs on it.
    pub fn local_invitation(&self) -> Invitation {
        Invitation { origin: format!("https://localhost:{}", self.address.port()), ..self.invitation.clone() }
    }

    /// The room secret.
    pub fn secret(&self) -> &RoomSecret {
        &self.invitation.secret
    }

    /// The QR code of the invitation as text for a dark terminal.
    pub fn terminal_qr_code(&self) -> String {
        invite::terminal(&self.invite_url())
    }

    /// Ends all streams and stops listening. Runs resume at the next start over the same data folder.
    pub async fn shutdown(mut self) {
        self.host.tell(Command::Shutdown).await;
        self.handle.graceful_shutdown(Some(SHUTDOWN_GRACE));
        let _ = (&mut self.task).await;
    }

    /// Waits until the server ends by itself, which it does only when the system takes its socket away.
    pub async fn wait(&mut self) -> std::io::Result<()> {
        (&mut self.task).await.map_err(std::io::Error::other)?
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.task.abort();
    }
}

/// Starts a server; it answers when this returns.
pub async fn serve(config: ServerConfig) -> Result<RunningServer, ServerError> {
    let data = DataDir::open(&config.data_dir)?;
    let lock = data.lock()?;
    let secret = data.secret()?;
    let addresses: Vec<_> = address::local_addresses();
    let ips: Vec<IpAddr> = addresses.iter().map(|a| a.ip).collect();
    let tls = match &config.certificate {
        Some((certificate, key)) => tls::from_files(certificate, key)?,
        None => tls::kept_or_made(&data, &ips, config.host.as_deref())?,
    };
    let store = Arc::new(Store::open(&data.database())?);
    let models = Arc::new(Models::open(&data, config.model_dirs.clone())?);
    let datasets = Arc::new(Datasets::new(store.clone(), &data, &models));
    let listener = listen(config.listen, &data)?;
    let failed = |error: std::io::Error| ServerError::Listen { address: config.listen.to_string(), reason: error.to_string() };
    let address = listener.local_addr().map_err(failed)?;
    data.keep_port(address.port())?;

    let host_name = config.host.clone().unwrap_or_else(|| match config.listen.ip() {
        ip if ip.is_unspecified() => address::choose(&addresses).to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
        ip => ip.to_string(),
    });
    let invitation = Invitation { origin: format!("https://{host_name}:{}", address.port()), secret: secret.clone(), certificate_sha256: Some(tls.sha256.clone()) };

    let mut resume = store.snapshot()?;
    if let Some(snapshot) = &mut resume {
        checkpoint::catch_up(snapshot, &data.run(snapshot.start.run.0));
    }
    let resumed = resume.as_ref().map(|snapshot| snapshot.start.run);
    let host = host::start(store.clone(), data.clone(), resume)?;
    if let Some(run) = resumed {
        let (store, models, datasets, host) = (store.clone(), models.clone(), datasets.clone(), host.clone());
        tokio::spawn(async move {
            let made = tokio::task::spawn_blocking(move || {
                let stored = store.run(run)?.ok_or_else(|| crate::error::Refusal::missing(format!("run {run} is not in the data base")))?;
                Material { models: &models, datasets: &datasets }.examination(&stored)
            });
            match made.await {
                Ok(Ok(Some(examination))) => host.tell(Command::Resumed(run, examination)).await,
                Ok(Ok(None)) => {}
                Ok(Err(refusal)) => log::warn!("run {run} goes on without exact match: {}", refusal.sentence),
                Err(error) => log::warn!("run {run} goes on without exact match: {error}"),
            }
        });
    }
    let app = Arc::new(App { token: secret.server_token(), invite: invite::invite(&invitation), data, store, models, datasets, host: host.clone() });
    let router = routes::router(app, Pages { folder: config.web_dir.clone().map(Arc::new) });

    let handle = axum_server::Handle::new();
    let acceptor = RustlsAcceptor::new(tls.config).acceptor(ToHttps);
    let server = axum_server::from_tcp(listener).map_err(failed)?.acceptor(acceptor).handle(handle.clone());
    let task = tokio::spawn(server.serve(router.into_make_service()));
    Ok(RunningServer { address, invitation, host, handle, task, _lock: lock })
}

/// A listener on the wished port; for port 0 on the kept one if it is free.
fn listen(wished: SocketAddr, data: &DataDir) -> Result<TcpListener, ServerError> {
    let kept = data.port().filter(|_| wished.port() == 0);
    if let Some(listener) = kept.and_then(|port| TcpListener::bind(SocketAddr::new(wished.ip(), port)).ok()) {
        return nonblocking(listener, wished);
    }
    if let Some(port) = kept {
        log::warn!("port {port} of the last start is taken: devices must scan the new code");
    }
    let listener = TcpListener::bind(wished).map_err(|error| ServerError::Listen { address: wished.to_string(), reason: error.to_string() })?;
    nonblocking(listener, wished)
}

fn nonblocking(listener: TcpListener, wished: SocketAddr) -> Result<TcpListener, ServerError> {
    listener.set_nonblocking(true).map_err(|error| ServerError::Listen { address: wished.to_string(), reason: error.to_string() })?;
    Ok(listener)
}
