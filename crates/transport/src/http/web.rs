//! HTTP on `fetch`, in a Worker or a page.

use super::{Request, Response};
use barycenter_protocol::auth::Invitation;
use bytes::Bytes;
use futures::StreamExt;
use js_sys::{Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{Headers, ReadableStreamDefaultReader, RequestInit};

#[wasm_bindgen]
extern "C" {
    /// In pages and Workers alike.
    #[wasm_bindgen(js_name = fetch)]
    fn global_fetch(url: &str, init: &RequestInit) -> Promise;
}

pub struct Client;

impl Client {
    pub fn new(_: &Invitation) -> Result<Self, String> {
        Ok(Self)
    }

    pub async fn send(&self, request: Request) -> Result<Response, String> {
        let headers = Headers::new().map_err(text)?;
        for (name, value) in &request.headers {
            headers.set(name, value).map_err(text)?;
        }
        let init = RequestInit::new();
        init.set_method(request.method);
        init.set_headers(&headers);
        if let Some(body) = &request.body {
            init.set_body(&Uint8Array::from(body.as_ref()));
        }
        let response: web_sys::Response = JsFuture::from(global_fetch(&request.url, &init)).await.map_err(text)?.dyn_into().map_err(text)?;
        let status = response.status();
        let body = match response.body() {
            None => futures::stream::empty().boxed_local(),
            Some(stream) => {
                let reader: ReadableStreamDefaultReader = stream.get_reader().dyn_into().map_err(|other| text(other.into()))?;
                pieces(Reader(reader)).boxed_local()
            }
        };
        Ok(Response { status, body })
    }
}

/// Cancels what was not read.
struct Reader(ReadableStreamDefaultReader);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.cancel();
    }
}

fn pieces(reader: Reader) -> impl futures::Stream<Item = Result<Bytes, String>> {
    futures::stream::unfold(Some(reader), |reader| async move {
        let reader = reader?;
        let read = match JsFuture::from(reader.0.read()).await {
            Ok(read) => read,
            Err(error) => return Some((Err(text(error)), None)),
        };
        let is_done = Reflect::get(&read, &"done".into()).is_ok_and(|done| done.is_truthy());
        if is_done {
            return None;
        }
        let piece = Reflect::get(&read, &"value".into()).ok().and_then(|value| value.dyn_into::<Uint8Array>().ok())?;
        Some((Ok(Bytes::from(piece.to_vec())), Some(reader)))
    })
}

fn text(error: JsValue) -> String {
    error.dyn_ref::<js_sys::Error>().map_or_else(|| format!("{error:?}"), |error| String::from(error.message()))
}
