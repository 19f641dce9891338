// Shared by the matrix product kernels: y = acc + segment 0 + segment 1 + ..., added from the left. Without an
// accumulator the sum starts with the first segment. A segment is a range of k, summed in blocks of BLOCK elements.

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read> acc: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// Index of the segment that is added as number `order`.
fn segment_index(order: u32) -> u32 {
    return select(order, p.segment_count - 1u - order, p.descending_segments != 0u);
}

// The last segment may be shorter than the others.
fn segment_length(segment: u32) -> u32 {
    return min(p.segment_length, p.k - segment * p.segment_length);
}

fn read_a(index: u32) -> f32 {
    let v = a[index];
    return select(v, snap(v), p.snap_a != 0u);
}

fn read_b(index: u32) -> f32 {
    return b[index];
}

fn read_acc(row: u32, col: u32) -> f32 {
    return acc[select(row * p.n + col, col, p.acc_layout == ROW)];
}

fn write(row: u32, col: u32, v: f32) {
    y[row * p.n + col] = v;
}
