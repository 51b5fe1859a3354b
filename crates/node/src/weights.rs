//! Weights as a node keeps them: an append-only log of tensors, each checked against its content hash.
//!
//! One file per model, `weights-<model hash>.log`. A record is
//! `magic u32 · name length u16 · 0 u16 · data length u64 · name` and then the data, little-endian. The header is written
//! after the data and after the hash was checked, so what a crash leaves behind is never taken for a tensor.

use crate::storage::{Storage, StorageError, StorageFile};
use barycenter_model::{ModelError, RawTensor, TensorEntry, TensorSource, WeightType, Weights};
use barycenter_protocol::control::WeightFormat;
use std::collections::BTreeMap;

const MAGIC: u32 = 0x4357_4142; // "BAWC"
const FIXED_HEADER_BYTES: usize = 16;

/// Largest piece that is fetched, hashed and written at once.
pub const PIECE_BYTES: u64 = 4 << 20;

/// Offset and length of each tensor's bytes in the file, by name.
type Index = BTreeMap<String, (u64, u64)>;

/// The weights of one model that are on this device.
pub struct WeightStore {
    file: Box<dyn StorageFile>,
    index: Index,
    entries: BTreeMap<String, TensorEntry>,
    end: u64,
}

impl WeightStore {
    /// Opens (or makes) the store of a model. `entries` says what every tensor is (from the manifest).
    pub async fn open(storage: &dyn Storage, model_hash: &str, entries: BTreeMap<String, TensorEntry>) -> Result<Self, StorageError> {
        let file = storage.open(&format!("weights-{model_hash}.log")).await?;
        let (index, end) = scan(file.as_ref())?;
        Ok(Self { file, index, entries, end })
    }

    /// Whether a tensor is here.
    pub fn holds(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Starts a tensor of `len` bytes; feed it with [`Incoming::push`], end it with [`WeightStore::commit`].
    pub fn begin(&self, name: &str, len: u64) -> Incoming {
        Incoming { name: name.to_owned(), start: self.end, data_at: self.end + (FIXED_HEADER_BYTES + name.len()) as u64, len, written: 0, hasher: blake3::Hasher::new() }
    }

    /// Takes the next piece of a tensor.
    pub fn push(&self, incoming: &mut Incoming, piece: &[u8]) -> Result<(), StorageError> {
        incoming.hasher.update(piece);
        self.file.write_at(incoming.data_at + incoming.written, piece)?;
        incoming.written += piece.len() as u64;
        Ok(())
    }

    /// Checks length and hash (64 hexadecimal digits) and keeps the tensor; `false` if they differ: it is not kept.
    pub fn commit(&mut self, incoming: Incoming, expected_hash: &str) -> Result<bool, StorageError> {
        if incoming.written != incoming.len || incoming.hasher.finalize().to_hex().as_str() != expected_hash {
            return Ok(false);
        }
        let mut header = Vec::with_capacity(FIXED_HEADER_BYTES + incoming.name.len());
        header.extend_from_slice(&MAGIC.to_le_bytes());
        header.extend_from_slice(&(incoming.name.len() as u16).to_le_bytes());
        header.extend_from_slice(&[0, 0]);
        header.extend_from_slice(&incoming.len.to_le_bytes());
        header.extend_from_slice(incoming.name.as_bytes());
        self.file.write_at(incoming.start, &header)?;
        self.index.insert(incoming.name, (incoming.data_at, incoming.len));
        self.end = incoming.data_at + incoming.len;
        Ok(true)
    }

    /// Makes what was committed survive the process.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.file.flush()
    }

    /// The weights in the format that a run holds them in: what is kept on the device stays as it came. Twin of `weight_type` in
    /// `signaling-server/src/side.rs`, which counts what they take.
    pub fn held_as(&mut self, format: WeightFormat) -> Weights<&mut Self> {
        let weight_type = match format {
            WeightFormat::Keep => WeightType::Keep,
            WeightFormat::F16 => WeightType::F16,
            WeightFormat::Int8 => WeightType::Int8,
            WeightFormat::Int4 => WeightType::Int4,
        };
        Weights::new(self, weight_type)
    }
}

/// A tensor on its way in.
pub struct Incoming {
    name: String,
    start: u64,
    data_at: u64,
    len: u64,
    written: u64,
    hasher: blake3::Hasher,
}

impl TensorSource for WeightStore {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.to_owned() };
        let entry = self.entries.get(name).ok_or_else(missing)?;
        let &(offset, len) = self.index.get(name).ok_or_else(missing)?;
        let mut bytes = vec![0; len as usize];
        self.file.read_at(offset, &mut bytes).map_err(|_| missing())?;
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        self.entries.get(name).cloned()
    }
}

/// Where each whole tensor of the file stands, and where the last of them ends.
fn scan(file: &dyn StorageFile) -> Result<(Index, u64), StorageError> {
    let len = file.len()?;
    let mut index = BTreeMap::new();
    let mut at = 0;
    loop {
        let mut fixed = [0u8; FIXED_HEADER_BYTES];
        if at + fixed.len() as u64 > len {
            return Ok((index, at));
        }
        file.read_at(at, &mut fixed)?;
        let magic = u32::from_le_bytes([fixed[0], fixed[1], fixed[2], fixed[3]]);
        let name_len = u16::from_le_bytes([fixed[4], fixed[5]]) as u64;
        let data_len = u64::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11], fixed[12], fixed[13], fixed[14], fixed[15]]);
        let data_at = at + FIXED_HEADER_BYTES as u64 + name_len;
        let end = data_at.saturating_add(data_len);
        if magic != MAGIC || end > len {
            return Ok((index, at));
        }
        let mut name = vec![0; name_len as usize];
        file.read_at(at + FIXED_HEADER_BYTES as u64, &mut name)?;
        let Ok(name) = String::from_utf8(name) else { return Ok((index, at)) };
        index.insert(name, (data_at, data_len));
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;
    use barycenter_model::TensorDtype;
    use futures::executor::block_on;

    fn entries() -> BTreeMap<String, TensorEntry> {
        ["a", "b"].into_iter().map(|n| (n.to_owned(), TensorEntry { dtype: TensorDtype::F32, shape: vec![2], start: 0, end: 8 })).collect()
    }

    #[test]
    fn a_tensor_is_kept_only_with_the_right_hash_and_survives_reopening() {
        let storage = MemoryStorage::default();
        let data = [1u8, 2, 3, 4, 5, 6, 7, 8];
        let hash = blake3::hash(&data).to_hex().to_string();
        let mut store = block_on(WeightStore::open(&storage, "00", entries())).expect("opens");
        let mut incoming = store.begin("a", 8);
        store.push(&mut incoming, &data[..3]).expect("writes");
        store.push(&mut incoming, &data[3..]).expect("writes");
        assert!(store.commit(incoming, &hash).expect("commits"));
        let mut wrong = store.begin("b", 8);
        store.push(&mut wrong, &[0; 8]).expect("writes");
        assert!(!store.commit(wrong, &hash).expect("checks"));
        drop(store);
        let mut store = block_on(WeightStore::open(&storage, "00", entries())).expect("opens");
        assert!(store.holds("a") && !store.holds("b"));
        assert_eq!(store.load("a").expect("loads").bytes, data);
        assert!(store.load("b").is_err());
    }
}
