// delta[i,h] = sum_c dout[i,h,c] * out[i,h,c]; stats[i,h] = (lse[i,h], delta[i,h])
// out, dout: [rows, head_dim], rows = queries * heads. lse, delta: [rows]. stats: [rows, 2].
// delta and stats are overwritten. stats saves attention_grad_kv a ninth buffer.
// Dispatch: 256 invocations a workgroup, one row each, workgroups in x then y.

struct Params {
    out_at: u32,
    dout_at: u32,
    lse_at: u32,
    delta_at: u32,
    stats_at: u32,
    rows: u32,
    head_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> out: array<f32>;
@group(0) @binding(2) var<storage, read> dout: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> delta: array<f32>;
@group(0) @binding(5) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.y * groups.x + group.x) * 256u + lane;
    if row >= params.rows {
        return;
    }
    var sum = 0.0;
    for (var c = 0u; c < params.head_dim; c++) {
        let at = row * params.head_dim + c;
        sum += dout[params.dout_at + at] * out[params.out_at + at];
    }
    delta[params.delta_at + row] = sum;
    stats[params.stats_at + 2u * row] = lse[params.lse_at + row];
    stats[params.stats_at + 2u * row + 1u] = sum;
}
