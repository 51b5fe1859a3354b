//! Every piece of arithmetic a back end performs, as plain data.
//!
//! The tape, the models and the optimiser record [`Op`]s; a [`Backend`](crate::Backend) executes them in order.
//! There is one CPU function and one WGSL file per operation, twins that a test compares over odd shapes.
//!
//! Conventions
//! - All tensors are row-major. Values are f32 unless a [`Dtype`] says otherwise.
//! - `T` is the number of *real* tokens of a packed micro-batch: sequences stand one after the other without
//!   padding, and [`Op::Attention`] gets a segment table. No operation ever sees a padding token.
//! - A [`Slice`] is a buffer and an offset in elements of the tensor's dtype (a packed offset is even; one into blocks
//!   is a multiple of 32).
//! - "accumulate" adds to what is there; everything else overwrites its output completely.

pub use barycenter_model::Activation;

/// Handle of a buffer owned by a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// How the elements of a weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float, one per word.
    F32,
    /// IEEE half precision, two per 32-bit word, the lower index in the low half.
    F16,
    /// bfloat16, two per 32-bit word, the lower index in the low half.
    Bf16,
    /// 8-bit integers in blocks of 32 along a row, `value = scale · q`. Two blocks share 17 words: 8 words of the first
    /// (four bytes a word, the lower index in the lower byte), 8 of the second, then both scales as f16, the first in
    /// the low half. Rows and offsets are whole blocks; a row need not be whole pairs.
    Q8,
    /// 4-bit integers in blocks of 32 along a row, `value = scale · (nibble − 8)`. Two blocks share 9 words: 4 words of
    /// the first (byte j has element j in its low nibble, element j + 16 in its high one), 4 of the second, then both
    /// scales as for [`Dtype::Q8`].
    Q4,
}

impl Dtype {
    /// Elements that share words, and the 32-bit words they share.
    pub fn group(self) -> (usize, usize) {
        match self {
            Dtype::F32 => (1, 1),
            Dtype::F16 | Dtype::Bf16 => (2, 1),
            Dtype::Q8 => (64, 17),
            Dtype::Q4 => (64, 9),
        }
    }

    /// Number of 32-bit words that hold `elements` values (rounded up).
    pub fn words(self, elements: usize) -> usize {
        let (group, words) = self.group();
        elements.div_ceil(group) * words
    }

    /// Whether values are integers in blocks of 32 with a scale.
    pub fn is_blocks(self) -> bool {
        matches!(self, Dtype::Q8 | Dtype::Q4)
    }
}

/// A place inside a buffer: `offset` counts elements of the tensor's dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// The buffer.
    pub buffer: BufferId,
    /// First element.
    pub offset: u32,
}

impl From<BufferId> for Slice {
    fn from(buffer: BufferId) -> Self {
        Self { buffer, offset: 0 }
    }
}

/// Which operands of a matrix product are read transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `C[m,n] = A[m,k] · B[k,n]`.
    Nn,
    /// `C[m,n] = A[m,k] · B[n,k]ᵀ`: a linear layer, whose weight is stored `[out, in]`.
    Nt,
    /// `C[m,n] = A[k,m]ᵀ · B[k,n]`: the gradient of a weight.
    Tn,
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads` (grouped-query attention: query head h reads kv head h / (heads / kv_heads)).
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Multiplies q·k before the softmax.
    pub scale: f32,
    /// Where scores get a bias by distance: its row of distance 0 (of `2 · bias_zero + 1` rows); else 0.
    pub bias_zero: u32,
    /// Whether a query sees only keys at or before its own position.
    pub causal: bool,
    /// 0 = unlimited; otherwise a query sees the last `window` keys only (itself included).
    pub window: u32,
    /// Number of rows of the segment table.
    pub segments: u32,
    /// Total query rows (all segments).
    pub queries: u32,
    /// Total key rows (all segments).
    pub keys: u32,
}

/// One operation. Field order: inputs, outputs, sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Sets `len` words of `dst` to the bits of `value`.
    Fill { dst: Slice, value: f32, len: u32 },
    /// Copies `len` f32 from `src` to `dst` (different buffers).
    Copy { src: Slice, dst: Slice, len: u32 },
    /// `c (+)= op(a) · op(b)`, shapes by [`Layout`]; only `b` may be packed, and only for `Nn` and `Nt`.
    MatMul { a: Slice, b: Slice, c: Slice, m: u32, n: u32, k: u32, layout: Layout, b_dtype: Dtype, accumulate: bool },
    /// `c = round(a) · bᵀ`, a linear layer (see [`Layout::Nt`]) whose weight is in blocks of integers: the rows of `a` are
    /// rounded to 8-bit integers in blocks of 32 (scale = max |a| / 127, to the nearest) and integers are multiplied. A back
    /// end that has no such product may leave out the rounding.
    MatMulRounded { a: Slice, b: Slice, c: Slice, m: u32, n: u32, k: u32, b_dtype: Dtype },
    /// `y[t,c] += bias[c]` in place.
    AddBias { y: Slice, bias: Slice, rows: u32, cols: u32 },
    /// `out[c] (+)= Σ_t x[t,c]`.
    ColumnSum { x: Slice, out: Slice, rows: u32, cols: u32, accumulate: bool },
    /// `out[i] = a[i] + b[i]` (out may be neither).
    Add { a: Slice, b: Slice, out: Slice, len: u32 },
    /// `dst[i] += factor * src[i]`.
    Axpy { src: Slice, dst: Slice, factor: f32, len: u32 },
    /// Rows of a table: `out[t,:] = table[ids[t] - first_row, :]` where `first_row ≤ ids[t] < first_row + table_rows`;
    /// other rows of `out` are left as they are (the table is sharded by rows). `ids`: u32 words.
    Embed { table: Slice, ids: BufferId, out: Slice, tokens: u32, width: u32, first_row: u32, table_rows: u32, dtype: Dtype },
    /// Adds to the f32 table gradient: `dtable[ids[t] - first_row, :] += dout[t, :]`, repeated ids summed in token order.
    EmbedGrad { dout: Slice, ids: BufferId, dtable: Slice, tokens: u32, width: u32, first_row: u32, table_rows: u32 },
    /// Llama's RMSNorm: `inv[t] = 1/sqrt(mean_c x² + eps)`, `out[t,c] = x[t,c] · inv[t] · (weight[c] + weight_shift)`.
    /// Rows may be heads (`rows = tokens · heads`, `cols = head_dim`). `weight` is f32.
    RmsNorm { x: Slice, weight: Slice, out: Slice, inv: Slice, rows: u32, cols: u32, eps: f32, weight_shift: f32 },
    /// `dx[t,c] (+)= inv·(g[t,c] − x[t,c]·inv²·mean_c(g·x))` with `g = dy·(weight + weight_shift)`.
    RmsNormGrad { x: Slice, weight: Slice, inv: Slice, dy: Slice, dx: Slice, rows: u32, cols: u32, weight_shift: f32, accumulate: bool },
    /// `dweight[c] += Σ_t dy[t,c]·x[t,c]·inv[t]`.
    RmsNormWeightGrad { x: Slice, inv: Slice, dy: Slice, dweight: Slice, rows: u32, cols: u32 },
    /// Rotary embedding, "rotate half" form, over `x[tokens, heads, head_dim]`: pair (i, i + head_dim/2) of token t is
    /// turned by `positions[t] · inv_freq[i]` (by its negative when `inverse`), times `scale`. `positions`: u32 words;
    /// `inv_freq`: head_dim/2 f32.
    Rope { x: Slice, positions: BufferId, inv_freq: BufferId, out: Slice, tokens: u32, heads: u32, head_dim: u32, scale: f32, inverse: bool },
    /// Softmax attention per segment. With a `bias[2 · bias_zero + 1, heads]`, the score of query i and key j gets the
    /// row `bias_zero + j − i`, both counted as positions of the segment (see `causal`). `q[queries, heads, head_dim]`, `k, v[keys, kv_heads, head_dim]`, `out` as q,
    /// `lse[queries, heads]` = log Σ exp of the scaled scores. `table`: u32 words, 4 per segment
    /// `(q_start, q_end, k_start, k_end)`; with `causal`, query i of a segment (0-based) stands at key position
    /// `i + (k_end − k_start) − (q_end − q_start)`, which serves decoding from a key/value cache too.
    Attention { q: Slice, k: Slice, v: Slice, table: BufferId, bias: Option<Slice>, out: Slice, lse: Slice, shape: AttentionShape },
    /// Gradient of [`Op::Attention`]: overwrites `dq`, `dk`, `dv` and, where it is wanted, `dbias` (as `bias`). `delta[queries, heads]` is scratch
    /// (Σ_c dout·out, computed here).
    AttentionGrad { q: Slice, k: Slice, v: Slice, table: BufferId, out: Slice, lse: Slice, dout: Slice, delta: Slice, bias: Option<Slice>, dq: Slice, dk: Slice, dv: Slice, dbias: Option<Slice>, shape: AttentionShape },
    /// `out = act(x) · up`, elementwise; without `up` that is 1.
    Activate { activation: Activation, x: Slice, up: Option<Slice>, out: Slice, len: u32 },
    /// `dx = dout·up·act'(x)`, `dup = dout·act(x)`; `up` and `dup` are given both or not at all.
    ActivateGrad { activation: Activation, x: Slice, up: Option<Slice>, dout: Slice, dx: Slice, dup: Option<Slice>, len: u32 },
    /// `out[t,c] (+)= x[t,c] − mean_c x[t,:]`: the first half of a LayerNorm, whose second is RMSNorm; its own gradient.
    CenterRows { x: Slice, out: Slice, rows: u32, cols: u32, accumulate: bool },
    /// `dst[t,c] (+)= src[t,c]` for `cols` neighbouring columns of tables whose rows are `src_stride` and `dst_stride`
    /// wide (different buffers); the offsets of the slices name the first column.
    CopyColumns { src: Slice, dst: Slice, rows: u32, cols: u32, src_stride: u32, dst_stride: u32, accumulate: bool },
    /// Tap scaling (docs/METHOD.md): `rho[t] = sqrt(mean_c x² + 1e-6)`, `out = x / rho`.
    TapScale { x: Slice, out: Slice, rho: Slice, rows: u32, cols: u32 },
    /// `out[t,c] = base[t,c] + rho[t]·u[t,c]`.
    ScaledAdd { base: Slice, rho: Slice, u: Slice, out: Slice, rows: u32, cols: u32 },
    /// `out[t,c] (+)= rho[t]·x[t,c]`.
    ScaleRows { x: Slice, rho: Slice, out: Slice, rows: u32, cols: u32, accumulate: bool },
    /// `out = μ·a + (1 − μ)·p`, `μ = sigmoid(gate[0] / temperature)`; `gate` is one element.
    GateMix { a: Slice, p: Slice, gate: Slice, out: Slice, len: u32, temperature: f32 },
    /// `da = μ·dout`, `dp = (1 − μ)·dout` (both overwritten), `dgate[0] += Σ dout·(a − p) · μ(1 − μ) / temperature`.
    GateMixGrad { a: Slice, p: Slice, gate: Slice, dout: Slice, da: Slice, dp: Slice, dgate: Slice, len: u32, temperature: f32 },
    /// `out[i,:] = x[indices[i],:]`; `indices`: `rows` u32 words.
    GatherRows { x: Slice, indices: BufferId, out: Slice, rows: u32, cols: u32 },
    /// `dx[indices[i],:] += dy[i,:]`; indices are distinct.
    ScatterRows { dy: Slice, indices: BufferId, dx: Slice, rows: u32, cols: u32 },
    /// Largest value of a column over the rows `first .. end` of a segment: `out[s,c]`, and the row it stands in as
    /// `index[s,c]`, u32 (ties: the lowest). `ranges`: u32 words, `(first, end)` per segment, none of them empty.
    SegmentMax { x: Slice, ranges: BufferId, out: Slice, index: BufferId, segments: u32, cols: u32 },
    /// `dx[index[s,c], c] += dy[s,c]`; segments do not overlap.
    SegmentMaxGrad { dy: Slice, index: BufferId, dx: Slice, segments: u32, cols: u32 },
    /// One vocabulary chunk of the cross-entropy: `logits[rows, cols]` are those of classes
    /// `first_class .. first_class + cols`. Updates the running `max[rows]`, `sum[rows]` (of exp(logit − max)) and, where
    /// `labels[t]` lies in the chunk, `target[rows]`. Start: max = −3.4e38, sum = 0, target = 0.
    SoftmaxStats { logits: Slice, labels: BufferId, max: Slice, sum: Slice, target: Slice, rows: u32, cols: u32, first_class: u32 },
    /// In place: `logits ← (exp(logits − lse[t]) − [first_class + c == labels[t]]) · factor`.
    SoftmaxGrad { logits: Slice, labels: BufferId, lse: Slice, rows: u32, cols: u32, first_class: u32, factor: f32 },
    /// `lse[t] = max + ln(sum)`, `loss[t] = lse[t] − target[t]`.
    SoftmaxLoss { max: Slice, sum: Slice, target: Slice, lse: Slice, loss: Slice, rows: u32 },
    /// Greedy choice over a chunk: updates the running `best_value[rows]` and `best_index[rows]` (u32 words); ties keep
    /// the lower index. Start: best_value = −3.4e38, best_index = 0.
    ArgMax { logits: Slice, best_value: Slice, best_index: BufferId, rows: u32, cols: u32, first_class: u32 },
    /// `out[0] += Σ x²`.
    SumSquares { x: Slice, out: Slice, len: u32 },
    /// torch's AdamW, step counted from 1: `g = grad·grad_factor`, `p −= lr·weight_decay·p`, m and v updated,
    /// `p −= lr · (m / (1−β1ᵗ)) / (sqrt(v / (1−β2ᵗ)) + eps)`.
    AdamW { param: Slice, grad: Slice, m: Slice, v: Slice, len: u32, step: u32, lr: f32, beta1: f32, beta2: f32, eps: f32, weight_decay: f32, grad_factor: f32 },
    /// Rounds `len` (even) f32 to half precision, two per word, to nearest even, saturating at ±65504.
    PackF16 { x: Slice, out: BufferId, len: u32 },
    /// The inverse of [`Op::PackF16`] (`x` counts elements, even offset; `len` even).
    UnpackF16 { x: Slice, out: Slice, len: u32 },
}
