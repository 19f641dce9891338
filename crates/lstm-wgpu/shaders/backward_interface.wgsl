// What the kernels of the backward pass share: the gradient of a state is a product with dz of the step visited before.

const NONE: u32 = 0xffffffffu;

fn length_of(row: u32) -> u32 {
    if (p.has_lengths != 0u) { return lengths[row]; }
    return p.steps;
}

// The step of this sequence that was visited last before `visit`, if any.
fn source(row: u32, visit: u32) -> u32 {
    let length = length_of(row);
    if (p.reverse != 0u) { return min(visit, length) - 1u; }
    let t = p.steps - visit;
    return select(NONE, t, visit > 0u && t < length);
}

// Where dz of each sequence's source starts, or anything for those that have none.
fn sources(row0: u32, visit: u32) -> array<u32, ROWS> {
    var at: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let row = min(row0 + r, p.batch - 1u);
        let t = source(row, visit);
        at[r] = (select(t, 0u, t == NONE) * p.batch + row) * 4u * p.hidden;
    }
    return at;
}
