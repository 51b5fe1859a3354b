//! Sends a browser that came over plain http to the same address over https, as typed addresses do.

use axum_server::accept::Accept;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The first byte of TLS: a record of its handshake. No request over http begins with it.
const TLS_HANDSHAKE: u8 = 22;
/// Of a plain request so much is read at most.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Time for the first bytes of a connection: as much as the TLS handshake gets after them.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets TLS through and answers plain requests itself; sends what is written at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToHttps;

impl<S: Send + 'static> Accept<TcpStream, S> for ToHttps {
    type Stream = TcpStream;
    type Service = S;
    type Future = Pin<Box<dyn Future<Output = io::Result<(TcpStream, S)>> + Send>>;

    fn accept(&self, mut stream: TcpStream, service: S) -> Self::Future {
        Box::pin(async move {
            stream.set_nodelay(true)?;
            match timeout(PATIENCE, begins_tls(&mut stream)).await.map_err(|_| io::ErrorKind::TimedOut)?? {
                true => Ok((stream, service)),
                false => Err(io::Error::other("plain http was sent to https")),
            }
        })
    }
}

/// Whether TLS begins; a plain request is read and answered.
async fn begins_tls(stream: &mut TcpStream) -> io::Result<bool> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] == TLS_HANDSHAKE {
        return Ok(true);
    }
    let mut head = Vec::new();
    while head.len() < MAX_HEAD_BYTES && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    stream.write_all(answer(&head).as_bytes()).await?;
    stream.shutdown().await?;
    Ok(false)
}

/// The way to https, or a sentence for what is no request of a browser.
fn answer(head: &[u8]) -> String {
    match target(head) {
        Some(address) => format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {address}\r\ncache-control: no-store\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        None => {
            let sentence = "This address is spoken to over https: open the one that starts with https://.\n";
            format!("HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{sentence}", sentence.len())
        }
    }
}

/// The same page over https; only of requests that carry nothing, and for hosts and paths that are plain.
fn target(head: &[u8]) -> Option<String> {
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let mut request = lines.next()?.split(' ');
    let (method, path) = (request.next()?, request.next()?);
    let host = lines.find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("host")))?.1.trim();
    let plain_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']'));
    let plain_path = path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic());
    (matches!(method, "GET" | "HEAD") && plain_host && plain_path).then(|| format!("https://{host}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_sent_to_https_and_nothing_else_is() {
        let of = |head: &str| target(head.as_bytes());
        assert_eq!(of("GET /join HTTP/1.1\r\nHost: 192.168.1.5:8443\r\nAccept: */*\r\n\r\n").as_deref(), Some("https://192.168.1.5:8443/join"));
        assert_eq!(of("HEAD / HTTP/1.1\r\nhost:home.local\r\n\r\n").as_deref(), Some("https://home.local/"));
        for head in [
            "POST /api/join HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\rset-cookie: x\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "\u{0}\u{1}",
            "",
        ] {
            assert_eq!(of(head), None, "{head:?}");
        }
        assert!(answer(b"SSH-2.0").starts_with("HTTP/1.1 400"));
    }
}
