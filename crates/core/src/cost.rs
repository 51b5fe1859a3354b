//! What the layers of a model cost, from its dimensions.
//!
//! Counts multiply-adds as 2 FLOP. The side network follows DESIGN §4: Down_i (width → side width), one layer of the
//! family with hidden, head and feed-forward sizes divided by k; Down_0 belongs to the embedding, norm and Up to the head.

use barycenter_protocol::plan::{LayerCost, ModelCost};

/// Dimensions of a Llama-family model and of the side network beside it.
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
}

/// Costs of every part.
pub fn model_cost(d: &Dimensions) -> ModelCost {
    let k = d.reduction.max(1);
    let backbone = weights(d.width, d.heads, d.kv_heads, d.head_dim, d.ffn_width);
    let side_width = d.width / k;
    let side_layer = weights(side_width, d.heads, d.kv_heads, (d.head_dim / k).max(1), d.ffn_width / k);
    let down = u64::from(d.width) * u64::from(side_width) + u64::from(side_width);
    let up = u64::from(d.width) * u64::from(side_width) + u64::from(d.width);
    let mean = f64::from(d.mean_tokens);
    let attention = |heads: u32, head_dim: u32| 2.0 * 2.0 * mean * f64::from(heads * head_dim) / 2.0; // QKᵀ and PV, causal half
    let side_forward = 2.0 * (side_layer + down) as f64 + attention(d.heads, (d.head_dim / k).max(1));
    let f32s = |elements: u32| 4 * u64::from(elements);
    let layer = LayerCost {
        forward_flops: 2.0 * backbone as f64 + attention(d.heads, d.head_dim),
        side_forward_flops: side_forward,
        side_backward_flops: 2.0 * side_forward,
        weight_bytes: backbone * u64::from(d.weight_bytes),
        adapter_parameters: side_layer + down + 1,
        // the tap (for Down's gradient) and about ten side activations: s, norms, q, k, v, o, gate, up, product, sums
        activation_bytes: f32s(d.width) + f32s(side_width) * 6 + f32s((d.heads + 2 * d.kv_heads) * (d.head_dim / k).max(1)) + 3 * f32s(d.ffn_width / k),
    };
    let embedding_bytes = u64::from(d.vocab) * u64::from(d.width) * u64::from(d.weight_bytes);
    ModelCost {
        layers: vec![layer; d.layers as usize],
        embedding: LayerCost {
            forward_flops: 0.0,
            side_forward_flops: 2.0 * down as f64,
            side_backward_flops: 2.0 * down as f64, // no gradient goes further down
            weight_bytes: embedding_bytes,
            adapter_parameters: down,
            activation_bytes: f32s(d.width),
        },
        head: LayerCost {
            forward_flops: 2.0 * f64::from(d.vocab) * f64::from(d.width),
            side_forward_flops: 2.0 * up as f64,
            // through the frozen head to `out`, and Up's own two products
            side_backward_flops: 2.0 * f64::from(d.vocab) * f64::from(d.width) + 4.0 * up as f64,
            weight_bytes: embedding_bytes + u64::from(d.width) * u64::from(d.weight_bytes),
            adapter_parameters: up + u64::from(side_width),
            activation_bytes: 3 * f32s(d.width),
        },
        width: d.width,
        side_width,
        tied_head: d.tied_head,
    }
}

/// Bytes of the whole cache: (L + 1) taps of every token in f16, and one f32 per label.
pub fn cache_bytes(layers: u32, width: u32, tokens: u64, labels: u64) -> u64 {
    tokens * u64::from(layers + 1) * u64::from(width) * 2 + labels * 4
}

/// Weights of one layer: q, k, v, o, gate, up, down and two norms.
fn weights(width: u32, heads: u32, kv_heads: u32, head_dim: u32, ffn_width: u32) -> u64 {
    let (w, f) = (u64::from(width), u64::from(ffn_width));
    let (q, kv) = (u64::from(heads) * u64::from(head_dim), u64::from(kv_heads) * u64::from(head_dim));
    w * q * 2 + w * kv * 2 + 3 * w * f + 2 * w
}
