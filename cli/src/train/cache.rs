//! What a run keeps of its frozen layers: in memory while it is small, in a file once it is large.
//!
//! The file is the log that nodes keep their caches in ([`ActivationCache`]), in a folder of its own that goes with the run,
//! also where the run is killed (on Unix).

use anyhow::{Context, Result, anyhow};
use barycenter_engine::trainer::SampleEntries;
use barycenter_node::cache::ActivationCache;
use barycenter_node::storage::{Storage, StorageError};
use barycenter_node_native::files::FolderStorage;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::TempDir;

/// A cache up to this size stays in memory unless `--cache-dir` is given: a small part of what any computer that holds a
/// model has, and reading it back from a file would only cost time.
const IN_MEMORY_BYTES: u64 = 256 << 20;

/// The entries of samples, by their numbers.
pub(super) struct Cache {
    place: Place,
    folder: PathBuf,
    /// Those in memory; `None` where nothing is kept yet, or in the file.
    memory: Vec<Option<SampleEntries>>,
    /// Entries of a sample.
    taps: u16,
    bytes: u64,
    in_memory_bytes: u64,
}

/// Where entries go.
enum Place {
    Memory,
    /// The file closes before its folder goes.
    File { log: ActivationCache, _folder: Option<TempDir> },
}

impl Cache {
    /// An empty cache of some samples; with a `folder` from the start in a file there, else in a temporary one once it is
    /// large.
    ///
    /// # Errors
    /// If no file can be made in the folder.
    pub(super) async fn new(samples: usize, folder: Option<&Path>) -> Result<Self> {
        let place = folder.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let mut cache = Self { place: Place::Memory, folder: place, memory: vec![None; samples], taps: 0, bytes: 0, in_memory_bytes: IN_MEMORY_BYTES };
        if folder.is_some() {
            cache.open_file().await?;
        }
        Ok(cache)
    }

    /// Keeps the entries of a sample.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub(super) async fn keep(&mut self, sample: usize, entries: SampleEntries) -> Result<()> {
        self.bytes += entries.iter().map(|entry| entry.len() as u64).sum::<u64>();
        self.taps = entries.len() as u16;
        if matches!(self.place, Place::Memory) && self.bytes > self.in_memory_bytes {
            self.open_file().await?;
            for (earlier, kept) in std::mem::take(&mut self.memory).into_iter().enumerate() {
                if let Some(kept) = kept {
                    self.write(earlier, &kept)?;
                }
            }
        }
        match self.place {
            Place::Memory => self.memory[sample] = Some(entries),
            Place::File { .. } => self.write(sample, &entries)?,
        }
        Ok(())
    }

    /// The entries of a sample.
    ///
    /// # Errors
    /// If they were never kept, or the file cannot be read.
    pub(super) fn entries(&self, sample: usize) -> Result<SampleEntries> {
        let missing = || anyhow!("nothing is kept of sample {sample}");
        let Place::File { log, .. } = &self.place else {
            return self.memory[sample].clone().ok_or_else(missing);
        };
        let read = |tap| log.read(sample as u32, tap).map_err(|error| self.describe(error))?.ok_or_else(missing);
        Ok(Rc::new((0..self.taps).map(read).collect::<Result<_>>()?))
    }

    /// Bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How large it is and where, for people.
    pub(super) fn size(&self) -> String {
        let place = if matches!(self.place, Place::Memory) { String::new() } else { format!(" in a file in {}", self.folder.display()) };
        format!("cache {:.1} MB{place}", self.bytes as f64 / 1e6)
    }

    fn write(&mut self, sample: usize, entries: &[Vec<u8>]) -> Result<()> {
        let slices: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
        let written = match &mut self.place {
            Place::File { log, .. } => log.write(sample as u32, 0, &slices),
            Place::Memory => Ok(()),
        };
        written.map_err(|error| self.describe(error))
    }

    async fn open_file(&mut self) -> Result<()> {
        let folder = &self.folder;
        let made = std::fs::create_dir_all(folder).and_then(|()| tempfile::Builder::new().prefix("barycenter-cache-").tempdir_in(folder));
        let own = made.with_context(|| format!("no folder for the cache can be made in {}: give another as --cache-dir", folder.display()))?;
        let storage = FolderStorage::new(own.path()).with_context(|| format!("{} cannot be used", own.path().display()))?;
        self.open_in(&storage, Some(own)).await
    }

    async fn open_in(&mut self, storage: &dyn Storage, own: Option<TempDir>) -> Result<()> {
        const KEY: &str = "0";
        let log = ActivationCache::open(storage, KEY, u64::MAX).await.map_err(|error| self.describe(error))?;
        // A file that is open and has no name goes with its process, and so need not leave its folder; where that cannot be, the
        // folder's end removes both.
        if cfg!(unix) && let Some(own) = &own {
            storage.remove(&format!("cache-{KEY}.log")).await.map_err(|error| self.describe(error))?;
            let _ = std::fs::remove_dir(own.path());
        }
        self.place = Place::File { log, _folder: own };
        Ok(())
    }

    fn describe(&self, error: StorageError) -> anyhow::Error {
        let folder = self.folder.display();
        match error {
            StorageError::Full(_) => anyhow!(
                "the disk of {folder} is full, and the cache needs more than the {:.1} MB that it has so far: free some space, give a folder of another disk as --cache-dir, or train with --cache none where the method has it",
                self.bytes as f64 / 1e6
            ),
            StorageError::Failed(why) => anyhow!("the cache in {folder} failed ({why}): give another folder as --cache-dir"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use barycenter_node::storage::StorageFile;
    use futures::future::LocalBoxFuture;
    use pollster::block_on;

    fn entries(salt: u8) -> SampleEntries {
        Rc::new(vec![vec![salt; 40], vec![salt + 1; 3]])
    }

    #[test]
    fn entries_are_the_same_in_memory_in_a_file_and_across_the_change() {
        let folder = tempfile::tempdir().expect("temporary");
        for (given, limit, in_file) in [(None, 1000, false), (None, 100, true), (Some(folder.path()), 1000, true)] {
            let mut cache = block_on(Cache::new(5, given)).expect("opens");
            cache.in_memory_bytes = limit;
            for sample in [3, 0, 4, 1] {
                block_on(cache.keep(sample, entries(sample as u8))).expect("keeps");
            }
            assert_eq!(matches!(cache.place, Place::File { .. }), in_file);
            assert_eq!(cache.bytes(), 4 * 43);
            for sample in [0, 1, 3, 4] {
                assert_eq!(cache.entries(sample).expect("kept"), entries(sample as u8));
            }
            assert!(cache.entries(2).is_err_and(|error| error.to_string().contains("sample 2")));
            assert!(!in_file || cache.memory.is_empty() || cache.memory.iter().all(Option::is_none), "memory stays flat");
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 0, "nothing stays behind");
    }

    /// Storage of a disk that has so many bytes.
    struct Small(u64);

    struct SmallFile(u64);

    impl Storage for Small {
        fn open(&self, _name: &str) -> LocalBoxFuture<'_, Result<Box<dyn StorageFile>, StorageError>> {
            let file: Box<dyn StorageFile> = Box::new(SmallFile(self.0));
            Box::pin(async { Ok(file) })
        }

        fn list(&self) -> LocalBoxFuture<'_, Result<Vec<(String, u64)>, StorageError>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn remove(&self, _name: &str) -> LocalBoxFuture<'_, Result<(), StorageError>> {
            Box::pin(async { Ok(()) })
        }
    }

    impl StorageFile for SmallFile {
        fn len(&self) -> Result<u64, StorageError> {
            Ok(0)
        }

        fn read_at(&self, _offset: u64, _into: &mut [u8]) -> Result<(), StorageError> {
            Err(StorageError::Failed("nothing there".into()))
        }

        fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
            if offset + bytes.len() as u64 > self.0 { Err(StorageError::Full("28 No space left".into())) } else { Ok(()) }
        }

        fn truncate(&self, _len: u64) -> Result<(), StorageError> {
            Ok(())
        }

        fn flush(&self) -> Result<(), StorageError> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_said_in_one_sentence() {
        let mut cache = block_on(Cache::new(5, None)).expect("opens");
        block_on(cache.open_in(&Small(100), None)).expect("opens");
        block_on(cache.keep(0, entries(1))).expect("fits");
        let said = block_on(cache.keep(1, entries(2))).expect_err("does not fit").to_string();
        assert!(said.contains("is full") && said.contains("--cache-dir") && !said.contains('\n'), "{said}");
        let folder = tempfile::tempdir().expect("temporary");
        let file = folder.path().join("a_file");
        std::fs::write(&file, "").expect("written");
        let said = block_on(Cache::new(5, Some(&file))).err().expect("a file is no folder").to_string();
        assert!(said.contains("--cache-dir"), "{said}");
    }
}
