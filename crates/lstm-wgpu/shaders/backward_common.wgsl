// Shared by the kernels of the backward pass. The gradient of a state is a product with dz (the gradient of the gates
// before their activations) of the step that was processed before. These functions locate that dz.

// Result of `previous_step` if no step of the sequence was processed before.
const NONE: u32 = 0xffffffffu;

fn length_of(row: u32) -> u32 {
    if (p.has_lengths != 0u) { return lengths[row]; }
    return p.steps;
}

// Step of sequence `row` that the latest iteration before `iteration` processed, or NONE.
fn previous_step(row: u32, iteration: u32) -> u32 {
    let length = length_of(row);
    if (p.reverse != 0u) { return min(iteration, length) - 1u; }
    let t = p.steps - iteration;
    return select(NONE, t, iteration > 0u && t < length);
}

// Offset of dz of the previous step of each sequence. Sequences without a previous step get some offset in bounds.
fn previous_dz_offsets(first_row: u32, iteration: u32) -> array<u32, ROWS> {
    var offsets: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let row = min(first_row + r, p.batch - 1u);
        let t = previous_step(row, iteration);
        offsets[r] = (select(t, 0u, t == NONE) * p.batch + row) * 4u * p.hidden_size;
    }
    return offsets;
}
