// The product, 4 x 4 elements per invocation and nothing shared: for adapters that are CPUs, where barriers cost more than
// workgroup memory saves.

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    let across = (p.n + 3u) / 4u;
    if (i >= (p.m + 3u) / 4u * across) { return; }
    // What is beyond the last is that once more, and not written.
    let rows = (i / across) * 4u + vec4(0u, 1u, 2u, 3u);
    let cols = (i % across) * 4u + vec4(0u, 1u, 2u, 3u);
    let row = min(rows, vec4(p.m - 1u));
    let col = min(cols, vec4(p.n - 1u));
    var sum: array<vec4<f32>, 4>;
    if (p.acc != ABSENT) {
        for (var r = 0u; r < 4u; r++) {
            for (var c = 0u; c < 4u; c++) { sum[r][c] = read_acc(row[r], col[c]); }
        }
    }
    for (var visit = 0u; visit < p.segments; visit++) {
        let place = place_of_segment(visit);
        let length = length_of_segment(place);
        var at_a = p.a_start + row * p.a_row + place * p.a_segment;
        var at_b = p.b_start + col * p.b_col + place * p.b_segment;
        var total: array<vec4<f32>, 4>;
        for (var start = 0u; start < length; start += BLOCK) {
            var s: array<vec4<f32>, 4>;
            for (var k = start; k < min(start + BLOCK, length); k++) {
                let b4 = vec4(read_b(at_b.x), read_b(at_b.y), read_b(at_b.z), read_b(at_b.w));
                s[0] = FMA4(read_a(at_a.x), b4, s[0]);
                s[1] = FMA4(read_a(at_a.y), b4, s[1]);
                s[2] = FMA4(read_a(at_a.z), b4, s[2]);
                s[3] = FMA4(read_a(at_a.w), b4, s[3]);
                at_a += p.a_k;
                at_b += p.b_k;
            }
            for (var r = 0u; r < 4u; r++) {
                total[r] = select(total[r] + s[r], s[r], start == 0u);
            }
        }
        for (var r = 0u; r < 4u; r++) {
            sum[r] = select(sum[r] + total[r], total[r], visit == 0u && p.acc == ABSENT);
        }
    }
    for (var r = 0u; r < 4u; r++) {
        for (var c = 0u; c < 4u; c++) {
            if (rows[r] < p.m && cols[c] < p.n) { write(rows[r], cols[c], sum[r][c]); }
        }
    }
}
