//! Connections through the page: a Worker has no `RTCPeerConnection`, so its commands go over a `MessagePort` to
//! `web/src/rtc-bridge.ts`, which carries them out and reports.

use crate::connection::{Connection, ConnectionEvent, ConnectionEvents, ConnectionEventsSender, Connector, Description, DescriptionKind, Plane};
use bytes::Bytes;
use futures::channel::mpsc;
use js_sys::{Array, ArrayBuffer, Object, Reflect, Uint8Array};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use web_sys::{MessageEvent, MessagePort};

/// Makes connections at the page's end of a port.
pub struct WebConnector {
    bridge: Rc<Bridge>,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
}

struct Bridge {
    port: MessagePort,
    next_id: Cell<u32>,
    connections: RefCell<HashMap<u32, ConnectionEventsSender>>,
}

struct WebConnection {
    bridge: Rc<Bridge>,
    id: u32,
}

impl WebConnector {
    /// `port`: the other end of the one given to `startRtcBridge`.
    pub fn new(port: MessagePort) -> Self {
        let bridge = Rc::new(Bridge { port, next_id: Cell::new(1), connections: RefCell::default() });
        let weak = Rc::downgrade(&bridge);
        let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
            if let Some(bridge) = weak.upgrade() {
                bridge.on_report(&event.data());
            }
        });
        bridge.port.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        Self { bridge, _on_message: on_message }
    }
}

impl Drop for WebConnector {
    fn drop(&mut self) {
        self.bridge.port.set_onmessage(None);
    }
}

impl Connector for WebConnector {
    fn connect(&self, is_offerer: bool) -> (Box<dyn Connection>, ConnectionEvents) {
        let bridge = Rc::clone(&self.bridge);
        let id = bridge.next_id.replace(bridge.next_id.get().wrapping_add(1));
        let (events, receiver) = mpsc::unbounded();
        bridge.connections.borrow_mut().insert(id, events);
        bridge.command("create", id, &[("offerer", is_offerer.into())], None);
        (Box::new(WebConnection { bridge, id }), receiver)
    }
}

impl Connection for WebConnection {
    fn set_remote(&self, Description { kind, sdp }: Description) {
        let kind = match kind {
            DescriptionKind::Offer => "offer",
            DescriptionKind::Answer => "answer",
        };
        self.bridge.command("setRemote", self.id, &[("kind", kind.into()), ("sdp", sdp.into())], None);
    }

    fn add_candidate(&self, candidate: String) {
        self.bridge.command("addIce", self.id, &[("candidate", candidate.into())], None);
    }

    fn send(&self, plane: Plane, frame: Vec<u8>) {
        let buffer = Uint8Array::from(frame.as_slice()).buffer();
        self.bridge.command("send", self.id, &[("plane", (plane as u32).into()), ("data", (&buffer).into())], Some(&buffer));
    }
}

impl Drop for WebConnection {
    fn drop(&mut self) {
        self.bridge.connections.borrow_mut().remove(&self.id);
        self.bridge.command("close", self.id, &[], None);
    }
}

impl Bridge {
    fn command(&self, name: &str, id: u32, fields: &[(&str, JsValue)], transfer: Option<&ArrayBuffer>) {
        let command = Object::new();
        // Setting a property of a new plain object cannot fail.
        let _ = Reflect::set(&command, &"do".into(), &name.into());
        let _ = Reflect::set(&command, &"id".into(), &id.into());
        for (key, value) in fields {
            let _ = Reflect::set(&command, &(*key).into(), value);
        }
        let transfer: Array = transfer.into_iter().collect();
        if let Err(error) = self.port.post_message_with_transferable(&command, &transfer) {
            self.say(id, ConnectionEvent::Closed(format!("the page could not be reached: {error:?}")));
        }
    }

    fn say(&self, id: u32, event: ConnectionEvent) {
        if let Some(events) = self.connections.borrow().get(&id) {
            let _ = events.unbounded_send(event);
        }
    }

    fn on_report(&self, report: &JsValue) {
        let number = |key: &str| field(report, key).as_f64().unwrap_or_default();
        let string = |key: &str| field(report, key).as_string().unwrap_or_default();
        let plane = if number("plane") == 0.0 { Plane::Control } else { Plane::Bulk };
        let event = match string("is").as_str() {
            "localDescription" => {
                let kind = if string("kind") == "offer" { DescriptionKind::Offer } else { DescriptionKind::Answer };
                ConnectionEvent::LocalDescription(Description { kind, sdp: string("sdp") })
            }
            "candidate" => ConnectionEvent::LocalCandidate(string("candidate")),
            "open" => ConnectionEvent::Open(plane),
            "message" => ConnectionEvent::Message(plane, Bytes::from(Uint8Array::new(&field(report, "data")).to_vec())),
            "sent" => ConnectionEvent::Sent(plane, number("bytes") as usize),
            "disconnected" => ConnectionEvent::Disconnected,
            "reconnected" => ConnectionEvent::Reconnected,
            "closed" => ConnectionEvent::Closed(string("reason")),
            other => {
                log::warn!("the page reported {other:?}, which this node does not know: reload the page");
                return;
            }
        };
        self.say(number("id") as u32, event);
    }
}

fn field(object: &JsValue, key: &str) -> JsValue {
    Reflect::get(object, &key.into()).unwrap_or(JsValue::UNDEFINED)
}
