// With a projection: the gradient of h', [steps * batch, state], of one step; after the last, of the initial h.

@group(0) @binding(0) var<storage, read> dz: array<f32>;
// U, [4 * hidden, state]
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> upstream: array<f32>;
@group(0) @binding(3) var<storage, read_write> dh: array<f32>;
@group(0) @binding(4) var<storage, read_write> d: array<f32>;
@group(0) @binding(5) var<storage, read> lengths: array<u32>;

var<private> visit_now: u32;

fn block_sums(row0: u32, unit: u32, start: u32, end: u32) -> array<vec4<f32>, ROWS> {
    var s: array<vec4<f32>, ROWS>;
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

@compute @workgroup_size(UNITS * LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = place(group.x + group.y * groups.x, local, p.state);
    let unit = min(at.unit, p.state - 1u);
    visit_now = p.first;
    let final_ = p.first == p.steps;
    let t = select(p.steps - 1u - p.first, p.first, p.reverse != 0u);
    let sums = product(at, unit, p.hidden);
    for (var own = 0u; own < OWN; own++) {
        let r = own * LANES + at.lane;
        let row = at.row0 + r;
        if (r >= ROWS || row >= p.batch || at.unit >= p.state) { continue; }
        let out = (t * p.batch + row) * p.state + unit;
        if (!final_ && t >= length_of(row)) {
            dh[out] = 0.0;
            continue;
        }
        let s = sums[own];
        var v = snap(((s.x + s.y) + s.z) + s.w);
        if (source(row, p.first) == NONE) { v = snap(d[row * p.state + unit]); }
        if (final_) {
            d[row * p.state + unit] = v;
        } else {
            dh[out] = snap(upstream[out] + v);
        }
    }
}
