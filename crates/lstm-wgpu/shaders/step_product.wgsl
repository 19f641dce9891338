// Matrix product of one step. A workgroup computes ROWS sequences by UNITS units, four sums for each. LANES invocations
// share a unit: each takes one block of k at a time, and the block sums are added in the order of the blocks.
// The file after this one defines the operands in `block_sums(first_row, unit, start, end)`, the sums over k in
// `start..end` for the sequences from `first_row` on.

// Number of sequences for which one invocation adds the block sums and computes the cell.
const ROWS_PER_LANE: u32 = (ROWS + LANES - 1u) / LANES;

var<workgroup> partial_sums: array<vec4<f32>, LANES * ROWS * UNITS>;

// Position of an invocation: its workgroup's first sequence, its unit, its lane, and its unit within the workgroup.
struct Position { first_row: u32, unit: u32, lane: u32, local_unit: u32 }

fn invocation_position(group: u32, local: u32, units: u32) -> Position {
    let groups_per_row = (units + UNITS - 1u) / UNITS;
    let local_unit = local % UNITS;
    return Position(
        (group / groups_per_row) * ROWS,
        (group % groups_per_row) * UNITS + local_unit,
        local / UNITS,
        local_unit,
    );
}

// Sums over k in `0..length` for the sequences first_row + lane, first_row + lane + LANES, and so on.
// `unit` must be less than the number of units.
fn step_product(pos: Position, unit: u32, length: u32) -> array<vec4<f32>, ROWS_PER_LANE> {
    var total: array<vec4<f32>, ROWS_PER_LANE>;
    let blocks = (length + BLOCK - 1u) / BLOCK;
    for (var first = 0u; first < blocks; first += LANES) {
        let block = first + pos.lane;
        if (LANES == 1u) {
            var s = block_sums(pos.first_row, unit, block * BLOCK, min(block * BLOCK + BLOCK, length));
            for (var r = 0u; r < ROWS_PER_LANE; r++) {
                total[r] = select(total[r] + s[r], s[r], first == 0u);
            }
        } else {
            if (block < blocks) {
                var s = block_sums(pos.first_row, unit, block * BLOCK, min(block * BLOCK + BLOCK, length));
                for (var r = 0u; r < ROWS; r++) {
                    partial_sums[(pos.lane * ROWS + r) * UNITS + pos.local_unit] = s[r];
                }
            }
            workgroupBarrier();
            for (var own_row = 0u; own_row < ROWS_PER_LANE; own_row++) {
                let r = own_row * LANES + pos.lane;
                if (r < ROWS) {
                    for (var i = 0u; i < min(LANES, blocks - first); i++) {
                        let s = partial_sums[(i * ROWS + r) * UNITS + pos.local_unit];
                        total[own_row] = select(total[own_row] + s, s, first + i == 0u);
                    }
                }
            }
            workgroupBarrier();
        }
    }
    return total;
}
