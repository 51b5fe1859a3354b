//! Reverse-mode differentiation: what was computed, and how gradients flow back through it.
//!
//! What is trained is decided by which leaves carry a gradient; an operation none of whose inputs does is not
//! recorded. Going backward, a gradient is freed as soon as it has been passed on.

mod features;
mod ops;
mod rows;

pub use ops::AttentionContext;
pub(crate) use ops::{forward_product, product};

use crate::op::{Layout, Op};
use crate::tensor::{Device, Tensor};
use futures::future::LocalBoxFuture;
use std::cell::RefCell;
use std::rc::Rc;

/// Gives other tasks of the event loop a turn; called between layers and between backward steps.
pub type YieldHook = Rc<dyn Fn() -> LocalBoxFuture<'static, ()>>;

/// A hook that does not yield: for programs that do nothing else meanwhile.
pub fn no_yield() -> YieldHook {
    Rc::new(|| Box::pin(std::future::ready(())))
}

/// Backward steps between two calls of the yield hook: about one layer.
const STEPS_PER_YIELD: usize = 12;

/// A value and, where something upstream is trained, the place its gradient gathers in.
#[derive(Clone, Debug)]
pub struct Var {
    /// The value.
    pub value: Tensor,
    grad: Option<Rc<Grad>>,
}

impl Var {
    /// A value that is not trained.
    pub fn constant(value: Tensor) -> Self {
        Self { value, grad: None }
    }

    /// A trained value; its gradient is added to `grad`, which has the same shape.
    pub fn leaf(value: Tensor, grad: Tensor) -> Self {
        Self { value, grad: Some(Rc::new(Grad { leaf: true, slot: RefCell::new(Some(grad)) })) }
    }

    /// A value that arrived from elsewhere and whose gradient is wanted ([`Var::take_gradient`]) to be sent back.
    pub fn input(value: Tensor) -> Self {
        Self { value, grad: Some(Rc::new(Grad { leaf: false, slot: RefCell::new(None) })) }
    }

    /// Whether a gradient flows to this value.
    pub fn is_trained(&self) -> bool {
        self.grad.is_some()
    }

    /// The gradient gathered so far, moved out.
    pub fn take_gradient(&self) -> Option<Tensor> {
        self.grad.as_ref()?.slot.borrow_mut().take()
    }

    /// Adds `dyᵀ · x` to the gradient of rows `first_row ..` of this weight, if it is trained.
    pub(crate) fn add_weight_gradient(&self, first_row: usize, dy: &Tensor, x: &Tensor) {
        let Some(grad) = &self.grad else { return };
        let (dw, accumulate) = grad.target(&self.value);
        if !accumulate {
            dw.fill(0.0);
        }
        let part = dw.part(first_row * dw.cols(), &[dy.cols(), dw.cols()]);
        product(dy, x, &part, dy.rows(), Layout::Tn, true);
    }

    /// Adds the column sums of `dy` to the gradient of elements `first ..` of this bias, if it is trained.
    pub(crate) fn add_bias_part_gradient(&self, first: usize, dy: &Tensor) {
        let Some(grad) = &self.grad else { return };
        let (db, accumulate) = grad.target(&self.value);
        if !accumulate {
            db.fill(0.0);
        }
        let part = db.part(first, &[dy.cols()]);
        dy.run(Op::ColumnSum { x: dy.slice(), out: part.slice(), rows: dy.rows() as u32, cols: dy.cols() as u32, accumulate: true });
    }

    /// Adds to the gradient: how a backward pass is started.
    pub fn add_gradient(&self, gradient: Tensor) {
        if let Some(grad) = &self.grad {
            grad.add(gradient);
        }
    }
}

/// Where the gradient of one value gathers.
#[derive(Debug)]
struct Grad {
    /// A leaf's tensor stays and is added to; another value's is made when first needed.
    leaf: bool,
    slot: RefCell<Option<Tensor>>,
}

impl Grad {
    fn add(&self, gradient: Tensor) {
        let mut slot = self.slot.borrow_mut();
        *slot = Some(match slot.take() {
            None => gradient,
            Some(sum) if self.leaf || sum.is_unshared() => {
                let len = sum.len() as u32;
                sum.run(Op::Axpy { src: gradient.slice(), dst: sum.slice(), factor: 1.0, len });
                sum
            }
            Some(sum) => {
                let out = Tensor::empty(sum.device(), sum.shape());
                let len = sum.len() as u32;
                sum.run(Op::Add { a: sum.slice(), b: gradient.slice(), out: out.slice(), len });
                out
            }
        });
    }

    /// A tensor to write a gradient into, and whether to add to what it holds.
    fn target(&self, like: &Tensor) -> (Tensor, bool) {
        let mut slot = self.slot.borrow_mut();
        match slot.take() {
            None => {
                let fresh = Tensor::empty(like.device(), like.shape());
                *slot = Some(fresh.clone());
                (fresh, false)
            }
            Some(sum) => {
                let sum = if self.leaf || sum.is_unshared() { sum } else { sum.duplicate() };
                *slot = Some(sum.clone());
                (sum, true)
            }
        }
    }
}

/// Gets the gradient of the node's output.
type Backward = Box<dyn FnOnce(Tensor)>;

struct Node {
    out: Rc<Grad>,
    backward: Backward,
}

/// The operations recorded so far, in order; its methods compute and record.
pub struct Tape {
    device: Device,
    recording: bool,
    nodes: RefCell<Vec<Node>>,
}

impl Tape {
    /// A tape that records what leads to trained leaves.
    pub fn recording(device: &Device) -> Self {
        Self { device: device.clone(), recording: true, nodes: RefCell::default() }
    }

    /// A tape that only computes: nothing is kept, no output carries a gradient.
    pub fn computing(device: &Device) -> Self {
        Self { device: device.clone(), recording: false, nodes: RefCell::default() }
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether it keeps what a backward pass needs.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Passes gradients from the values they were added to back to the leaves.
    pub fn backward(self) {
        let mut nodes = self.nodes.into_inner();
        while let Some(node) = nodes.pop() {
            node.pass_on();
        }
        self.device.submit();
    }

    /// [`Tape::backward`] that lets others have a turn about once per layer.
    pub async fn backward_yielding(self, hook: &YieldHook) {
        let mut nodes = self.nodes.into_inner();
        let mut steps = 0;
        while let Some(node) = nodes.pop() {
            node.pass_on();
            steps += 1;
            if steps % STEPS_PER_YIELD == 0 {
                self.device.submit();
                hook().await;
            }
        }
        self.device.submit();
    }

    /// The output of an operation: recorded if this tape records and one of the inputs is trained.
    fn output(&self, value: Tensor, inputs: &[&Var], backward: impl FnOnce() -> Backward) -> Var {
        if !self.recording || !inputs.iter().any(|input| input.is_trained()) {
            return Var::constant(value);
        }
        let out = Rc::new(Grad { leaf: false, slot: RefCell::new(None) });
        self.nodes.borrow_mut().push(Node { out: out.clone(), backward: backward() });
        Var { value, grad: Some(out) }
    }
}

impl Node {
    fn pass_on(self) {
        let gradient = self.out.slot.borrow_mut().take();
        if let Some(gradient) = gradient {
            (self.backward)(gradient);
        }
    }
}
