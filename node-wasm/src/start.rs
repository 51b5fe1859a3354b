//! Starts the node that a page asked for, in the Worker the page made for it.

use crate::opfs::OpfsStorage;
use barycenter_engine::BackendChoice;
use barycenter_node::device::open_device;
use barycenter_node::events::NodeEvent;
use barycenter_node::meter::Meter;
use barycenter_node::storage::{MemoryStorage, Storage};
use barycenter_node::{NodeConfig, NodeShell, run_node};
use barycenter_protocol::auth::{Invitation, RoomSecret};
use barycenter_protocol::control::NodeKind;
use barycenter_transport::web::WebConnector;
use barycenter_transport::{Http, platform};
use futures::channel::mpsc;
use js_sys::Function;
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use wasm_bindgen::prelude::{JsError, JsValue, wasm_bindgen};
use web_sys::MessagePort;

/// See `NodeOptions` in `web/src/node-events.ts`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    origin: String,
    secret: String,
    name: String,
    backend: BackendChoice,
    device_token: String,
    storage_quota_bytes: f64,
    memory_budget_bytes: f64,
    #[serde(default)]
    relay: bool,
}

/// A running node.
#[wasm_bindgen]
pub struct NodeHandle {
    leave: mpsc::UnboundedSender<()>,
}

#[wasm_bindgen]
impl NodeHandle {
    /// Says goodbye to the server, and lets the others take over first; called again, leaves at once. A `left` event follows.
    pub fn leave(&self) {
        let _ = self.leave.unbounded_send(());
    }
}

/// Starts a node: `options` as in `web/src/node-events.ts`, the port of the page's RTC bridge, and who hears its events.
///
/// # Errors
/// When the options cannot be read, or there is no such back end here.
#[wasm_bindgen]
pub async fn start_node(options: JsValue, rtc_port: MessagePort, on_event: Function) -> Result<NodeHandle, JsError> {
    console_error_panic_hook::set_once();
    let options: Options = serde_wasm_bindgen::from_value(options)?;
    let secret = RoomSecret::parse(&options.secret).ok_or_else(|| JsError::new("the room secret in the address is damaged: scan the code again"))?;
    let say = Rc::new(move |event: NodeEvent| emit(&on_event, &event));
    let storage: Rc<dyn Storage> = match OpfsStorage::open(&format!("device-{}", options.device_token)).await {
        Ok(storage) => Rc::new(storage),
        Err(error) => {
            let text = format!("nothing can be kept on this device, so the next visit downloads everything again ({error})");
            say(NodeEvent::Check { name: "storage", ok: false, text });
            Rc::new(MemoryStorage::default())
        }
    };
    let device = open_device(options.backend, storage.as_ref()).await?;
    let invitation = Invitation { origin: options.origin, secret: secret.clone(), certificate_sha256: None };
    let said = Rc::clone(&say);
    let shell = NodeShell {
        storage,
        connector: Rc::new(WebConnector::new(rtc_port)),
        http: Http::new(&invitation)?,
        meter: Rc::new(Meter::default()),
        on_event: Box::new(move |event| said(event)),
        cancelled: Rc::default(),
    };
    let config = NodeConfig {
        name: options.name,
        kind: NodeKind::Browser,
        secret,
        device_token: options.device_token,
        memory_budget_bytes: options.memory_budget_bytes as u64,
        storage_budget_bytes: options.storage_quota_bytes as u64,
        relay_only: options.relay,
    };
    let (leave, left) = mpsc::unbounded();
    platform::spawn_local(async move {
        // A dropped sender (the page let go of the handle) is no farewell: the node works on.
        if let Err(error) = run_node(config, shell, device, left).await {
            say(NodeEvent::Error { message: error.to_string(), fatal: true });
        }
    });
    Ok(NodeHandle { leave })
}

fn emit(on_event: &Function, event: &NodeEvent) {
    let serializer = serde_wasm_bindgen::Serializer::json_compatible();
    if let Ok(value) = event.serialize(&serializer) {
        let _ = on_event.call1(&JsValue::NULL, &value);
    }
}
