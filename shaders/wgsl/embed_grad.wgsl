// dtable[ids[t] - first_row, :] += dout[t, :] for the ids of the shard
// dout: [tokens, width]. ids: [tokens] u32. dtable: [table_rows, width], accumulated.
// Deterministic without atomics: one invocation owns a column and takes the tokens in order. len = width.
// Dispatch: 256 invocations a workgroup, one column each, workgroups in x then y.

struct Params {
    dout_at: u32,
    ids_at: u32,
    dtable_at: u32,
    len: u32,
    tokens: u32,
    first_row: u32,
    table_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dout: array<f32>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> dtable: array<f32>;

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
    for (var t = 0u; t < params.tokens; t++) {
        let row = ids[params.ids_at + t] - params.first_row;
        if row < params.table_rows {
            let at = params.dtable_at + row * params.len + i;
            dtable[at] = dtable[at] + dout[params.dout_at + t * params.len + i];
        }
    }
}
