//! The platform in a page or Worker.

use futures::channel::oneshot;
use std::cell::RefCell;
use std::collections::VecDeque;
use wasm_bindgen::prelude::*;
use web_sys::{MessageChannel, MessagePort};

#[wasm_bindgen]
extern "C" {
    /// In pages and Workers alike.
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &JsValue, millis: u32) -> JsValue;

    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    fn performance_now() -> f64;
}

pub fn spawn_local(task: impl Future<Output = ()> + 'static) {
    wasm_bindgen_futures::spawn_local(task);
}

pub fn spawn_apart<T: Future<Output = ()> + 'static>(_: &str, task: impl FnOnce() -> T + Send + 'static) {
    spawn_local(task());
}

pub async fn sleep(millis: u32) {
    let (done, wait) = oneshot::channel::<()>();
    // The closure frees itself when it is called; a sleep that was dropped leaves a timer that does nothing.
    let callback = Closure::once_into_js(move || {
        let _ = done.send(());
    });
    set_timeout(&callback, millis);
    let _ = wait.await;
}

pub fn now_millis() -> f64 {
    performance_now()
}

/// `setTimeout(0)` waits 4 ms when nested; a message to oneself does not.
pub async fn yield_now() {
    let wait = YIELDS.with(|yields| yields.wait());
    let _ = wait.await;
}

struct Yields {
    port: MessagePort,
    waiting: RefCell<VecDeque<oneshot::Sender<()>>>,
    _on_message: Closure<dyn FnMut()>,
    _channel: MessageChannel,
}

thread_local! {
    static YIELDS: Yields = Yields::new();
}

impl Yields {
    fn new() -> Self {
        let channel = MessageChannel::new().expect("every page and Worker has MessageChannel");
        let on_message = Closure::<dyn FnMut()>::new(|| {
            let next = YIELDS.with(|yields| yields.waiting.borrow_mut().pop_front());
            if let Some(done) = next {
                let _ = done.send(());
            }
        });
        channel.port1().set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        Self { port: channel.port2(), waiting: RefCell::default(), _on_message: on_message, _channel: channel }
    }

    fn wait(&self) -> oneshot::Receiver<()> {
        let (done, wait) = oneshot::channel();
        self.waiting.borrow_mut().push_back(done);
        if self.port.post_message(&JsValue::NULL).is_err() {
            self.waiting.borrow_mut().clear();
        }
        wait
    }
}
