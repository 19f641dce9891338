// Steps of a layer's backward pass: the gradient of the state by a product, then the cell's. With several visits, one
// workgroup has all units of its sequences. CELL, COUPLED, CLIPPED and PROJECTED are constants.

// i, f, g, o, [steps * batch, 4 * hidden]
@group(0) @binding(0) var<storage, read> gates: array<f32>;
// h: [steps + 1, batch, state], then c: [steps + 1, batch, hidden].
@group(0) @binding(1) var<storage, read> states: array<f32>;
// U, [4 * hidden, state]; with a projection W_hr, [state, hidden].
@group(0) @binding(2) var<storage, read> weights: array<f32>;
// dy, [steps * batch, state]; with a projection the whole gradient of h'.
@group(0) @binding(3) var<storage, read> upstream: array<f32>;
// [steps * batch, 4 * hidden]
@group(0) @binding(4) var<storage, read_write> dz: array<f32>;
// dh: [batch, state], of the final state and in the end of the initial one; then dc: [batch, hidden].
@group(0) @binding(5) var<storage, read_write> d: array<f32>;
@group(0) @binding(6) var<storage, read> lengths: array<u32>;
@group(0) @binding(7) var<storage, read> peephole: array<f32>;

var<private> visit_now: u32;

fn block_sums(row0: u32, unit: u32, start: u32, end: u32) -> array<vec4<f32>, ROWS> {
    var s: array<vec4<f32>, ROWS>;
    if (PROJECTED) {
        let first = (p.steps - 1u - visit_now) * (1u - p.reverse) + visit_now * p.reverse;
        for (var k = start; k < end; k++) {
            let w = weights[k * p.hidden + unit];
            for (var r = 0u; r < ROWS; r++) {
                let row = first * p.batch + min(row0 + r, p.batch - 1u);
                s[r].x = FMA(upstream[row * p.state + k], w, s[r].x);
            }
        }
        return s;
    }
    var at = sources(row0, visit_now);
    for (var k = start; k < end; k++) {
        for (var g = 0u; g < 4u; g++) {
            let w = weights[(g * p.hidden + k) * p.state + unit];
            for (var r = 0u; r < ROWS; r++) {
                s[r][g] = FMA(dz[at[r] + g * p.hidden + k], w, s[r][g]);
            }
        }
    }
    return s;
}

// dz of a gate with the value `gate`, where its sum was not clipped.
fn unclipped(v: f32, gate: f32, low: f32, high: f32) -> f32 {
    if (CLIPPED) { return within(snap(v), gate, low, high); }
    return snap(v);
}

fn of_sigmoid(v: f32, s: f32) -> f32 {
    return unclipped(v * FMA(negated(s), s, s), s, p.sigmoid_low, p.sigmoid_high);
}

fn of_tanh(v: f32, t: f32) -> f32 {
    return unclipped(v * FMA(negated(t), t, 1.0), t, p.tanh_low, p.tanh_high);
}

@compute @workgroup_size(UNITS * LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = place(group.x + group.y * groups.x, local, p.hidden);
    let unit = min(at.unit, p.hidden - 1u);
    let c0 = (p.steps + 1u) * p.batch * p.state;
    let four = 4u * p.hidden;
    for (var visit = p.first; visit < p.last; visit++) {
        visit_now = visit;
        let final_ = visit == p.steps;
        let t = select(p.steps - 1u - visit, visit, p.reverse != 0u);
        let sums = product(at, unit, select(p.hidden, p.state, PROJECTED));
        for (var own = 0u; own < OWN; own++) {
            let r = own * LANES + at.lane;
            let row = at.row0 + r;
            if (r >= ROWS || row >= p.batch || at.unit >= p.hidden) { continue; }
            let dc_at = p.batch * p.state + row * p.hidden + unit;
            let z_at = (t * p.batch + row) * four + unit;
            if (!final_ && t >= length_of(row)) {
                dz[z_at] = 0.0;
                dz[z_at + p.hidden] = 0.0;
                dz[z_at + 2u * p.hidden] = 0.0;
                dz[z_at + 3u * p.hidden] = 0.0;
                continue;
            }
            let s = sums[own];
            var dc = snap(d[dc_at]);
            var dh: f32;
            if (PROJECTED) {
                dh = snap(s.x);
            } else {
                let before = source(row, visit);
                if (before == NONE) {
                    dh = snap(d[row * p.state + unit]);
                } else if (CELL == DENSE) {
                    // h is not fed back; the gates saw c.
                    dh = 0.0;
                    let f = gates[(before * p.batch + row) * four + p.hidden + unit];
                    dc = snap(FMA(dc, f, snap((s.x + s.y) + s.w)));
                } else {
                    dh = snap(((s.x + s.y) + s.z) + s.w);
                }
            }
            if (final_) {
                d[row * p.state + unit] = dh;
                d[dc_at] = dc;
                continue;
            }
            if (!PROJECTED) { dh = snap(upstream[(t * p.batch + row) * p.state + unit] + dh); }

            let i = gates[z_at];
            let f = gates[z_at + p.hidden];
            let g = gates[z_at + 2u * p.hidden];
            let o = gates[z_at + 3u * p.hidden];
            let c = states[c0 + ((t + p.reverse) * p.batch + row) * p.hidden + unit];
            let c_next = states[c0 + ((t + 1u - p.reverse) * p.batch + row) * p.hidden + unit];
            var dzo: f32;
            if (CELL == DENSE) {
                let h = states[((t + 1u - p.reverse) * p.batch + row) * p.state + unit];
                let dq = dh * FMA(negated(h), h, 1.0);
                dc = snap(FMA(dq, o, dc));
                dzo = of_sigmoid(dq * c_next, o);
            } else {
                let tc = tanh_of(c_next);
                dc = snap(FMA(dh * o, FMA(negated(tc), tc, 1.0), dc));
                dzo = of_sigmoid(dh * tc, o);
            }
            if (CELL == DIAGONAL) { dc = snap(FMA(dzo, peephole[2u * p.hidden + unit], dc)); }
            var dzi: f32;
            var dzf = 0.0;
            if (COUPLED) {
                dzi = of_sigmoid(FMA(negated(dc), c, dc * g), i);
            } else {
                dzi = of_sigmoid(dc * g, i);
                dzf = of_sigmoid(dc * c, f);
            }
            var dzg: f32;
            if (CELL == DENSE) { dzg = of_sigmoid(dc * i, g); } else { dzg = of_tanh(dc * i, g); }
            if (CELL != DENSE) { dc = snap(dc * f); }
            if (CELL == DIAGONAL) {
                dc = snap(FMA(dzi, peephole[unit], dc));
                dc = snap(FMA(dzf, peephole[p.hidden + unit], dc));
            }
            d[dc_at] = dc;
            dz[z_at] = dzi;
            dz[z_at + p.hidden] = dzf;
            dz[z_at + 2u * p.hidden] = dzg;
            dz[z_at + 3u * p.hidden] = dzo;
        }
        storageBarrier();
    }
}
