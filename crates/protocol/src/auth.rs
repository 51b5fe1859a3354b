//! The room secret: what proves that a device was invited.
//!
//! The secret travels only in the QR code's URL fragment (`#k=<secret>&c=<certificate hash>`), which browsers never
//! send. Three keys are derived from it by HMAC-SHA256, so that what is sent in one place opens nothing in another.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Shared secret of a household: 16 random bytes, written as 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct RoomSecret(String);

impl std::fmt::Debug for RoomSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RoomSecret(…)")
    }
}

impl RoomSecret {
    /// From its written form; `None` unless it is 32 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))).then(|| Self(text.to_owned()))
    }

    /// From 16 random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(to_hex(&bytes))
    }

    /// As written in the URL fragment.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Bearer token that opens the server's API (64 hexadecimal digits): HMAC(secret, "barycenter server 1").
    pub fn server_token(&self) -> String {
        to_hex(&self.mac(&[b"barycenter server 1"]))
    }

    /// Proof for one end of a link: HMAC(secret, "barycenter link 1" ‖ role ‖ offerer's DTLS fingerprint ‖ answerer's).
    /// `fingerprint_*` are the SHA-256 fingerprints as in SDP (`AA:BB:…`, upper case). Both ends send theirs over the
    /// control channel and compare; a man in the middle has other fingerprints and no secret.
    pub fn link_proof(&self, is_offerer: bool, fingerprint_offerer: &str, fingerprint_answerer: &str) -> [u8; 32] {
        let role: &[u8] = if is_offerer { b"offerer" } else { b"answerer" };
        self.mac(&[b"barycenter link 1\0", role, b"\0", fingerprint_offerer.as_bytes(), b"\0", fingerprint_answerer.as_bytes()])
    }

    /// Proof for one end of a relayed link: as [`Self::link_proof`], over the X25519 public keys (64 lower-case hexadecimal
    /// digits) that both ends seal with, and with another beginning, so that neither kind of proof can stand for the other.
    pub fn relay_proof(&self, is_offerer: bool, key_offerer: &str, key_answerer: &str) -> [u8; 32] {
        let role: &[u8] = if is_offerer { b"offerer" } else { b"answerer" };
        self.mac(&[b"barycenter relay 1\0", role, b"\0", key_offerer.as_bytes(), b"\0", key_answerer.as_bytes()])
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// Whether two byte strings are equal, in time that depends on their length only.
pub fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// SHA-256 as 64 hexadecimal digits (certificate hashes).
pub fn sha256_hex(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What the fragment of an invitation URL holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// `https://host:port`.
    pub origin: String,
    /// The secret.
    pub secret: RoomSecret,
    /// SHA-256 of the server's certificate (DER), for programs that pin it; browsers ignore it.
    pub certificate_sha256: Option<String>,
}

impl Invitation {
    /// Parses `https://host:port/…#k=<secret>&c=<hash>`; the error is one sentence.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (address, fragment) = url.split_once('#').ok_or("the address has no '#k=…' part: copy the whole line that the server printed")?;
        let rest = address.strip_prefix("https://").ok_or("the address must start with https://")?;
        let host = rest.split('/').next().unwrap_or_default();
        if host.is_empty() {
            return Err("the address names no host".into());
        }
        let value = |key: &str| fragment.split('&').find_map(|p| p.strip_prefix(key));
        let secret = value("k=").and_then(RoomSecret::parse).ok_or("the room secret in the address is damaged: it is 32 hexadecimal digits after '#k='")?;
        let certificate_sha256 = value("c=").map(str::to_owned);
        if certificate_sha256.as_ref().is_some_and(|hash| hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err("the certificate's hash in the address is damaged: it is 64 hexadecimal digits after '&c=', copy the whole line that the server printed".into());
        }
        Ok(Self { origin: format!("https://{host}"), secret, certificate_sha256 })
    }

    /// The URL to scan, with the join page's path.
    pub fn url(&self) -> String {
        let certificate = self.certificate_sha256.as_ref().map(|c| format!("&c={c}")).unwrap_or_default();
        format!("{}/join#k={}{certificate}", self.origin, self.secret.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_survives_its_url() {
        let invitation = Invitation { origin: "https://192.168.1.4:8443".into(), secret: RoomSecret::from_bytes([7; 16]), certificate_sha256: Some("ab".repeat(32)) };
        assert_eq!(Invitation::parse(&invitation.url()), Ok(invitation));
    }

    #[test]
    fn a_damaged_invitation_is_refused_with_a_sentence() {
        for url in ["https://a:1/join", "http://a:1/#k=00", "https:///#k=00", "https://a:1/#k=xyz", "https://a:1/#k=00000000000000000000000000000000&c=ab"] {
            assert!(Invitation::parse(url).unwrap_err().len() > 20, "{url}");
        }
    }

    #[test]
    fn proofs_differ_by_role_and_fingerprint() {
        let secret = RoomSecret::from_bytes([1; 16]);
        let proof = secret.link_proof(true, "AA", "BB");
        assert_ne!(proof, secret.link_proof(false, "AA", "BB"));
        assert_ne!(proof, secret.link_proof(true, "AA", "BC"));
        assert_ne!(proof, RoomSecret::from_bytes([2; 16]).link_proof(true, "AA", "BB"));
        assert_ne!(proof, secret.relay_proof(true, "AA", "BB"));
        assert_ne!(secret.relay_proof(true, "AA", "BB"), secret.relay_proof(false, "AA", "BB"));
    }
}
