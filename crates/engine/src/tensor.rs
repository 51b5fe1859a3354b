//! Handles of values that live on a device; the last handle dropped gives the buffer back.

use crate::backend::{Backend, BackendError};
use crate::op::{BufferId, Dtype, Op, Slice};
use std::rc::Rc;

/// The back end that holds a tensor, shared by all handles.
pub type Device = Rc<dyn Backend>;

/// A row-major array on a device, or a part of one; cloning clones the handle, not the values.
#[derive(Clone)]
pub struct Tensor {
    storage: Rc<Storage>,
    offset: usize,
    shape: Vec<usize>,
    dtype: Dtype,
}

struct Storage {
    device: Device,
    buffer: BufferId,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.device.free(self.buffer);
    }
}

impl Tensor {
    /// An f32 tensor of unspecified contents.
    pub fn empty(device: &Device, shape: &[usize]) -> Self {
        Self::empty_as(device, shape, Dtype::F32)
    }

    /// A tensor of unspecified contents, stored as `dtype`.
    pub fn empty_as(device: &Device, shape: &[usize], dtype: Dtype) -> Self {
        let words = dtype.words(shape.iter().product::<usize>()).max(1);
        let storage = Storage { device: device.clone(), buffer: device.allocate(words) };
        Self { storage: Rc::new(storage), offset: 0, shape: shape.to_vec(), dtype }
    }

    /// All elements the same.
    pub fn full(device: &Device, shape: &[usize], value: f32) -> Self {
        let tensor = Self::empty(device, shape);
        tensor.fill(value);
        tensor
    }

    /// All elements 0.
    pub fn zeros(device: &Device, shape: &[usize]) -> Self {
        Self::full(device, shape, 0.0)
    }

    /// Copies `values` to the device; their number must be the shape's.
    pub fn from_f32(device: &Device, shape: &[usize], values: &[f32]) -> Self {
        Self::from_words(device, shape, Dtype::F32, bytemuck::cast_slice(values))
    }

    /// A vector of u32 (token ids, positions, tables), one per word.
    pub fn from_u32(device: &Device, values: &[u32]) -> Self {
        Self::from_words(device, &[values.len()], Dtype::F32, values)
    }

    /// Copies words that hold `shape` elements of `dtype`.
    pub fn from_words(device: &Device, shape: &[usize], dtype: Dtype, words: &[u32]) -> Self {
        let tensor = Self::empty_as(device, shape, dtype);
        assert_eq!(words.len(), dtype.words(tensor.len()), "the words fill the shape {shape:?}");
        device.write(tensor.buffer(), 0, words);
        tensor
    }

    /// `len` elements from `start` on, as a tensor of another shape that shares the buffer.
    pub fn part(&self, start: usize, shape: &[usize]) -> Self {
        assert!(start + shape.iter().product::<usize>() <= self.len(), "the part {start} + {shape:?} lies in {:?}", self.shape);
        Self { offset: self.offset + start, shape: shape.to_vec(), ..self.clone() }
    }

    /// The same elements under another shape.
    pub fn reshaped(&self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "{:?} becomes {shape:?}", self.shape);
        Self { shape: shape.to_vec(), ..self.clone() }
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.storage.device
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How elements are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The innermost size.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// All sizes but the innermost, multiplied.
    pub fn rows(&self) -> usize {
        self.len() / self.cols().max(1)
    }

    /// The buffer, for operations that take one whole.
    pub fn buffer(&self) -> BufferId {
        self.storage.buffer
    }

    /// The place of the first element.
    pub fn slice(&self) -> Slice {
        Slice { buffer: self.storage.buffer, offset: self.offset as u32 }
    }

    /// Whether this is the only handle of the buffer, so that it may be changed in place.
    pub fn is_unshared(&self) -> bool {
        Rc::strong_count(&self.storage) == 1
    }

    /// Runs an operation on the tensor's device.
    pub fn run(&self, op: Op) {
        self.storage.device.run(op);
    }

    /// Sets all elements (f32).
    pub fn fill(&self, value: f32) {
        self.run(Op::Fill { dst: self.slice(), value, len: self.len() as u32 });
    }

    /// Overwrites elements from `start` on (f32).
    pub fn write(&self, start: usize, values: &[f32]) {
        self.device().write(self.buffer(), self.offset + start, bytemuck::cast_slice(values));
    }

    /// A copy in a buffer of its own (f32).
    pub fn duplicate(&self) -> Self {
        let copy = Self::empty(self.device(), &self.shape);
        self.run(Op::Copy { src: self.slice(), dst: copy.slice(), len: self.len() as u32 });
        copy
    }

    /// Brings the elements back (f32).
    pub async fn read(&self) -> Result<Vec<f32>, BackendError> {
        let words = self.read_words().await?;
        Ok(bytemuck::cast_vec(words))
    }

    /// Brings the words back: u32 elements, packed pairs, or pairs of blocks.
    pub async fn read_words(&self) -> Result<Vec<u32>, BackendError> {
        let (group, words) = self.dtype.group();
        self.device().read(self.buffer(), self.offset / group * words, self.dtype.words(self.len())).await
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?} {:?})", self.dtype, self.shape)
    }
}
