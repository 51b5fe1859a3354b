//! HTTP on reqwest, with the server's certificate pinned by its hash.

use super::{Request, Response};
use barycenter_protocol::auth::{Invitation, sha256_hex};
use futures::{StreamExt, TryStreamExt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;

/// A household's server answers at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Client {
    client: reqwest::Client,
}

impl Client {
    pub fn new(invitation: &Invitation) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let sha256 = invitation.certificate_sha256.clone();
        let sha256 = sha256.ok_or("the address names no certificate ('&c=…' after the secret): copy the whole line that the server printed")?;
        let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { sha256, provider })).with_no_client_auth();
        let client = reqwest::Client::builder().use_preconfigured_tls(config).connect_timeout(CONNECT_TIMEOUT).no_proxy().build();
        Ok(Self { client: client.map_err(|error| format!("the HTTP client cannot be set up: {error}"))? })
    }

    pub async fn send(&self, request: Request) -> Result<Response, String> {
        let method = reqwest::Method::from_bytes(request.method.as_bytes()).expect("the methods of this crate are tokens");
        let mut builder = self.client.request(method, request.url);
        for (name, value) in request.headers {
            builder = builder.header(name, value);
        }
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        let response = builder.send().await.map_err(|error| sentence(&error))?;
        let status = response.status().as_u16();
        Ok(Response { status, body: response.bytes_stream().map_err(|error| sentence(&error)).boxed_local() })
    }
}

/// reqwest says "error sending request" and hides the reason below.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Trusts one certificate: the one whose hash came with the invitation.
#[derive(Debug)]
struct Pinned {
    sha256: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(&self, certificate: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: &ServerName<'_>, _: &[u8], _: UnixTime) -> Result<ServerCertVerified, Error> {
        if sha256_hex(certificate).eq_ignore_ascii_case(&self.sha256) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(super::WRONG_CERTIFICATE.into()))
    }

    fn verify_tls12_signature(&self, message: &[u8], certificate: &CertificateDer<'_>, signature: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(&self, message: &[u8], certificate: &CertificateDer<'_>, signature: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
