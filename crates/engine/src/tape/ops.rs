//! The operations a tape can record: what each computes, and its gradient beside it.

use super::{Tape, Var};
use crate::op::{Activation, AttentionShape, Dtype, Layout, Op};
use crate::tensor::Tensor;

/// Where the queries of an attention find their keys.
#[derive(Clone, Debug)]
pub struct AttentionContext {
    /// Segment table, 4 words a segment (see [`Op::Attention`]).
    pub table: Tensor,
    /// A bias on the scores by distance, `[2 · bias_zero + 1, heads]`.
    pub bias: Option<Var>,
    /// Sizes.
    pub shape: AttentionShape,
}

/// Sizes as the operations take them.
fn n(size: usize) -> u32 {
    size as u32
}

/// `c (+)= op(a) · op(b)`, the sizes being those of `c` and the inner one.
pub(crate) fn product(a: &Tensor, b: &Tensor, c: &Tensor, inner: usize, layout: Layout, accumulate: bool) {
    let (rows, cols) = (c.rows(), c.cols());
    c.run(Op::MatMul {
        a: a.slice(),
        b: b.slice(),
        c: c.slice(),
        m: n(rows),
        n: n(cols),
        k: n(inner),
        layout,
        b_dtype: b.dtype(),
        accumulate,
    });
}

/// `y = x · weightᵀ`, a forward pass: in integers where the weight is of integers and the back end was asked for that.
pub(crate) fn forward_product(x: &Tensor, weight: &Tensor, y: &Tensor, inner: usize) {
    if !(weight.dtype().is_blocks() && x.device().rounds_activations()) {
        return product(x, weight, y, inner, Layout::Nt, false);
    }
    y.run(Op::MatMulRounded {
        a: x.slice(),
        b: weight.slice(),
        c: y.slice(),
        m: n(y.rows()),
        n: n(y.cols()),
        k: n(inner),
        b_dtype: weight.dtype(),
    });
}

impl Tape {
    /// `y = x · weightᵀ + bias`; x: `[rows, in]`, weight: `[out, in]`, or `[in, out]` where `transposed` (may be packed if
    /// it is not trained), bias: `[out]`.
    pub fn linear(&self, x: &Var, weight: &Var, bias: Option<&Var>, transposed: bool) -> Var {
        let rows = x.value.rows();
        let (wide, inner) = match transposed {
            false => (weight.value.shape()[0], weight.value.cols()),
            true => (weight.value.cols(), weight.value.shape()[0]),
        };
        let (there, back) = if transposed { (Layout::Nn, Layout::Nt) } else { (Layout::Nt, Layout::Nn) };
        let y = Tensor::empty(&self.device, &[rows, wide]);
        match there {
            Layout::Nt => forward_product(&x.value, &weight.value, &y, inner),
            there => product(&x.value, &weight.value, &y, inner, there, false),
        }
        if let Some(bias) = bias {
            y.run(Op::AddBias { y: y.slice(), bias: bias.value.slice(), rows: n(rows), cols: n(wide) });
        }
        let mut inputs = vec![x, weight];
        inputs.extend(bias);
        self.output(y, &inputs, || {
            let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
            Box::new(move |dy| {
                if let Some(grad) = &x.grad {
                    let (dx, accumulate) = grad.target(&x.value);
                    product(&dy, &weight.value, &dx.reshaped(&[rows, inner]), wide, back, accumulate);
                }
                if let Some(grad) = &weight.grad {
                    let (dw, accumulate) = grad.target(&weight.value);
                    let (left, right) = if transposed { (&x.value, &dy) } else { (&dy, &x.value) };
                    product(left, right, &dw, rows, Layout::Tn, accumulate);
                }
                if let Some(bias) = &bias {
                    bias.add_bias_gradient(&dy);
                }
            })
        })
    }

    /// Rows of a table that is sharded by rows, for `ids` (u32): `[tokens, width]`.
    pub fn embed(&self, shards: &[(Var, usize)], ids: &Tensor) -> Var {
        let width = shards.first().map_or(0, |(table, _)| table.value.cols());
        let out = Tensor::empty(&self.device, &[ids.len(), width]);
        for (table, first_row) in shards {
            out.run(Op::Embed {
                table: table.value.slice(),
                ids: ids.buffer(),
                out: out.slice(),
                tokens: n(ids.len()),
                width: n(width),
                first_row: n(*first_row),
                table_rows: n(table.value.rows()),
                dtype: table.value.dtype(),
            });
        }
        let inputs: Vec<&Var> = shards.iter().map(|(table, _)| table).collect();
        self.output(out, &inputs, || {
            let (shards, ids) = (shards.to_vec(), ids.clone());
            Box::new(move |dout| {
                for (table, first_row) in &shards {
                    let Some(grad) = &table.grad else { continue };
                    let (dtable, accumulate) = grad.target(&table.value);
                    if !accumulate {
                        dtable.fill(0.0);
                    }
                    dout.run(Op::EmbedGrad {
                        dout: dout.slice(),
                        ids: ids.buffer(),
                        dtable: dtable.slice(),
                        tokens: n(ids.len()),
                        width: n(width),
                        first_row: n(*first_row),
                        table_rows: n(table.value.rows()),
                    });
                }
            })
        })
    }

    /// RMSNorm over the last `weight.len()` elements, times `weight + weight_shift`: rows may be tokens or heads.
    pub fn rms_norm(&self, x: &Var, weight: &Var, eps: f32, weight_shift: f32) -> Var {
        let cols = weight.value.len();
        let rows = x.value.len() / cols;
        let out = Tensor::empty(&self.device, x.value.shape());
        let inv = Tensor::empty(&self.device, &[rows]);
        out.run(Op::RmsNorm {
            x: x.value.slice(),
            weight: weight.value.slice(),
            out: out.slice(),
            inv: inv.slice(),
            rows: n(rows),
            cols: n(cols),
            eps,
            weight_shift,
        });
        self.output(out, &[x, weight], || {
            let (x, weight) = (x.clone(), weight.clone());
            Box::new(move |dy| {
                let (rows, cols) = (n(rows), n(cols));
                if let Some(grad) = &weight.grad {
                    let (dweight, accumulate) = grad.target(&weight.value);
                    if !accumulate {
                        dweight.fill(0.0);
                    }
                    let (x, inv, dy_) = (x.value.slice(), inv.slice(), dy.slice());
                    dy.run(Op::RmsNormWeightGrad { x, inv, dy: dy_, dweight: dweight.slice(), rows, cols });
                }
                if let Some(grad) = &x.grad {
                    let (dx, accumulate) = grad.target(&x.value);
                    dy.run(Op::RmsNormGrad {
                        x: x.value.slice(),
                        weight: weight.value.slice(),
                        inv: inv.slice(),
                        dy: dy.slice(),
                        dx: dx.slice(),
                        rows,
                        cols,
                        weight_shift,
                        accumulate,
                    });
                }
            })
        })
    }

    /// Rotary embedding of `x: [tokens, heads · head_dim]`; `inv_freq` has `head_dim / 2` elements.
    pub fn rope(&self, x: &Var, positions: &Tensor, inv_freq: &Tensor) -> Var {
        let (tokens, head_dim) = (positions.len(), 2 * inv_freq.len());
        let heads = x.value.len() / (tokens * head_dim).max(1);
        let turn = move |x: &Tensor, positions: &Tensor, inv_freq: &Tensor, inverse| {
            let out = Tensor::empty(x.device(), x.shape());
            out.run(Op::Rope {
                x: x.slice(),
                positions: positions.buffer(),
                inv_freq: inv_freq.buffer(),
                out: out.slice(),
                tokens: n(tokens),
                heads: n(heads),
                head_dim: n(head_dim),
                scale: 1.0,
                inverse,
            });
            out
        };
        let out = turn(&x.value, positions, inv_freq, false);
        self.output(out, &[x], || {
            let (grad, positions, inv_freq) = (x.grad.clone(), positions.clone(), inv_freq.clone());
            Box::new(move |dout| {
                if let Some(grad) = grad {
                    grad.add(turn(&dout, &positions, &inv_freq, true));
                }
            })
        })
    }

    /// Softmax attention per segment: q `[queries, heads · head_dim]`, k and v `[keys, kv_heads · head_dim]`.
    pub fn attention(&self, q: &Var, k: &Var, v: &Var, context: &AttentionContext) -> Var {
        let shape = context.shape;
        let out = Tensor::empty(&self.device, q.value.shape());
        let lse = Tensor::empty(&self.device, &[shape.queries as usize, shape.heads as usize]);
        out.run(Op::Attention {
            q: q.value.slice(),
            k: k.value.slice(),
            v: v.value.slice(),
            table: context.table.buffer(),
            bias: context.bias.as_ref().map(|bias| bias.value.slice()),
            out: out.slice(),
            lse: lse.slice(),
            shape,
        });
        let mut inputs = vec![q, k, v];
        inputs.extend(&context.bias);
        self.output(out.clone(), &inputs, || {
            let (q, k, v, table, bias) = (q.clone(), k.clone(), v.clone(), context.table.clone(), context.bias.clone());
            Box::new(move |dout| {
                let trained_bias = bias.as_ref().filter(|bias| bias.is_trained());
                let dbias = trained_bias.map(|bias| Tensor::empty(dout.device(), bias.value.shape()));
                let delta = Tensor::empty(dout.device(), lse.shape());
                let [dq, dk, dv] = [&q, &k, &v].map(|x| Tensor::empty(dout.device(), x.value.shape()));
                dout.run(Op::AttentionGrad {
                    q: q.value.slice(),
                    k: k.value.slice(),
                    v: v.value.slice(),
                    table: table.buffer(),
                    out: out.slice(),
                    lse: lse.slice(),
                    dout: dout.slice(),
                    delta: delta.slice(),
                    bias: bias.as_ref().map(|bias| bias.value.slice()),
                    dq: dq.slice(),
                    dk: dk.slice(),
                    dv: dv.slice(),
                    dbias: dbias.as_ref().map(Tensor::slice),
                    shape,
                });
                if let (Some(bias), Some(dbias)) = (trained_bias, dbias) {
                    bias.add_gradient(dbias);
                }
                for (x, dx) in [(q, dq), (k, dk), (v, dv)] {
                    x.add_gradient(dx);
                }
            })
        })
    }

    /// `act(x) · up`, or `act(x)`.
    pub fn activate(&self, activation: Activation, x: &Var, up: Option<&Var>) -> Var {
        let out = Tensor::empty(&self.device, x.value.shape());
        let len = n(out.len());
        out.run(Op::Activate { activation, x: x.value.slice(), up: up.map(|up| up.value.slice()), out: out.slice(), len });
        let mut inputs = vec![x];
        inputs.extend(up);
        self.output(out, &inputs, || {
            let (x, up) = (x.clone(), up.cloned());
            Box::new(move |dout| {
                let dx = Tensor::empty(dout.device(), x.value.shape());
                let dup = up.as_ref().map(|up| Tensor::empty(dout.device(), up.value.shape()));
                dout.run(Op::ActivateGrad {
                    activation,
                    x: x.value.slice(),
                    up: up.as_ref().map(|up| up.value.slice()),
                    dout: dout.slice(),
                    dx: dx.slice(),
                    dup: dup.as_ref().map(Tensor::slice),
                    len,
                });
                x.add_gradient(dx);
                if let (Some(up), Some(dup)) = (&up, dup) {
                    up.add_gradient(dup);
                }
            })
        })
    }

    /// `a + b`.
    pub fn add(&self, a: &Var, b: &Var) -> Var {
        let out = Tensor::empty(&self.device, a.value.shape());
        out.run(Op::Add { a: a.value.slice(), b: b.value.slice(), out: out.slice(), len: n(out.len()) });
        self.output(out, &[a, b], || {
            let grads = [a.grad.clone(), b.grad.clone()];
            Box::new(move |dout| {
                for grad in grads.into_iter().flatten() {
                    grad.add(dout.clone());
                }
            })
        })
    }

    /// `base + rho · u` per row: base `[rows, cols]` and rho `[rows]` are not trained.
    pub fn scaled_add(&self, base: &Tensor, rho: &Tensor, u: &Var) -> Var {
        let out = Tensor::empty(&self.device, base.shape());
        let (rows, cols) = (n(base.rows()), n(base.cols()));
        out.run(Op::ScaledAdd { base: base.slice(), rho: rho.slice(), u: u.value.slice(), out: out.slice(), rows, cols });
        self.output(out, &[u], || {
            let (u, rho) = (u.clone(), rho.clone());
            Box::new(move |dout| {
                if let Some(grad) = &u.grad {
                    let (du, accumulate) = grad.target(&u.value);
                    dout.run(Op::ScaleRows { x: dout.slice(), rho: rho.slice(), out: du.slice(), rows, cols, accumulate });
                }
            })
        })
    }

    /// `μ·a + (1 − μ)·p` with `μ = sigmoid(gate / temperature)`; gate: one element.
    pub fn gate_mix(&self, a: &Var, p: &Var, gate: &Var, temperature: f32) -> Var {
        let out = Tensor::empty(&self.device, a.value.shape());
        let len = n(out.len());
        out.run(Op::GateMix { a: a.value.slice(), p: p.value.slice(), gate: gate.value.slice(), out: out.slice(), len, temperature });
        self.output(out, &[a, p, gate], || {
            let (a, p, gate) = (a.clone(), p.clone(), gate.clone());
            Box::new(move |dout| {
                let [da, dp] = [&a, &p].map(|x| Tensor::empty(dout.device(), x.value.shape()));
                let dgate = match &gate.grad {
                    Some(grad) => grad.target(&gate.value),
                    None => (Tensor::empty(dout.device(), &[1]), false),
                };
                if !dgate.1 {
                    dgate.0.fill(0.0);
                }
                dout.run(Op::GateMixGrad {
                    a: a.value.slice(),
                    p: p.value.slice(),
                    gate: gate.value.slice(),
                    dout: dout.slice(),
                    da: da.slice(),
                    dp: dp.slice(),
                    dgate: dgate.0.slice(),
                    len,
                    temperature,
                });
                a.add_gradient(da);
                p.add_gradient(dp);
            })
        })
    }

    /// The rows `indices` (u32, distinct) of x: `[indices, cols]`.
    pub fn gather_rows(&self, x: &Var, indices: &Tensor) -> Var {
        let (rows, cols) = (indices.len(), x.value.cols());
        let out = Tensor::empty(&self.device, &[rows, cols]);
        let (rows, cols) = (n(rows), n(cols));
        out.run(Op::GatherRows { x: x.value.slice(), indices: indices.buffer(), out: out.slice(), rows, cols });
        self.output(out, &[x], || {
            let (x, indices) = (x.clone(), indices.clone());
            Box::new(move |dout| {
                if let Some(grad) = &x.grad {
                    let (dx, accumulate) = grad.target(&x.value);
                    if !accumulate {
                        dx.fill(0.0);
                    }
                    dout.run(Op::ScatterRows { dy: dout.slice(), indices: indices.buffer(), dx: dx.slice(), rows, cols });
                }
            })
        })
    }

    /// Tap scaling (docs/METHOD.md): `x / rho` and `rho: [rows]`. Taps come from the frozen backbone: nothing is recorded.
    pub fn tap_scale(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (out, rho) = (Tensor::empty(&self.device, x.shape()), Tensor::empty(&self.device, &[x.rows()]));
        let (rows, cols) = (n(x.rows()), n(x.cols()));
        out.run(Op::TapScale { x: x.slice(), out: out.slice(), rho: rho.slice(), rows, cols });
        (out, rho)
    }

    /// The inverse of [`Tape::tap_scale`]: each row times its `rho`. Nothing is recorded.
    pub fn tap_unscale(&self, scaled: &Tensor, rho: &Tensor) -> Tensor {
        let out = Tensor::empty(&self.device, scaled.shape());
        let (rows, cols) = (n(scaled.rows()), n(scaled.cols()));
        out.run(Op::ScaleRows { x: scaled.slice(), rho: rho.slice(), out: out.slice(), rows, cols, accumulate: false });
        out
    }

    /// Brings a packed tensor to f32 (an f32 one is returned as it is).
    pub fn unpack(&self, x: &Tensor) -> Tensor {
        match x.dtype() {
            Dtype::F16 => {
                let out = Tensor::empty(&self.device, x.shape());
                out.run(Op::UnpackF16 { x: x.slice(), out: out.slice(), len: n(x.len()) });
                out
            }
            _ => x.clone(),
        }
    }
}
