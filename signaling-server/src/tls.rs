//! The certificate: made once, kept in the data folder, pinned by programs through the invitation.

use crate::data_dir::DataDir;
use crate::error::ServerError;
use axum_server::tls_rustls::RustlsConfig;
use barycenter_protocol::auth::sha256_hex;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

const CERTIFICATE_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";
/// The names the kept certificate was made for, one a line.
const NAMES_FILE: &str = "cert.names";

/// A certificate ready to serve.
pub struct Tls {
    /// For axum-server.
    pub config: RustlsConfig,
    /// SHA-256 of the certificate (DER), 64 hexadecimal digits.
    pub sha256: String,
}

/// The user's own certificate.
pub fn from_files(certificate: &Path, key: &Path) -> Result<Tls, ServerError> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| ServerError::Certificate(format!("{}: {error}", path.display())));
    from_pem(&read(certificate)?, &read(key)?)
}

/// The kept self-signed certificate. It is made anew only when this computer has an address that the kept one does not
/// name: programs that pinned it must then scan again, browsers ask once more.
pub fn kept_or_made(data: &DataDir, addresses: &[IpAddr], host: Option<&str>) -> Result<Tls, ServerError> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    names.extend(addresses.iter().map(IpAddr::to_string));
    names.extend(host.map(str::to_owned));
    names.sort();
    names.dedup();
    let kept_names = data.read(NAMES_FILE).unwrap_or_default();
    let kept_names: Vec<&str> = std::str::from_utf8(&kept_names).unwrap_or_default().lines().collect();
    if let (Some(certificate), Some(key)) = (data.read(CERTIFICATE_FILE), data.read(KEY_FILE)) {
        if names.iter().all(|name| kept_names.contains(&name.as_str())) {
            return from_pem(&certificate, &key);
        }
        // Old addresses stay in: a laptop that goes to and fro keeps one certificate.
        names.extend(kept_names.iter().map(|name| (*name).to_owned()));
        names.sort();
        names.dedup();
    }
    let failed = |error: rcgen::Error| ServerError::Certificate(error.to_string());
    let key = KeyPair::generate().map_err(failed)?;
    let mut parameters = CertificateParams::new(names.clone()).map_err(failed)?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, "Barycenter at home");
    parameters.not_before = rcgen::date_time_ymd(2024, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2050, 1, 1);
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    let (certificate_pem, key_pem) = (certificate.pem(), key.serialize_pem());
    data.write_private(KEY_FILE, key_pem.as_bytes())?;
    data.write_private(CERTIFICATE_FILE, certificate_pem.as_bytes())?;
    data.write_private(NAMES_FILE, names.join("\n").as_bytes())?;
    from_pem(certificate_pem.as_bytes(), key_pem.as_bytes())
}

fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Tls, ServerError> {
    let failed = |error: &dyn std::fmt::Display| ServerError::Certificate(error.to_string());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>().map_err(|error| failed(&error))?;
    let first = chain.first().ok_or_else(|| failed(&"the file holds no certificate"))?;
    let sha256 = sha256_hex(first);
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| failed(&error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| failed(&error))?;
    // HTTP/2 first: a browser opens at most six HTTP/1.1 connections to a host, and every page holds a stream.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Tls { config: RustlsConfig::from_config(Arc::new(config)), sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_kept_until_an_address_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = kept_or_made(&data, &[ip("192.168.1.2")], None).unwrap().sha256;
        assert_eq!(kept_or_made(&data, &[], None).unwrap().sha256, first);
        let second = kept_or_made(&data, &[ip("10.1.1.1")], None).unwrap().sha256;
        assert_ne!(second, first);
        assert_eq!(kept_or_made(&data, &[ip("192.168.1.2")], None).unwrap().sha256, second);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        assert!(from_pem(b"nothing", b"nothing").is_err());
    }
}
