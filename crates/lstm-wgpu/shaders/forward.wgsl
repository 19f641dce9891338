// Steps of a layer's forward pass: the recurrent product fused with the cell. If a dispatch runs more than one
// iteration, a workgroup holds all units of its sequences.
// The constants CELL, COUPLED, CLIPPED and PROJECTED select the cell. TRAIN selects whether gates are stored.

// bias + W_ih x, [rows, 4 * hidden]. Training overwrites it with the gate activations i, f, g, o.
@group(0) @binding(0) var<storage, read_write> gates: array<f32>;
// Recurrent weights, [state, hidden]; each element holds the weights of the four gates.
@group(0) @binding(1) var<storage, read> weight_hh: array<vec4<f32>>;
// Ring buffer of states. h: [state_slots, batch, state], then c: [state_slots, batch, hidden].
@group(0) @binding(2) var<storage, read_write> states: array<f32>;
// Output h, [steps * batch, state]. With a projection: the projection's input o * tanh(c), [steps * batch, hidden] in
// training, else [batch, hidden].
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> lengths: array<u32>;
// Peephole weights p_i, p_f, p_o, [3, hidden].
@group(0) @binding(5) var<storage, read> peephole: array<f32>;

// Offset in `states` and row length of the state that the recurrent product reads.
var<private> operand_offset: u32;
var<private> operand_width: u32;

fn block_sums(first_row: u32, unit: u32, start: u32, end: u32) -> array<vec4<f32>, ROWS> {
    var s: array<vec4<f32>, ROWS>;
    var offsets: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        offsets[r] = operand_offset + min(first_row + r, p.batch - 1u) * operand_width;
    }
    for (var k = start; k < end; k++) {
        let weights = weight_hh[k * p.hidden_size + unit];
        for (var r = 0u; r < ROWS; r++) {
            s[r] = FMA4(states[offsets[r] + k], weights, s[r]);
        }
    }
    return s;
}

fn clip_gate(z: f32) -> f32 {
    if (CLIPPED) { return clip(z, p.clip); }
    return z;
}

@compute @workgroup_size(UNITS * LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let pos = invocation_position(group.x + group.y * groups.x, local, p.hidden_size);
    let unit = min(pos.unit, p.hidden_size - 1u);
    let c_start = p.state_slots * p.batch * p.state_size;
    for (var iteration = p.first_iteration; iteration < p.end_iteration; iteration++) {
        let t = select(iteration, p.steps - 1u - iteration, p.reverse != 0u);
        let old_slot = (t + p.reverse) % p.state_slots;
        let new_slot = (t + 1u - p.reverse) % p.state_slots;
        let c_old_start = c_start + old_slot * p.batch * p.hidden_size;
        let c_new_start = c_start + new_slot * p.batch * p.hidden_size;
        operand_offset = select(old_slot * p.batch * p.state_size, c_old_start, CELL == DENSE);
        operand_width = p.state_size;
        let sums = step_product(pos, unit, p.state_size);
        for (var own_row = 0u; own_row < ROWS_PER_LANE; own_row++) {
            let r = own_row * LANES + pos.lane;
            let row = pos.first_row + r;
            if (r >= ROWS || row >= p.batch || pos.unit >= p.hidden_size) { continue; }
            var out_row = t * p.batch + row;
            if (PROJECTED && !TRAIN) { out_row = row; }
            let out_index = out_row * p.hidden_size + unit;
            let h_index = (new_slot * p.batch + row) * p.state_size + unit;
            let c_index = row * p.hidden_size + unit;
            let c = states[c_old_start + c_index];
            if (p.has_lengths != 0u && t >= lengths[row]) {
                states[c_new_start + c_index] = c;
                y[out_index] = 0.0;
                if (!PROJECTED) { states[h_index] = states[(old_slot * p.batch + row) * p.state_size + unit]; }
                continue;
            }
            let gate_index = (t * p.batch + row - p.gates_first_row) * 4u * p.hidden_size + unit;
            let s = sums[own_row];
            var zi = gates[gate_index] + s.x;
            var zf = gates[gate_index + p.hidden_size] + s.y;
            var zg = gates[gate_index + 2u * p.hidden_size];
            if (CELL != DENSE) { zg = zg + s.z; }
            var zo = gates[gate_index + 3u * p.hidden_size] + s.w;
            if (CELL == DIAGONAL) {
                zi = FMA(c, peephole[unit], zi);
                zf = FMA(c, peephole[p.hidden_size + unit], zf);
            }
            let i = sigmoid(clip_gate(zi));
            var f = 1.0 - i;
            if (!COUPLED) { f = sigmoid(clip_gate(zf)); }
            var g: f32;
            if (CELL == DENSE) { g = snap(sigmoid(clip_gate(zg))); } else { g = snap(tanh_exact(clip_gate(zg))); }
            let c_next = snap(FMA(f, c, i * g));
            if (CELL == DIAGONAL) { zo = FMA(c_next, peephole[2u * p.hidden_size + unit], zo); }
            let o = sigmoid(clip_gate(zo));
            var h: f32;
            if (CELL == DENSE) { h = snap(tanh_exact(o * c_next)); } else { h = snap(o * tanh_exact(c_next)); }
            states[c_new_start + c_index] = c_next;
            y[out_index] = h;
            if (!PROJECTED) { states[h_index] = h; }
            if (TRAIN) {
                gates[gate_index] = i;
                gates[gate_index + p.hidden_size] = f;
                gates[gate_index + 2u * p.hidden_size] = g;
                gates[gate_index + 3u * p.hidden_size] = o;
            }
        }
        storageBarrier();
    }
}
