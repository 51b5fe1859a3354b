//! Keys and seals of a relayed link: X25519, HKDF-SHA256, ChaCha20-Poly1305.
//!
//! Each end makes a key pair for one link and tells the public half through signalling. From what both can compute come four
//! keys, one for each direction and plane. A packet's nonce is its number on its plane, which is not sent: a packet that was
//! changed, repeated, swapped or left out does not open. Who the keys belong to is said by the proof in the greeting, see
//! `RoomSecret::relay_proof`.

use crate::connection::Plane;
use barycenter_protocol::auth::to_hex;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{EphemeralSecret, PublicKey};

/// What a seal adds to a frame, bytes (RFC 8439 §2.8).
pub const SEAL_BYTES: usize = 16;
/// Keeps these keys apart from whatever else might be derived from the same exchange.
const SALT: &[u8] = b"barycenter relay 1";

/// One end's key pair, made for one link.
pub struct KeyPair {
    secret: EphemeralSecret,
    public: PublicKey,
}

/// Seals the packets of one plane in one direction.
pub struct Sealer(Counted);

/// Opens what the other end's [`Sealer`] sealed, in the same order.
pub struct Opener(Counted);

struct Counted {
    cipher: ChaCha20Poly1305,
    next: u64,
}

impl KeyPair {
    /// From the system's random numbers.
    pub fn new() -> Self {
        let secret = EphemeralSecret::random();
        let public = PublicKey::from(&secret);
        Self { secret, public }
    }

    /// The public half as it travels: 64 lower-case hexadecimal digits.
    pub fn public(&self) -> String {
        to_hex(self.public.as_bytes())
    }

    /// Where this end is found in the relay.
    pub fn mailbox(&self) -> u64 {
        mailbox(self.public.as_bytes())
    }

    /// Seals and openers by plane, from the other end's public key. The error is a sentence.
    pub fn agree(self, theirs: &str, is_offerer: bool) -> Result<([Sealer; 2], [Opener; 2]), String> {
        let bytes = public_key(theirs)?;
        let shared = self.secret.diffie_hellman(&PublicKey::from(bytes));
        if !shared.was_contributory() {
            return Err("the other device sent a key that keeps nothing secret: dial again".into());
        }
        let (ours, theirs) = (*self.public.as_bytes(), bytes);
        let (offerer, answerer) = if is_offerer { (ours, theirs) } else { (theirs, ours) };
        let kdf = Hkdf::<Sha256>::new(Some(SALT), shared.as_bytes());
        let key = |from_offerer: bool, plane: Plane| {
            let direction: &[u8] = if from_offerer { b"from the offerer" } else { b"from the answerer" };
            let mut key = [0; 32];
            kdf.expand_multi_info(&[direction, b"\0", plane.label().as_bytes(), b"\0", &offerer, &answerer], &mut key).expect("HKDF gives 32 bytes");
            Counted { cipher: ChaCha20Poly1305::new(&key.into()), next: 0 }
        };
        Ok((Plane::ALL.map(|plane| Sealer(key(is_offerer, plane))), Plane::ALL.map(|plane| Opener(key(!is_offerer, plane)))))
    }
}

/// The bytes of a public key as it travels. The error is a sentence.
pub fn public_key(text: &str) -> Result<[u8; 32], String> {
    let digits = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| "the other device sent a damaged key: dial again".into())
}

/// The mailbox of whoever has this public key. 64 bits of it: nobody else in the house is found there by accident.
pub fn mailbox(public: &[u8; 32]) -> u64 {
    u64::from_be_bytes(public[..8].try_into().expect("8 of 32 bytes"))
}

impl Sealer {
    /// Appends the sealed frame to `out`.
    pub fn seal(&mut self, frame: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(frame);
        let nonce = self.0.nonce();
        let tag = self.0.cipher.encrypt_inout_detached(&nonce, &[], (&mut out[start..]).into()).expect("a frame is far below the cipher's limit");
        out.extend_from_slice(&tag);
    }
}

impl Opener {
    /// The frame in a packet; `None` if it is not the packet that the other end sealed next.
    pub fn open(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let (body, tag) = packet.split_at_checked(packet.len().checked_sub(SEAL_BYTES)?)?;
        let mut frame = body.to_vec();
        let nonce = self.0.nonce();
        let tag: Tag = tag.try_into().ok()?;
        self.0.cipher.decrypt_inout_detached(&nonce, &[], frame.as_mut_slice().into(), &tag).ok()?;
        Some(frame)
    }
}

impl Counted {
    /// The next packet's. 2⁶⁴ packets are never reached.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        nonce.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> ([Sealer; 2], [Opener; 2]) {
        let (offerer, answerer) = (KeyPair::new(), KeyPair::new());
        let (offerers_key, answerers_key) = (offerer.public(), answerer.public());
        let (sealers, _) = offerer.agree(&answerers_key, true).expect("an honest key");
        let (_, openers) = answerer.agree(&offerers_key, false).expect("an honest key");
        (sealers, openers)
    }

    fn sealed(sealer: &mut Sealer, frame: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        sealer.seal(frame, &mut packet);
        packet
    }

    #[test]
    fn packets_open_in_order_once_and_on_their_plane_only() {
        let ([mut control, mut bulk], [mut open_control, mut open_bulk]) = ends();
        let packets: Vec<_> = (0..3).map(|i| sealed(&mut control, &[i; 100])).collect();
        assert_eq!(packets[0].len(), 100 + SEAL_BYTES);
        assert_eq!(open_control.open(&packets[0]), Some(vec![0; 100]));
        assert_eq!(open_control.open(&packets[0]), None, "a replay");
        let ([mut control, _], [mut open_control, _]) = ends();
        let (first, second) = (sealed(&mut control, b"first"), sealed(&mut control, b"second"));
        assert_eq!(open_control.open(&second), None, "one was left out");
        assert_eq!(open_control.open(&first), None, "and the order is over");
        assert_eq!(open_bulk.open(&sealed(&mut bulk, b"")), Some(Vec::new()));
        let ([mut control, _], [_, mut open_bulk]) = ends();
        assert_eq!(open_bulk.open(&sealed(&mut control, b"moved to the other plane")), None);
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        for at in 0..26 * 8 {
            let ([mut control, _], [mut open, _]) = ends();
            let mut packet = sealed(&mut control, b"ten bytes!");
            packet[at / 8] ^= 1 << (at % 8);
            assert_eq!(open.open(&packet), None, "bit {at}");
        }
        for len in 0..26 {
            let ([mut control, _], [mut open, _]) = ends();
            assert_eq!(open.open(&sealed(&mut control, b"ten bytes!")[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn a_swapped_or_worthless_key_opens_nothing() {
        let (offerer, answerer, other) = (KeyPair::new(), KeyPair::new(), KeyPair::new());
        let offerers_key = offerer.public();
        let ([mut control, _], _) = offerer.agree(&other.public(), true).expect("an honest key");
        let (_, [mut open, _]) = answerer.agree(&offerers_key, false).expect("an honest key");
        assert_eq!(open.open(&sealed(&mut control, b"for somebody else")), None);
        for key in ["0".repeat(64), "zz".repeat(32), "ab".repeat(31), format!("{}é", "a".repeat(62))] {
            let refused = KeyPair::new().agree(&key, true).err();
            assert!(refused.is_some_and(|sentence| sentence.contains("dial again")), "{key}");
        }
    }
}
