//! Finds the forms in which a device makes products fastest, by timing them once, and what is kept of that.

use super::GpuBackend;
use super::tile::{Tile, Tuning};
use crate::backend::{Backend, BackendError};
use crate::op::{BufferId, Dtype, Layout, Op};
use std::collections::BTreeMap;

/// A timing of this length is not blurred by a browser's clock, which ticks every 0.1 ms.
const FILL_MILLIS: f64 = 3.0;
/// A product that takes this long is long against the one or two milliseconds of a browser's answer.
const SLOW_MILLIS: f64 = 8.0;
/// Products in one timing at most.
const MOST_REPEATS: u32 = 256;
/// After this time what has not been tried is left out. A graphics card needs less; a software adapter's kernels of one kind
/// may take a tenth of a second.
const BUDGET_MILLIS: f64 = 1000.0;

/// The measured tunings of a device's adapters, by adapter: whoever opens a back end keeps them until the next time.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Tunings(BTreeMap<String, Tuning>);

impl Tunings {
    /// What [`Tunings::to_json`] wrote; nothing where the text is not that, because it can be measured again.
    pub fn from_json(text: &[u8]) -> Self {
        serde_json::from_slice(text).unwrap_or_default()
    }

    /// As text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Rows, columns and depth of a product, a linear layer's.
#[derive(Clone, Copy)]
struct Sizes {
    m: u32,
    n: u32,
    k: u32,
}

/// Products to time: a small one and a large one, a graphics card's of some 0.05 and 0.2 · 10⁹ operations, a software
/// adapter's of a few milliseconds.
fn trials(software: bool) -> [Sizes; 2] {
    if software {
        [Sizes { m: 128, n: 256, k: 128 }, Sizes { m: 512, n: 512, k: 64 }]
    } else {
        [Sizes { m: 128, n: 768, k: 256 }, Sizes { m: 512, n: 768, k: 256 }]
    }
}

impl GpuBackend {
    /// Makes products in the forms that `known` has for this adapter; measures and adds them if it has none. Answers
    /// whether it measured. `now_millis` is a clock (`performance.now()`, say).
    ///
    /// # Errors
    /// Those of [`Backend::read`]: the device went away.
    pub async fn tune(&self, known: &mut Tunings, now_millis: &dyn Fn() -> f64) -> Result<bool, BackendError> {
        if let Some(tuning) = known.0.get(&self.adapter) {
            self.set_tuning(*tuning);
            return Ok(false);
        }
        let end = now_millis() + BUDGET_MILLIS;
        let mut tuning = Tuning::unmeasured(self.is_emulated());
        let [small, large] = trials(self.software);
        for (sizes, best) in [(large, &mut tuning.large), (small, &mut tuning.small)] {
            *best = self.fastest(sizes, *best, end, now_millis).await?;
        }
        self.set_tuning(tuning);
        // Lets go of the trial's buffers.
        self.reset_peak();
        log::info!("products on {}: {tuning:?}", self.adapter);
        known.0.insert(self.adapter.clone(), tuning);
        Ok(true)
    }

    /// The fastest form among those tried before `end`, `otherwise` if that is none.
    async fn fastest(&self, sizes: Sizes, otherwise: Tile, end: f64, now: &dyn Fn() -> f64) -> Result<Tile, BackendError> {
        let Sizes { m, n, k } = sizes;
        let operands = [m * k, n * k, m * n].map(|len| {
            let id = self.allocate(len as usize);
            self.write(id, 0, &vec![0.5f32.to_bits(); len as usize]);
            id
        });
        let mut best = (f64::INFINITY, otherwise);
        for &tile in Tile::candidates(self.is_emulated()) {
            if now() > end {
                break;
            }
            self.set_tuning(Tuning::always(tile));
            let millis = self.millis(sizes, operands, now).await?;
            log::debug!("{m} × {n} × {k} as {tile:?}: {millis:.3} ms");
            if millis < best.0 {
                best = (millis, tile);
            }
        }
        operands.into_iter().for_each(|id| self.free(id));
        Ok(best.1)
    }

    async fn millis(&self, Sizes { m, n, k }: Sizes, [a, b, c]: [BufferId; 3], now: &dyn Fn() -> f64) -> Result<f64, BackendError> {
        let (a, b, to) = (a.into(), b.into(), c.into());
        let product = Op::MatMul { a, b, c: to, m, n, k, layout: Layout::Nt, b_dtype: Dtype::F32, accumulate: false };
        let timed = async |repeats: u32| {
            let start = now();
            for _ in 0..repeats {
                self.run(product.clone());
            }
            self.read(c, 0, 1).await?;
            Ok::<f64, BackendError>(now() - start)
        };
        // The first run compiles the kernel. What an answer takes by itself is left out: it is in one run as in many.
        timed(1).await?;
        let once = timed(1).await?;
        if once >= SLOW_MILLIS {
            return Ok(once);
        }
        let mut repeats = 4;
        loop {
            let rest = timed(repeats).await? - once;
            if rest >= FILL_MILLIS || repeats >= MOST_REPEATS {
                return Ok(rest.max(0.0) / f64::from(repeats - 1));
            }
            repeats *= 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunings_survive_as_text_and_other_text_is_none() {
        let mut known = Tunings::default();
        known.0.insert("a card".to_owned(), Tuning { small: Tile::Registers4, large: Tile::Shared64 });
        assert_eq!(Tunings::from_json(known.to_json().as_bytes()), known);
        assert!(known.to_json().contains(r#""small":"registers4""#), "{}", known.to_json());
        for other in ["", "{", r#"{"a card":{"small":"of another version","large":"shared64"}}"#] {
            assert_eq!(Tunings::from_json(other.as_bytes()), Tunings::default(), "{other}");
        }
    }
}
