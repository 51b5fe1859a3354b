//! Parameters, FLOPs and activations of the paper's models under each technique.
//!
//! Conventions of the paper's system figures: f32, encoder of 128 tokens, **one** decoder token, a class head that is
//! negligible, GiB. A multiply-add counts as 2 FLOP. "Layers" are per stack: twelve of T5-Base are 12 + 12.

use super::{Model, Technique};

/// Tokens of the encoder's input (§6.1).
pub const ENCODER_TOKENS: u64 = 128;
/// Reduction k of the side network (§6.1).
pub const REDUCTION: u64 = 8;
/// Rank of LoRA.
pub const LORA_RANK: u64 = 32;
/// Reduction of the adapters' bottleneck.
pub const ADAPTER_REDUCTION: u64 = 16;
/// Buckets of T5's relative position bias.
const RELATIVE_BUCKETS: u64 = 32;
/// Bytes of an f32.
pub const F32: f64 = 4.0;
/// Bytes of a GiB.
pub const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Which norm, biases and positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RMS norms, no biases, relative positions once per stack, a final norm per stack.
    T5,
    /// Layer norms and biases, learnt positions and a norm over the embedding per stack.
    Bart,
}

/// One of the two stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// Self-attention and feed-forward over 128 tokens.
    Encoder,
    /// Self-attention, cross-attention to the encoder and feed-forward over one token.
    Decoder,
}

/// Dimensions of an encoder-decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Family.
    pub family: Family,
    /// Layers of each stack.
    pub layers: u64,
    /// Width d.
    pub width: u64,
    /// Feed-forward width.
    pub ffn_width: u64,
    /// Attention heads; their sizes sum to d.
    pub heads: u64,
    /// Vocabulary.
    pub vocab: u64,
    /// Rows of each stack's position table; 0 without.
    pub positions: u64,
}

impl Model {
    /// Its dimensions.
    pub const fn architecture(self) -> Architecture {
        match self {
            Self::T5Base => Architecture { family: Family::T5, layers: 12, width: 768, ffn_width: 3072, heads: 12, vocab: 32128, positions: 0 },
            Self::BartLarge => Architecture { family: Family::Bart, layers: 12, width: 1024, ffn_width: 4096, heads: 16, vocab: 50265, positions: 1026 },
            Self::T5Large => Architecture { family: Family::T5, layers: 24, width: 1024, ffn_width: 4096, heads: 16, vocab: 32128, positions: 0 },
        }
    }
}

/// Floating-point operations of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops {
    /// Forward.
    pub forward: f64,
    /// Backward.
    pub backward: f64,
}

impl Architecture {
    /// Width of the side network, d/k.
    pub const fn side_width(&self) -> u64 {
        self.width / REDUCTION
    }

    /// Parameters of the embeddings: the shared table, and positions with their norm.
    pub const fn embedding_parameters(&self) -> u64 {
        let norms = match self.family {
            Family::T5 => 0,
            Family::Bart => 2 * 2 * self.width,
        };
        self.vocab * self.width + 2 * self.positions * self.width + norms
    }

    /// Parameters of one backbone layer.
    pub const fn layer_parameters(&self, stack: Stack) -> u64 {
        self.block_parameters(stack, self.width, self.ffn_width)
    }

    /// Parameters of the whole backbone.
    pub const fn backbone_parameters(&self) -> u64 {
        self.embedding_parameters() + self.layers * (self.layer_parameters(Stack::Encoder) + self.layer_parameters(Stack::Decoder)) + self.stack_parameters(self.width)
    }

    /// A layer of the family with any width.
    const fn block_parameters(&self, stack: Stack, width: u64, ffn_width: u64) -> u64 {
        let (attentions, norms) = match stack {
            Stack::Encoder => (1, 2),
            Stack::Decoder => (2, 3),
        };
        let matrices = attentions * 4 * width * width + 2 * width * ffn_width;
        match self.family {
            Family::T5 => matrices + norms * width,
            Family::Bart => matrices + attentions * 4 * width + ffn_width + width + norms * 2 * width,
        }
    }

    /// What two stacks of `width` have beside their layers.
    const fn stack_parameters(&self, width: u64) -> u64 {
        match self.family {
            Family::T5 => 2 * (RELATIVE_BUCKETS * self.heads + width),
            Family::Bart => 0,
        }
    }

    /// Down: d → d/k with bias.
    pub const fn down_parameters(&self) -> u64 {
        self.width * self.side_width() + self.side_width()
    }

    /// Up: d/k → d with bias.
    pub const fn up_parameters(&self) -> u64 {
        self.side_width() * self.width + self.width
    }

    /// The whole side network: per stack a first Down and one per layer; layers with every width divided by k; one Up.
    pub const fn side_parameters(&self) -> u64 {
        let layers = self.side_layer_parameters(Stack::Encoder) + self.side_layer_parameters(Stack::Decoder);
        self.layers * layers + 2 * self.down_parameters() + self.up_parameters() + self.stack_parameters(self.side_width())
    }

    /// A side layer with its Down.
    const fn side_layer_parameters(&self, stack: Stack) -> u64 {
        self.block_parameters(stack, self.side_width(), self.ffn_width / REDUCTION) + self.down_parameters()
    }

    /// Parameters that a technique adds to one layer. 0 for full fine-tuning.
    pub const fn added_layer_parameters(&self, technique: Technique, stack: Stack) -> u64 {
        let bottleneck = self.width / ADAPTER_REDUCTION;
        let attentions = match stack {
            Stack::Encoder => 1,
            Stack::Decoder => 2,
        };
        match technique {
            Technique::Full => 0,
            Technique::Adapters => 2 * (2 * self.width * bottleneck + bottleneck + self.width),
            Technique::Lora => attentions * 2 * (2 * self.width * LORA_RANK),
            Technique::ParallelAdapters => self.side_layer_parameters(stack),
        }
    }

    /// Parameters that receive gradients.
    pub const fn trainable_parameters(&self, technique: Technique) -> u64 {
        match technique {
            Technique::Full => self.backbone_parameters(),
            Technique::ParallelAdapters => self.side_parameters(),
            Technique::Adapters | Technique::Lora => self.layers * (self.added_layer_parameters(technique, Stack::Encoder) + self.added_layer_parameters(technique, Stack::Decoder)),
        }
    }

    /// Forward of the two stacks with given widths, FLOP per sample.
    fn stacks_forward(&self, width: u64, ffn_width: u64) -> f64 {
        let (w, f, s) = (width as f64, ffn_width as f64, ENCODER_TOKENS as f64);
        let encoder = s * (2.0 * (4.0 * w * w + 2.0 * w * f) + 4.0 * s * w);
        // one token through q, k, v, o of the self-attention, q and o of the cross-attention, feed-forward; K and V of 128
        let decoder = 2.0 * (6.0 * w * w + 2.0 * w * f) + s * 2.0 * 2.0 * w * w + 4.0 * (s + 1.0) * w;
        self.layers as f64 * (encoder + decoder)
    }

    /// Forward and backward of one sample; with the cache, the backbone is left out (parallel adapters only).
    pub fn flops(&self, technique: Technique, cached: bool) -> Flops {
        let (w, s, layers) = (self.width as f64, ENCODER_TOKENS as f64, self.layers as f64);
        let backbone = self.stacks_forward(self.width, self.ffn_width);
        match technique {
            Technique::Full => Flops { forward: backbone, backward: 2.0 * backbone },
            // gradients pass through the whole backbone (one product per matrix), and through what was added (two)
            Technique::Adapters => {
                let added = layers * (s + 1.0) * 2.0 * 2.0 * (2.0 * w * (self.width / ADAPTER_REDUCTION) as f64);
                Flops { forward: backbone + added, backward: backbone + 2.0 * added }
            }
            Technique::Lora => {
                // self-attention of both stacks, and the cross-attention's q on one token and v on 128
                let added = layers * 2.0 * (2.0 * w * LORA_RANK as f64) * (2.0 * s + 2.0 + s + 1.0);
                Flops { forward: backbone + added, backward: backbone + 2.0 * added }
            }
            // nothing goes below the Downs: their backward is one product, that of the side layers two
            Technique::ParallelAdapters => {
                let side = self.stacks_forward(self.side_width(), self.ffn_width / REDUCTION);
                let projections = 2.0 * w * self.side_width() as f64 * ((layers + 1.0) * (s + 1.0) + 1.0);
                let forward = side + projections + if cached { 0.0 } else { backbone };
                Flops { forward, backward: 2.0 * side + projections }
            }
        }
    }

    /// f32 numbers that one layer keeps for the backward pass, of one sample.
    ///
    /// Counted as PyTorch's autograd saves them for T5: per token 19.5 d around the matrices (norms 6, q k v 3, context 1,
    /// feed-forward 8, dropout masks 1.5) and 2.25 per head and key (softmax, its dropout and mask). Of that, 9 d are
    /// needed for weight gradients only and go when the backbone is frozen. Adapters and LoRA keep their inputs; parallel
    /// adapters keep the tap b_i and what a layer of width d/k keeps. The decoder's one token is small beside K and V.
    pub fn saved_floats(&self, technique: Technique, stack: Stack) -> f64 {
        let (w, heads, s) = (self.width as f64, self.heads as f64, ENCODER_TOKENS as f64);
        let side = self.side_width() as f64;
        let (frozen, all) = (10.5, 19.5);
        let bottleneck = w / ADAPTER_REDUCTION as f64;
        let (matrices, values) = match technique {
            Technique::Full => (all * w, 2.0 * w),
            Technique::Adapters => (frozen * w + 2.0 * (w + bottleneck), 2.0 * w),
            // the norm's output, and a dropped-out copy with its mask for q and for v
            Technique::Lora => (frozen * w + w + 2.0 * 1.25 * w + 2.0 * LORA_RANK as f64, 2.0 * w + 1.25 * w),
            Technique::ParallelAdapters => (w + all * side, 2.0 * side),
        };
        match stack {
            Stack::Encoder => s * (matrices + 2.25 * heads * s),
            Stack::Decoder => matrices + 2.25 * heads * (s + 1.0) + s * values,
        }
    }

    /// Bytes of one sample in the cache: b_0 … b_L of the encoder's 128 tokens and of the decoder's one, f32.
    pub fn cached_sample_bytes(&self) -> f64 {
        ((self.layers + 1) * (ENCODER_TOKENS + 1) * self.width) as f64 * F32
    }
}
