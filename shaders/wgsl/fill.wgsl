// dst[i] = value (as bits, so that integers can be set too)
// dst: [len] words. Overwritten.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    dst_at: u32,
    len: u32,
    value: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> dst: array<u32>;

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
    dst[params.dst_at + i] = params.value;
}
