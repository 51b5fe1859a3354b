//! Every operation on the WebGPU back end against its CPU twin, over odd shapes and offsets.
//!
//! Whole buffers are compared, so that a write outside the output shows as well. The tolerance is relative to the
//! largest value of the buffer: 1e-5 where not said otherwise (both sum in f32, in different orders).

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use barycenter_engine::Backend;
use barycenter_engine::cpu::CpuBackend;
use barycenter_engine::gpu::{GpuBackend, Tile, Tuning, Tunings};
use barycenter_engine::op::{Activation, AttentionShape, BufferId, Dtype, Layout, Op, Slice};
use support::{Random, gpu};

const TOLERANCE: f32 = 1e-5;
const ACTIVATIONS: [Activation; 6] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu, Activation::Tanh];

/// The forms of a product that a software adapter compiles in time for a test of all element types and layouts.
const TILES: [Tile; 4] = [Tile::Shared32, Tile::Shared64, Tile::Registers4, Tile::Registers8];

/// Buffers, named by position, and operations on them.
struct Case {
    name: String,
    buffers: Vec<Contents>,
    tolerance: f32,
}

enum Contents {
    Floats(Vec<f32>),
    Bits(Vec<u32>),
}

impl Case {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), buffers: Vec::new(), tolerance: TOLERANCE }
    }

    fn floats(&mut self, values: Vec<f32>) -> usize {
        self.buffers.push(Contents::Floats(values));
        self.buffers.len() - 1
    }

    fn bits(&mut self, words: Vec<u32>) -> usize {
        self.buffers.push(Contents::Bits(words));
        self.buffers.len() - 1
    }

    fn run_on(&self, backend: &dyn Backend, ops: &dyn Fn(&[BufferId]) -> Vec<Op>) -> Vec<Vec<u32>> {
        let ids: Vec<BufferId> = self
            .buffers
            .iter()
            .map(|contents| {
                let words = match contents {
                    Contents::Floats(values) => values.iter().map(|value| value.to_bits()).collect(),
                    Contents::Bits(words) => words.clone(),
                };
                let id = backend.allocate(words.len());
                backend.write(id, 0, &words);
                id
            })
            .collect();
        for op in ops(&ids) {
            backend.run(op);
        }
        let results = ids
            .iter()
            .zip(&self.buffers)
            .map(|(id, contents)| {
                let len = match contents {
                    Contents::Floats(values) => values.len(),
                    Contents::Bits(words) => words.len(),
                };
                pollster::block_on(backend.read(*id, 0, len)).unwrap()
            })
            .collect();
        for id in ids {
            backend.free(id);
        }
        results
    }

    /// [`Case::check`] with products in each of these forms.
    fn check_in(&self, tiles: &[Tile], gpu: &GpuBackend, ops: impl Fn(&[BufferId]) -> Vec<Op>) {
        let expected = self.run_on(&CpuBackend::default(), &ops);
        for tile in tiles {
            gpu.set_tuning(Tuning::always(*tile));
            self.compare(&format!("{}, {tile:?}", self.name), &self.run_on(gpu, &ops), &expected);
        }
    }

    fn check(&self, gpu: &GpuBackend, ops: impl Fn(&[BufferId]) -> Vec<Op>) {
        let expected = self.run_on(&CpuBackend::default(), &ops);
        self.compare(&self.name, &self.run_on(gpu, &ops), &expected);
    }

    fn compare(&self, name: &str, got: &[Vec<u32>], expected: &[Vec<u32>]) {
        for (i, contents) in self.buffers.iter().enumerate() {
            match contents {
                Contents::Bits(_) => assert_eq!(got[i], expected[i], "{name}: buffer {i}"),
                Contents::Floats(_) => {
                    let floats = |words: &[u32]| words.iter().map(|word| f32::from_bits(*word)).collect::<Vec<_>>();
                    let (got, expected) = (floats(&got[i]), floats(&expected[i]));
                    let size = expected.iter().fold(1e-30f32, |size, value| size.max(value.abs()));
                    for (j, (a, b)) in got.iter().zip(&expected).enumerate() {
                        let close = (a - b).abs() <= self.tolerance * size;
                        assert!(close, "{name}: buffer {i}, element {j}: {a} on the GPU, {b} on the CPU, largest {size}");
                    }
                }
            }
        }
    }
}

fn at(buffers: &[BufferId], index: usize, offset: usize) -> Slice {
    Slice { buffer: buffers[index], offset: offset as u32 }
}

fn to_f16(values: &[f32]) -> Vec<u32> {
    let halves: Vec<u32> = values.iter().map(|value| u32::from(half::f16::from_f32(*value).to_bits())).collect();
    halves.chunks(2).map(|pair| pair[0] | (pair.get(1).copied().unwrap_or(0) << 16)).collect()
}

fn to_bf16(values: &[f32]) -> Vec<u32> {
    let halves: Vec<u32> = values.iter().map(|value| u32::from(half::bf16::from_f32(*value).to_bits())).collect();
    halves.chunks(2).map(|pair| pair[0] | (pair.get(1).copied().unwrap_or(0) << 16)).collect()
}

#[test]
fn matmul_agrees() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("matmul_agrees");
    // Odd, aligned, few rows, large enough for the 64 × 64 tile.
    let sizes = [
        (1, 1, 1),
        (3, 5, 7),
        (33, 31, 17),
        (36, 40, 44),
        (1, 68, 64),
        (3, 37, 72),
        (7, 130, 36),
        (8, 64, 128),
        (130, 66, 65),
        (500, 516, 20),
        (449, 451, 37),
    ];
    let mut turn = 0;
    for (m, n, k) in sizes {
        for layout in [Layout::Nn, Layout::Nt, Layout::Tn] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                if dtype != Dtype::F32 && layout == Layout::Tn {
                    continue;
                }
                for accumulate in [false, true] {
                    let (a_at, b_at, c_at) = if accumulate { (3, 6, 1) } else { (4, 8, 0) };
                    let mut case = Case::new(format!("matmul {m}×{n}×{k} {layout:?} {dtype:?} accumulate {accumulate}"));
                    let a = case.floats(random.values(a_at + m * k));
                    let weight = random.values(b_at + n * k);
                    let b = match dtype {
                        Dtype::F32 => case.floats(weight),
                        Dtype::F16 => case.bits(to_f16(&weight)),
                        Dtype::Bf16 => case.bits(to_bf16(&weight)),
                        Dtype::Q8 | Dtype::Q4 => unreachable!("blocks have a test of their own"),
                    };
                    let c = case.floats(random.values(c_at + m * n + 3));
                    // By turns, so that every form meets every layout and element type, and both kinds of offset.
                    turn += usize::from(!accumulate);
                    case.check_in(&[TILES[(turn + usize::from(accumulate)) % TILES.len()]], &gpu, |ids| {
                        vec![Op::MatMul {
                            a: at(ids, a, a_at),
                            b: at(ids, b, b_at),
                            c: at(ids, c, c_at),
                            m: m as u32,
                            n: n as u32,
                            k: k as u32,
                            layout,
                            b_dtype: dtype,
                            accumulate,
                        }]
                    });
                }
            }
        }
    }
}

/// One case, because lavapipe takes seconds to compile the largest tile. In browsers, whose software adapter it is for,
/// `tests/browser/node-module.test.mjs` runs it.
#[test]
fn a_product_in_the_largest_tile_agrees() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("a_product_in_the_largest_tile_agrees");
    let (m, n, k) = (130, 67, 24);
    let mut case = Case::new("matmul in the largest tile");
    let (a, b, c) = (case.floats(random.values(m * k)), case.floats(random.values(n * k)), case.floats(random.values(m * n + 3)));
    let sizes = [m, n, k].map(|len| len as u32);
    case.check_in(&[Tile::Registers16], &gpu, |ids| {
        let [m, n, k] = sizes;
        let (a, b, c) = (at(ids, a, 0), at(ids, b, 0), at(ids, c, 0));
        vec![Op::MatMul { a, b, c, m, n, k, layout: Layout::Nt, b_dtype: Dtype::F32, accumulate: true }]
    });
}

#[test]
fn a_device_is_measured_once_and_then_remembered() {
    let Some(gpu) = gpu() else { return };
    let start = std::time::Instant::now();
    let now = || start.elapsed().as_secs_f64() * 1e3;
    let mut known = Tunings::default();
    assert!(pollster::block_on(gpu.tune(&mut known, &now)).unwrap(), "nothing is known of a new device");
    println!("{:?} after {:.0} ms, kept as {}", gpu.tuning(), now(), known.to_json());
    let found = gpu.tuning();
    gpu.set_tuning(Tuning::always(Tile::Shared32));
    let mut kept = Tunings::from_json(known.to_json().as_bytes());
    let unused = || panic!("a remembered device is not measured");
    assert!(!pollster::block_on(gpu.tune(&mut kept, &unused)).unwrap());
    assert_eq!(gpu.tuning(), found);
    assert!(gpu.memory().current_bytes < 1024, "the trial's buffers are gone");
}

/// `blocks` blocks of random integers; every fourth scale is a subnormal f16.
fn random_blocks(random: &mut Random, dtype: Dtype, blocks: usize) -> Vec<u32> {
    let (_, group_words) = dtype.group();
    let mut words = Vec::new();
    while words.len() < dtype.words(32 * blocks) {
        words.extend((1..group_words).map(|_| random.bits() as u32));
        let scales = [random.value() * 0.01, random.value() * if words.len() % 2 == 0 { 3e-5 } else { 0.01 }];
        words.extend(to_f16(&scales));
    }
    words
}

#[test]
fn products_with_weights_in_blocks_agree() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("products_with_weights_in_blocks_agree");
    // (rows of the activations, rows of the weight, columns of the weight: whole blocks, also an odd number of them).
    let sizes = [(1, 1, 32), (3, 5, 96), (1, 67, 64), (8, 70, 160), (33, 31, 32), (37, 66, 96), (130, 129, 224), (500, 516, 64)];
    let mut turn = 0;
    for (rows, weight_rows, weight_cols) in sizes {
        for dtype in [Dtype::Q8, Dtype::Q4] {
            // y = x · Wᵀ, and the gradient dx = dy · W.
            for (layout, n, k) in [(Layout::Nt, weight_rows, weight_cols), (Layout::Nn, weight_cols, weight_rows)] {
                for (accumulate, a_at, b_at) in [(false, 4, 0), (true, 3, 32), (false, 0, 3 * 32)] {
                    let mut case = Case::new(format!("matmul {rows}×{n}×{k} {layout:?} {dtype:?} from {b_at}"));
                    let a = case.floats(random.values(a_at + rows * k));
                    let blocks = (b_at + weight_rows * weight_cols) / 32;
                    let b = case.bits(random_blocks(&mut random, dtype, blocks));
                    let c = case.floats(random.values(rows * n + 3));
                    turn += 1;
                    case.check_in(&[TILES[turn % TILES.len()]], &gpu, |ids| {
                        vec![Op::MatMul {
                            a: at(ids, a, a_at),
                            b: at(ids, b, b_at),
                            c: at(ids, c, 0),
                            m: rows as u32,
                            n: n as u32,
                            k: k as u32,
                            layout,
                            b_dtype: dtype,
                            accumulate,
                        }]
                    });
                }
            }
        }
    }
}

#[test]
fn tables_in_blocks_agree_bit_for_bit() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("tables_in_blocks_agree_bit_for_bit");
    for (tokens, width, table_rows) in [(1usize, 32usize, 3usize), (23, 96, 9), (40, 64, 100)] {
        for dtype in [Dtype::Q8, Dtype::Q4] {
            let mut case = Case::new(format!("embed {tokens}×{width} {dtype:?}"));
            case.tolerance = 0.0;
            let table = case.bits(random_blocks(&mut random, dtype, 1 + table_rows * width / 32));
            let ids = case.bits((0..tokens).map(|_| random.below(table_rows as u32 + 10)).collect());
            let out = case.floats(random.values(tokens * width + 1));
            case.check(&gpu, |b| {
                vec![Op::Embed {
                    table: at(b, table, 32),
                    ids: b[ids],
                    out: at(b, out, 1),
                    tokens: tokens as u32,
                    width: width as u32,
                    first_row: 5,
                    table_rows: table_rows as u32,
                    dtype,
                }]
            });
        }
    }
}

#[test]
fn elementwise_operations_agree() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("elementwise_operations_agree");
    for len in [1usize, 255, 1027, 5000] {
        let mut case = Case::new(format!("elementwise {len}"));
        let mut large = random.values(len + 3);
        large.iter_mut().for_each(|value| *value *= 20.0);
        large[3] = -95.0; // exp overflows here if it is not guarded
        let x = case.floats(large);
        let y = case.floats(random.values(len + 3));
        let z = case.floats(random.values(len + 3));
        let (p, q) = (case.floats(random.values(len + 3)), case.floats(random.values(len + 3)));
        let gate = case.floats(vec![0.03, -0.05]);
        let dgate = case.floats(vec![0.5, 0.25]);
        let sum = case.floats(vec![1.5, 2.5]);
        let words = case.bits(vec![7; len + 3]);
        let n = len as u32;
        let s = |ids: &[BufferId], i| at(ids, i, 3);
        case.check(&gpu, |ids| vec![Op::Fill { dst: at(ids, words, 2), value: f32::from_bits(123_456), len: n }]);
        case.check(&gpu, |ids| vec![Op::Copy { src: s(ids, x), dst: s(ids, p), len: n }]);
        case.check(&gpu, |ids| vec![Op::Add { a: s(ids, x), b: s(ids, y), out: s(ids, p), len: n }]);
        case.check(&gpu, |ids| vec![Op::Axpy { src: s(ids, x), dst: s(ids, p), factor: -0.37, len: n }]);
        for activation in ACTIVATIONS {
            let op = |ids: &[BufferId], up| Op::Activate { activation, x: s(ids, x), up, out: s(ids, p), len: n };
            case.check(&gpu, |ids| vec![op(ids, Some(s(ids, y)))]);
            case.check(&gpu, |ids| vec![op(ids, None)]);
            let op = |ids: &[BufferId], up, dup| Op::ActivateGrad { activation, x: s(ids, x), up, dout: s(ids, z), dx: s(ids, p), dup, len: n };
            case.check(&gpu, |ids| vec![op(ids, Some(s(ids, y)), Some(s(ids, q)))]);
            case.check(&gpu, |ids| vec![op(ids, None, None)]);
        }
        case.check(&gpu, |ids| {
            vec![Op::GateMix { a: s(ids, x), p: s(ids, y), gate: at(ids, gate, 1), out: s(ids, p), len: n, temperature: 0.1 }]
        });
        case.check(&gpu, |ids| {
            vec![Op::GateMixGrad {
                a: s(ids, x),
                p: s(ids, y),
                gate: at(ids, gate, 1),
                dout: s(ids, z),
                da: s(ids, p),
                dp: s(ids, q),
                dgate: at(ids, dgate, 1),
                len: n,
                temperature: 0.1,
            }]
        });
        case.check(&gpu, |ids| vec![Op::SumSquares { x: s(ids, x), out: at(ids, sum, 1), len: n }]);
    }
}

#[test]
fn a_sum_over_many_workgroups_agrees() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("a_sum_over_many_workgroups_agrees");
    let mut case = Case::new("sum of squares");
    let len = 700_001;
    let x = case.floats(random.values(len));
    let out = case.floats(vec![3.0]);
    case.check(&gpu, |ids| vec![Op::SumSquares { x: at(ids, x, 0), out: at(ids, out, 0), len: len as u32 }]);
}

#[test]
fn adam_w_agrees_over_steps() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("adam_w_agrees_over_steps");
    let mut case = Case::new("adam_w");
    let len = 777;
    let param = case.floats(random.values(len + 2));
    let grad = case.floats(random.values(len + 1));
    let (m, v) = (case.floats(vec![0.0; len]), case.floats(vec![0.0; len]));
    case.check(&gpu, |ids| {
        (1..=5)
            .map(|step| Op::AdamW {
                param: at(ids, param, 2),
                grad: at(ids, grad, 1),
                m: at(ids, m, 0),
                v: at(ids, v, 0),
                len: len as u32,
                step,
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
                grad_factor: 0.3,
            })
            .collect()
    });
}

#[test]
fn row_and_column_operations_agree() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("row_and_column_operations_agree");
    for (rows, cols) in [(1usize, 1usize), (3, 8), (37, 20), (5, 63), (6, 65), (19, 300), (70, 64)] {
        let len = rows * cols;
        let mut case = Case::new(format!("rows {rows}×{cols}"));
        let (x, dy) = (case.floats(random.values(len + 1)), case.floats(random.values(len + 1)));
        let weight = case.floats(random.values(cols + 2));
        let (out, more) = (case.floats(random.values(len + 1)), case.floats(random.values(cols + 2)));
        let (scale, rho) = (case.floats(random.positive(rows)), case.floats(random.positive(rows)));
        let (r, c) = (rows as u32, cols as u32);
        case.check(&gpu, |ids| vec![Op::AddBias { y: at(ids, out, 1), bias: at(ids, weight, 2), rows: r, cols: c }]);
        for accumulate in [false, true] {
            case.check(&gpu, |ids| {
                vec![
                    Op::ColumnSum { x: at(ids, x, 1), out: at(ids, more, 2), rows: r, cols: c, accumulate },
                    Op::ScaleRows { x: at(ids, x, 1), rho: at(ids, rho, 0), out: at(ids, out, 1), rows: r, cols: c, accumulate },
                    Op::CenterRows { x: at(ids, x, 1), out: at(ids, out, 1), rows: r, cols: c, accumulate },
                ]
            });
            for weight_shift in [0.0, 1.0] {
                case.check(&gpu, |ids| {
                    vec![
                        Op::RmsNorm {
                            x: at(ids, x, 1),
                            weight: at(ids, weight, 2),
                            out: at(ids, out, 1),
                            inv: at(ids, scale, 0),
                            rows: r,
                            cols: c,
                            eps: 1e-6,
                            weight_shift,
                        },
                        Op::RmsNormGrad {
                            x: at(ids, x, 1),
                            weight: at(ids, weight, 2),
                            inv: at(ids, rho, 0),
                            dy: at(ids, dy, 1),
                            dx: at(ids, out, 1),
                            rows: r,
                            cols: c,
                            weight_shift,
                            accumulate,
                        },
                        Op::RmsNormWeightGrad {
                            x: at(ids, x, 1),
                            inv: at(ids, rho, 0),
                            dy: at(ids, dy, 1),
                            dweight: at(ids, more, 2),
                            rows: r,
                            cols: c,
                        },
                    ]
                });
            }
        }
        case.check(&gpu, |ids| {
            vec![Op::TapScale { x: at(ids, x, 1), out: at(ids, out, 1), rho: at(ids, rho, 0), rows: r, cols: c }]
        });
        case.check(&gpu, |ids| {
            vec![Op::ScaledAdd { base: at(ids, x, 1), rho: at(ids, rho, 0), u: at(ids, dy, 1), out: at(ids, out, 1), rows: r, cols: c }]
        });
    }
}

#[test]
fn columns_agree() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("columns_agree");
    for (rows, cols, src_stride, dst_stride) in [(1u32, 1u32, 1u32, 1u32), (7, 5, 15, 5), (33, 12, 36, 12), (40, 16, 16, 48)] {
        let mut case = Case::new(format!("columns {rows}×{cols}"));
        let src = case.floats(random.values((rows * src_stride) as usize + 3));
        let dst = case.floats(random.values((rows * dst_stride) as usize + 3));
        for accumulate in [false, true] {
            case.check(&gpu, |ids| {
                let (src, dst) = (at(ids, src, (src_stride - cols) as usize), at(ids, dst, (dst_stride - cols) as usize));
                vec![Op::CopyColumns { src, dst, rows, cols, src_stride, dst_stride, accumulate }]
            });
        }
    }
}

#[test]
fn table_operations_agree() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("table_operations_agree");
    for (tokens, width, table_rows) in [(1usize, 1usize, 3usize), (23, 17, 9), (40, 36, 100)] {
        let first_row = 5u32;
        let table: Vec<f32> = random.values(2 + table_rows * width);
        let ids: Vec<u32> = (0..tokens).map(|_| random.below(table_rows as u32 + 10)).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let mut case = Case::new(format!("embed {tokens}×{width} {dtype:?}"));
            let weight = match dtype {
                Dtype::F32 => case.floats(table.clone()),
                Dtype::F16 => case.bits(to_f16(&table)),
                Dtype::Bf16 => case.bits(to_bf16(&table)),
                Dtype::Q8 | Dtype::Q4 => unreachable!("blocks have a test of their own"),
            };
            let tokens_ids = case.bits(ids.clone());
            let out = case.floats(random.values(tokens * width + 1));
            case.check(&gpu, |b| {
                vec![Op::Embed {
                    table: at(b, weight, 2),
                    ids: b[tokens_ids],
                    out: at(b, out, 1),
                    tokens: tokens as u32,
                    width: width as u32,
                    first_row,
                    table_rows: table_rows as u32,
                    dtype,
                }]
            });
        }
        let mut case = Case::new(format!("embed gradient, gather, scatter {tokens}×{width}"));
        let dout = case.floats(random.values(tokens * width + 1));
        let token_ids = case.bits(ids);
        let dtable = case.floats(random.values(table_rows * width + 3));
        case.check(&gpu, |b| {
            vec![Op::EmbedGrad {
                dout: at(b, dout, 1),
                ids: b[token_ids],
                dtable: at(b, dtable, 3),
                tokens: tokens as u32,
                width: width as u32,
                first_row,
                table_rows: table_rows as u32,
            }]
        });
        let picked: Vec<u32> = (0..tokens as u32).rev().step_by(2).collect();
        let rows = picked.len();
        let indices = case.bits(picked);
        let out = case.floats(random.values(rows * width + 2));
        case.check(&gpu, |b| {
            vec![
                Op::GatherRows { x: at(b, dout, 1), indices: b[indices], out: at(b, out, 2), rows: rows as u32, cols: width as u32 },
                Op::ScatterRows { dy: at(b, out, 2), indices: b[indices], dx: at(b, dout, 1), rows: rows as u32, cols: width as u32 },
            ]
        });
    }
}

#[test]
fn segment_max_and_its_gradient() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("segment_max_and_its_gradient");
    for (lengths, cols) in [(&[1u32][..], 1usize), (&[3, 1, 5], 7), (&[40, 2, 9, 1], 48), (&[7; 30], 19)] {
        let mut case = Case::new(format!("segments {lengths:?} of {cols} columns"));
        let ranges: Vec<u32> = lengths.iter().scan(2, |first, len| Some([std::mem::replace(first, *first + len), *first])).flatten().collect();
        let (rows, len) = (2 + lengths.iter().sum::<u32>() as usize, lengths.len() * cols);
        let x = random.values(rows * cols);
        // Some values twice: both sides keep the first.
        let x: Vec<f32> = x.iter().enumerate().map(|(i, value)| if i % 3 == 0 { 0.5 } else { *value }).collect();
        let (x, ranges) = (case.floats(std::iter::once(9.0).chain(x).collect()), case.bits(ranges));
        let (out, index) = (case.floats(vec![0.0; len + 2]), case.bits(vec![0; len]));
        let dx = case.floats(random.values(rows * cols + 1));
        let (segments, cols) = (lengths.len() as u32, cols as u32);
        case.check(&gpu, |b| {
            vec![
                Op::SegmentMax { x: at(b, x, 1), ranges: b[ranges], out: at(b, out, 2), index: b[index], segments, cols },
                Op::SegmentMaxGrad { dy: at(b, out, 2), index: b[index], dx: at(b, dx, 1), segments, cols },
            ]
        });
    }
}

#[test]
fn rope_agrees_far_from_the_origin() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("rope_agrees_far_from_the_origin");
    for (tokens, heads, head_dim) in [(1usize, 1usize, 2usize), (7, 3, 6), (9, 2, 64), (5, 4, 128)] {
        for inverse in [false, true] {
            for in_place in [false, true] {
                let mut case = Case::new(format!("rope {tokens}×{heads}×{head_dim} inverse {inverse} in place {in_place}"));
                let len = tokens * heads * head_dim;
                let x = case.floats(random.values(len + 1));
                let positions = case.bits((0..tokens as u32).map(|t| t * 4099).collect());
                let inv_freq =
                    case.floats((0..head_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect());
                let out = case.floats(random.values(len + 1));
                let input = if in_place { out } else { x };
                let op = |ids: &[BufferId], input: usize| Op::Rope {
                    x: at(ids, input, 1),
                    positions: ids[positions],
                    inv_freq: ids[inv_freq],
                    out: at(ids, out, 1),
                    tokens: tokens as u32,
                    heads: heads as u32,
                    head_dim: head_dim as u32,
                    scale: 0.75,
                    inverse,
                };
                if in_place {
                    // The CPU twin is not asked to work in place: it gets a copy first.
                    let source = case.floats(vec![0.0; len + 1]);
                    let copy = |ids: &[BufferId]| Op::Copy { src: at(ids, out, 0), dst: at(ids, source, 0), len: len as u32 + 1 };
                    let expected = case.run_on(&CpuBackend::default(), &|ids| vec![copy(ids), op(ids, source)]);
                    let got = case.run_on(&gpu, &|ids| vec![copy(ids), op(ids, input)]);
                    for (a, b) in got[out].iter().zip(&expected[out]) {
                        assert!((f32::from_bits(*a) - f32::from_bits(*b)).abs() <= TOLERANCE, "{}", case.name);
                    }
                } else {
                    case.check(&gpu, |ids| vec![op(ids, input)]);
                }
            }
        }
    }
}

/// Packed segments: (queries, keys) of each.
struct Packed {
    segments: Vec<(u32, u32)>,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    causal: bool,
    window: u32,
    /// Whether scores get a bias by distance.
    bias: bool,
}

impl Packed {
    fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            bias_zero: if self.bias { self.longest() - 1 } else { 0 },
            causal: self.causal,
            window: self.window,
            segments: self.segments.len() as u32,
            queries: self.segments.iter().map(|(queries, _)| queries).sum(),
            keys: self.segments.iter().map(|(_, keys)| keys).sum(),
        }
    }

    fn longest(&self) -> u32 {
        self.segments.iter().map(|&(queries, keys)| queries.max(keys)).max().unwrap_or(1)
    }

    fn bias_len(&self) -> usize {
        ((2 * self.shape().bias_zero + 1) * self.heads) as usize
    }

    fn table(&self) -> Vec<u32> {
        let (mut q, mut k) = (0, 0);
        let mut words = Vec::new();
        for (queries, keys) in &self.segments {
            words.extend([q, q + queries, k, k + keys]);
            (q, k) = (q + queries, k + keys);
        }
        words
    }
}

fn attention_cases() -> Vec<Packed> {
    let packed = |segments: &[(u32, u32)], heads, kv_heads, head_dim, causal, window| Packed {
        segments: segments.to_vec(),
        heads,
        kv_heads,
        head_dim,
        causal,
        window,
        bias: false,
    };
    let biased = |packed: Packed| Packed { bias: true, ..packed };
    vec![
        packed(&[(1, 1)], 1, 1, 2, true, 0),
        packed(&[(5, 5), (1, 1), (12, 12)], 2, 1, 6, true, 0),
        packed(&[(3, 3), (70, 70), (9, 9)], 4, 2, 16, true, 0),
        packed(&[(30, 30), (67, 67)], 3, 3, 10, false, 0),
        packed(&[(90, 90), (20, 20)], 2, 1, 32, true, 13),
        packed(&[(20, 20), (30, 30)], 4, 1, 64, false, 7),
        packed(&[(40, 40)], 2, 1, 100, true, 0),
        packed(&[(21, 21), (33, 33)], 2, 2, 128, true, 0),
        packed(&[(9, 9), (68, 68)], 2, 1, 256, true, 0),
        // Decoding: few queries, many keys of their own.
        packed(&[(1, 80), (1, 5), (1, 130), (2, 9)], 4, 2, 16, true, 0),
        packed(&[(1, 80), (1, 5), (1, 130)], 2, 2, 64, true, 20),
        // A decoder that looks at an encoder: other lengths, no causality.
        packed(&[(7, 19), (11, 3)], 2, 2, 8, false, 0),
        // A bias by distance: an encoder, a decoder, shared heads with a window, decoding.
        biased(packed(&[(21, 21), (1, 1), (70, 70)], 3, 3, 8, false, 0)),
        biased(packed(&[(9, 9), (67, 67)], 6, 6, 16, true, 0)),
        biased(packed(&[(33, 33), (12, 12)], 4, 2, 10, true, 7)),
        biased(packed(&[(1, 40), (2, 9)], 2, 2, 16, true, 0)),
    ]
}

#[test]
fn attention_agrees() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("attention_agrees");
    for packed in attention_cases() {
        for offset in [0usize, 1] {
            let shape = packed.shape();
            let q_len = (shape.queries * shape.heads * shape.head_dim) as usize;
            let kv_len = (shape.keys * shape.kv_heads * shape.head_dim) as usize;
            let rows = (shape.queries * shape.heads) as usize;
            let mut case = Case::new(format!("attention {shape:?} offset {offset}"));
            let mut q_values = random.values(offset + q_len);
            q_values.iter_mut().for_each(|value| *value *= 4.0);
            let q = case.floats(q_values);
            let (k, v) = (case.floats(random.values(offset + kv_len)), case.floats(random.values(offset + kv_len)));
            let table = case.bits(packed.table());
            let (out, lse) = (case.floats(vec![9.0; offset + q_len]), case.floats(vec![9.0; rows + 1]));
            let bias = case.floats(random.values(offset + packed.bias_len()));
            case.check(&gpu, |ids| {
                vec![Op::Attention {
                    bias: packed.bias.then(|| at(ids, bias, offset)),
                    q: at(ids, q, offset),
                    k: at(ids, k, offset),
                    v: at(ids, v, offset),
                    table: ids[table],
                    out: at(ids, out, offset),
                    lse: at(ids, lse, 1),
                    shape,
                }]
            });
        }
    }
}

#[test]
fn attention_gradient_agrees() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("attention_gradient_agrees");
    for packed in attention_cases() {
        let offset = 4;
        let shape = packed.shape();
        let q_len = (shape.queries * shape.heads * shape.head_dim) as usize;
        let kv_len = (shape.keys * shape.kv_heads * shape.head_dim) as usize;
        let rows = (shape.queries * shape.heads) as usize;
        let mut case = Case::new(format!("attention gradient {shape:?}"));
        // p and dp − delta each carry 1e-6 from their own sums, and delta cancels much of dp.
        case.tolerance = 3e-5;
        let (q, k) = (case.floats(random.values(offset + q_len)), case.floats(random.values(offset + kv_len)));
        let v = case.floats(random.values(offset + kv_len));
        let table = case.bits(packed.table());
        let (out, lse) = (case.floats(vec![9.0; offset + q_len]), case.floats(vec![9.0; rows]));
        let (dout, delta) = (case.floats(random.values(offset + q_len)), case.floats(vec![9.0; rows]));
        let dq = case.floats(vec![9.0; offset + q_len]);
        let (dk, dv) = (case.floats(vec![9.0; offset + kv_len]), case.floats(vec![9.0; offset + kv_len]));
        let bias = case.floats(random.values(offset + packed.bias_len()));
        let dbias = case.floats(vec![9.0; offset + packed.bias_len()]);
        case.check(&gpu, |ids| {
            let s = |i| at(ids, i, offset);
            let biased = |i| packed.bias.then(|| s(i));
            vec![
                Op::Attention { q: s(q), k: s(k), v: s(v), table: ids[table], bias: biased(bias), out: s(out), lse: at(ids, lse, 0), shape },
                Op::AttentionGrad {
                    bias: biased(bias),
                    dbias: biased(dbias),
                    q: s(q),
                    k: s(k),
                    v: s(v),
                    table: ids[table],
                    out: s(out),
                    lse: at(ids, lse, 0),
                    dout: s(dout),
                    delta: at(ids, delta, 0),
                    dq: s(dq),
                    dk: s(dk),
                    dv: s(dv),
                    shape,
                },
            ]
        });
    }
}

#[test]
fn cross_entropy_over_chunks_agrees() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("cross_entropy_over_chunks_agrees");
    for (rows, chunks) in [(1usize, vec![1usize]), (13, vec![300, 7, 256]), (5, vec![1000, 30])] {
        let mut case = Case::new(format!("cross-entropy {rows} rows, chunks {chunks:?}"));
        let classes: usize = chunks.iter().sum();
        let logits: Vec<usize> = chunks
            .iter()
            .map(|cols| {
                let values = random.values(1 + rows * cols).into_iter().map(|value| value * 30.0).collect();
                case.floats(values)
            })
            .collect();
        let labels = case.bits((0..rows).map(|_| random.below(classes as u32)).collect());
        let (max, sum) = (case.floats(vec![-3.4e38; rows]), case.floats(vec![0.0; rows]));
        let target = case.floats(vec![0.0; rows]);
        let (lse, loss) = (case.floats(vec![9.0; rows]), case.floats(vec![9.0; rows]));
        let (best_value, best_index) = (case.floats(vec![-3.4e38; rows]), case.bits(vec![0; rows]));
        let r = rows as u32;
        case.check(&gpu, |ids| {
            let mut ops = Vec::new();
            let mut first_class = 0;
            let starts: Vec<(usize, u32, u32)> = logits
                .iter()
                .zip(&chunks)
                .map(|(buffer, cols)| {
                    let entry = (*buffer, first_class, *cols as u32);
                    first_class += *cols as u32;
                    entry
                })
                .collect();
            let s = |i| at(ids, i, 0);
            for (buffer, first_class, cols) in &starts {
                let (logits, first_class, cols) = (at(ids, *buffer, 1), *first_class, *cols);
                let (max, sum, target) = (s(max), s(sum), s(target));
                ops.push(Op::SoftmaxStats { logits, labels: ids[labels], max, sum, target, rows: r, cols, first_class });
                let best = ids[best_index];
                ops.push(Op::ArgMax { logits, best_value: s(best_value), best_index: best, rows: r, cols, first_class });
            }
            ops.push(Op::SoftmaxLoss { max: s(max), sum: s(sum), target: s(target), lse: s(lse), loss: s(loss), rows: r });
            for (buffer, first_class, cols) in &starts {
                ops.push(Op::SoftmaxGrad {
                    logits: at(ids, *buffer, 1),
                    labels: ids[labels],
                    lse: s(lse),
                    rows: r,
                    cols: *cols,
                    first_class: *first_class,
                    factor: 0.25,
                });
            }
            ops
        });
    }
}

#[test]
fn argmax_keeps_the_lower_index_of_equals() {
    let Some(gpu) = gpu() else { return };
    let mut case = Case::new("ties");
    let mut values = vec![0.0; 2 * 700];
    (values[600], values[13], values[300]) = (2.0, 2.0, 2.0);
    let logits = case.floats(values);
    let (value, index) = (case.floats(vec![-3.4e38; 1]), case.bits(vec![0; 1]));
    case.check(&gpu, |ids| {
        [0u32, 1]
            .map(|chunk| Op::ArgMax {
                logits: at(ids, logits, 0),
                best_value: at(ids, value, 0),
                best_index: ids[index],
                rows: 1,
                cols: 700,
                first_class: chunk * 700,
            })
            .to_vec()
    });
}

#[test]
fn half_precision_packing_is_bit_exact() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("half_precision_packing_is_bit_exact");
    let mut case = Case::new("pack f16");
    // Ties, subnormals of f16, overflow, signed zero, and random magnitudes over the whole range.
    let mut values = vec![0.0f32, -0.0, 65504.0, 65519.9, 65520.0, -1e9, 5.96e-8, 2.98e-8, 2.99e-8, 8.9e-8, 6.1e-5, 6.09e-5];
    values.extend((0..2000).map(|i| 1.0 + (i as f32) / 4096.0));
    values.extend((0..2000).map(|_| random.value() * 2f32.powi(random.below(48) as i32 - 30)));
    values.resize(values.len().next_multiple_of(2), 0.0);
    let len = values.len();
    let x = case.floats(values);
    let packed = case.bits(vec![9; len / 2]);
    let back = case.bits(vec![9; len]);
    case.check(&gpu, |ids| {
        vec![
            Op::PackF16 { x: at(ids, x, 0), out: ids[packed], len: len as u32 },
            Op::UnpackF16 { x: at(ids, packed, 2), out: at(ids, back, 2), len: len as u32 - 2 },
        ]
    });
}

#[test]
fn operations_within_one_buffer_are_correct() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::from_env("operations_within_one_buffer_are_correct");
    // All operands live in one buffer on the GPU, in buffers of their own on the CPU.
    let len = 333usize;
    let mut apart = Case::new("apart");
    let parts: Vec<Vec<f32>> = (0..5).map(|_| random.values(len)).collect();
    for part in &parts {
        apart.floats(part.clone());
    }
    let mut together = Case::new("together");
    together.floats(parts.concat());
    let op = |slices: &[Slice]| Op::ActivateGrad {
        activation: Activation::Silu,
        x: slices[0],
        up: Some(slices[1]),
        dout: slices[2],
        dx: slices[3],
        dup: Some(slices[4]),
        len: len as u32,
    };
    let expected = apart.run_on(&CpuBackend::default(), &|ids| vec![op(&(0..5).map(|i| at(ids, i, 0)).collect::<Vec<_>>())]);
    let got = together.run_on(&gpu, &|ids| vec![op(&(0..5).map(|i| at(ids, 0, i * len)).collect::<Vec<_>>())]);
    for (a, b) in got[0].iter().zip(expected.concat()) {
        let (a, b) = (f32::from_bits(*a), f32::from_bits(b));
        assert!((a - b).abs() <= TOLERANCE, "{a} against {b}");
    }
}
