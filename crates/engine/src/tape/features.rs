//! Operations that make features of rows: products of values, weights that sum to one, columns side by side, maxima.

use super::{Tape, Var};
use crate::op::{Activation, Layout, Op};
use crate::tape::product;
use crate::tensor::Tensor;

/// What no label is: [`Op::SoftmaxGrad`] then gives the probabilities.
const NO_CLASS: u32 = u32::MAX;

impl Tape {
    /// `a ∘ b`, elementwise.
    pub fn multiply(&self, a: &Var, b: &Var) -> Var {
        let out = Tensor::empty(&self.device, a.value.shape());
        times(&a.value, &b.value, &out, false);
        self.output(out, &[a, b], || {
            let (a, b) = (a.clone(), b.clone());
            Box::new(move |dout| {
                for (x, other) in [(&a, &b), (&b, &a)] {
                    if let Some(grad) = &x.grad {
                        let (dx, accumulate) = grad.target(&x.value);
                        times(&dout, &other.value, &dx, accumulate);
                    }
                }
            })
        })
    }

    /// `|x|` as relu(x) + relu(−x); the gradient at 0 is 0.
    pub fn absolute(&self, x: &Var) -> Var {
        let negative = self.activate(Activation::Relu, &self.scale(x, -1.0), None);
        self.add(&self.activate(Activation::Relu, x, None), &negative)
    }

    /// Softmax over all elements of `x`, a few: `[1, len]`.
    pub fn softmax(&self, x: &Var) -> Var {
        let len = x.value.len();
        let out = x.value.reshaped(&[1, len]).duplicate();
        let labels = Tensor::from_u32(&self.device, &[NO_CLASS]);
        let max = Tensor::full(&self.device, &[1], -3.4e38);
        let [sum, target] = [(); 2].map(|()| Tensor::zeros(&self.device, &[1]));
        let [lse, loss] = [(); 2].map(|()| Tensor::empty(&self.device, &[1]));
        let (rows, cols, first_class) = (1, len as u32, 0);
        let (logits, labels, lse_at) = (out.slice(), labels.buffer(), lse.slice());
        let (max_at, sum_at, target_at) = (max.slice(), sum.slice(), target.slice());
        out.run(Op::SoftmaxStats { logits, labels, max: max_at, sum: sum_at, target: target_at, rows, cols, first_class });
        out.run(Op::SoftmaxLoss { max: max_at, sum: sum_at, target: target_at, lse: lse_at, loss: loss.slice(), rows });
        out.run(Op::SoftmaxGrad { logits, labels, lse: lse_at, rows, cols, first_class, factor: 1.0 });
        self.output(out.clone(), &[x], || {
            let x = x.clone();
            Box::new(move |dout| {
                let Some(grad) = &x.grad else { return };
                // dx = w ∘ dw − (w · dw) w
                let against = Tensor::zeros(dout.device(), &[1, len]);
                against.run(Op::Axpy { src: dout.slice(), dst: against.slice(), factor: -1.0, len: cols });
                let shift = Tensor::empty(dout.device(), &[1, 1]);
                product(&out, &against, &shift, len, Layout::Nt, false);
                let (dx, accumulate) = grad.target(&x.value);
                times(&dout, &out, &dx, accumulate);
                dx.run(Op::ScaleRows { x: out.slice(), rho: shift.slice(), out: dx.slice(), rows: 1, cols, accumulate: true });
            })
        })
    }

    /// The columns of several values of as many rows, side by side.
    pub fn beside(&self, parts: &[Var]) -> Var {
        let rows = parts.first().map_or(0, |part| part.value.rows());
        let width: usize = parts.iter().map(|part| part.value.cols()).sum();
        let out = Tensor::empty(&self.device, &[rows, width]);
        let mut first = 0;
        let mut places = Vec::new();
        for part in parts {
            let (cols, len) = (part.value.cols(), out.len());
            let dst = out.part(first, &[len - first]).slice();
            let (rows, cols_, dst_stride) = (rows as u32, cols as u32, width as u32);
            out.run(Op::CopyColumns { src: part.value.slice(), dst, rows, cols: cols_, src_stride: cols_, dst_stride, accumulate: false });
            places.push((part.clone(), first));
            first += cols;
        }
        self.output(out, &parts.iter().collect::<Vec<_>>(), || {
            Box::new(move |dout| {
                for (part, first) in places {
                    let Some(grad) = &part.grad else { continue };
                    let (dx, accumulate) = grad.target(&part.value);
                    let src = dout.part(first, &[dout.len() - first]).slice();
                    let (rows, cols) = (rows as u32, part.value.cols() as u32);
                    dout.run(Op::CopyColumns { src, dst: dx.slice(), rows, cols, src_stride: width as u32, dst_stride: cols, accumulate });
                }
            })
        })
    }

    /// The largest value of each column over each range of rows; `ranges`: u32 `[2 · segments]`, first and end row of
    /// segments that do not overlap and are not empty. `[segments, cols]`.
    pub fn segment_max(&self, x: &Var, ranges: &Tensor) -> Var {
        let (segments, cols) = (ranges.len() / 2, x.value.cols());
        let [out, index] = [(); 2].map(|()| Tensor::empty(&self.device, &[segments, cols]));
        let (segments, cols) = (segments as u32, cols as u32);
        out.run(Op::SegmentMax { x: x.value.slice(), ranges: ranges.buffer(), out: out.slice(), index: index.buffer(), segments, cols });
        self.output(out, &[x], || {
            let x = x.clone();
            Box::new(move |dout| {
                let Some(grad) = &x.grad else { return };
                let (dx, accumulate) = grad.target(&x.value);
                if !accumulate {
                    dx.fill(0.0);
                }
                dout.run(Op::SegmentMaxGrad { dy: dout.slice(), index: index.buffer(), dx: dx.slice(), segments, cols });
            })
        })
    }
}

/// `out (+)= a ∘ b`: rows of one element, each times its own factor.
fn times(a: &Tensor, b: &Tensor, out: &Tensor, accumulate: bool) {
    let rows = out.len() as u32;
    out.run(Op::ScaleRows { x: a.slice(), rho: b.slice(), out: out.slice(), rows, cols: 1, accumulate });
}
