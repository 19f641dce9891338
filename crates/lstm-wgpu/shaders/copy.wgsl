// Copies a rectangle of matrix x into matrix y. The bits stay unchanged, or are snapped if p.snap_values is set.

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i >= p.rows * p.cols) { return; }
    let row = i / p.cols;
    let col = i % p.cols;
    let v = x[p.x_offset + row * p.x_stride + col];
    y[p.y_offset + row * p.y_stride + col] = select(v, 0u, p.snap_values != 0u && (v & MAGNITUDE_BITS) < SNAP_BITS);
}
