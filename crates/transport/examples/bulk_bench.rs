//! Bytes per second of the bulk channel between two native nodes of this process: `bulk_bench [MiB] [message KiB]`.

#[cfg(not(target_arch = "wasm32"))]
#[path = "../tests/common/mod.rs"]
mod common;

#[cfg(not(target_arch = "wasm32"))]
#[tokio::main(flavor = "current_thread")]
async fn main() {
    tokio::task::LocalSet::new().run_until(bench::run()).await;
}

#[cfg(target_arch = "wasm32")]
fn main() {}

#[cfg(not(target_arch = "wasm32"))]
mod bench {
    use super::common;
    use barycenter_protocol::peer::{PeerMessage, StepKey};
    use barycenter_protocol::{Generation, NodeId};
    use barycenter_transport::native::NativeConnector;
    use barycenter_transport::{Transport, TransportEvent};
    use bytes::Bytes;
    use std::time::Instant;

    pub async fn run() {
        let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("arguments are whole numbers: MiB, then KiB per message"));
        let mib = arguments.next().unwrap_or(128);
        let message_bytes = arguments.next().unwrap_or(1024) * 1024;
        let mut pair = common::connect(NativeConnector::default(), NativeConnector::default()).await;
        println!("link up: {:.2} ms round trip, {:.1} MB/s probed", pair.round_trip_millis, pair.bytes_per_second / 1e6);
        let count = (mib * 1024 * 1024).div_ceil(message_bytes);
        for (name, sender, receiver) in [("1 -> 2", pair.a.clone(), true), ("2 -> 1", pair.b.clone(), false)] {
            let to = if receiver { NodeId(2) } else { NodeId(1) };
            let events = if receiver { &mut pair.b_events } else { &mut pair.a_events };
            let start = Instant::now();
            let sending = send_all(sender, to, count, message_bytes);
            let receiving = async {
                let mut bytes = 0;
                while bytes < count * message_bytes {
                    if let Some(TransportEvent::Message { data, .. }) = events.recv().await {
                        bytes += data.len();
                    }
                }
            };
            futures::join!(sending, receiving);
            let seconds = start.elapsed().as_secs_f64();
            println!("{name}: {} MiB in {seconds:.2} s = {:.1} MB/s", (count * message_bytes) >> 20, (count * message_bytes) as f64 / seconds / 1e6);
        }
    }

    async fn send_all(from: Transport, to: NodeId, count: usize, message_bytes: usize) {
        let data = Bytes::from(vec![7u8; message_bytes]);
        for step in 0..count as u32 {
            let key = StepKey { generation: Generation(1), epoch: 0, step };
            from.send(to, PeerMessage::GradientShard { key, shard: 0 }, data.clone()).await.expect("the link is up");
        }
    }
}
