//! The activation cache of one node: an append-only log of tap entries in one storage file.
//!
//! One file per cache key (weights, tokens, format): `cache-<key>.log`. A record is
//! `magic u32 · sample u32 · first tap u16 · taps u16 · length of each tap u32…` and then the entries themselves, all
//! little-endian. Opening scans the headers; a record cut off by a crash is dropped. A later record of the same
//! (sample, tap) replaces an earlier one. What an entry holds is the engine's business.

use crate::storage::{Storage, StorageError, StorageFile};
use std::collections::{BTreeMap, BTreeSet};

const MAGIC: u32 = 0x4342_4143; // "CABC"
const FIXED_HEADER_BYTES: usize = 12;

/// An open cache.
pub struct ActivationCache {
    file: Box<dyn StorageFile>,
    index: BTreeMap<(u32, u16), (u64, u32)>,
    end: u64,
    budget_bytes: u64,
}

impl ActivationCache {
    /// Opens (or makes) the cache of `key`; `key` is hexadecimal. At most `budget_bytes` are ever stored.
    pub async fn open(storage: &dyn Storage, key: &str, budget_bytes: u64) -> Result<Self, StorageError> {
        let file = storage.open(&format!("cache-{key}.log")).await?;
        let (index, end) = scan(file.as_ref())?;
        file.truncate(end)?;
        Ok(Self { file, index, end, budget_bytes })
    }

    /// Appends the entries of one sample, taps `first_tap ..`. If that fails, nothing of them is here.
    pub fn write(&mut self, sample: u32, first_tap: u16, entries: &[&[u8]]) -> Result<(), StorageError> {
        let total: usize = entries.iter().map(|e| e.len()).sum();
        let header_bytes = FIXED_HEADER_BYTES + 4 * entries.len();
        let needed = self.end + (header_bytes + total) as u64;
        if needed > self.budget_bytes {
            return Err(StorageError::Full(format!("the cache would need {needed} bytes, this device offered {}", self.budget_bytes)));
        }
        let mut record = Vec::with_capacity(header_bytes + total);
        record.extend_from_slice(&MAGIC.to_le_bytes());
        record.extend_from_slice(&sample.to_le_bytes());
        record.extend_from_slice(&first_tap.to_le_bytes());
        record.extend_from_slice(&(entries.len() as u16).to_le_bytes());
        for entry in entries {
            record.extend_from_slice(&(entry.len() as u32).to_le_bytes());
        }
        entries.iter().for_each(|entry| record.extend_from_slice(entry));
        self.file.write_at(self.end, &record)?;
        let mut at = self.end + header_bytes as u64;
        for (tap, entry) in (first_tap..).zip(entries) {
            self.index.insert((sample, tap), (at, entry.len() as u32));
            at += entry.len() as u64;
        }
        self.end = at;
        Ok(())
    }

    /// The entry of one tap of one sample, if it is here.
    pub fn read(&self, sample: u32, tap: u16) -> Result<Option<Vec<u8>>, StorageError> {
        let Some(&(offset, len)) = self.index.get(&(sample, tap)) else { return Ok(None) };
        let mut bytes = vec![0; len as usize];
        self.file.read_at(offset, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Whether all taps of `taps` of a sample are here.
    pub fn holds(&self, sample: u32, mut taps: std::ops::Range<u16>) -> bool {
        taps.all(|tap| self.index.contains_key(&(sample, tap)))
    }

    /// Which taps are here of every sample, ascending: (sample, taps).
    pub fn contents(&self) -> Vec<(u32, BTreeSet<u16>)> {
        let mut contents: BTreeMap<u32, BTreeSet<u16>> = BTreeMap::new();
        for &(sample, tap) in self.index.keys() {
            contents.entry(sample).or_default().insert(tap);
        }
        contents.into_iter().collect()
    }

    /// Bytes stored.
    pub fn len_bytes(&self) -> u64 {
        self.end
    }

    /// Makes everything written so far survive the process.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.file.flush()
    }
}

type Index = BTreeMap<(u32, u16), (u64, u32)>;

fn scan(file: &dyn StorageFile) -> Result<(Index, u64), StorageError> {
    let len = file.len()?;
    let mut index = BTreeMap::new();
    let mut at = 0u64;
    loop {
        let mut fixed = [0u8; FIXED_HEADER_BYTES];
        if at + fixed.len() as u64 > len {
            return Ok((index, at));
        }
        file.read_at(at, &mut fixed)?;
        let word = |i: usize| u32::from_le_bytes([fixed[i], fixed[i + 1], fixed[i + 2], fixed[i + 3]]);
        let half = |i: usize| u16::from_le_bytes([fixed[i], fixed[i + 1]]);
        let (sample, first_tap, taps) = (word(4), half(8), half(10));
        let lengths_end = at + (FIXED_HEADER_BYTES + 4 * taps as usize) as u64;
        if word(0) != MAGIC || lengths_end > len {
            return Ok((index, at));
        }
        let mut lengths = vec![0u8; 4 * taps as usize];
        file.read_at(at + FIXED_HEADER_BYTES as u64, &mut lengths)?;
        let lengths: Vec<u32> = lengths.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        let end = lengths_end + lengths.iter().map(|&l| l as u64).sum::<u64>();
        if end > len {
            return Ok((index, at));
        }
        let mut offset = lengths_end;
        for (i, &length) in lengths.iter().enumerate() {
            index.insert((sample, first_tap.saturating_add(i as u16)), (offset, length));
            offset += length as u64;
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;
    use futures::executor::block_on;
    use futures::future::LocalBoxFuture;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn entries_survive_reopening_and_later_ones_win() {
        let storage = MemoryStorage::default();
        let mut cache = block_on(ActivationCache::open(&storage, "ab", 1 << 20)).expect("opens");
        cache.write(3, 1, &[&[1, 2], &[3]]).expect("writes");
        cache.write(3, 2, &[&[9, 9, 9]]).expect("writes");
        cache.flush().expect("flushes");
        drop(cache);
        let cache = block_on(ActivationCache::open(&storage, "ab", 1 << 20)).expect("opens");
        assert_eq!(cache.read(3, 1).expect("reads"), Some(vec![1, 2]));
        assert_eq!(cache.read(3, 2).expect("reads"), Some(vec![9, 9, 9]));
        assert_eq!(cache.read(4, 1).expect("reads"), None);
        assert!(cache.holds(3, 1..3) && !cache.holds(3, 0..3));
    }

    #[test]
    fn a_torn_record_is_dropped_and_overwritten() {
        let storage = MemoryStorage::default();
        let mut cache = block_on(ActivationCache::open(&storage, "ab", 1 << 20)).expect("opens");
        cache.write(1, 0, &[&[5; 10]]).expect("writes");
        let whole = cache.len_bytes();
        cache.write(2, 0, &[&[6; 10]]).expect("writes");
        drop(cache);
        let file = block_on(storage.open("cache-ab.log")).expect("opens");
        file.truncate(whole + 15).expect("truncates");
        let mut cache = block_on(ActivationCache::open(&storage, "ab", 1 << 20)).expect("opens");
        assert_eq!((cache.holds(1, 0..1), cache.holds(2, 0..1), cache.len_bytes()), (true, false, whole));
        cache.write(2, 0, &[&[7; 4]]).expect("writes");
        assert_eq!(cache.read(2, 0).expect("reads"), Some(vec![7; 4]));
    }

    /// A disk that is full as soon as it is told so.
    struct Disk(MemoryStorage, Rc<Cell<bool>>);

    struct DiskFile(Box<dyn StorageFile>, Rc<Cell<bool>>);

    impl Storage for Disk {
        fn open(&self, name: &str) -> LocalBoxFuture<'_, Result<Box<dyn StorageFile>, StorageError>> {
            let file = self.0.open(name);
            Box::pin(async { Ok(Box::new(DiskFile(file.await?, Rc::clone(&self.1))) as Box<dyn StorageFile>) })
        }

        fn list(&self) -> LocalBoxFuture<'_, Result<Vec<(String, u64)>, StorageError>> {
            self.0.list()
        }

        fn remove(&self, name: &str) -> LocalBoxFuture<'_, Result<(), StorageError>> {
            self.0.remove(name)
        }
    }

    impl StorageFile for DiskFile {
        fn len(&self) -> Result<u64, StorageError> {
            self.0.len()
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
            self.0.read_at(offset, into)
        }

        fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
            if self.1.get() { Err(StorageError::Full("no space left".into())) } else { self.0.write_at(offset, bytes) }
        }

        fn truncate(&self, len: u64) -> Result<(), StorageError> {
            self.0.truncate(len)
        }

        fn flush(&self) -> Result<(), StorageError> {
            self.0.flush()
        }
    }

    #[test]
    fn what_could_not_be_written_is_not_taken_for_what_is_written_in_its_place() {
        let disk = Disk(MemoryStorage::default(), Rc::default());
        let mut cache = block_on(ActivationCache::open(&disk, "ab", 1 << 20)).expect("opens");
        disk.1.set(true);
        assert!(cache.write(1, 0, &[&[1; 4], &[2; 4]]).is_err());
        assert!(!cache.holds(1, 0..1) && cache.contents().is_empty() && cache.len_bytes() == 0);
        disk.1.set(false);
        cache.write(2, 0, &[&[3; 8]]).expect("writes");
        assert_eq!((cache.read(1, 0).expect("nothing to read"), cache.read(2, 0).expect("reads")), (None, Some(vec![3; 8])));
    }

    #[test]
    fn the_budget_is_enforced_with_a_sentence() {
        let mut cache = block_on(ActivationCache::open(&MemoryStorage::default(), "ab", 40)).expect("opens");
        cache.write(1, 0, &[&[0; 10]]).expect("fits");
        let error = cache.write(2, 0, &[&[0; 10]]).expect_err("does not fit").to_string();
        assert!(error.contains("52") && error.contains("40"), "{error}");
        assert!(!cache.holds(2, 0..1));
    }
}
