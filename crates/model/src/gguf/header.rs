//! What stands in front of the tensors of a GGUF file: metadata, and where each tensor lies.
//!
//! Layout, little-endian: magic `GGUF`, version u32, tensor count u64, metadata count u64; per metadata entry its key,
//! a type u32 and a value; per tensor its name, dimension count u32, dimensions u64 (innermost first), type u32 and the
//! offset u64 of its bytes from the start of the data, which is aligned. A text is a length u64 and UTF-8 bytes.

use crate::{ModelError, blocks};
use std::collections::BTreeMap;

const MAGIC: &[u8; 4] = b"GGUF";
/// Where `general.alignment` is not said.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Bytes that a tensor's entry takes at least: name length, dimension count, one dimension, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;
/// Bytes that a metadata entry takes at least: key length, type, a one-byte value.
const MIN_ENTRY_BYTES: usize = 8 + 4 + 1;

/// A number format of tensors that can be read; the names are those of `ggml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlType {
    /// 32-bit float.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 int4 with an f16 scale.
    Q4_0,
    /// Blocks of 32 int8 with an f16 scale.
    Q8_0,
    /// Super-blocks of 256 int4, 8 blocks with 6-bit scales and minima.
    Q4K,
    /// Super-blocks of 256 6-bit integers, 16 blocks with 8-bit scales.
    Q6K,
}

impl GgmlType {
    /// Elements of a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            GgmlType::F32 => (1, 4),
            GgmlType::F16 | GgmlType::Bf16 => (1, 2),
            GgmlType::Q4_0 => (blocks::BLOCK, blocks::Q4_BYTES),
            GgmlType::Q8_0 => (blocks::BLOCK, blocks::Q8_BYTES),
            GgmlType::Q4K => (super::kquants::SUPER_BLOCK, super::kquants::Q4_K_BYTES),
            GgmlType::Q6K => (super::kquants::SUPER_BLOCK, super::kquants::Q6_K_BYTES),
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => GgmlType::F32,
            1 => GgmlType::F16,
            2 => GgmlType::Q4_0,
            8 => GgmlType::Q8_0,
            12 => GgmlType::Q4K,
            14 => GgmlType::Q6K,
            30 => GgmlType::Bf16,
            _ => return None,
        })
    }
}

/// The name of a type that cannot be read, for the sentence that says so.
fn type_name(number: u32) -> String {
    let known = match number {
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {number}"),
    };
    known.to_string()
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer.
    Integer(i128),
    /// f32 or f64.
    Float(f64),
    /// Truth value.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers or truth values (0 and 1).
    Numbers(Vec<f64>),
}

/// Where a tensor lies and how it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Number format.
    pub ggml_type: GgmlType,
    /// Sizes, outermost first (the file has them the other way round).
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
}

/// Metadata and the table of tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufHeader {
    /// Name of the file, for messages.
    pub file: String,
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// By the file's own names.
    pub tensors: BTreeMap<String, GgufTensor>,
}

impl GgufHeader {
    /// Reads the header of a whole file in memory (a map); every length is checked before anything is allocated.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ModelError> {
        let bad = |reason: String| ModelError::BadGguf { file: file.to_string(), reason };
        let mut reader = Reader { bytes, at: 0 };
        if bytes.get(..4) != Some(MAGIC) {
            return Err(bad("it does not start with GGUF".into()));
        }
        reader.at = 4;
        let version = reader.u32().map_err(&bad)?;
        if !(2..=3).contains(&version) {
            let big_endian = (2..=3).contains(&version.swap_bytes());
            return Err(bad(if big_endian { "it is big-endian".into() } else { format!("it is of version {version}, and 2 and 3 can be read") }));
        }
        let tensor_count = reader.count("tensors", MIN_TENSOR_BYTES).map_err(&bad)?;
        let entry_count = reader.count("metadata entries", MIN_ENTRY_BYTES).map_err(&bad)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..entry_count {
            let key = reader.text().map_err(&bad)?;
            let value = reader.u32().and_then(|kind| reader.value(kind)).map_err(|reason| bad(format!("its entry `{key}` cannot be read: {reason}")))?;
            metadata.insert(key, value);
        }
        let mut infos = Vec::new();
        for _ in 0..tensor_count {
            infos.push(reader.tensor_info().map_err(&bad)?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Integer(alignment)) if (1..=1 << 20).contains(alignment) => *alignment as u64,
            Some(other) => return Err(bad(format!("its general.alignment is {other:?}"))),
        };
        let data_start = (reader.at as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for info in infos {
            let tensor = info.place(file, data_start, bytes.len())?;
            if tensors.insert(info.name.clone(), tensor).is_some() {
                return Err(bad(format!("it holds the tensor `{}` twice", info.name)));
            }
        }
        Ok(Self { file: file.to_string(), metadata, tensors })
    }

    /// An error about this file.
    pub(super) fn bad(&self, reason: impl Into<String>) -> ModelError {
        ModelError::BadGguf { file: self.file.clone(), reason: reason.into() }
    }

    /// A text entry.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key)? {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Option<&[f64]> {
        match self.metadata.get(key)? {
            Value::Numbers(numbers) => Some(numbers),
            _ => None,
        }
    }

    /// A natural number.
    pub fn natural(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Integer(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A number of any kind.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }
}

/// A tensor's entry as it stands in the file.
struct TensorInfo {
    name: String,
    /// Innermost first.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl TensorInfo {
    fn place(&self, file: &str, data_start: u64, file_bytes: usize) -> Result<GgufTensor, ModelError> {
        let name = || self.name.clone();
        let ggml_type = GgmlType::from_number(self.kind).ok_or_else(|| ModelError::UnsupportedQuantisation { name: name(), dtype: type_name(self.kind) })?;
        let bad = |reason: &str| ModelError::BadGguf { file: file.to_string(), reason: format!("its tensor `{}` {reason}", self.name) };
        let (block, block_bytes) = ggml_type.block();
        let row = self.dimensions.first().copied().unwrap_or(1);
        if !row.is_multiple_of(block as u64) {
            return Err(bad(&format!("has rows of {row} elements where {ggml_type:?} has blocks of {block}")));
        }
        let elements = self.dimensions.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let len = elements.and_then(|elements| (elements / block as u64).checked_mul(block_bytes as u64));
        let start = data_start.checked_add(self.offset);
        let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
        let (Some(start), Some(end)) = (start, end) else { return Err(bad("has an absurd size")) };
        if end > file_bytes as u64 {
            return Err(ModelError::WrongLength { file: file.to_string(), expected_bytes: end, got_bytes: file_bytes as u64 });
        }
        // Both are at most the length of a slice, so they and the sizes fit.
        let shape = self.dimensions.iter().rev().map(|&size| size as usize).collect();
        Ok(GgufTensor { ggml_type, shape, start: start as usize, end: end as usize })
    }
}

/// Takes values from the front; says what is wrong in half a sentence.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>()).ok_or("its header is cut off")?;
        self.at += N;
        Ok(*bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_le_bytes)
    }

    /// A number of things that each take at least so many bytes.
    fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, String> {
        let count = self.u64()?;
        let room = (self.bytes.len() - self.at) / min_bytes;
        usize::try_from(count).ok().filter(|count| *count <= room).ok_or_else(|| format!("it promises {count} {what} and has no room for them"))
    }

    fn text(&mut self) -> Result<String, String> {
        let len = self.count("bytes of text", 1)?;
        let bytes = &self.bytes[self.at..self.at + len];
        self.at += len;
        std::str::from_utf8(bytes).map(str::to_string).map_err(|_| "a text in it is not UTF-8".into())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        match kind {
            8 => self.text().map(Value::Text),
            9 => self.list(),
            _ => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Integer(self.take::<1>()?[0].into()),
            1 => Value::Integer(i8::from_le_bytes(self.take()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.take()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.take()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.take()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.take()?).into()),
            7 => Value::Bool(self.take::<1>()?[0] != 0),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.take()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.take()?)),
            other => return Err(format!("values of type {other} are unknown")),
        })
    }

    fn list(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        if kind == 8 {
            let count = self.count("texts", 8)?;
            return (0..count).map(|_| self.text()).collect::<Result<_, _>>().map(Value::Texts);
        }
        let bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            9 => return Err("lists of lists are not read".into()),
            other => return Err(format!("values of type {other} are unknown")),
        };
        let count = self.count("numbers", bytes)?;
        let number = |value| match value {
            Value::Integer(number) => number as f64,
            Value::Float(number) => number,
            Value::Bool(flag) => f64::from(u8::from(flag)),
            Value::Text(_) | Value::Texts(_) | Value::Numbers(_) => unreachable!("scalars are numbers or truth values"),
        };
        (0..count).map(|_| self.scalar(kind).map(number)).collect::<Result<_, _>>().map(Value::Numbers)
    }

    fn tensor_info(&mut self) -> Result<TensorInfo, String> {
        let name = self.text()?;
        let dimension_count = self.u32()?;
        if !(1..=4).contains(&dimension_count) {
            return Err(format!("its tensor `{name}` has {dimension_count} dimensions"));
        }
        let dimensions = (0..dimension_count).map(|_| self.u64()).collect::<Result<_, _>>()?;
        Ok(TensorInfo { name, dimensions, kind: self.u32()?, offset: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
    }

    /// A file of one f32 entry, one list of texts and one tensor `w` of the type and dimensions, followed by `data` bytes.
    fn file(kind: u32, dimensions: &[u64], data: usize) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(text("eps"));
        bytes.extend([6u32.to_le_bytes(), 0.5f32.to_le_bytes()].concat());
        bytes.extend(text("tokens"));
        bytes.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend([text("a"), text("ß")].concat());
        bytes.extend(text("w"));
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        bytes.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    }

    fn said(bytes: &[u8]) -> String {
        GgufHeader::parse("x.gguf", bytes).unwrap_err().to_string()
    }

    #[test]
    fn entries_and_tensors_are_found() {
        let bytes = file(8, &[64, 3], 3 * 2 * 34);
        let header = GgufHeader::parse("x.gguf", &bytes).unwrap();
        assert_eq!((header.number("eps"), header.texts("tokens")), (Some(0.5), Some(["a".to_string(), "ß".to_string()].as_slice())));
        let tensor = &header.tensors["w"];
        assert_eq!((tensor.ggml_type, tensor.shape.as_slice(), tensor.end), (GgmlType::Q8_0, [3, 64].as_slice(), bytes.len()));
    }

    #[test]
    fn every_cut_is_refused_without_a_panic() {
        let bytes = file(0, &[4], 16);
        for len in 0..bytes.len() {
            let said = said(&bytes[..len]);
            assert!(said.contains("x.gguf"), "{len}: {said}");
        }
        assert!(said(&bytes[..bytes.len() - 1]).contains("cut off"));
    }

    #[test]
    fn a_type_that_cannot_be_read_is_named_with_its_tensor() {
        let said = said(&file(13, &[256], 176));
        assert!(said.contains("`w`") && said.contains("Q5_K"), "{said}");
    }

    #[test]
    fn absurd_numbers_are_refused_before_anything_is_allocated() {
        let good = file(0, &[4], 16);
        for (at, what) in [(8, "tensors"), (16, "metadata entries"), (24, "bytes of text")] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&(u64::MAX / 3).to_le_bytes());
            assert!(said(&bytes).contains(what), "{}", said(&bytes));
        }
        assert!(said(&file(0, &[u64::MAX / 2, 3], 0)).contains("absurd"));
        assert!(said(&file(2, &[31], 0)).contains("blocks of 32"));
        assert!(said(&file(0, &[1, 1, 1, 1, 1], 0)).contains("5 dimensions"));
        let mut old = good.clone();
        old[4] = 1;
        assert!(said(&old).contains("version 1"));
        let mut big = good;
        big[4..8].copy_from_slice(&3u32.to_be_bytes());
        assert!(said(&big).contains("big-endian"));
        assert!(said(b"PK\x03\x04").contains("does not start with GGUF"));
    }

    #[test]
    fn random_damage_never_panics() {
        let good = file(8, &[64, 3], 3 * 2 * 34);
        let mut state = 7u64;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 20) as u8;
            }
            if let Ok(header) = GgufHeader::parse("x.gguf", &bytes) {
                assert!(header.tensors.values().all(|tensor| tensor.start <= tensor.end && tensor.end <= bytes.len()));
            }
        }
    }
}
