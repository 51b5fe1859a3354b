// out[2i], out[2i+1] = the two halves of word i of x
// x: [2 len] f16, two per word, the lower index in the low half; x_at counts words. out: [2 len], overwritten.
// Dispatch: 256 invocations a workgroup, one word each, workgroups in x then y.

struct Params {
    x_at: u32,
    out_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 256u + lane;
    if i >= params.len {
        return;
    }
    let word = x[params.x_at + i];
    out[params.out_at + 2u * i] = half_to_float(word & 0xffffu);
    out[params.out_at + 2u * i + 1u] = half_to_float(word >> 16u);
}
