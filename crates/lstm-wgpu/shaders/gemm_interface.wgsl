// What both kernels of the product share: out = acc + segment 0 + segment 1 + ..., from the left. Without an accumulator
// the sum starts from the first segment. Each segment is a product of its own, its k cut into blocks of BLOCK.

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read> acc: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn place_of_segment(visit: u32) -> u32 {
    return select(visit, p.segments - 1u - visit, p.descending != 0u);
}

fn length_of_segment(place: u32) -> u32 {
    return min(p.segment, p.k - place * p.segment);
}

fn read_a(at: u32) -> f32 {
    let v = a[at];
    return select(v, snap(v), p.snap != 0u);
}

fn read_b(at: u32) -> f32 {
    return b[at];
}

fn read_acc(row: u32, col: u32) -> f32 {
    return acc[select(row * p.n + col, col, p.acc == ROW)];
}

fn write(row: u32, col: u32, v: f32) {
    y[row * p.n + col] = v;
}
