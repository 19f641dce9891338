// Computes FMA of many triples, for the probe: y[i] = FMA(x[3i], x[3i + 1], x[3i + 2]).

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if (i >= p.len) { return; }
    y[i] = FMA(x[3u * i], x[3u * i + 1u], x[3u * i + 2u]);
}
