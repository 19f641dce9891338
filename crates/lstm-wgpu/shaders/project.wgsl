// h' = snap(W_hr m) of one step; sequences that do not have it keep their h.

@group(0) @binding(0) var<storage, read> m: array<f32>;
// [hidden, state]
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> states: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> lengths: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if (i >= p.batch * p.state) { return; }
    let row = i / p.state;
    let col = i % p.state;
    let out = (p.row + row) * p.state + col;
    if (p.has_lengths != 0u && p.step >= lengths[row]) {
        states[p.h_after + i] = states[p.h_before + i];
        y[out] = 0.0;
        return;
    }
    let start = (p.m_row + row) * p.hidden;
    var total = 0.0;
    for (var block = 0u; block < p.hidden; block += BLOCK) {
        var s = 0.0;
        for (var k = block; k < min(block + BLOCK, p.hidden); k++) {
            s = FMA(m[start + k], w[k * p.state + col], s);
        }
        total = select(total + s, s, block == 0u);
    }
    let h = snap(total);
    states[p.h_after + i] = h;
    y[out] = h;
}
