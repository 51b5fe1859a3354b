// lse[t] = peak[t] + ln(total[t]), loss[t] = lse[t] - goal[t]
// peak, total, goal (running maximum, sum and target logit), lse, loss: [len]. lse and loss are overwritten.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    peak_at: u32,
    total_at: u32,
    goal_at: u32,
    lse_at: u32,
    loss_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> peak: array<f32>;
@group(0) @binding(2) var<storage, read> total: array<f32>;
@group(0) @binding(3) var<storage, read> goal: array<f32>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> loss: array<f32>;

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
    let y = peak[params.peak_at + i] + log(total[params.total_at + i]);
    lse[params.lse_at + i] = y;
    loss[params.loss_at + i] = y - goal[params.goal_at + i];
}
