// Steps of a layer's backward pass: the gradient of the state as a matrix product, then the gradients of the cell.
// If a dispatch runs more than one iteration, a workgroup holds all units of its sequences.
// The constants CELL, COUPLED, CLIPPED and PROJECTED select the cell.

// Gate activations i, f, g, o, [steps * batch, 4 * hidden].
@group(0) @binding(0) var<storage, read> gates: array<f32>;
// h: [steps + 1, batch, state], then c: [steps + 1, batch, hidden].
@group(0) @binding(1) var<storage, read> states: array<f32>;
// Recurrent weights, [4 * hidden, state]. With a projection: projection weights, [state, hidden].
@group(0) @binding(2) var<storage, read> weights: array<f32>;
// Gradient of y, [steps * batch, state]. With a projection: complete gradient of the new h.
@group(0) @binding(3) var<storage, read> output_gradients: array<f32>;
// dz: gradient of the gates before their activations, [steps * batch, 4 * hidden].
@group(0) @binding(4) var<storage, read_write> dz: array<f32>;
// Gradient of h, [batch, state], then of c, [batch, hidden]. At first the gradient of the final state, at the end that
// of the initial state. In between, the part of c holds its running gradient.
@group(0) @binding(5) var<storage, read_write> state_gradients: array<f32>;
@group(0) @binding(6) var<storage, read> lengths: array<u32>;
@group(0) @binding(7) var<storage, read> peephole: array<f32>;

var<private> current_iteration: u32;

fn block_sums(first_row: u32, unit: u32, start: u32, end: u32) -> array<vec4<f32>, ROWS> {
    var s: array<vec4<f32>, ROWS>;
    if (PROJECTED) {
        let step = (p.steps - 1u - current_iteration) * (1u - p.reverse) + current_iteration * p.reverse;
        for (var k = start; k < end; k++) {
            let w = weights[k * p.hidden_size + unit];
            for (var r = 0u; r < ROWS; r++) {
                let row = step * p.batch + min(first_row + r, p.batch - 1u);
                s[r].x = FMA(output_gradients[row * p.state_size + k], w, s[r].x);
            }
        }
        return s;
    }
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

// Gradient of a gate before its activation: snap(v), or +0 if the forward pass clipped the gate's sum.
// `gate` is the gate's activation; `low` and `high` are the activations at the clip bounds.
fn mask_clipped(v: f32, gate: f32, low: f32, high: f32) -> f32 {
    if (CLIPPED) { return select_between(snap(v), gate, low, high); }
    return snap(v);
}

fn sigmoid_gradient(v: f32, s: f32) -> f32 {
    return mask_clipped(v * FMA(negate(s), s, s), s, p.sigmoid_low, p.sigmoid_high);
}

fn tanh_gradient(v: f32, t: f32) -> f32 {
    return mask_clipped(v * FMA(negate(t), t, 1.0), t, p.tanh_low, p.tanh_high);
}

@compute @workgroup_size(UNITS * LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let pos = invocation_position(group.x + group.y * groups.x, local, p.hidden_size);
    let unit = min(pos.unit, p.hidden_size - 1u);
    let c_start = (p.steps + 1u) * p.batch * p.state_size;
    let row_stride = 4u * p.hidden_size;
    for (var iteration = p.first_iteration; iteration < p.end_iteration; iteration++) {
        current_iteration = iteration;
        let is_end = iteration == p.steps;
        let t = select(p.steps - 1u - iteration, iteration, p.reverse != 0u);
        let sums = step_product(pos, unit, select(p.hidden_size, p.state_size, PROJECTED));
        for (var own_row = 0u; own_row < ROWS_PER_LANE; own_row++) {
            let r = own_row * LANES + pos.lane;
            let row = pos.first_row + r;
            if (r >= ROWS || row >= p.batch || pos.unit >= p.hidden_size) { continue; }
            let dc_index = p.batch * p.state_size + row * p.hidden_size + unit;
            let z_index = (t * p.batch + row) * row_stride + unit;
            if (!is_end && t >= length_of(row)) {
                dz[z_index] = 0.0;
                dz[z_index + p.hidden_size] = 0.0;
                dz[z_index + 2u * p.hidden_size] = 0.0;
                dz[z_index + 3u * p.hidden_size] = 0.0;
                continue;
            }
            let s = sums[own_row];
            var dc = snap(state_gradients[dc_index]);
            var dh: f32;
            if (PROJECTED) {
                dh = snap(s.x);
            } else {
                let previous = previous_step(row, iteration);
                if (previous == NONE) {
                    dh = snap(state_gradients[row * p.state_size + unit]);
                } else if (CELL == DENSE) {
                    // The gates of this cell read c instead of h.
                    dh = 0.0;
                    let f = gates[(previous * p.batch + row) * row_stride + p.hidden_size + unit];
                    dc = snap(FMA(dc, f, snap((s.x + s.y) + s.w)));
                } else {
                    dh = snap(((s.x + s.y) + s.z) + s.w);
                }
            }
            if (is_end) {
                state_gradients[row * p.state_size + unit] = dh;
                state_gradients[dc_index] = dc;
                continue;
            }
            if (!PROJECTED) { dh = snap(output_gradients[(t * p.batch + row) * p.state_size + unit] + dh); }

            let i = gates[z_index];
            let f = gates[z_index + p.hidden_size];
            let g = gates[z_index + 2u * p.hidden_size];
            let o = gates[z_index + 3u * p.hidden_size];
            let c = states[c_start + ((t + p.reverse) * p.batch + row) * p.hidden_size + unit];
            let c_next = states[c_start + ((t + 1u - p.reverse) * p.batch + row) * p.hidden_size + unit];
            var dzo: f32;
            if (CELL == DENSE) {
                let h = states[((t + 1u - p.reverse) * p.batch + row) * p.state_size + unit];
                // Gradient of o * c, the argument of tanh.
                let d_oc = dh * FMA(negate(h), h, 1.0);
                dc = snap(FMA(d_oc, o, dc));
                dzo = sigmoid_gradient(d_oc * c_next, o);
            } else {
                let tanh_c = tanh_exact(c_next);
                dc = snap(FMA(dh * o, FMA(negate(tanh_c), tanh_c, 1.0), dc));
                dzo = sigmoid_gradient(dh * tanh_c, o);
            }
            if (CELL == DIAGONAL) { dc = snap(FMA(dzo, peephole[2u * p.hidden_size + unit], dc)); }
            var dzi: f32;
            var dzf = 0.0;
            if (COUPLED) {
                dzi = sigmoid_gradient(FMA(negate(dc), c, dc * g), i);
            } else {
                dzi = sigmoid_gradient(dc * g, i);
                dzf = sigmoid_gradient(dc * c, f);
            }
            var dzg: f32;
            if (CELL == DENSE) { dzg = sigmoid_gradient(dc * i, g); } else { dzg = tanh_gradient(dc * i, g); }
            if (CELL != DENSE) { dc = snap(dc * f); }
            if (CELL == DIAGONAL) {
                dc = snap(FMA(dzi, peephole[unit], dc));
                dc = snap(FMA(dzf, peephole[p.hidden_size + unit], dc));
            }
            state_gradients[dc_index] = dc;
            dz[z_index] = dzi;
            dz[z_index + p.hidden_size] = dzf;
            dz[z_index + 2u * p.hidden_size] = dzg;
            dz[z_index + 3u * p.hidden_size] = dzo;
        }
        storageBarrier();
    }
}
