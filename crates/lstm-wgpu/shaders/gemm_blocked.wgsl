// Matrix product with 4 x 4 elements per invocation and without workgroup memory, for adapters that are CPUs: there,
// barriers cost more than workgroup memory saves.

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    let blocks_per_row = (p.n + 3u) / 4u;
    if (i >= (p.m + 3u) / 4u * blocks_per_row) { return; }
    // Rows and columns beyond the last are read as the last one and not written.
    let rows = (i / blocks_per_row) * 4u + vec4(0u, 1u, 2u, 3u);
    let cols = (i % blocks_per_row) * 4u + vec4(0u, 1u, 2u, 3u);
    let row = min(rows, vec4(p.m - 1u));
    let col = min(cols, vec4(p.n - 1u));
    var sum: array<vec4<f32>, 4>;
    if (p.acc_layout != ABSENT) {
        for (var r = 0u; r < 4u; r++) {
            for (var c = 0u; c < 4u; c++) { sum[r][c] = read_acc(row[r], col[c]); }
        }
    }
    for (var order = 0u; order < p.segment_count; order++) {
        let segment = segment_index(order);
        let length = segment_length(segment);
        var index_a = p.a_offset + row * p.a_row_stride + segment * p.a_segment_stride;
        var index_b = p.b_offset + col * p.b_col_stride + segment * p.b_segment_stride;
        var total: array<vec4<f32>, 4>;
        for (var start = 0u; start < length; start += BLOCK) {
            var s: array<vec4<f32>, 4>;
            for (var k = start; k < min(start + BLOCK, length); k++) {
                let b4 = vec4(read_b(index_b.x), read_b(index_b.y), read_b(index_b.z), read_b(index_b.w));
                s[0] = FMA4(read_a(index_a.x), b4, s[0]);
                s[1] = FMA4(read_a(index_a.y), b4, s[1]);
                s[2] = FMA4(read_a(index_a.z), b4, s[2]);
                s[3] = FMA4(read_a(index_a.w), b4, s[3]);
                index_a += p.a_k_stride;
                index_b += p.b_k_stride;
            }
            for (var r = 0u; r < 4u; r++) {
                total[r] = select(total[r] + s[r], s[r], start == 0u);
            }
        }
        for (var r = 0u; r < 4u; r++) {
            sum[r] = select(sum[r] + total[r], total[r], order == 0u && p.acc_layout == ABSENT);
        }
    }
    for (var r = 0u; r < 4u; r++) {
        for (var c = 0u; c < 4u; c++) {
            if (rows[r] < p.m && cols[c] < p.n) { write(rows[r], cols[c], sum[r][c]); }
        }
    }
}
