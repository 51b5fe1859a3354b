//! Operations on whole rows that some families need: centring, columns, biases, scaled sums.

use super::{Tape, Var};
use crate::op::Op;
use crate::tensor::Tensor;

impl Tape {
    /// LayerNorm over the last `weight.len()` elements: the rows centred, then RMSNorm, then the bias.
    pub fn layer_norm(&self, x: &Var, weight: &Var, bias: &Var, eps: f32) -> Var {
        let centred = self.center_rows(x, weight.value.len());
        let normed = self.rms_norm(&centred, weight, eps, 0.0);
        self.add_bias(normed, bias)
    }

    /// `x − mean x` over each row of `cols` elements.
    pub fn center_rows(&self, x: &Var, cols: usize) -> Var {
        let out = Tensor::empty(&self.device, x.value.shape());
        let (rows, cols) = ((x.value.len() / cols) as u32, cols as u32);
        out.run(Op::CenterRows { x: x.value.slice(), out: out.slice(), rows, cols, accumulate: false });
        self.output(out, &[x], || {
            let x = x.clone();
            Box::new(move |dout| {
                if let Some(grad) = &x.grad {
                    let (dx, accumulate) = grad.target(&x.value);
                    dout.run(Op::CenterRows { x: dout.slice(), out: dx.slice(), rows, cols, accumulate });
                }
            })
        })
    }

    /// `x + bias` in each row, in place: `x` must be the only handle of a value that no gradient needs.
    pub fn add_bias(&self, x: Var, bias: &Var) -> Var {
        let (value, cols) = (x.value.clone(), bias.value.len() as u32);
        value.run(Op::AddBias { y: value.slice(), bias: bias.value.slice(), rows: value.len() as u32 / cols, cols });
        self.output(value, &[&x, bias], || {
            let (grad, bias) = (x.grad.clone(), bias.clone());
            Box::new(move |dout| {
                bias.add_bias_gradient(&dout);
                if let Some(grad) = grad {
                    grad.add(dout);
                }
            })
        })
    }

    /// Columns `first .. first + cols` of each row: `[rows, cols]`.
    pub fn columns(&self, x: &Var, first: usize, cols: usize) -> Var {
        let (rows, stride) = (x.value.rows(), x.value.cols());
        let out = Tensor::empty(&self.device, &[rows, cols]);
        let part = move |x: &Tensor| x.part(first, &[x.len() - first]).slice();
        let (rows, cols, stride) = (rows as u32, cols as u32, stride as u32);
        out.run(Op::CopyColumns { src: part(&x.value), dst: out.slice(), rows, cols, src_stride: stride, dst_stride: cols, accumulate: false });
        self.output(out, &[x], || {
            let x = x.clone();
            Box::new(move |dout| {
                if let Some(grad) = &x.grad {
                    let (dx, accumulate) = grad.target(&x.value);
                    if !accumulate {
                        dx.fill(0.0);
                    }
                    let (src, dst) = (dout.slice(), part(&dx));
                    dout.run(Op::CopyColumns { src, dst, rows, cols, src_stride: cols, dst_stride: stride, accumulate: true });
                }
            })
        })
    }

    /// `factor · x`.
    pub fn scale(&self, x: &Var, factor: f32) -> Var {
        let out = Tensor::zeros(&self.device, x.value.shape());
        let len = out.len() as u32;
        out.run(Op::Axpy { src: x.value.slice(), dst: out.slice(), factor, len });
        self.output(out, &[x], || {
            let x = x.clone();
            Box::new(move |dout| {
                if let Some(grad) = &x.grad {
                    let (dx, accumulate) = grad.target(&x.value);
                    if !accumulate {
                        dx.fill(0.0);
                    }
                    dout.run(Op::Axpy { src: dout.slice(), dst: dx.slice(), factor, len });
                }
            })
        })
    }
}

impl Var {
    /// Adds the column sums of `dy` to the gradient of this bias, if it is trained.
    pub(super) fn add_bias_gradient(&self, dy: &Tensor) {
        let Some(grad) = &self.grad else { return };
        let cols = self.value.len();
        let (db, accumulate) = grad.target(&self.value);
        dy.run(Op::ColumnSum { x: dy.slice(), out: db.slice(), rows: (dy.len() / cols) as u32, cols: cols as u32, accumulate });
    }
}
