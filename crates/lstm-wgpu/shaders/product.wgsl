// A matrix product of a step: ROWS sequences by UNITS units a workgroup, four sums each. LANES invocations share a unit:
// each takes a block of k at a time, and their block sums are joined in the order of the blocks. The file below this one
// says what is multiplied: `block_sums(row0, unit, from, to)`.

// Sequences of which one invocation joins the sums, and computes what follows.
const OWN: u32 = (ROWS + LANES - 1u) / LANES;

var<workgroup> parts: array<vec4<f32>, LANES * ROWS * UNITS>;

struct Place { row0: u32, unit: u32, lane: u32, column: u32 }

fn place(group: u32, local: u32, units: u32) -> Place {
    let across = (units + UNITS - 1u) / UNITS;
    let column = local % UNITS;
    return Place((group / across) * ROWS, (group % across) * UNITS + column, local / UNITS, column);
}

// The sums over `length` for the sequences `row0 + lane, row0 + lane + LANES, ...`; `unit` is one that there is.
fn product(at: Place, unit: u32, length: u32) -> array<vec4<f32>, OWN> {
    var total: array<vec4<f32>, OWN>;
    let blocks = (length + BLOCK - 1u) / BLOCK;
    for (var first = 0u; first < blocks; first += LANES) {
        let block = first + at.lane;
        if (LANES == 1u) {
            var s = block_sums(at.row0, unit, block * BLOCK, min(block * BLOCK + BLOCK, length));
            for (var r = 0u; r < OWN; r++) {
                total[r] = select(total[r] + s[r], s[r], first == 0u);
            }
        } else {
            if (block < blocks) {
                var s = block_sums(at.row0, unit, block * BLOCK, min(block * BLOCK + BLOCK, length));
                for (var r = 0u; r < ROWS; r++) {
                    parts[(at.lane * ROWS + r) * UNITS + at.column] = s[r];
                }
            }
            workgroupBarrier();
            for (var own = 0u; own < OWN; own++) {
                let r = own * LANES + at.lane;
                if (r < ROWS) {
                    for (var i = 0u; i < min(LANES, blocks - first); i++) {
                        let s = parts[(i * ROWS + r) * UNITS + at.column];
                        total[own] = select(total[own] + s, s, first + i == 0u);
                    }
                }
            }
            workgroupBarrier();
        }
    }
    return total;
}
