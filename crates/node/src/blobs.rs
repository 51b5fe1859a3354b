//! Bytes the core names but never sees.

use barycenter_core::io::BlobId;
use bytes::Bytes;
use std::collections::HashMap;

/// The driver's table of blobs.
#[derive(Default)]
pub struct Blobs {
    next: u64,
    table: HashMap<BlobId, Bytes>,
    held_bytes: u64,
}

impl Blobs {
    /// Keeps bytes under a new id.
    pub fn insert(&mut self, bytes: Bytes) -> BlobId {
        let id = BlobId(self.next);
        self.next += 1;
        self.held_bytes += bytes.len() as u64;
        self.table.insert(id, bytes);
        id
    }

    /// The bytes of an id; empty if it was dropped (a cancelled job may still ask).
    pub fn get(&self, id: BlobId) -> Bytes {
        self.table.get(&id).cloned().unwrap_or_default()
    }

    /// Forgets an id.
    pub fn remove(&mut self, id: BlobId) {
        if let Some(bytes) = self.table.remove(&id) {
            self.held_bytes -= bytes.len() as u64;
        }
    }

    /// Bytes held.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}

/// f32 values of little-endian bytes; `None` if the length is not a multiple of 4.
pub fn floats(bytes: &[u8]) -> Option<Vec<f32>> {
    bytes.len().is_multiple_of(4).then(|| bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Little-endian bytes of f32 values.
pub fn float_bytes(values: &[f32]) -> Bytes {
    if cfg!(target_endian = "little") {
        Bytes::copy_from_slice(bytemuck::cast_slice(values))
    } else {
        values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_survive_their_bytes() {
        let values = [1.5, -0.0, f32::MAX];
        assert_eq!(floats(&float_bytes(&values)).as_deref(), Some(&values[..]));
        assert_eq!(floats(&[1, 2, 3]), None);
    }

    #[test]
    fn bytes_are_counted_and_ids_never_reused() {
        let mut blobs = Blobs::default();
        let first = blobs.insert(Bytes::from_static(b"abc"));
        blobs.remove(first);
        blobs.remove(first);
        let second = blobs.insert(Bytes::from_static(b"de"));
        assert_ne!(first, second);
        assert_eq!((blobs.get(first).len(), blobs.get(second).len(), blobs.held_bytes()), (0, 2, 2));
    }
}
