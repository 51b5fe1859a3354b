//! Storage in a folder of this computer.

use barycenter_node::storage::{Storage, StorageError, StorageFile};
use futures::future::LocalBoxFuture;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A folder.
pub struct FolderStorage {
    folder: PathBuf,
}

impl FolderStorage {
    /// Uses (and makes) `folder`.
    pub fn new(folder: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// A file directly in the folder: a part of its name may be a hash that a server has told.
    fn place(&self, name: &str) -> Result<PathBuf, StorageError> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(is_plain) {
            return Err(StorageError::Failed(format!("{name:?} is no name of a file here: small letters, digits, `.`, `_` and `-` are")));
        }
        Ok(self.folder.join(name))
    }

    fn open_now(&self, name: &str) -> Result<Box<dyn StorageFile>, StorageError> {
        let path = self.place(name)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(|e| describe(&path, e))?;
        Ok(Box::new(OpenFile { file: RefCell::new(file), path }))
    }

    fn list_now(&self) -> Result<Vec<(String, u64)>, StorageError> {
        let entries = std::fs::read_dir(&self.folder).map_err(|e| describe(&self.folder, e))?;
        Ok(entries.filter_map(|e| e.ok()).filter_map(|e| Some((e.file_name().into_string().ok()?, e.metadata().ok()?.len()))).collect())
    }

    fn remove_now(&self, name: &str) -> Result<(), StorageError> {
        let path = self.place(name)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(describe(&path, e)),
            _ => Ok(()),
        }
    }
}

impl Storage for FolderStorage {
    fn open(&self, name: &str) -> LocalBoxFuture<'_, Result<Box<dyn StorageFile>, StorageError>> {
        let result = self.open_now(name);
        Box::pin(async { result })
    }

    fn list(&self) -> LocalBoxFuture<'_, Result<Vec<(String, u64)>, StorageError>> {
        let result = self.list_now();
        Box::pin(async { result })
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'_, Result<(), StorageError>> {
        let result = self.remove_now(name);
        Box::pin(async { result })
    }
}

struct OpenFile {
    file: RefCell<File>,
    path: PathBuf,
}

impl OpenFile {
    fn at<T>(&self, offset: u64, act: impl FnOnce(&mut File) -> std::io::Result<T>) -> Result<T, StorageError> {
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(offset)).and_then(|_| act(&mut file)).map_err(|e| describe(&self.path, e))
    }
}

impl StorageFile for OpenFile {
    fn len(&self) -> Result<u64, StorageError> {
        self.file.borrow().metadata().map(|m| m.len()).map_err(|e| describe(&self.path, e))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.at(offset, |file| file.read_exact(into))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.at(offset, |file| file.write_all(bytes))
    }

    fn truncate(&self, len: u64) -> Result<(), StorageError> {
        self.file.borrow().set_len(len).map_err(|e| describe(&self.path, e))
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.file.borrow_mut().flush().map_err(|e| describe(&self.path, e))
    }
}

fn describe(path: &Path, error: std::io::Error) -> StorageError {
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full(text),
        _ => StorageError::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_out_of_the_folder() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let storage = FolderStorage::new(&folder.path().join("inside")).expect("folder");
        for name in ["../outside", "a/b", "a\\b", "..", "", "C:x", "weights-../../x.log"] {
            assert!(storage.open_now(name).is_err() && storage.remove_now(name).is_err(), "{name}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 1);
        assert!(storage.open_now("weights-0f.log").is_ok());
    }

    #[test]
    fn folder_storage_keeps_the_contract() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let storage = FolderStorage::new(folder.path()).expect("folder");
        futures::executor::block_on(barycenter_node::storage::check_contract(&storage)).expect("contract");
    }
}
