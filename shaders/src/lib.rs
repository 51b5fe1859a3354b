//! The WGSL kernels of Barycenter: one file per operation, listed here, validated by a test.
//!
//! A file is valid WGSL as it stands, together with the parts that it is listed with (`wgsl/part`: bindings and
//! functions that several kernels share). Its variants differ only in lines of the form `const NAME: u32 = 4u;`, whose values
//! [`Kernel::source_with`] replaces: layouts, element types and tile sizes become constants of the pipeline, never
//! branches at run time. Loops marked `// unroll` are written out then (see [`unroll`]). Binding 0 is the uniform `params`, whose
//! first fields are the offsets, in elements, of the storage buffers that follow it as bindings 1, 2, …

pub mod unroll;

/// One WGSL file with its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// File name without its ending.
    pub name: &'static str,
    /// The text, with default constants.
    pub source: &'static str,
}

macro_rules! kernels {
    ($($name:literal $(+ $part:literal)*),* $(,)?) => {
        /// All kernels, in alphabetical order.
        pub const KERNELS: &[Kernel] = &[$(Kernel {
            name: $name,
            source: concat!(
                include_str!(concat!("../wgsl/", $name, ".wgsl")),
                $(include_str!(concat!("../wgsl/part/", $part, ".wgsl"))),*
            ),
        }),*];
    };
}

kernels![
    "activate" + "activation",
    "activate_grad" + "activation",
    "adam_w",
    "add",
    "add_bias",
    "arg_max",
    "attention" + "quads" + "sees",
    "attention_grad_bias" + "sees",
    "attention_grad_delta",
    "attention_grad_kv" + "quads" + "quads_grad" + "sees",
    "attention_grad_q" + "quads" + "quads_grad" + "sees",
    "axpy",
    "center_rows" + "row_sum",
    "column_sum",
    "copy",
    "copy_columns",
    "embed" + "half",
    "embed_grad",
    "fill",
    "gate_mix",
    "gate_mix_grad" + "tree_sum",
    "gather_rows",
    "matmul" + "half" + "weights" + "operands",
    "matmul_registers" + "half" + "weights" + "operands",
    "matmul_rows" + "half" + "weights",
    "pack_f16",
    "rms_norm" + "row_sum",
    "rms_norm_grad" + "row_sum",
    "rms_norm_weight_grad",
    "rope",
    "scale_rows",
    "scaled_add",
    "scatter_rows",
    "segment_max",
    "segment_max_grad",
    "softmax_grad",
    "softmax_loss",
    "softmax_stats" + "tree_sum",
    "sum_partials" + "tree_sum",
    "sum_squares" + "tree_sum",
    "tap_scale" + "row_sum",
    "unpack_f16" + "half",
];

/// The kernel of that file name, `None` if there is none.
pub fn kernel(name: &str) -> Option<Kernel> {
    KERNELS.binary_search_by_key(&name, |kernel| kernel.name).ok().map(|at| KERNELS[at])
}

impl Kernel {
    /// The text with `const NAME: u32 = …;` set for each pair and marked loops written out; names that the file lacks are
    /// ignored.
    pub fn source_with(&self, constants: &[(&str, u32)]) -> String {
        let mut text = String::with_capacity(self.source.len());
        for line in self.source.lines() {
            let replaced = line
                .strip_prefix("const ")
                .and_then(|rest| rest.split_once(": u32 = "))
                .and_then(|(name, _)| constants.iter().find(|(wanted, _)| *wanted == name));
            match replaced {
                Some((name, value)) => text.push_str(&format!("const {name}: u32 = {value}u;")),
                None => text.push_str(line),
            }
            text.push('\n');
        }
        unroll::unroll(&text)
    }

    /// The access of each storage binding in order, `true` where the kernel writes: what a bind group layout needs.
    pub fn writes(&self) -> Vec<bool> {
        self.source
            .lines()
            .filter_map(|line| line.split_once("var<storage, "))
            .map(|(_, rest)| rest.starts_with("read_write>"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// WebGPU's default limits, in which every kernel has to stay.
    const MAX_STORAGE_BUFFERS: usize = 8;
    const MAX_WORKGROUP_BYTES: u32 = 16 << 10;
    const MAX_INVOCATIONS: u32 = 256;

    fn validate(name: &str, source: &str) {
        let module = naga::front::wgsl::parse_str(source).unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
        // unpack2x16float is core WGSL; naga calls it a capability for old OpenGL.
        Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
            .map(|(_, variable)| layouter[variable.ty].size)
            .sum();
        assert!(bytes <= MAX_WORKGROUP_BYTES, "{name}: {bytes} bytes of workgroup memory");
        let entry = &module.entry_points[0];
        assert!(entry.workgroup_size.iter().product::<u32>() <= MAX_INVOCATIONS, "{name}");
    }

    #[test]
    fn every_kernel_is_valid_wgsl_inside_the_default_limits() {
        for kernel in KERNELS {
            validate(kernel.name, kernel.source);
            assert!(kernel.writes().len() <= MAX_STORAGE_BUFFERS, "{}: too many storage buffers", kernel.name);
            assert!(kernel.source.starts_with("// "), "{}: opens with its formula", kernel.name);
            assert!(kernel.source.contains("// Dispatch: "), "{}: says its dispatch", kernel.name);
        }
    }

    #[test]
    fn every_variant_is_valid_wgsl() {
        let matmul = kernel("matmul").unwrap();
        for layout in 0..3 {
            for dtype in 0..5 {
                for vec4 in 0..2 {
                    for micro in [4, 8] {
                        let constants = [("LAYOUT", layout), ("B_DTYPE", dtype), ("A_VEC4", vec4), ("B_VEC4", vec4), ("MICRO", micro)];
                        validate("matmul", &matmul.source_with(&constants));
                    }
                }
            }
        }
        let registers = kernel("matmul_registers").unwrap();
        for layout in 0..3 {
            for dtype in 0..5 {
                for (row_quads, col_quads, group) in [(1, 1, 8), (2, 2, 8), (4, 4, 2)] {
                    let tile = [("ROW_QUADS", row_quads), ("COL_QUADS", col_quads), ("GROUP_X", group), ("GROUP_Y", group)];
                    for vec4 in 0..2 {
                        let operands = [("LAYOUT", layout), ("B_DTYPE", dtype), ("A_VEC4", vec4), ("B_VEC4", vec4)];
                        let source = registers.source_with(&[tile, operands].concat());
                        assert!(!source.contains(unroll::MARK), "every marked loop is written out");
                        validate("matmul_registers", &source);
                    }
                }
            }
        }
        for rows in [1, 4, 8] {
            for dtype in 0..5 {
                validate("matmul_rows", &kernel("matmul_rows").unwrap().source_with(&[("ROWS", rows), ("B_DTYPE", dtype)]));
            }
        }
        for name in ["attention", "attention_grad_q", "attention_grad_kv"] {
            for pad in [8, 16, 32, 64, 128, 256] {
                let block = if pad == 256 { 4 } else { 8 };
                let constants = [("HEAD_PAD", pad), ("VEC4", 1), ("BIAS", 1), ("QUERIES", block), ("KEYS", block)];
                validate(name, &kernel(name).unwrap().source_with(&constants));
            }
        }
        for name in ["center_rows", "rms_norm", "rms_norm_grad", "tap_scale"] {
            validate(name, &kernel(name).unwrap().source_with(&[("LANES", 8)]));
        }
        for name in ["activate", "activate_grad"] {
            for activation in 0..6 {
                validate(name, &kernel(name).unwrap().source_with(&[("ACTIVATION", activation), ("GATED", activation % 2)]));
            }
        }
        validate("rope", &kernel("rope").unwrap().source_with(&[("IN_PLACE", 1)]));
        for dtype in 1..5 {
            validate("embed", &kernel("embed").unwrap().source_with(&[("DTYPE", dtype)]));
        }
    }

    #[test]
    fn kernels_are_found_by_name() {
        assert!(KERNELS.is_sorted_by_key(|kernel| kernel.name));
        assert_eq!(kernel("rope").unwrap().name, "rope");
        assert!(kernel("nothing").is_none());
    }
}
