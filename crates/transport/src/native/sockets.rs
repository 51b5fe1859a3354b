//! UDP sockets with room for a window of SCTP.
//!
//! What the kernel has no room for is lost, and a lost tail costs SCTP a second (its shortest time-out). So the sockets
//! get as much room as the system gives, and the window that is announced to the other end fits into it.

use socket2::{Domain, SockRef, Socket, Type};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use webrtc::runtime::{AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, Runtime, TokioRuntime};

/// Asked of the system; most give less.
const SOCKET_BYTES: usize = 4 * 1024 * 1024;
/// The kernel counts a datagram of 1.2 kB as about 2.3 kB, so half of the room is filled by a window.
const WINDOW_PART: usize = 2;
/// Enough for 100 MB/s at 10 ms.
const MAX_WINDOW_BYTES: usize = 1024 * 1024;
/// Two frames: below, a link could not move.
const MIN_WINDOW_BYTES: usize = 128 * 1024;

/// The receive window to announce: measured once with a socket like those of the links.
pub fn receive_window_bytes() -> u32 {
    static BYTES: LazyLock<usize> = LazyLock::new(|| {
        let given = Socket::new(Domain::IPV4, Type::DGRAM, None).and_then(|socket| {
            widen(&SockRef::from(&socket));
            socket.recv_buffer_size()
        });
        (given.unwrap_or(0) / WINDOW_PART).clamp(MIN_WINDOW_BYTES, MAX_WINDOW_BYTES)
    });
    *BYTES as u32
}

fn widen(socket: &SockRef<'_>) {
    // A system that refuses more than its limit instead of giving the limit is asked for less.
    let asked = std::iter::successors(Some(SOCKET_BYTES), |bytes| (*bytes > 256 * 1024).then_some(bytes / 2));
    for bytes in asked {
        if socket.set_recv_buffer_size(bytes).is_ok() {
            break;
        }
    }
}

/// Tokio, with roomy sockets.
#[derive(Debug)]
pub struct RoomySockets;

impl Runtime for RoomySockets {
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn JoinHandle> {
        TokioRuntime.spawn(future)
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        widen(&SockRef::from(&socket));
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn wrap_tcp_listener(&self, listener: std::net::TcpListener) -> io::Result<Arc<dyn AsyncTcpListener>> {
        TokioRuntime.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(&'a self, remote: SocketAddr) -> Pin<Box<dyn Future<Output = io::Result<Arc<dyn AsyncTcpStream>>> + Send + 'a>> {
        TokioRuntime.connect_tcp(remote)
    }

    fn resolve_host<'a>(&'a self, host: &'a str) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        TokioRuntime.resolve_host(host)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        TokioRuntime.sleep(duration)
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        TokioRuntime.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        TokioRuntime.block_on(future);
    }

    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        TokioRuntime.yield_now()
    }

    fn name(&self) -> &'static str {
        "tokio, roomy sockets"
    }
}
