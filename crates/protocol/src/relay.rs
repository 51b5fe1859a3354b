//! Parcels of the relay: how the server hands on what it cannot read.
//!
//! A node posts a parcel, some sealed packets of one link and plane, each as `u32 length · packet`. Down the receiver's
//! stream it comes behind a header, little-endian:
//!
//! ```text
//! 0..4   node that posted it; 0 = the server, which says so that the stream lives
//! 4..12  mailbox of the link at the receiver
//! 12     plane: 0 control, 1 bulk
//! 13..17 length of the parcel
//! ```

use crate::NodeId;

/// Length of the header, bytes.
pub const PARCEL_HEADER_BYTES: usize = 17;
/// Longest parcel of each plane, by its number: a sealed frame of the largest size and small ones; six of them.
pub const MAX_PARCEL_BYTES: [usize; 2] = [128 * 1024, 448 * 1024];

/// A parcel as its receiver gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Who posted it, as the server knows.
    pub from: NodeId,
    /// Of the link at the receiver.
    pub mailbox: u64,
    /// 0 control, 1 bulk.
    pub plane: u8,
    /// Sealed packets.
    pub packets: Vec<u8>,
}

/// The stream is not one of parcels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay's stream is damaged (a parcel of {0} bytes on plane {1}): reload the page, it may be older than the server")]
pub struct DamagedStream(usize, u8);

impl Parcel {
    /// The header in front of the packets.
    pub fn header(from: NodeId, mailbox: u64, plane: u8, len: usize) -> [u8; PARCEL_HEADER_BYTES] {
        let mut header = [0; PARCEL_HEADER_BYTES];
        header[..4].copy_from_slice(&from.0.to_le_bytes());
        header[4..12].copy_from_slice(&mailbox.to_le_bytes());
        header[12] = plane;
        header[13..].copy_from_slice(&(len as u32).to_le_bytes());
        header
    }

    /// The packets one after the other; `None` in place of what is no packet, which is the last item.
    pub fn packets(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rest = Some(self.packets.as_slice()).filter(|rest| !rest.is_empty());
        std::iter::from_fn(move || {
            let bytes = rest.take()?;
            let cut = bytes.split_first_chunk().and_then(|(len, after)| after.split_at_checked(u32::from_le_bytes(*len) as usize));
            rest = cut.map(|(_, after)| after).filter(|after| !after.is_empty());
            Some(cut.map(|(packet, _)| packet))
        })
    }
}

/// Puts parcels together from pieces of any length. Holds at most one parcel and one piece.
#[derive(Debug, Default)]
pub struct Parcels {
    buffer: Vec<u8>,
    read: usize,
}

impl Parcels {
    /// A piece came.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(piece);
    }

    /// The next parcel, if it is complete.
    pub fn take(&mut self) -> Result<Option<Parcel>, DamagedStream> {
        let Some((header, rest)) = self.buffer[self.read..].split_first_chunk::<PARCEL_HEADER_BYTES>() else { return Ok(None) };
        let (from, mailbox, len) = (&header[..4], &header[4..12], &header[13..]);
        let len = u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize;
        if MAX_PARCEL_BYTES.get(usize::from(header[12])).is_none_or(|most| len > *most) {
            return Err(DamagedStream(len, header[12]));
        }
        let Some(packets) = rest.get(..len) else { return Ok(None) };
        let from = NodeId(u32::from_le_bytes(from.try_into().expect("4 bytes")));
        let parcel = Parcel { from, mailbox: u64::from_le_bytes(mailbox.try_into().expect("8 bytes")), plane: header[12], packets: packets.to_vec() };
        self.read += PARCEL_HEADER_BYTES + len;
        Ok(Some(parcel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(parcel: &Parcel) -> Vec<u8> {
        let header = Parcel::header(parcel.from, parcel.mailbox, parcel.plane, parcel.packets.len());
        [&header[..], &parcel.packets].concat()
    }

    #[test]
    fn parcels_come_whole_out_of_any_pieces() {
        let parcels = [
            Parcel { from: NodeId(7), mailbox: 0x0102_0304_0506_0708, plane: 1, packets: vec![3, 0, 0, 0, 9, 9, 9] },
            Parcel { from: NodeId(0), mailbox: 0, plane: 0, packets: vec![] },
            Parcel { from: NodeId(8), mailbox: u64::MAX, plane: 0, packets: vec![5; 1000] },
        ];
        let bytes: Vec<u8> = parcels.iter().flat_map(wire).collect();
        assert_eq!(bytes[..17], [7, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 1, 7, 0, 0, 0]);
        for piece in [1, 2, 16, 17, 18, 100, 5000] {
            let mut reader = Parcels::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(piece) {
                reader.push(piece);
                while let Some(parcel) = reader.take().expect("whole") {
                    found.push(parcel);
                }
            }
            assert_eq!(found, parcels, "pieces of {piece}");
        }
    }

    #[test]
    fn a_stream_of_something_else_is_refused_before_anything_is_kept() {
        for (plane, len) in [(0, MAX_PARCEL_BYTES[0] + 1), (1, MAX_PARCEL_BYTES[1] + 1), (2, 0), (1, u32::MAX as usize)] {
            let mut reader = Parcels::default();
            reader.push(&Parcel::header(NodeId(1), 1, plane, len));
            assert_eq!(reader.take(), Err(DamagedStream(len, plane)));
        }
    }

    #[test]
    fn packets_end_where_a_length_lies() {
        let parcel = |packets: &[u8]| Parcel { from: NodeId(1), mailbox: 1, plane: 0, packets: packets.to_vec() };
        let read = |bytes: &[u8]| parcel(bytes).packets().map(|packet| packet.map(<[u8]>::to_vec)).collect::<Vec<_>>();
        assert_eq!(read(&[]), vec![]);
        assert_eq!(read(&[1, 0, 0, 0, 5, 0, 0, 0, 0]), vec![Some(vec![5]), Some(vec![])]);
        assert_eq!(read(&[1, 0, 0, 0, 5, 2, 0, 0, 0, 1]), vec![Some(vec![5]), None]);
        assert_eq!(read(&[1, 0]), vec![None]);
        assert_eq!(read(&[255, 255, 255, 255, 0]), vec![None]);
    }
}
