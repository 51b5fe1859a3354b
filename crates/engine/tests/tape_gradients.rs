//! Gradients of single tape operations against differences of a weighted sum of their output.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use barycenter_engine::op::{Activation, AttentionShape};
use barycenter_engine::tape::{AttentionContext, Tape, Var};
use barycenter_engine::{CpuBackend, Device, Tensor};
use pollster::block_on;
use std::rc::Rc;
use support::Random;

/// Checks the gradient of Σ weight · f(inputs) by every input, along a random direction.
fn check(name: &str, shapes: &[&[usize]], f: impl Fn(&Tape, &[Var]) -> Var) {
    let device: Device = Rc::new(CpuBackend::default());
    let mut random = Random::from_env(name);
    let inputs: Vec<Vec<f32>> = shapes.iter().map(|shape| random.values(shape.iter().product())).collect();
    let leaves = |values: &[Vec<f32>]| -> Vec<(Var, Tensor)> {
        let leaf = |(values, shape): (&Vec<f32>, &&[usize])| {
            let grad = Tensor::zeros(&device, shape);
            (Var::leaf(Tensor::from_f32(&device, shape, values), grad.clone()), grad)
        };
        values.iter().zip(shapes).map(leaf).collect()
    };
    let vars = |leaves: &[(Var, Tensor)]| leaves.iter().map(|(var, _)| var.clone()).collect::<Vec<_>>();

    let tape = Tape::recording(&device);
    let start = leaves(&inputs);
    let out = f(&tape, &vars(&start));
    let weights = random.values(out.value.len());
    out.add_gradient(Tensor::from_f32(&device, out.value.shape(), &weights));
    drop(out);
    tape.backward();
    let sum = |values: &[Vec<f32>]| -> f64 {
        let out = f(&Tape::computing(&device), &vars(&leaves(values)));
        block_on(out.value.read()).unwrap().iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    };
    for (at, (_, grad)) in start.iter().enumerate() {
        let direction = random.values(inputs[at].len());
        let grad = block_on(grad.read()).unwrap();
        let expected: f64 = grad.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let step = 1e-2f32;
        let moved = |sign: f32| {
            let mut values = inputs.clone();
            values[at].iter_mut().zip(&direction).for_each(|(x, d)| *x += sign * step * d);
            values
        };
        let slope = (sum(&moved(1.0)) - sum(&moved(-1.0))) / (2.0 * f64::from(step));
        // The third derivative times the square of the step, and rounding of some 1e-6 over the step.
        let close = (slope - expected).abs() < 3e-3 * expected.abs().max(1.0);
        assert!(close, "{name}, input {at}: {slope:.5} by differences, {expected:.5} by the tape");
    }
}

#[test]
fn activations() {
    // Relu has a kink, which differences see: it is compared where no value is near 0.
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Tanh] {
        check(&format!("{activation:?}"), &[&[5, 7]], |tape, x| tape.activate(activation, &x[0], None));
        check(&format!("{activation:?} gate"), &[&[5, 7], &[5, 7]], |tape, x| tape.activate(activation, &x[0], Some(&x[1])));
    }
    let device: Device = Rc::new(CpuBackend::default());
    let x = Tensor::from_f32(&device, &[4], &[-2.0, -0.5, 0.5, 2.0]);
    let grad = Tensor::zeros(&device, &[4]);
    let tape = Tape::recording(&device);
    tape.activate(Activation::Relu, &Var::leaf(x, grad.clone()), None).add_gradient(Tensor::full(&device, &[4], 3.0));
    tape.backward();
    assert_eq!(block_on(grad.read()).unwrap(), [0.0, 0.0, 3.0, 3.0]);
}

#[test]
fn layer_norm() {
    check("layer_norm", &[&[6, 9], &[9], &[9]], |tape, x| tape.layer_norm(&x[0], &x[1], &x[2], 1e-3));
}

#[test]
fn columns_and_scale() {
    check("columns", &[&[4, 12]], |tape, x| tape.add(&tape.columns(&x[0], 4, 4), &tape.columns(&x[0], 8, 4)));
    check("scale", &[&[4, 3]], |tape, x| tape.add(&tape.scale(&x[0], -2.5), &x[0]));
}

#[test]
fn linear_layers_of_both_layouts() {
    check("linear", &[&[5, 4], &[3, 4], &[3]], |tape, x| tape.linear(&x[0], &x[1], Some(&x[2]), false));
    check("linear transposed", &[&[5, 4], &[4, 3], &[3]], |tape, x| tape.linear(&x[0], &x[1], Some(&x[2]), true));
}

#[test]
fn attention_with_a_bias_by_distance() {
    for (causal, window) in [(false, 0), (true, 0), (true, 3)] {
        let (heads, head_dim, tokens, zero) = (2, 3, 11, 6);
        let width = heads * head_dim;
        check("biased attention", &[&[tokens, width], &[tokens, width], &[tokens, width], &[2 * zero + 1, heads]], |tape, x| {
            let shape = AttentionShape {
                heads: heads as u32,
                kv_heads: heads as u32,
                head_dim: head_dim as u32,
                scale: 0.7,
                bias_zero: zero as u32,
                causal,
                window,
                segments: 2,
                queries: tokens as u32,
                keys: tokens as u32,
            };
            let table = Tensor::from_u32(tape.device(), &[0, 7, 0, 7, 7, 11, 7, 11]);
            tape.attention(&x[0], &x[1], &x[2], &AttentionContext { table, bias: Some(x[3].clone()), shape })
        });
    }
}

#[test]
fn attention_to_other_sequences() {
    check("cross attention", &[&[5, 4], &[8, 4], &[8, 4]], |tape, x| {
        let shape = AttentionShape {
            heads: 2,
            kv_heads: 2,
            head_dim: 2,
            scale: 1.0,
            bias_zero: 0,
            causal: false,
            window: 0,
            segments: 2,
            queries: 5,
            keys: 8,
        };
        let table = Tensor::from_u32(tape.device(), &[0, 2, 0, 5, 2, 5, 5, 8]);
        tape.attention(&x[0], &x[1], &x[2], &AttentionContext { table, bias: None, shape })
    });
}

#[test]
fn features_of_rows() {
    check("multiply", &[&[4, 5], &[4, 5]], |tape, x| tape.add(&tape.multiply(&x[0], &x[1]), &x[0]));
    check("square", &[&[3, 5]], |tape, x| tape.multiply(&x[0], &x[0]));
    check("softmax", &[&[5]], |tape, x| tape.softmax(&x[0]));
    // Away from the kink, which differences would see.
    check("absolute", &[&[3, 4]], |tape, x| {
        let away = Tensor::from_f32(tape.device(), &[3, 4], &[3.0, -3.0, 4.0].repeat(4));
        tape.absolute(&tape.add(&x[0], &Var::constant(away)))
    });
    check("beside", &[&[3, 2], &[3, 5]], |tape, x| tape.beside(&[x[0].clone(), x[1].clone(), x[0].clone()]));
}

/// The largest values stand far enough above the others that a step of the differences changes no place.
#[test]
fn segment_max() {
    let device: Device = Rc::new(CpuBackend::default());
    let heights: Vec<f32> = (0..7 * 5).map(|i| 3.0 * ((i * 11) % 35) as f32).collect();
    check("segment_max", &[&[7, 5]], |tape, x| {
        let x = tape.add(&x[0], &Var::constant(Tensor::from_f32(tape.device(), &[7, 5], &heights)));
        let ranges = Tensor::from_u32(tape.device(), &[1, 3, 3, 4, 4, 7]);
        tape.beside(&[tape.segment_max(&x, &ranges), tape.segment_max(&x, &ranges)])
    });
    let tape = Tape::computing(&device);
    let ties = Var::constant(Tensor::from_f32(&device, &[3, 2], &[1.0, 5.0, 1.0, 7.0, 0.0, 7.0]));
    let most = tape.segment_max(&ties, &Tensor::from_u32(&device, &[0, 3]));
    assert_eq!(block_on(most.value.read()).unwrap(), [1.0, 7.0]);
}
