//! The obligations of `trait Backend`, by number, checked on both back ends.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use barycenter_engine::cpu::CpuBackend;
use barycenter_engine::op::{BufferId, Op, Slice};
use barycenter_engine::{Backend, BackendError};
use support::gpu;

fn each(test: impl Fn(&dyn Backend)) {
    test(&CpuBackend::default());
    if let Some(gpu) = gpu() {
        test(&gpu);
    }
}

fn floats(backend: &dyn Backend, values: &[f32]) -> BufferId {
    let id = backend.allocate(values.len());
    backend.write(id, 0, bytemuck::cast_slice(values));
    id
}

fn read(backend: &dyn Backend, id: BufferId, len: usize) -> Vec<f32> {
    bytemuck::cast_slice(&pollster::block_on(backend.read(id, 0, len)).unwrap()).to_vec()
}

fn axpy(src: BufferId, dst: BufferId, factor: f32, len: u32) -> Op {
    Op::Axpy { src: src.into(), dst: dst.into(), factor, len }
}

#[test]
fn obligation_1_operations_run_in_order() {
    each(|backend| {
        let a = floats(backend, &[1.0; 500]);
        let b = floats(backend, &[0.0; 500]);
        // Fibonacci numbers: each operation needs the one before. More of them than one submission takes.
        for _ in 0..10 {
            backend.run(axpy(a, b, 1.0, 500));
            backend.run(axpy(b, a, 1.0, 500));
        }
        for _ in 0..600 {
            backend.run(axpy(a, b, 0.0, 500));
        }
        assert_eq!(read(backend, a, 500), vec![10946.0; 500]);
        assert_eq!(read(backend, b, 500), vec![6765.0; 500]);
    });
}

#[test]
fn obligation_2_a_buffer_of_no_words_is_a_buffer() {
    each(|backend| {
        let empty = backend.allocate(0);
        let id = backend.allocate(100_003);
        backend.write(id, 100_002, &[7]);
        assert_eq!(pollster::block_on(backend.read(id, 100_002, 1)).unwrap(), vec![7]);
        assert_eq!(pollster::block_on(backend.read(id, 0, 0)).unwrap(), Vec::<u32>::new());
        backend.write(empty, 0, &[]);
        backend.free(empty);
        backend.free(id);
    });
}

#[test]
fn obligation_3_freed_buffers_keep_their_contents_for_recorded_work() {
    each(|backend| {
        let sum = floats(backend, &[0.0; 64]);
        for i in 0..20 {
            let term = floats(backend, &[i as f32; 64]);
            backend.run(axpy(term, sum, 1.0, 64));
            backend.free(term);
        }
        assert_eq!(read(backend, sum, 64), vec![190.0; 64]);
    });
}

#[test]
fn obligation_4_a_read_sees_what_was_recorded_before_it_and_nothing_later() {
    each(|backend| {
        let one = floats(backend, &[1.0; 16]);
        let sum = floats(backend, &[0.0; 16]);
        backend.run(axpy(one, sum, 1.0, 16));
        let early = backend.read(sum, 0, 16);
        backend.run(axpy(one, sum, 1.0, 16));
        backend.write(one, 0, &[0; 16]);
        let late = backend.read(sum, 4, 2);
        let two: Vec<u32> = vec![2f32.to_bits(); 2];
        assert_eq!(pollster::block_on(late).unwrap(), two);
        assert_eq!(pollster::block_on(early).unwrap(), vec![1f32.to_bits(); 16]);
    });
}

#[test]
fn obligation_5_writes_are_ordered_with_operations() {
    each(|backend| {
        let term = floats(backend, &[1.0; 8]);
        let sum = floats(backend, &[0.0; 8]);
        backend.run(axpy(term, sum, 1.0, 8));
        backend.write(term, 0, bytemuck::cast_slice(&[10.0f32; 4]));
        backend.run(axpy(term, sum, 1.0, 8));
        backend.submit();
        backend.write(term, 4, bytemuck::cast_slice(&[100.0f32; 4]));
        backend.run(axpy(term, sum, 1.0, 8));
        assert_eq!(read(backend, sum, 8), [21.0, 21.0, 21.0, 21.0, 102.0, 102.0, 102.0, 102.0]);
    });
}

#[test]
fn obligation_6_a_lost_device_is_an_error_from_read() {
    let Some(backend) = gpu() else { return };
    let a = floats(&backend, &[1.0; 64]);
    let b = floats(&backend, &[1.0; 64]);
    backend.run(axpy(a, b, 1.0, 64));
    let pending = backend.read(b, 0, 64);
    backend.lose_device();
    // A read that was under way ends, one way or the other.
    let _ = pollster::block_on(pending);
    let fresh = backend.allocate(10_000);
    backend.write(fresh, 0, &[1]);
    backend.run(axpy(a, b, 1.0, 64));
    backend.submit();
    let error = pollster::block_on(backend.read(b, 0, 64)).unwrap_err();
    assert!(matches!(error, BackendError::DeviceLost(_)), "{error}");
    backend.free(fresh);
}

#[test]
fn a_buffer_over_the_limit_is_an_error_from_read() {
    let Some(backend) = gpu() else { return };
    let id = backend.allocate(1 << 28);
    let error = pollster::block_on(backend.read(id, 0, 1)).unwrap_err();
    assert!(matches!(error, BackendError::BufferTooLarge { wanted_bytes: 0x4000_0000, .. }), "{error}");
}

#[test]
fn memory_counts_what_is_held_and_reset_peak_drops_what_is_spare() {
    each(|backend| {
        let before = backend.memory().current_bytes;
        let id = backend.allocate(1 << 20);
        let with = backend.memory();
        assert!(with.current_bytes >= before + (4 << 20) && with.peak_bytes >= with.current_bytes);
        backend.free(id);
        backend.reset_peak();
        let after = backend.memory();
        assert!(after.current_bytes <= before, "{after:?}");
        assert_eq!(after.current_bytes, after.peak_bytes);
    });
}

#[test]
fn a_buffer_is_reused() {
    each(|backend| {
        for i in 0..50 {
            let id = backend.allocate(10_000 + 7 * i);
            backend.run(Op::Fill { dst: Slice::from(id), value: 1.0, len: 10_000 });
            backend.free(id);
        }
        assert!(backend.memory().current_bytes < 200_000, "{:?}", backend.memory());
    });
}
