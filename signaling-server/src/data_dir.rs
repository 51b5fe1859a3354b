//! The data folder: what survives a restart, so that links keep working.

use crate::error::ServerError;
use barycenter_protocol::auth::{RoomSecret, to_hex};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where a server keeps its secret, certificate, data base, data sets and checkpoints.
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Opens the folder, or makes it.
    pub fn open(root: &Path) -> Result<Self, ServerError> {
        let this = Self { root: root.to_owned() };
        for folder in [this.root.clone(), this.datasets(), this.root.join("runs"), this.root.join("builtin")] {
            std::fs::create_dir_all(&folder).map_err(|error| this.error(&error))?;
        }
        private_folder(&this.root);
        Ok(this)
    }

    /// Keeps other servers out for as long as the file is open. Where the system knows no locks, nobody is kept out.
    ///
    /// # Errors
    /// [`ServerError::DataDirInUse`] if one is in.
    pub fn lock(&self) -> Result<std::fs::File, ServerError> {
        let file = std::fs::File::create(self.root.join("lock")).map_err(|error| self.error(&error))?;
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => Err(ServerError::DataDirInUse { path: self.root.display().to_string() }),
            Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(file),
        }
    }

    /// `BARYCENTER_DATA`, else `~/.local/share/barycenter`, else `./barycenter-data`.
    pub fn default_path() -> PathBuf {
        if let Some(path) = std::env::var_os("BARYCENTER_DATA").filter(|p| !p.is_empty()) {
            return path.into();
        }
        match std::env::home_dir() {
            Some(home) => home.join(".local/share/barycenter"),
            None => "barycenter-data".into(),
        }
    }

    /// The room secret: made at the first start.
    pub fn secret(&self) -> Result<RoomSecret, ServerError> {
        let path = self.root.join("secret");
        if let Some(secret) = std::fs::read_to_string(&path).ok().and_then(|text| RoomSecret::parse(text.trim())) {
            return Ok(secret);
        }
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| ServerError::Random(error.to_string()))?;
        let secret = RoomSecret::from_bytes(bytes);
        self.write_private("secret", secret.as_str().as_bytes())?;
        Ok(secret)
    }

    /// The port of the last start, if there was one.
    pub fn port(&self) -> Option<u16> {
        std::fs::read_to_string(self.root.join("port")).ok()?.trim().parse().ok()
    }

    /// Keeps the port for the next start.
    pub fn keep_port(&self, port: u16) -> Result<(), ServerError> {
        self.write_private("port", port.to_string().as_bytes())
    }

    /// Contents of a file directly in the folder.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.root.join(name)).ok()
    }

    /// Writes a file directly in the folder, readable by its owner only, whole or not at all.
    pub fn write_private(&self, name: &str, bytes: &[u8]) -> Result<(), ServerError> {
        write_atomically(&self.root.join(name), bytes).map_err(|error| self.error(&error))
    }

    /// The data base file.
    pub fn database(&self) -> PathBuf {
        self.root.join("barycenter.sqlite3")
    }

    /// Folder of uploaded data sets.
    pub fn datasets(&self) -> PathBuf {
        self.root.join("datasets")
    }

    /// Folder of a run's files; made when first written to.
    pub fn run(&self, run: u64) -> PathBuf {
        self.root.join("runs").join(run.to_string())
    }

    /// Folder the assets of the binary are laid out in.
    pub fn builtin(&self, name: &str) -> PathBuf {
        self.root.join("builtin").join(name)
    }

    fn error(&self, error: &std::io::Error) -> ServerError {
        ServerError::DataDir { path: self.root.display().to_string(), reason: error.to_string() }
    }
}

/// Writes a file under a temporary name beside it, then renames: readers see the old or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let temporary = path.with_extension(format!("{}.part", to_hex(&random)));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// The secret and the key lie here: nobody else looks in. Where the system has no such notion, nothing happens.
fn private_folder(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)) {
            log::warn!("the data folder {} could not be closed to others: {error}", path.display());
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_and_the_port_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        let secret = first.secret().unwrap();
        first.keep_port(4711).unwrap();
        let second = DataDir::open(folder.path()).unwrap();
        assert_eq!(second.secret().unwrap(), secret);
        assert_eq!(second.port(), Some(4711));
    }

    #[test]
    fn a_folder_in_use_is_refused_until_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let held = data.lock().unwrap();
        assert!(matches!(data.lock(), Err(ServerError::DataDirInUse { .. })));
        drop(held);
        data.lock().unwrap();
    }
}
