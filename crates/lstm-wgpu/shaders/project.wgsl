// Projection of one step: h = snap(W_hr m). Sequences that ended before this step keep their h.

// o * tanh(c), [rows, hidden].
@group(0) @binding(0) var<storage, read> m: array<f32>;
// Transposed projection weights W_hr, [hidden, state].
@group(0) @binding(1) var<storage, read> weight_hr: array<f32>;
// Ring buffer of states, see forward.wgsl.
@group(0) @binding(2) var<storage, read_write> states: array<f32>;
// Output h, [steps * batch, state].
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> lengths: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if (i >= p.batch * p.state_size) { return; }
    let row = i / p.state_size;
    let col = i % p.state_size;
    let out_index = (p.y_first_row + row) * p.state_size + col;
    if (p.has_lengths != 0u && p.step >= lengths[row]) {
        states[p.h_new_offset + i] = states[p.h_old_offset + i];
        y[out_index] = 0.0;
        return;
    }
    let start = (p.input_first_row + row) * p.hidden_size;
    var total = 0.0;
    for (var block = 0u; block < p.hidden_size; block += BLOCK) {
        var s = 0.0;
        for (var k = block; k < min(block + BLOCK, p.hidden_size); k++) {
            s = FMA(m[start + k], weight_hr[k * p.state_size + col], s);
        }
        total = select(total + s, s, block == 0u);
    }
    let h = snap(total);
    states[p.h_new_offset + i] = h;
    y[out_index] = h;
}
