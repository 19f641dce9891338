// One step of the backward pass of a layer with a projection: the gradient of the new h. The iteration after the last
// step computes the gradient of the initial h instead.

// dz: gradient of the gates before their activations, [steps * batch, 4 * hidden].
@group(0) @binding(0) var<storage, read> dz: array<f32>;
// Recurrent weights, [4 * hidden, state].
@group(0) @binding(1) var<storage, read> weights: array<f32>;
// Gradient of y, [steps * batch, state].
@group(0) @binding(2) var<storage, read> output_gradients: array<f32>;
// Result: gradient of the new h, [steps * batch, state].
@group(0) @binding(3) var<storage, read_write> dh: array<f32>;
// Gradient of h, [batch, state]: at first of the final state, at the end of the initial state.
@group(0) @binding(4) var<storage, read_write> state_gradients: array<f32>;
@group(0) @binding(5) var<storage, read> lengths: array<u32>;

var<private> current_iteration: u32;

fn block_sums(first_row: u32, unit: u32, start: u32, end: u32) -> array<vec4<f32>, ROWS> {
    var s: array<vec4<f32>, ROWS>;
    var offsets = previous_dz_offsets(first_row, current_iteration);
    for (var k = start; k < end; k++) {
        for (var g = 0u; g < 4u; g++) {
            let w = weights[(g * p.hidden_size + k) * p.state_size + unit];
            for (var r = 0u; r < ROWS; r++) {
                s[r][g] = FMA(dz[offsets[r] + g * p.hidden_size + k], w, s[r][g]);
            }
        }
    }
    return s;
}

@compute @workgroup_size(UNITS * LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let pos = invocation_position(group.x + group.y * groups.x, local, p.state_size);
    let unit = min(pos.unit, p.state_size - 1u);
    current_iteration = p.first_iteration;
    let is_end = p.first_iteration == p.steps;
    let t = select(p.steps - 1u - p.first_iteration, p.first_iteration, p.reverse != 0u);
    let sums = step_product(pos, unit, p.hidden_size);
    for (var own_row = 0u; own_row < ROWS_PER_LANE; own_row++) {
        let r = own_row * LANES + pos.lane;
        let row = pos.first_row + r;
        if (r >= ROWS || row >= p.batch || pos.unit >= p.state_size) { continue; }
        let out = (t * p.batch + row) * p.state_size + unit;
        if (!is_end && t >= length_of(row)) {
            dh[out] = 0.0;
            continue;
        }
        let s = sums[own_row];
        var v = snap(((s.x + s.y) + s.z) + s.w);
        if (previous_step(row, p.first_iteration) == NONE) { v = snap(state_gradients[row * p.state_size + unit]); }
        if (is_end) {
            state_gradients[row * p.state_size + unit] = v;
        } else {
            dh[out] = snap(output_gradients[out] + v);
        }
    }
}
