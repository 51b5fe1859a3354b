//! What the layers of a model cost, from its dimensions and the numbers of its parameters.
//!
//! Counts multiply-adds as 2 FLOP. The side network follows docs/METHOD.md: Down_i (width → side width), one layer of the
//! family with hidden, head and feed-forward sizes divided by k; Down_0 belongs to the embedding, norm and Up to the head.

use barycenter_protocol::control::{CacheType, tapped};
use barycenter_protocol::plan::{LayerCost, ModelCost};

/// Dimensions of a decoder and of the side network beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Transformer layers L.
    pub layers: u32,
    /// Residual stream d.
    pub width: u32,
    /// Attention heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Elements per head.
    pub head_dim: u32,
    /// Feed-forward width.
    pub ffn_width: u32,
    /// Vocabulary.
    pub vocab: u32,
    /// Reduction k.
    pub reduction: u32,
    /// Bytes of one frozen weight as held in memory.
    pub weight_bytes: u32,
    /// Mean tokens of a sample (attention is quadratic in it).
    pub mean_tokens: u32,
    /// Whether the head is the embedding (stored once on a device that has both).
    pub tied_head: bool,
    /// Whether the feed-forward has a gate beside its two matrices.
    pub gated: bool,
    /// Every so many-th layer is tapped ([`tapped`]): the side network has a layer for each.
    pub tap_every: u32,
}

/// Numbers of values of a layer's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerParameters {
    /// In matrices: what is multiplied with.
    pub matrices: u64,
    /// In all, biases and norms too.
    pub all: u64,
}

/// Numbers of values of a model's parameters, and of the side network's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// A frozen layer.
    pub layer: LayerParameters,
    /// A layer of the side network.
    pub side_layer: LayerParameters,
    /// The embedding with what belongs to it: tables of positions and token types, a norm.
    pub embedding: u64,
    /// Final norm and head, its matrix counted also where it is the embedding's.
    pub head: u64,
    /// The side network's final norm.
    pub side_norm: u64,
}

impl Parameters {
    /// Of the Llama family: norms without biases, linear layers without biases, rotated positions.
    pub fn of_llama(d: &Dimensions) -> Self {
        let k = d.reduction.max(1);
        let layer = |width: u32, head_dim: u32, ffn_width: u32| {
            let (w, f) = (u64::from(width), u64::from(ffn_width));
            let (q, kv) = (u64::from(d.heads) * u64::from(head_dim), u64::from(d.kv_heads) * u64::from(head_dim));
            let matrices = w * q * 2 + w * kv * 2 + if d.gated { 3 } else { 2 } * w * f;
            LayerParameters { matrices, all: matrices + 2 * w }
        };
        let vocabulary = u64::from(d.vocab) * u64::from(d.width);
        Self {
            layer: layer(d.width, d.head_dim, d.ffn_width),
            side_layer: layer(d.width / k, (d.head_dim / k).max(1), d.ffn_width / k),
            embedding: vocabulary,
            head: vocabulary + u64::from(d.width),
            side_norm: u64::from(d.width / k),
        }
    }
}

/// Costs of every part of a model of the Llama family.
pub fn model_cost(d: &Dimensions) -> ModelCost {
    model_cost_of(d, &Parameters::of_llama(d))
}

/// Costs of every part of a model with so many parameters.
pub fn model_cost_of(d: &Dimensions, parameters: &Parameters) -> ModelCost {
    let k = d.reduction.max(1);
    let side_width = d.width / k;
    let Parameters { layer, side_layer, .. } = *parameters;
    let down = u64::from(d.width) * u64::from(side_width) + u64::from(side_width);
    let up = u64::from(d.width) * u64::from(side_width) + u64::from(d.width);
    let mean = f64::from(d.mean_tokens);
    let attention = |heads: u32, head_dim: u32| 2.0 * 2.0 * mean * f64::from(heads * head_dim) / 2.0; // QKᵀ and PV, causal half
    let side_forward = 2.0 * (side_layer.matrices + down) as f64 + attention(d.heads, (d.head_dim / k).max(1));
    let f32s = |elements: u32| 4 * u64::from(elements);
    let held = |values: u64| values * u64::from(d.weight_bytes);
    let feed_forwards = if d.gated { 3 } else { 2 };
    let vocabulary = u64::from(d.vocab) * u64::from(d.width);
    let layer = LayerCost {
        forward_flops: 2.0 * layer.matrices as f64 + attention(d.heads, d.head_dim),
        side_forward_flops: side_forward,
        side_backward_flops: 2.0 * side_forward,
        weight_bytes: held(layer.all),
        adapter_parameters: side_layer.all + down + 1,
        // the tap (for Down's gradient) and about ten side activations: s, norms, q, k, v, o, (gate,) up, product, sums
        activation_bytes: f32s(d.width) + f32s(side_width) * 6 + f32s((d.heads + 2 * d.kv_heads) * (d.head_dim / k).max(1)) + feed_forwards * f32s(d.ffn_width / k),
        taps: 1,
    };
    let mut layers = vec![layer.untapped(); d.layers as usize];
    tapped(d.layers, d.tap_every).skip(1).for_each(|tap| layers[tap as usize - 1] = layer);
    ModelCost {
        layers,
        embedding: LayerCost {
            forward_flops: 0.0,
            side_forward_flops: 2.0 * down as f64,
            side_backward_flops: 2.0 * down as f64, // no gradient goes further down
            weight_bytes: held(parameters.embedding),
            adapter_parameters: down,
            activation_bytes: f32s(d.width),
            taps: 1,
        },
        head: LayerCost {
            forward_flops: 2.0 * vocabulary as f64,
            side_forward_flops: 2.0 * up as f64,
            // through the frozen head to `out`, and Up's own two products
            side_backward_flops: 2.0 * vocabulary as f64 + 4.0 * up as f64,
            weight_bytes: held(parameters.head),
            adapter_parameters: up + parameters.side_norm,
            activation_bytes: 3 * f32s(d.width),
            taps: 0,
        },
        width: d.width,
        side_width,
        shared_bytes: if d.tied_head { held(vocabulary) } else { 0 },
    }
}

/// Bytes of the whole cache: so many taps of every token, and one f32 per label.
pub fn cache_bytes(cache: CacheType, taps: u32, width: u32, tokens: u64, labels: u64) -> u64 {
    tokens * u64::from(taps) * cache.token_bytes(width) + labels * 4
}
