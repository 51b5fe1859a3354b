//! A native node for trying links by hand or from a script: `link_peer NODE PEER SECRET`.
//!
//! Signals go out as lines `SIGNAL json` and come in the same way; `SEND MiB` sends so much on the bulk channel. It says
//! `UP …`, `DOWN reason`, `SENT …` and `RECEIVED …`.

#[cfg(target_arch = "wasm32")]
fn main() {}

#[cfg(not(target_arch = "wasm32"))]
#[tokio::main(flavor = "current_thread")]
async fn main() {
    tokio::task::LocalSet::new().run_until(peer::run()).await;
}

#[cfg(not(target_arch = "wasm32"))]
mod peer {
    use barycenter_protocol::auth::RoomSecret;
    use barycenter_protocol::peer::{PeerMessage, StepKey};
    use barycenter_protocol::{Generation, NodeId};
    use barycenter_transport::native::NativeConnector;
    use barycenter_transport::{Transport, TransportConfig, TransportEvent, platform};
    use bytes::Bytes;
    use tokio::io::{AsyncBufReadExt, BufReader};

    const MESSAGE_BYTES: usize = 1 << 20;

    pub async fn run() {
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        let [node, peer, secret] = arguments.as_slice() else {
            eprintln!("three arguments were expected: own node number, the peer's, the room secret");
            std::process::exit(1);
        };
        let (Ok(node), Ok(peer), Some(secret)) = (node.parse(), peer.parse().map(NodeId), RoomSecret::parse(secret)) else {
            eprintln!("node numbers are whole numbers, the secret is 32 hexadecimal digits");
            std::process::exit(1);
        };
        let (transport, mut events) = Transport::new(TransportConfig::new(NodeId(node), secret), NativeConnector::default());
        transport.dial(peer);
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let (mut received, mut first_at) = (0usize, 0.0);
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => match line.split_once(' ') {
                        Some(("SIGNAL", payload)) => transport.on_signal(peer, payload),
                        Some(("SEND", mib)) => { tokio::task::spawn_local(send(transport.clone(), peer, mib.parse().unwrap_or(1))); }
                        _ => {}
                    },
                    _ => return,
                },
                event = events.recv() => match event {
                    Some(TransportEvent::Signal { payload, .. }) => println!("SIGNAL {payload}"),
                    Some(TransportEvent::LinkUp { round_trip_millis, bytes_per_second, .. }) => println!("UP {round_trip_millis:.2} ms, {:.1} MB/s", bytes_per_second / 1e6),
                    Some(TransportEvent::LinkDown { reason, .. }) => println!("DOWN {reason}"),
                    Some(TransportEvent::Message { data, .. }) => {
                        if received == 0 {
                            first_at = platform::now_millis();
                        }
                        received += data.len();
                        let seconds = (platform::now_millis() - first_at) / 1e3;
                        println!("RECEIVED {received} {seconds:.3} s {:.1} MB/s", received as f64 / seconds.max(1e-3) / 1e6);
                    }
                    None => return,
                },
            }
        }
    }

    async fn send(transport: Transport, peer: NodeId, mib: usize) {
        let start = platform::now_millis();
        for step in 0..mib as u32 {
            let key = StepKey { generation: Generation(1), epoch: 0, step };
            let message = PeerMessage::GradientShard { key, shard: 0 };
            if let Err(error) = transport.send(peer, message, Bytes::from(vec![step as u8; MESSAGE_BYTES])).await {
                println!("DOWN {error}");
                return;
            }
        }
        let seconds = (platform::now_millis() - start) / 1e3;
        println!("SENT {mib} MiB {seconds:.3} s {:.1} MB/s", (mib * MESSAGE_BYTES) as f64 / seconds / 1e6);
    }
}
