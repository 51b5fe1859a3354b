//! A node of a page for trying links from a script, the twin of `crates/transport/examples/link_peer.rs`: `bench/bulk.mjs` builds and drives it.

#[cfg(target_arch = "wasm32")]
mod page {
    use barycenter_protocol::auth::RoomSecret;
    use barycenter_protocol::peer::{PeerMessage, StepKey};
    use barycenter_protocol::{Generation, NodeId};
    use barycenter_transport::web::WebConnector;
    use barycenter_transport::{Transport, TransportConfig, TransportEvent, platform};
    use js_sys::Function;
    use wasm_bindgen::prelude::{JsError, JsValue, wasm_bindgen};
    use web_sys::MessagePort;

    const MESSAGE_BYTES: usize = 1 << 20;

    /// One end of one link.
    #[wasm_bindgen]
    pub struct Link {
        transport: Transport,
        peer: NodeId,
    }

    #[wasm_bindgen]
    impl Link {
        /// Dials; `say` hears `SIGNAL json`, `UP`, `DOWN reason` and `RECEIVED bytes`.
        #[wasm_bindgen(constructor)]
        pub fn new(node: u32, peer: u32, secret: &str, port: MessagePort, say: Function) -> Result<Link, JsError> {
            let secret = RoomSecret::parse(secret).ok_or_else(|| JsError::new("the secret is 32 hexadecimal digits"))?;
            let (transport, mut events) = Transport::new(TransportConfig::new(NodeId(node), secret), WebConnector::new(port));
            let peer = NodeId(peer);
            transport.dial(peer);
            platform::spawn_local(async move {
                let mut received = 0;
                while let Some(event) = events.recv().await {
                    let line = match event {
                        TransportEvent::Signal { payload, .. } => format!("SIGNAL {payload}"),
                        TransportEvent::LinkUp { .. } => "UP".into(),
                        TransportEvent::LinkDown { reason, .. } => format!("DOWN {reason}"),
                        TransportEvent::Message { data, .. } => {
                            received += data.len();
                            format!("RECEIVED {received}")
                        }
                    };
                    let _ = say.call1(&JsValue::NULL, &line.into());
                }
            });
            Ok(Self { transport, peer })
        }

        /// What the other end said.
        pub fn signal(&self, payload: &str) {
            self.transport.on_signal(self.peer, payload);
        }

        /// Sends so many MiB on the bulk channel.
        pub fn send(&self, mib: u32) {
            let (transport, peer) = (self.transport.clone(), self.peer);
            platform::spawn_local(async move {
                for step in 0..mib {
                    let key = StepKey { generation: Generation(1), epoch: 0, step };
                    let _ = transport.send(peer, PeerMessage::GradientShard { key, shard: 0 }, vec![step as u8; MESSAGE_BYTES].into()).await;
                }
            });
        }
    }
}

// Everything is called from JavaScript; natively there is nothing to do.
fn main() {}
