// c[m,n] (+)= a[m,k] b[n,k]^T for few rows (m <= ROWS), as in decoding: bound by reading b once.
// a, c: f32. b: f32, two f16 or bf16 to a word (B_DTYPE 1, 2), or blocks of 32 int8 or int4 along its rows (3, 4; rows
// and offset are whole blocks). k and the offsets of a and b are multiples of four.
// Accumulates when accumulate = 1, else overwrites c.
// Dispatch: 64 invocations a workgroup: 8 columns of c, 8 invocations to a column, each taking every 8th vec4 of k;
// workgroups in x then y.

const B_DTYPE: u32 = 0u;
const ROWS: u32 = 8u;

var<workgroup> partial: array<f32, ROWS * 64u>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = (group.y * groups.x + group.x) * 8u + lane / 8u;
    var acc: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        acc[r] = 0.0;
    }
    if column < params.n {
        for (var i = (lane % 8u) * 4u; i < params.k; i += 32u) {
            let weights = b_quad(params.b_at + column * params.k + i);
            for (var r = 0u; r < ROWS; r++) {
                if r < params.m {
                    acc[r] += dot(weights, a[(params.a_at + r * params.k + i) >> 2u]);
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        partial[r * 64u + lane] = acc[r];
    }
    workgroupBarrier();
    for (var s = 4u; s > 0u; s = s / 2u) {
        if lane % 8u < s {
            for (var r = 0u; r < ROWS; r++) {
                partial[r * 64u + lane] += partial[r * 64u + lane + s];
            }
        }
        workgroupBarrier();
    }
    if lane % 8u == 0u && column < params.n {
        for (var r = 0u; r < ROWS; r++) {
            if r < params.m {
                let at = params.c_at + r * params.n + column;
                var y = partial[r * 64u + lane];
                if params.accumulate == 1u {
                    y += c[at];
                }
                c[at] = y;
            }
        }
    }
}
