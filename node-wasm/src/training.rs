//! Whole steps of training, for figures beside other libraries.

use crate::self_test::open;
use barycenter_engine::bench;
use js_sys::{Float32Array, Object, Reflect};
use wasm_bindgen::prelude::{JsError, JsValue, wasm_bindgen};

/// A model of random weights all of which are trained, step by step.
#[wasm_bindgen]
pub struct Training(bench::Training);

#[wasm_bindgen]
impl Training {
    /// Opens a back end (`"auto"`, `"cpu"`, `"gpu"`) and makes the weights of a model, as its `config.json` says, from a seed.
    ///
    /// # Errors
    /// When there is no such back end here, or when the config cannot be read.
    pub async fn start(backend: JsValue, config: String, seed: u32, learning_rate: f32) -> Result<Training, JsError> {
        console_error_panic_hook::set_once();
        let device = open(serde_wasm_bindgen::from_value(backend)?).await?;
        Ok(Self(bench::Training::start(&device, &config, seed.into(), learning_rate)?))
    }

    /// The weights as they are now: an object of `Float32Array`s, named and laid out as in a weight file.
    ///
    /// # Errors
    /// When the device went away.
    pub async fn weights(&self) -> Result<Object, JsError> {
        let weights = Object::new();
        let flat = self.0.flat_weights().await?;
        for info in self.0.layout() {
            let values = Float32Array::from(&flat[info.offset..info.offset + info.elements()]);
            // Setting a property of a plain object does not fail.
            let _ = Reflect::set(&weights, &info.name.as_str().into(), &values);
        }
        Ok(weights)
    }

    /// One step on sequences of `tokens` ids each, laid end to end, with the class that each predicts; the mean loss before it.
    ///
    /// # Errors
    /// When ids and classes are no such sequences, or when the device went away.
    pub async fn step(&mut self, ids: Vec<u32>, classes: Vec<u32>, tokens: usize) -> Result<f32, JsError> {
        Ok(self.0.step(&ids, &classes, tokens).await?)
    }
}
