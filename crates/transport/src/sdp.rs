//! The two things a link reads from session descriptions.

/// What is assumed where a description says nothing (RFC 8841 §6.1).
const DEFAULT_MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// The SHA-256 fingerprint of the DTLS certificate, upper case. All `a=fingerprint` lines must agree, so that the proof
/// of a link is about the certificate that DTLS checks. The error is a sentence.
pub fn fingerprint(sdp: &str) -> Result<String, String> {
    let mut found: Option<String> = None;
    for line in sdp.lines() {
        let Some(value) = line.trim_end().strip_prefix("a=fingerprint:") else { continue };
        let (algorithm, digest) = value.split_once(' ').unwrap_or((value, ""));
        if !algorithm.eq_ignore_ascii_case("sha-256") {
            return Err(format!("a link description has a {algorithm:?} fingerprint, sha-256 was expected: update the browser of the older device"));
        }
        let digest = digest.trim().to_ascii_uppercase();
        if digest.len() != 95 || !digest.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return Err("a link description has a damaged fingerprint: dial again".into());
        }
        if found.as_ref().is_some_and(|known| *known != digest) {
            return Err("a link description has two different fingerprints: someone may be in the middle".into());
        }
        found = Some(digest);
    }
    found.ok_or_else(|| "a link description has no fingerprint: dial again".into())
}

/// The longest message the describing end takes, bytes.
pub fn max_message_bytes(sdp: &str) -> usize {
    let announced = sdp.lines().find_map(|line| line.trim_end().strip_prefix("a=max-message-size:")?.trim().parse().ok());
    match announced {
        None => DEFAULT_MAX_MESSAGE_BYTES,
        Some(0) => usize::MAX,
        Some(bytes) => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fingerprint_is_read_and_doubtful_ones_are_refused() {
        let digest = vec!["aB"; 32].join(":");
        let line = format!("a=fingerprint:sha-256 {digest}\r\n");
        assert_eq!(fingerprint(&format!("v=0\r\n{line}m=application\r\n{line}")), Ok(digest.to_uppercase()));
        let other = vec!["00"; 32].join(":");
        for sdp in ["v=0\r\n".to_owned(), format!("{line}a=fingerprint:sha-256 {other}\r\n"), "a=fingerprint:sha-1 00".into(), "a=fingerprint:sha-256 zz".into()] {
            assert!(fingerprint(&sdp).is_err(), "{sdp}");
        }
    }

    #[test]
    fn message_size_has_its_defaults() {
        assert_eq!(max_message_bytes("v=0\r\n"), 65536);
        assert_eq!(max_message_bytes("a=max-message-size:262144\r\n"), 262144);
        assert_eq!(max_message_bytes("a=max-message-size:0\r\n"), usize::MAX);
    }
}
