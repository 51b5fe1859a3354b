//! Tensors as weight files hold them, and where they come from.

use crate::ModelError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Longest safetensors header that is read: the limit of the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Length of the little-endian u64 in front of the header.
const PREFIX_BYTES: u64 = 8;

/// A number format of the safetensors format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TensorDtype {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    #[serde(rename = "BF16")]
    Bf16,
    /// 64-bit float.
    F64,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// 32-bit natural number.
    U32,
    /// Byte, signed.
    I8,
    /// Byte.
    U8,
    /// Truth value, one byte.
    #[serde(rename = "BOOL")]
    Bool,
}

impl TensorDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            TensorDtype::F64 | TensorDtype::I64 => 8,
            TensorDtype::F32 | TensorDtype::I32 | TensorDtype::U32 => 4,
            TensorDtype::F16 | TensorDtype::Bf16 => 2,
            TensorDtype::I8 | TensorDtype::U8 | TensorDtype::Bool => 1,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            TensorDtype::F32 => "F32",
            TensorDtype::F16 => "F16",
            TensorDtype::Bf16 => "BF16",
            TensorDtype::F64 => "F64",
            TensorDtype::I64 => "I64",
            TensorDtype::I32 => "I32",
            TensorDtype::U32 => "U32",
            TensorDtype::I8 => "I8",
            TensorDtype::U8 => "U8",
            TensorDtype::Bool => "BOOL",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        use TensorDtype::*;
        [F32, F16, Bf16, F64, I64, I32, U32, I8, U8, Bool].into_iter().find(|dtype| dtype.name() == name)
    }

    fn as_safetensors(self) -> safetensors::Dtype {
        match self {
            TensorDtype::F32 => safetensors::Dtype::F32,
            TensorDtype::F16 => safetensors::Dtype::F16,
            TensorDtype::Bf16 => safetensors::Dtype::BF16,
            TensorDtype::F64 => safetensors::Dtype::F64,
            TensorDtype::I64 => safetensors::Dtype::I64,
            TensorDtype::I32 => safetensors::Dtype::I32,
            TensorDtype::U32 => safetensors::Dtype::U32,
            TensorDtype::I8 => safetensors::Dtype::I8,
            TensorDtype::U8 => safetensors::Dtype::U8,
            TensorDtype::Bool => safetensors::Dtype::BOOL,
        }
    }
}

/// A tensor with its bytes: row-major, little-endian, `bytes.len() == shape product · dtype.bytes()`.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// Number format.
    pub dtype: TensorDtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Vec<u8>,
}

impl RawTensor {
    /// A tensor of f32 values; `values.len()` must be the product of `shape`.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values fill the shape");
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: TensorDtype::F32, shape: shape.to_vec(), bytes }
    }

    /// The same rounded to half precision (to nearest even).
    pub fn f16_from_f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values fill the shape");
        let bytes = values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
        Self { dtype: TensorDtype::F16, shape: shape.to_vec(), bytes }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements as f32, from any number format (integers are converted by value).
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = &self.bytes;
        match self.dtype {
            TensorDtype::F32 => chunks(bytes).map(f32::from_le_bytes).collect(),
            TensorDtype::F16 => chunks(bytes).map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            TensorDtype::Bf16 => chunks(bytes).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
            TensorDtype::F64 => chunks(bytes).map(|b| f64::from_le_bytes(b) as f32).collect(),
            _ => self.to_i64().into_iter().map(|value| value as f32).collect(),
        }
    }

    /// Whether every element is a finite number (integers are).
    pub fn is_finite(&self) -> bool {
        let bytes = &self.bytes;
        match self.dtype {
            // The exponent has all bits set in infinities and in what is not a number.
            TensorDtype::F32 => chunks(bytes).all(|b| f32::from_le_bytes(b).is_finite()),
            TensorDtype::F16 => chunks(bytes).all(|b| u16::from_le_bytes(b) & 0x7c00 != 0x7c00),
            TensorDtype::Bf16 => chunks(bytes).all(|b| u16::from_le_bytes(b) & 0x7f80 != 0x7f80),
            TensorDtype::F64 => chunks(bytes).all(|b| f64::from_le_bytes(b).is_finite()),
            _ => true,
        }
    }

    /// The elements as whole numbers, from any number format (floats are truncated).
    pub fn to_i64(&self) -> Vec<i64> {
        let bytes = &self.bytes;
        match self.dtype {
            TensorDtype::I64 => chunks(bytes).map(i64::from_le_bytes).collect(),
            TensorDtype::I32 => chunks(bytes).map(|b| i32::from_le_bytes(b).into()).collect(),
            TensorDtype::U32 => chunks(bytes).map(|b| u32::from_le_bytes(b).into()).collect(),
            TensorDtype::I8 => bytes.iter().map(|&b| (b as i8).into()).collect(),
            TensorDtype::U8 | TensorDtype::Bool => bytes.iter().map(|&b| b.into()).collect(),
            _ => self.to_f32().into_iter().map(|value| value as i64).collect(),
        }
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("chunks_exact gives N bytes"))
}

/// Where the weights of a model come from: a folder, a cache of downloaded ranges, memory.
///
/// Obligations:
/// 1. `entry` and `load` agree: same names, dtype and shape, and `load` gives exactly the bytes of the shape.
/// 2. `load` may be called in any order and more than once.
pub trait TensorSource {
    /// Reads a tensor; an unknown name is [`ModelError::MissingTensor`].
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError>;

    /// Number format and shape, without reading the tensor.
    fn entry(&self, name: &str) -> Option<TensorEntry>;

    /// Whether there is such a tensor.
    fn has(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The shape, without reading the tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.entry(name).map(|entry| entry.shape)
    }

    /// Reads some rows (of the outermost dimension): how an embedding is loaded in shards.
    fn load_rows(&mut self, name: &str, rows: Range<usize>) -> Result<RawTensor, ModelError> {
        let mut tensor = self.load(name)?;
        let range = row_bytes(name, &tensor.shape, tensor.dtype, &rows)?;
        tensor.bytes.truncate(range.end);
        tensor.bytes.drain(..range.start);
        tensor.shape[0] = rows.len();
        Ok(tensor)
    }

    /// Reads a weight, checking that it has the expected shape and is f32, f16 or bf16.
    fn load_weight(&mut self, name: &str, expected: &[usize]) -> Result<RawTensor, ModelError> {
        let entry = self.entry(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_string() })?;
        entry.check_weight(name, expected)?;
        self.load(name)
    }
}

/// The bytes of some rows within a tensor's bytes.
pub(crate) fn row_bytes(
    name: &str,
    shape: &[usize],
    dtype: TensorDtype,
    rows: &Range<usize>,
) -> Result<Range<usize>, ModelError> {
    let there = shape.first().copied().unwrap_or(0);
    if shape.is_empty() || rows.start > rows.end || rows.end > there {
        return Err(ModelError::NoSuchRows { name: name.to_string(), start: rows.start, end: rows.end, rows: there });
    }
    let row = shape.get(1..).unwrap_or(&[]).iter().product::<usize>() * dtype.bytes();
    Ok(rows.start * row..rows.end * row)
}

/// Number format, shape and place of a tensor within its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Number format.
    pub dtype: TensorDtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub start: u64,
    /// Byte after the last, from the start of the file.
    pub end: u64,
}

impl TensorEntry {
    /// Bytes the tensor takes.
    pub fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Checks that this can be the weight `name` of the expected shape.
    pub fn check_weight(&self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
        if self.shape != expected {
            return Err(ModelError::WrongShape {
                name: name.to_string(),
                expected: expected.to_vec(),
                got: self.shape.clone(),
            });
        }
        match self.dtype {
            TensorDtype::F32 | TensorDtype::F16 | TensorDtype::Bf16 => Ok(()),
            other => Err(ModelError::WrongDtype { name: name.to_string(), dtype: other.name().to_string() }),
        }
    }
}

/// The table at the front of a safetensors file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SafetensorsHeader {
    /// Tensors by name; places count from the start of the file.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// The free text entries (`__metadata__`).
    pub metadata: BTreeMap<String, String>,
    /// First byte of the tensors: 8 + length of the header.
    pub data_start: u64,
    /// Length the whole file must have.
    pub file_bytes: u64,
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl SafetensorsHeader {
    /// How many bytes from the start of a file [`SafetensorsHeader::parse`] needs, from the first 8 of them.
    pub fn bytes_needed(first_bytes: &[u8]) -> Result<u64, ModelError> {
        let bad = |reason: String| ModelError::BadHeader { file: "the weight file".into(), reason };
        let prefix: [u8; 8] = first_bytes
            .get(..PREFIX_BYTES as usize)
            .and_then(|prefix| prefix.try_into().ok())
            .ok_or_else(|| bad(format!("it has {} bytes, a header alone has more", first_bytes.len())))?;
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(bad(format!("its header would be {header_bytes} bytes long")));
        }
        Ok(PREFIX_BYTES + header_bytes)
    }

    /// Reads the header from the first bytes of a file (the whole file does too).
    ///
    /// Every tensor's length is checked against its shape, and the tensors must follow one another without gap.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let bad = |reason: String| ModelError::BadHeader { file: "the weight file".into(), reason };
        let data_start = Self::bytes_needed(bytes)?;
        let header = usize::try_from(data_start)
            .ok()
            .and_then(|end| bytes.get(PREFIX_BYTES as usize..end))
            .ok_or_else(|| bad(format!("its header of {data_start} bytes is cut off after {}", bytes.len())))?;
        let json: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(header).map_err(|error| bad(format!("its header is not valid JSON: {error}")))?;
        let mut result = Self { data_start, ..Self::default() };
        for (name, value) in json {
            if name == "__metadata__" {
                result.metadata = serde_json::from_value(value)
                    .map_err(|error| bad(format!("its `__metadata__` is not a table of texts: {error}")))?;
                continue;
            }
            let entry: HeaderEntry = serde_json::from_value(value)
                .map_err(|error| bad(format!("its entry `{name}` is not a tensor: {error}")))?;
            let dtype = TensorDtype::from_name(&entry.dtype)
                .ok_or_else(|| ModelError::WrongDtype { name: name.clone(), dtype: entry.dtype.clone() })?;
            let (start, end) = entry.data_offsets;
            let needed = entry.shape.iter().try_fold(dtype.bytes() as u64, |len, &size| len.checked_mul(size));
            let shape = entry.shape.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<Vec<_>>>();
            let (Some(needed), Some(shape)) = (needed, shape) else {
                return Err(bad(format!("the shape {:?} of its tensor `{name}` is absurd", entry.shape)));
            };
            if end.checked_sub(start) != Some(needed) {
                return Err(bad(format!(
                    "its tensor `{name}` of shape {shape:?} needs {needed} bytes, its header gives it {start}..{end}"
                )));
            }
            let place = |offset: u64| {
                data_start.checked_add(offset).ok_or_else(|| bad(format!("its tensor `{name}` lies beyond any file")))
            };
            result.tensors.insert(name.clone(), TensorEntry { dtype, shape, start: place(start)?, end: place(end)? });
        }
        result.file_bytes = result.check_that_tensors_adjoin()?;
        Ok(result)
    }

    fn check_that_tensors_adjoin(&self) -> Result<u64, ModelError> {
        let mut entries: Vec<_> = self.tensors.iter().collect();
        entries.sort_by_key(|(_, entry)| (entry.start, entry.end));
        let mut at = self.data_start;
        for (name, entry) in entries {
            if entry.start != at {
                let reason = format!("its tensor `{name}` starts at byte {}, expected {at}", entry.start);
                return Err(ModelError::BadHeader { file: "the weight file".into(), reason });
            }
            at = entry.end;
        }
        Ok(at)
    }

    /// Checks the length of the file against the header.
    pub fn check_length(&self, file: &str, got_bytes: u64) -> Result<(), ModelError> {
        if got_bytes == self.file_bytes {
            return Ok(());
        }
        Err(ModelError::WrongLength { file: file.to_string(), expected_bytes: self.file_bytes, got_bytes })
    }
}

impl ModelError {
    /// The same error about a file whose name is now known.
    pub(crate) fn in_file(self, name: &str) -> Self {
        match self {
            ModelError::BadHeader { reason, .. } => ModelError::BadHeader { file: name.to_string(), reason },
            other => other,
        }
    }
}

/// Writes a safetensors file; `metadata` entries are free text.
pub fn write_safetensors<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a RawTensor)>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let views: Vec<_> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let view = safetensors::tensor::TensorView::new(tensor.dtype.as_safetensors(), tensor.shape.clone(), &tensor.bytes)
                .expect("a RawTensor's bytes fill its shape");
            (name, view)
        })
        .collect();
    let metadata = (!metadata.is_empty()).then(|| metadata.clone().into_iter().collect());
    safetensors::serialize(views, metadata).expect("views of checked tensors serialise")
}

/// Tensors held in memory: what a browser downloaded, what a test made up.
#[derive(Clone, Debug, Default)]
pub struct MemoryTensors {
    /// By name.
    pub tensors: BTreeMap<String, RawTensor>,
}

impl MemoryTensors {
    /// All tensors of a safetensors file that is in memory; `name` is for messages.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self, ModelError> {
        let header = SafetensorsHeader::parse(bytes).map_err(|error| error.in_file(name))?;
        header.check_length(name, bytes.len() as u64)?;
        let tensors = header
            .tensors
            .into_iter()
            .map(|(name, entry)| {
                let bytes = bytes[entry.start as usize..entry.end as usize].to_vec();
                (name, RawTensor { dtype: entry.dtype, shape: entry.shape, bytes })
            })
            .collect();
        Ok(Self { tensors })
    }

    fn find(&self, name: &str) -> Option<&RawTensor> {
        self.tensors.get(&crate::names::stored_name(name, |name| self.tensors.contains_key(name))?)
    }
}

impl TensorSource for MemoryTensors {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        self.find(name).cloned().ok_or_else(|| ModelError::MissingTensor { name: name.to_string() })
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        self.find(name).map(|tensor| TensorEntry {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            start: 0,
            end: tensor.bytes.len() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn what_is_written_reads_back() {
        let a = RawTensor::from_f32(&[2, 3], &[1.0, -2.0, 3.5, 0.0, 1e-3, 7.0]);
        let b = RawTensor::f16_from_f32(&[3], &[1.0, 0.5, -2.0]);
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let bytes = write_safetensors([("a", &a), ("b", &b)], &metadata);
        let header = SafetensorsHeader::parse(&bytes).unwrap();
        assert_eq!(header.metadata, metadata);
        header.check_length("x", bytes.len() as u64).unwrap();
        let needed = SafetensorsHeader::bytes_needed(&bytes[..8]).unwrap() as usize;
        assert_eq!(SafetensorsHeader::parse(&bytes[..needed]).unwrap(), header, "the header alone is enough");
        let mut back = MemoryTensors::from_safetensors("x", &bytes).unwrap();
        assert_eq!(back.load("a").unwrap(), a);
        assert_eq!(back.load("b").unwrap().to_f32(), vec![1.0, 0.5, -2.0]);
        let row = back.load_rows("a", 1..2).unwrap();
        assert_eq!((row.shape.clone(), row.to_f32()), (vec![1, 3], vec![0.0, 1e-3, 7.0]));
        assert!(back.load_rows("a", 1..3).unwrap_err().to_string().contains("1..3"));
    }

    #[test]
    fn number_formats_convert_by_value() {
        let bf16 = RawTensor { dtype: TensorDtype::Bf16, shape: vec![1], bytes: vec![0x80, 0x3f] };
        assert_eq!(bf16.to_f32(), vec![1.0]);
        let ints = RawTensor { dtype: TensorDtype::I64, shape: vec![2], bytes: [(-100i64).to_le_bytes(), 7i64.to_le_bytes()].concat() };
        assert_eq!((ints.to_i64(), ints.to_f32()), (vec![-100, 7], vec![-100.0, 7.0]));
    }

    #[test]
    fn broken_headers_are_refused_in_one_sentence() {
        let message = |bytes: &[u8]| SafetensorsHeader::parse(bytes).unwrap_err().to_string();
        assert!(message(&[1, 2]).contains("2 bytes"));
        assert!(message(&u64::MAX.to_le_bytes()).contains("would be"));
        assert!(message(&100u64.to_le_bytes()).contains("cut off"));
        assert!(message(&file("{", 0)).contains("not valid JSON"));
        assert!(message(&file(r#"{"a":{"dtype":"F32"}}"#, 0)).contains("`a`"));
        assert!(message(&file(r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 1)).contains("F4"));
        assert!(message(&file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4)).contains("needs 8 bytes"));
        assert!(message(&file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8)).contains("expected"));
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967295,4294967295,4294967295],"data_offsets":[0,4]}}"#;
        assert!(message(&file(huge, 4)).contains("absurd"));
        let far = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#;
        assert!(message(&file(far, 4)).contains("beyond any file"));
        let cut = file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7);
        assert!(MemoryTensors::from_safetensors("w", &cut).unwrap_err().to_string().contains("cut off"));
    }

    #[test]
    fn a_weight_must_have_the_expected_shape_and_format() {
        let mut source = MemoryTensors::default();
        source.tensors.insert("w".into(), RawTensor::from_f32(&[2], &[1.0, 2.0]));
        source.tensors.insert("i".into(), RawTensor { dtype: TensorDtype::I8, shape: vec![2], bytes: vec![0, 1] });
        assert!(source.load_weight("w", &[2]).is_ok());
        assert!(source.load_weight("w", &[3]).unwrap_err().to_string().contains("[2] where config.json calls for [3]"));
        assert!(source.load_weight("i", &[2]).unwrap_err().to_string().contains("I8"));
        assert!(source.load_weight("x", &[2]).unwrap_err().to_string().contains("`x`"));
    }
}
