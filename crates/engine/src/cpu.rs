//! The CPU back end: every [`Op`] executed at once, with SIMD, on buffers in ordinary memory.
//!
//! The rows of an operation are spread over threads: natively, and in a browser module with shared memory, whose threads are
//! workers ([`pool`]). In the other module everything runs on the one thread of the node's worker. The functions in `cpu/` are the twins of the WGSL kernels of the same names.

mod attention;
mod blocks;
mod elementwise;
#[cfg(any(target_arch = "wasm32", test))]
mod gemm_wasm;
mod integer;
mod matmul;
mod norm;
#[cfg(all(threads, target_arch = "wasm32"))]
pub mod pool;
mod rows;
mod shared;
pub(crate) mod simd;
mod slab;
mod softmax;
#[cfg(not(target_arch = "wasm32"))]
mod tiles;

use crate::backend::{Backend, BackendError, BackendInfo, BackendKind, MemoryUse};
use crate::op::{BufferId, Op};
use futures::future::LocalBoxFuture;
use slab::Slab;
use std::cell::{Cell, RefCell};

thread_local! {
    static REMARK: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What the reason of every CPU back end that is opened on this thread ends with: why it has no more threads. Empty: nothing.
pub fn remark_on_threads(remark: String) {
    REMARK.replace(remark);
}

/// Makes the calling thread one of those that compute, instead of one that hands every operation over and sleeps.
///
/// For the thread that owns the engine, once, before anything computes. Without effect in the browser, on a single
/// processor and where the threads exist already. The thread should live as long as the program: work is shared with it.
pub fn compute_on_this_thread() {
    #[cfg(not(target_arch = "wasm32"))]
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
        // Fails where there is a pool already: then that one is used.
        let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
    }
}

/// What multiplies where activations are rounded to integers, for people: `AVX-512 VNNI`, say.
pub fn integer_products() -> &'static str {
    integer::describe()
}

/// Executes operations on the processor, in the order given, as soon as they are given.
pub struct CpuBackend {
    info: BackendInfo,
    slab: RefCell<Slab>,
    rounds_activations: Cell<bool>,
}

impl CpuBackend {
    /// A back end without buffers; `reason` says in one sentence why the processor was chosen.
    pub fn new(reason: impl Into<String>) -> Self {
        let mut reason: String = reason.into();
        REMARK.with_borrow(|remark| {
            if !remark.is_empty() {
                reason = format!("{reason}; {remark}");
            }
        });
        let info = BackendInfo { kind: BackendKind::Cpu, description: simd::describe(), reason };
        Self { info, slab: RefCell::default(), rounds_activations: Cell::new(false) }
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new("the CPU was asked for")
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn round_activations(&self, wanted: bool) -> bool {
        self.rounds_activations.set(wanted);
        true
    }

    fn rounds_activations(&self) -> bool {
        self.rounds_activations.get()
    }

    fn allocate(&self, words: usize) -> BufferId {
        self.slab.borrow_mut().allocate(words)
    }

    fn free(&self, buffer: BufferId) {
        self.slab.borrow_mut().free(buffer);
    }

    fn write(&self, buffer: BufferId, first_word: usize, words: &[u32]) {
        self.slab.borrow_mut().words_mut(buffer)[first_word..first_word + words.len()].copy_from_slice(words);
    }

    fn read(&self, buffer: BufferId, first_word: usize, len: usize) -> LocalBoxFuture<'_, Result<Vec<u32>, BackendError>> {
        let words = self.slab.borrow().words(buffer)[first_word..first_word + len].to_vec();
        Box::pin(std::future::ready(Ok(words)))
    }

    fn run(&self, op: Op) {
        execute(&mut self.slab.borrow_mut(), &op);
    }

    fn submit(&self) {}

    fn memory(&self) -> MemoryUse {
        self.slab.borrow().memory()
    }

    fn reset_peak(&self) {
        self.slab.borrow_mut().reset_peak();
    }
}

fn execute(slab: &mut Slab, op: &Op) {
    let n = |x: u32| x as usize;
    match *op {
        Op::Fill { dst, value, len } => slab.write(dst, n(len), |_, dst| dst.fill(value)),
        Op::Copy { src, dst, len } => slab.write(dst, n(len), |s, dst| dst.copy_from_slice(s.f32(src, n(len)))),
        Op::MatMul { a, b, c, m, n: cols, k, layout, b_dtype, accumulate } => {
            let shape = matmul::Shape { m: n(m), n: n(cols), k: n(k), layout, accumulate };
            slab.write(c, shape.m * shape.n, |s, c| {
                let a = s.f32(a, shape.m * shape.k);
                matmul::matmul(a, s.packed(b, b_dtype, shape.k * shape.n), c, shape);
            });
        }
        Op::MatMulRounded { a, b, c, m, n: cols, k, b_dtype } => {
            let (m, cols, k) = (n(m), n(cols), n(k));
            slab.write(c, m * cols, |s, c| {
                integer::product(s.f32(a, m * k), s.packed(b, b_dtype, k * cols), c, (m, cols, k), false);
            });
        }
        Op::AddBias { y, bias, rows, cols } => {
            slab.write(y, n(rows) * n(cols), |s, y| rows::add_bias(y, s.f32(bias, n(cols))));
        }
        Op::ColumnSum { x, out, rows, cols, accumulate } => slab.write(out, n(cols), |s, out| {
            rows::column_sum(s.f32(x, n(rows) * n(cols)), out, accumulate);
        }),
        Op::Add { a, b, out, len } => {
            slab.write(out, n(len), |s, out| elementwise::add(s.f32(a, n(len)), s.f32(b, n(len)), out));
        }
        Op::Axpy { src, dst, factor, len } => {
            slab.write(dst, n(len), |s, dst| elementwise::axpy(s.f32(src, n(len)), dst, factor));
        }
        Op::Embed { table, ids, out, tokens, width, first_row, table_rows, dtype } => {
            slab.write(out, n(tokens) * n(width), |s, out| {
                let table = s.packed(table, dtype, n(table_rows) * n(width));
                rows::embed(table, s.u32(ids, n(tokens)), out, n(width), first_row, table_rows);
            });
        }
        Op::EmbedGrad { dout, ids, dtable, tokens, width, first_row, table_rows } => {
            slab.write(dtable, n(table_rows) * n(width), |s, dtable| {
                let dout = s.f32(dout, n(tokens) * n(width));
                rows::embed_grad(dout, s.u32(ids, n(tokens)), dtable, n(width), first_row, table_rows);
            });
        }
        Op::RmsNorm { x, weight, out, inv, rows, cols, eps, weight_shift } => {
            let len = n(rows) * n(cols);
            slab.write2((out, len), (inv, n(rows)), |s, out, inv| {
                norm::rms_norm(s.f32(x, len), s.f32(weight, n(cols)), out, inv, eps, weight_shift);
            });
        }
        Op::RmsNormGrad { x, weight, inv, dy, dx, rows, cols, weight_shift, accumulate } => {
            let len = n(rows) * n(cols);
            slab.write(dx, len, |s, dx| {
                let (x, weight, inv, dy) = (s.f32(x, len), s.f32(weight, n(cols)), s.f32(inv, n(rows)), s.f32(dy, len));
                norm::rms_norm_grad(x, weight, inv, dy, dx, weight_shift, accumulate);
            });
        }
        Op::RmsNormWeightGrad { x, inv, dy, dweight, rows, cols } => {
            let len = n(rows) * n(cols);
            slab.write(dweight, n(cols), |s, dweight| {
                norm::rms_norm_weight_grad(s.f32(x, len), s.f32(inv, n(rows)), s.f32(dy, len), dweight);
            });
        }
        Op::Rope { x, positions, inv_freq, out, tokens, heads, head_dim, scale, inverse } => {
            let len = n(tokens) * n(heads) * n(head_dim);
            slab.write(out, len, |s, out| {
                let inv_freq = s.f32(inv_freq.into(), n(head_dim) / 2);
                rows::rope(s.f32(x, len), s.u32(positions, n(tokens)), inv_freq, out, n(heads), scale, inverse);
            });
        }
        Op::Attention { q, k, v, table, bias, out, lse, shape } => {
            let (len, kv_len) = attention::lengths(&shape);
            slab.write2((out, len), (lse, n(shape.queries) * n(shape.heads)), |s, out, lse| {
                let bias = bias.map(|bias| s.f32(bias, attention::bias_len(&shape)));
                let inputs = attention::Inputs { q: s.f32(q, len), k: s.f32(k, kv_len), v: s.f32(v, kv_len), table: s.u32(table, 4 * n(shape.segments)), bias };
                attention::attention(&inputs, out, lse, &shape);
            });
        }
        Op::AttentionGrad { q, k, v, table, out, lse, dout, delta, bias, dq, dk, dv, dbias, shape } => {
            let (len, kv_len) = attention::lengths(&shape);
            let rows = n(shape.queries) * n(shape.heads);
            let mut bias_gradient = vec![0f32; if dbias.is_some() { attention::bias_len(&shape) } else { 0 }];
            slab.write4((delta, rows), (dq, len), (dk, kv_len), (dv, kv_len), |s, delta, dq, dk, dv| {
                let bias = bias.map(|bias| s.f32(bias, attention::bias_len(&shape)));
                let inputs = attention::Inputs { q: s.f32(q, len), k: s.f32(k, kv_len), v: s.f32(v, kv_len), table: s.u32(table, 4 * n(shape.segments)), bias };
                let forward = attention::Forward { inputs, out: s.f32(out, len), lse: s.f32(lse, rows) };
                let grads = attention::Gradients { delta, dq, dk, dv, dbias: &mut bias_gradient };
                attention::attention_grad(&forward, s.f32(dout, len), grads, &shape);
            });
            if let Some(dbias) = dbias {
                slab.write(dbias, bias_gradient.len(), |_, dbias| dbias.copy_from_slice(&bias_gradient));
            }
        }
        Op::Activate { activation, x, up, out, len } => slab.write(out, n(len), |s, out| {
            elementwise::activate(activation, s.f32(x, n(len)), up.map(|up| s.f32(up, n(len))), out);
        }),
        Op::ActivateGrad { activation, x, up, dout, dx, dup, len } => {
            let len = n(len);
            match (up, dup) {
                (Some(up), Some(dup)) => slab.write2((dx, len), (dup, len), |s, dx, dup| {
                    elementwise::activate_grad(activation, s.f32(x, len), Some(s.f32(up, len)), s.f32(dout, len), dx, dup);
                }),
                _ => slab.write(dx, len, |s, dx| {
                    elementwise::activate_grad(activation, s.f32(x, len), None, s.f32(dout, len), dx, &mut []);
                }),
            }
        }
        Op::CenterRows { x, out, rows, cols, accumulate } => slab.write(out, n(rows) * n(cols), |s, out| {
            norm::center_rows(s.f32(x, n(rows) * n(cols)), out, n(cols), accumulate);
        }),
        Op::CopyColumns { src, dst, rows, cols, src_stride, dst_stride, accumulate } => slab.write_to_end(dst, |s, dst| {
            let strides = (n(src_stride), n(dst_stride));
            rows::copy_columns(s.f32_to_end(src), dst, (n(rows), n(cols)), strides, accumulate);
        }),
        Op::TapScale { x, out, rho, rows, cols } => {
            let len = n(rows) * n(cols);
            slab.write2((out, len), (rho, n(rows)), |s, out, rho| norm::tap_scale(s.f32(x, len), out, rho));
        }
        Op::ScaledAdd { base, rho, u, out, rows, cols } => {
            let len = n(rows) * n(cols);
            slab.write(out, len, |s, out| {
                rows::scaled_add(s.f32(base, len), s.f32(rho, n(rows)), s.f32(u, len), out);
            });
        }
        Op::ScaleRows { x, rho, out, rows, cols, accumulate } => {
            let len = n(rows) * n(cols);
            slab.write(out, len, |s, out| rows::scale_rows(s.f32(x, len), s.f32(rho, n(rows)), out, accumulate));
        }
        Op::GateMix { a, p, gate, out, len, temperature } => slab.write(out, n(len), |s, out| {
            let mu = elementwise::gate_mean(s.f32(gate, 1)[0], temperature);
            elementwise::gate_mix(s.f32(a, n(len)), s.f32(p, n(len)), mu, out);
        }),
        Op::GateMixGrad { a, p, gate, dout, da, dp, dgate, len, temperature } => {
            let len = n(len);
            slab.write3((da, len), (dp, len), (dgate, 1), |s, da, dp, dgate| {
                let mu = elementwise::gate_mean(s.f32(gate, 1)[0], temperature);
                let sum = elementwise::gate_mix_grad(s.f32(a, len), s.f32(p, len), s.f32(dout, len), mu, da, dp);
                dgate[0] += sum * mu * (1.0 - mu) / temperature;
            });
        }
        Op::GatherRows { x, indices, out, rows, cols } => slab.write(out, n(rows) * n(cols), |s, out| {
            rows::gather_rows(s.f32_to_end(x), s.u32(indices, n(rows)), out, n(cols));
        }),
        Op::ScatterRows { dy, indices, dx, rows, cols } => slab.write_to_end(dx, |s, dx| {
            rows::scatter_rows(s.f32(dy, n(rows) * n(cols)), s.u32(indices, n(rows)), dx, n(cols));
        }),
        Op::SegmentMax { x, ranges, out, index, segments, cols } => {
            let len = n(segments) * n(cols);
            slab.write_words(index, len, |s, index| {
                s.write(out, len, |s, out| rows::segment_max(s.f32_to_end(x), s.u32(ranges, 2 * n(segments)), out, index, n(cols)));
            });
        }
        Op::SegmentMaxGrad { dy, index, dx, segments, cols } => slab.write_to_end(dx, |s, dx| {
            let len = n(segments) * n(cols);
            rows::segment_max_grad(s.f32(dy, len), s.u32(index, len), dx, n(cols));
        }),
        Op::SoftmaxStats { logits, labels, max, sum, target, rows, cols, first_class } => {
            let rows = n(rows);
            slab.write3((max, rows), (sum, rows), (target, rows), |s, max, sum, target| {
                let (logits, labels) = (s.f32(logits, rows * n(cols)), s.u32(labels, rows));
                softmax::softmax_stats(logits, labels, max, sum, target, n(cols), first_class);
            });
        }
        Op::SoftmaxGrad { logits, labels, lse, rows, cols, first_class, factor } => {
            slab.write(logits, n(rows) * n(cols), |s, logits| {
                let (labels, lse) = (s.u32(labels, n(rows)), s.f32(lse, n(rows)));
                softmax::softmax_grad(logits, labels, lse, n(cols), first_class, factor);
            });
        }
        Op::SoftmaxLoss { max, sum, target, lse, loss, rows } => {
            let rows = n(rows);
            slab.write2((lse, rows), (loss, rows), |s, lse, loss| {
                softmax::softmax_loss(s.f32(max, rows), s.f32(sum, rows), s.f32(target, rows), lse, loss);
            });
        }
        Op::ArgMax { logits, best_value, best_index, rows, cols, first_class } => {
            let rows = n(rows);
            slab.write_words(best_index, rows, |s, best_index| {
                s.write(best_value, rows, |s, best_value| {
                    softmax::arg_max(s.f32(logits, rows * n(cols)), best_value, best_index, n(cols), first_class);
                });
            });
        }
        Op::SumSquares { x, out, len } => slab.write(out, 1, |s, out| out[0] += elementwise::sum_squares(s.f32(x, n(len)))),
        Op::AdamW { param, grad, m, v, len, step, lr, beta1, beta2, eps, weight_decay, grad_factor } => {
            let len = n(len);
            let rule = elementwise::AdamRule { step, lr, beta1, beta2, eps, weight_decay, grad_factor };
            slab.write3((param, len), (m, len), (v, len), |s, param, m, v| {
                elementwise::adam_w(param, s.f32(grad, len), m, v, &rule);
            });
        }
        Op::PackF16 { x, out, len } => slab.write_words(out, n(len) / 2, |s, out| rows::pack_f16(s.f32(x, n(len)), out)),
        Op::UnpackF16 { x, out, len } => slab.write(out, n(len), |s, out| {
            simd::unpack_f16(&s.words(x.buffer)[n(x.offset) / 2..][..n(len) / 2], out);
        }),
    }
}
