//! UDP sockets with room for a window of SCTP.
//!
//! What the kernel has no room for is lost, and a lost tail costs SCTP a second (its shortest time-out). So the sockets
//! get as much room as the system gives, and the window that is announced to the other end fits into it.

use socket2::{Domain, SockRef, Socket, Type};
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use webrtc::runtime::{AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, RecvMeta, Runtime, TokioRuntime, Transmit};

/// Asked of the system; most give less.
const SOCKET_BYTES: usize = 4 * 1024 * 1024;
/// The kernel counts a datagram of 1.2 kB as about 2.3 kB, so half of the room is filled by a window.
const WINDOW_PART: usize = 2;
/// Enough for 100 MB/s at 10 ms.
const MAX_WINDOW_BYTES: usize = 1024 * 1024;
/// Two frames: below, a link could not move.
const MIN_WINDOW_BYTES: usize = 128 * 1024;
/// SCTP acknowledges every second packet (RFC 9260 §6.2).
const READS_PER_TURN: u8 = 2;

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

/// A socket that has nothing more at once after two reads.
///
/// The driver reads a burst of datagrams and answers it with *one* acknowledgement. Browsers send four packets at most per
/// acknowledgement (the burst limit of RFC 9260 §6.1), so acknowledging bursts as one holds them down to a third of what
/// they can. The pause lets the driver answer first.
#[derive(Debug)]
struct Unhurried {
    inner: Arc<dyn AsyncUdpSocket>,
    reads: AtomicU8,
}

impl AsyncUdpSocket for Unhurried {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        self.inner.poll_send(cx, transmit)
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        // One task reads, so nothing else happens between load and store.
        let reads = self.reads.load(Ordering::Relaxed);
        if reads >= READS_PER_TURN {
            self.reads.store(0, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let result = self.inner.poll_recv(cx, bufs, meta);
        self.reads.store(if result.is_ready() { reads + 1 } else { 0 }, Ordering::Relaxed);
        result
    }

    fn max_gso_segments(&self) -> usize {
        self.inner.max_gso_segments()
    }

    fn max_gro_segments(&self) -> usize {
        self.inner.max_gro_segments()
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
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        Ok(Arc::new(Unhurried { inner, reads: AtomicU8::new(0) }))
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
