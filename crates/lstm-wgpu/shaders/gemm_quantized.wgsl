// Product of a quantized matrix [rows, inner] with a transposed one [cols, inner], with one element of the result per
// invocation. Integers are stored as floats.

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> from_integer: array<u32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read> acc: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if (i >= p.rows * p.cols) { return; }
    let row = i / p.cols;
    let col = i % p.cols;
    let d = from_bits(from_integer[row]);
    let factor = scale[col] * d;
    var z = 0.0;
    if (p.acc_layout != ABSENT) { z = acc[select(i, col, p.acc_layout == ROW)]; }
    for (var start = 0u; start < p.inner; start += p.block) {
        let index_a = row * p.inner + start;
        let index_w = col * p.inner + start;
        let length = min(p.block, p.inner - start);
        var sum = 0;
        // A sum of four products is below 2^24, so floats hold it exactly, however it is computed.
        var k = 0u;
        for (; k + 4u <= length; k += 4u) {
            sum += i32(
                a[index_a + k] * w[index_w + k] + a[index_a + k + 1u] * w[index_w + k + 1u]
                    + a[index_a + k + 2u] * w[index_w + k + 2u] + a[index_a + k + 3u] * w[index_w + k + 3u],
            );
        }
        for (; k < length; k++) { sum += i32(a[index_a + k] * w[index_w + k]); }
        // Converts the sum to a float with one rounding to nearest, which WGSL's conversion does not promise: both
        // halves are exact.
        let v = FMA(f32(sum >> 12u), 4096.0, f32(sum & 4095));
        z = FMA(v, factor, z);
    }
    y[i] = propagate_nan(d, z);
}
