// The product of `gemm_quantized.wgsl` with 4 x 4 elements of the result per invocation, for large results.

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> from_integer: array<u32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read> acc: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    let blocks_per_row = (p.cols + 3u) / 4u;
    if (i >= (p.rows + 3u) / 4u * blocks_per_row) { return; }
    // Rows and columns beyond the last are read as the last one and not written.
    let rows = (i / blocks_per_row) * 4u + vec4(0u, 1u, 2u, 3u);
    let cols = (i % blocks_per_row) * 4u + vec4(0u, 1u, 2u, 3u);
    let row = min(rows, vec4(p.rows - 1u));
    let col = min(cols, vec4(p.cols - 1u));
    let index_a = row * p.inner;
    let index_w = col * p.inner;
    let scales = vec4(scale[col.x], scale[col.y], scale[col.z], scale[col.w]);
    var z: array<vec4<f32>, 4>;
    if (p.acc_layout != ABSENT) {
        for (var r = 0u; r < 4u; r++) {
            for (var c = 0u; c < 4u; c++) {
                z[r][c] = acc[select(row[r] * p.cols + col[c], col[c], p.acc_layout == ROW)];
            }
        }
    }
    for (var start = 0u; start < p.inner; start += p.block) {
        let end = min(start + p.block, p.inner);
        var sum: array<vec4<i32>, 4>;
        // A sum of four products is below 2^24, so floats hold it exactly, however it is computed.
        for (var k = start; k < end; k += 4u) {
            var s: array<vec4<f32>, 4>;
            for (var j = k; j < min(k + 4u, end); j++) {
                let w4 = vec4(w[index_w.x + j], w[index_w.y + j], w[index_w.z + j], w[index_w.w + j]);
                s[0] += a[index_a.x + j] * w4;
                s[1] += a[index_a.y + j] * w4;
                s[2] += a[index_a.z + j] * w4;
                s[3] += a[index_a.w + j] * w4;
            }
            for (var r = 0u; r < 4u; r++) { sum[r] += vec4<i32>(s[r]); }
        }
        for (var r = 0u; r < 4u; r++) {
            let factor = scales * from_bits(from_integer[row[r]]);
            // One rounding to nearest, as in gemm_quantized.wgsl.
            let v = FMA4(4096.0, vec4<f32>(sum[r] >> vec4(12u)), vec4<f32>(sum[r] & vec4(4095)));
            for (var c = 0u; c < 4u; c++) { z[r][c] = FMA(v[c], factor[c], z[r][c]); }
        }
    }
    for (var r = 0u; r < 4u; r++) {
        let d = from_bits(from_integer[row[r]]);
        for (var c = 0u; c < 4u; c++) {
            if (rows[r] < p.rows && cols[c] < p.cols) { y[rows[r] * p.cols + cols[c]] = propagate_nan(d, z[r][c]); }
        }
    }
}
