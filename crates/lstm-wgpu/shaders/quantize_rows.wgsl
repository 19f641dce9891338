// Quantizes each row of a matrix: its integers, as floats, and the bits of the factor from an integer to a value. A
// workgroup computes a row. `shader/source.rs` writes the tables of factors above this file.

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> q: array<f32>;
@group(0) @binding(2) var<storage, read_write> from_integer: array<u32>;

var<workgroup> magnitudes: array<u32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if (row >= p.rows) { return; }
    let first = row * p.cols;
    var magnitude = 0u;
    for (var k = lane; k < p.cols; k += 64u) { magnitude = max(magnitude, bits(x[first + k]) & MAGNITUDE_BITS); }
    magnitudes[lane] = magnitude;
    workgroupBarrier();
    for (var n = 32u; n > 0u; n /= 2u) {
        if (lane < n) { magnitudes[lane] = max(magnitudes[lane], magnitudes[lane + n]); }
        workgroupBarrier();
    }
    magnitude = max(magnitudes[0], p.min_magnitude);

    // Infinity and NaN also have an exponent of 254 or more.
    let rounded = magnitude + EIGHTH_ROUND_UP;
    let exponent = rounded >> 23u;
    var to_integer = 0.0;
    var from_integer_bits = 0u;
    if (exponent >= 254u) {
        from_integer_bits = NAN_BITS;
    } else if (magnitude >= SNAP_BITS) {
        let eighth = (rounded >> 20u) & 7u;
        to_integer = to_integer_factor(eighth) * from_bits((254u - exponent) << 23u);
        from_integer_bits = bits(from_integer_factor(eighth) * from_bits(exponent << 23u));
    }
    if (lane == 0u) { from_integer[row] = from_integer_bits; }
    for (var k = lane; k < p.cols; k += 64u) {
        // The integer is the low half of `t`, with its sign.
        let t = bits(FMA(x[first + k], to_integer, MAGIC)) - bits(MAGIC);
        q[first + k] = select(f32(bitcast<i32>(t << 16u) >> 16u), 0.0, to_integer == 0.0);
    }
}
