// The product, one element per invocation: for small results, and for adapters that have no use for tiles.

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if (i >= p.m * p.n) { return; }
    let row = i / p.n;
    let col = i % p.n;
    var sum = 0.0;
    if (p.acc != ABSENT) { sum = read_acc(row, col); }
    for (var visit = 0u; visit < p.segments; visit++) {
        let place = place_of_segment(visit);
        let length = length_of_segment(place);
        var at_a = p.a_start + row * p.a_row + place * p.a_segment;
        var at_b = p.b_start + col * p.b_col + place * p.b_segment;
        var total = 0.0;
        for (var start = 0u; start < length; start += BLOCK) {
            var s = 0.0;
            for (var k = start; k < min(start + BLOCK, length); k++) {
                s = FMA(read_a(at_a), read_b(at_b), s);
                at_a += p.a_k;
                at_b += p.b_k;
            }
            total = select(total + s, s, start == 0u);
        }
        sum = select(sum + total, total, visit == 0u && p.acc == ABSENT);
    }
    write(row, col, sum);
}
