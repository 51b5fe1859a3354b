//! Where a node keeps bytes between visits: OPFS in a browser, files natively, memory in tests.

use futures::future::LocalBoxFuture;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Why storage failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The device has no room (or the browser's quota is used up).
    #[error("no storage left on this device: free some space, or let it join without a cache share ({0})")]
    Full(String),
    /// Anything else the platform reports.
    #[error("this device's storage failed: {0}")]
    Failed(String),
}

/// An open file. Calls are synchronous: browsers offer that inside Workers.
///
/// Obligations, checked by `contract` below:
/// 1. `read_at` fills the whole buffer or fails.
/// 2. `write_at` past the end extends the file; what lies between is unspecified.
/// 3. After `flush`, a file opened anew under the same name has the same bytes.
pub trait StorageFile {
    /// Length, bytes.
    fn len(&self) -> Result<u64, StorageError>;
    /// Whether nothing is in it.
    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.len()? == 0)
    }
    /// Reads exactly `into.len()` bytes from `offset` on.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError>;
    /// Cuts the file to `len` bytes.
    fn truncate(&self, len: u64) -> Result<(), StorageError>;
    /// Hands everything to the platform.
    fn flush(&self) -> Result<(), StorageError>;
}

/// A flat folder of files.
pub trait Storage {
    /// Opens a file, making it if absent. Names are `[a-z0-9._-]+`.
    fn open(&self, name: &str) -> LocalBoxFuture<'_, Result<Box<dyn StorageFile>, StorageError>>;
    /// Names and lengths of all files.
    fn list(&self) -> LocalBoxFuture<'_, Result<Vec<(String, u64)>, StorageError>>;
    /// Removes a file; absent is fine.
    fn remove(&self, name: &str) -> LocalBoxFuture<'_, Result<(), StorageError>>;
}

type SharedBytes = Rc<RefCell<Vec<u8>>>;

/// Storage in memory, for tests and for devices that refuse any other.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    files: Rc<RefCell<BTreeMap<String, SharedBytes>>>,
}

impl Storage for MemoryStorage {
    fn open(&self, name: &str) -> LocalBoxFuture<'_, Result<Box<dyn StorageFile>, StorageError>> {
        let file = self.files.borrow_mut().entry(name.to_owned()).or_default().clone();
        Box::pin(async move { Ok(Box::new(MemoryFile(file)) as Box<dyn StorageFile>) })
    }

    fn list(&self) -> LocalBoxFuture<'_, Result<Vec<(String, u64)>, StorageError>> {
        let files = self.files.borrow().iter().map(|(n, b)| (n.clone(), b.borrow().len() as u64)).collect();
        Box::pin(async move { Ok(files) })
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'_, Result<(), StorageError>> {
        self.files.borrow_mut().remove(name);
        Box::pin(async { Ok(()) })
    }
}

struct MemoryFile(SharedBytes);

impl StorageFile for MemoryFile {
    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.0.borrow().len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let bytes = self.0.borrow();
        let start = offset as usize;
        let from = bytes.get(start..start + into.len()).ok_or_else(|| StorageError::Failed("read past the end".into()))?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        let mut bytes = self.0.borrow_mut();
        let end = offset as usize + from.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(from);
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), StorageError> {
        self.0.borrow_mut().truncate(len as usize);
        Ok(())
    }

    fn flush(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// The contract of [`Storage`]; every implementation's tests call it.
#[doc(hidden)]
pub async fn check_contract(storage: &dyn Storage) -> Result<(), StorageError> {
    storage.remove("contract.bin").await?;
    let file = storage.open("contract.bin").await?;
    assert!(file.is_empty()?, "a new file is empty");
    file.write_at(4, &[4, 5, 6])?;
    file.write_at(0, &[0, 1, 2, 3])?;
    file.flush()?;
    assert_eq!(file.len()?, 7);
    drop(file);
    let file = storage.open("contract.bin").await?;
    let mut bytes = [0; 7];
    file.read_at(0, &mut bytes)?;
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6]);
    assert!(file.read_at(5, &mut bytes).is_err(), "a read past the end fails");
    file.truncate(2)?;
    assert_eq!(file.len()?, 2);
    drop(file);
    assert!(storage.list().await?.contains(&("contract.bin".into(), 2)));
    storage.remove("contract.bin").await?;
    storage.remove("contract.bin").await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_storage_keeps_the_contract() {
        futures::executor::block_on(check_contract(&MemoryStorage::default())).expect("contract");
    }
}
