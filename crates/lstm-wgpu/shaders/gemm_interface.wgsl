// What both kernels of the product share: out = acc + segment 0 + segment 1 + ..., from the left. Without an accumulator
// the sum starts from the first segment. Each segment is a product of its own, its k cut into blocks of BLOCK.

const ABSENT: u32 = 0u;
const ROW: u32 = 1u;

struct Params {
    m: u32,
    n: u32,
    // Over all segments, and of each but the last in memory, which may be shorter.
    k: u32,
    segment: u32,
    segments: u32,
    // Whether the segments are visited from the last to the first.
    descending: u32,
    acc: u32,
    // Whether a is snapped as it is read.
    snap: u32,
    // Where element (row, k, segment) of a, and (k, column, segment) of b, is.
    a_row: u32,
    a_k: u32,
    a_segment: u32,
    a_start: u32,
    b_k: u32,
    b_col: u32,
    b_segment: u32,
    b_start: u32,
}

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read> acc: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

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
