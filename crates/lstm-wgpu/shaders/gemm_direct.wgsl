// Matrix product with one element per invocation, for small results.

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if (i >= p.m * p.n) { return; }
    let row = i / p.n;
    let col = i % p.n;
    var sum = 0.0;
    if (p.acc_layout != ABSENT) { sum = read_acc(row, col); }
    for (var order = 0u; order < p.segment_count; order++) {
        let segment = segment_index(order);
        let length = segment_length(segment);
        var index_a = p.a_offset + row * p.a_row_stride + segment * p.a_segment_stride;
        var index_b = p.b_offset + col * p.b_col_stride + segment * p.b_segment_stride;
        var total = 0.0;
        for (var start = 0u; start < length; start += BLOCK) {
            var s = 0.0;
            for (var k = start; k < min(start + BLOCK, length); k++) {
                s = FMA(read_a(index_a), read_b(index_b), s);
                index_a += p.a_k_stride;
                index_b += p.b_k_stride;
            }
            total = select(total + s, s, start == 0u);
        }
        sum = select(sum + total, total, order == 0u && p.acc_layout == ABSENT);
    }
    write(row, col, sum);
}
