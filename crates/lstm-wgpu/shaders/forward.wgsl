// Steps of a layer's forward pass: the recurrent product and the cell in one. With several steps, one workgroup has all
// units of its sequences. CELL, COUPLED, CLIPPED, PROJECTED and TRAIN are constants.

// bias + W x, [rows, 4 * hidden]; in training replaced by i, f, g, o.
@group(0) @binding(0) var<storage, read_write> gates: array<f32>;
// U, [state, hidden] of the four gates.
@group(0) @binding(1) var<storage, read> u: array<vec4<f32>>;
// h: [ring, batch, state], then c: [ring, batch, hidden].
@group(0) @binding(2) var<storage, read_write> states: array<f32>;
// [steps * batch, state]; with a projection m = o tanh(c'), [steps * batch or batch, hidden].
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> lengths: array<u32>;
// p_i, p_f, p_o, [3, hidden].
@group(0) @binding(5) var<storage, read> peephole: array<f32>;

// Where the operand of the product starts, and the length of its rows.
var<private> operand: u32;
var<private> width: u32;

fn block_sums(row0: u32, unit: u32, start: u32, end: u32) -> array<vec4<f32>, ROWS> {
    var s: array<vec4<f32>, ROWS>;
    var at: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        at[r] = operand + min(row0 + r, p.batch - 1u) * width;
    }
    for (var k = start; k < end; k++) {
        let weights = u[k * p.hidden + unit];
        for (var r = 0u; r < ROWS; r++) {
            s[r] = FMA4(states[at[r] + k], weights, s[r]);
        }
    }
    return s;
}

fn bounded(z: f32) -> f32 {
    if (CLIPPED) { return clip(z, p.clip); }
    return z;
}

@compute @workgroup_size(UNITS * LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = place(group.x + group.y * groups.x, local, p.hidden);
    let unit = min(at.unit, p.hidden - 1u);
    let c0 = p.ring * p.batch * p.state;
    for (var visit = p.first; visit < p.last; visit++) {
        let t = select(visit, p.steps - 1u - visit, p.reverse != 0u);
        let old = (t + p.reverse) % p.ring;
        let new_ = (t + 1u - p.reverse) % p.ring;
        let c_old = c0 + old * p.batch * p.hidden;
        let c_new = c0 + new_ * p.batch * p.hidden;
        operand = select(old * p.batch * p.state, c_old, CELL == DENSE);
        width = p.state;
        let sums = product(at, unit, p.state);
        for (var own = 0u; own < OWN; own++) {
            let r = own * LANES + at.lane;
            let row = at.row0 + r;
            if (r >= ROWS || row >= p.batch || at.unit >= p.hidden) { continue; }
            var out_row = t * p.batch + row;
            if (PROJECTED && !TRAIN) { out_row = row; }
            let out = out_row * p.hidden + unit;
            let h_at = (new_ * p.batch + row) * p.state + unit;
            let c_at = row * p.hidden + unit;
            let c = states[c_old + c_at];
            if (p.has_lengths != 0u && t >= lengths[row]) {
                states[c_new + c_at] = c;
                y[out] = 0.0;
                if (!PROJECTED) { states[h_at] = states[(old * p.batch + row) * p.state + unit]; }
                continue;
            }
            let g_at = (t * p.batch + row - p.gates_row) * 4u * p.hidden + unit;
            let s = sums[own];
            var zi = gates[g_at] + s.x;
            var zf = gates[g_at + p.hidden] + s.y;
            var zg = gates[g_at + 2u * p.hidden];
            if (CELL != DENSE) { zg = zg + s.z; }
            var zo = gates[g_at + 3u * p.hidden] + s.w;
            if (CELL == DIAGONAL) {
                zi = FMA(c, peephole[unit], zi);
                zf = FMA(c, peephole[p.hidden + unit], zf);
            }
            let i = sigmoid(bounded(zi));
            var f = 1.0 - i;
            if (!COUPLED) { f = sigmoid(bounded(zf)); }
            var g: f32;
            if (CELL == DENSE) { g = snap(sigmoid(bounded(zg))); } else { g = snap(tanh_of(bounded(zg))); }
            let c_next = snap(FMA(f, c, i * g));
            if (CELL == DIAGONAL) { zo = FMA(c_next, peephole[2u * p.hidden + unit], zo); }
            let o = sigmoid(bounded(zo));
            var h: f32;
            if (CELL == DENSE) { h = snap(tanh_of(o * c_next)); } else { h = snap(o * tanh_of(c_next)); }
            states[c_new + c_at] = c_next;
            y[out] = h;
            if (!PROJECTED) { states[h_at] = h; }
            if (TRAIN) {
                gates[g_at] = i;
                gates[g_at + p.hidden] = f;
                gates[g_at + 2u * p.hidden] = g;
                gates[g_at + 3u * p.hidden] = o;
            }
        }
        storageBarrier();
    }
}
