// y = fma(alpha * a, b, c) for each element. b and c are matrices, single rows that apply to all rows, or absent.
// Without b the factor is 1; without c nothing is added.

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read> c: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i >= p.len) { return; }
    var factor = 1.0;
    if (p.b_layout != ABSENT) { factor = b[select(i, i % p.cols, p.b_layout == ROW)]; }
    let scaled = p.alpha * a[i];
    if (p.c_layout == ABSENT) {
        y[i] = scaled * factor;
    } else {
        y[i] = FMA(scaled, factor, c[select(i, i % p.cols, p.c_layout == ROW)]);
    }
}
