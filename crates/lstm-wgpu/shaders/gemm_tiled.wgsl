// The product in tiles of 64 x 64 through workgroup memory, 4 x 4 elements per invocation.

const TILE: u32 = 64u;
// How much of k is in workgroup memory at a time: half a block.
const DEPTH: u32 = 16u;
// One more than the tile, so that columns fall into different banks.
const PITCH: u32 = 65u;

var<workgroup> tile_a: array<f32, DEPTH * PITCH>;
var<workgroup> tile_b: array<f32, DEPTH * PITCH>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let across = (p.n + TILE - 1u) / TILE;
    let tile = group.x + group.y * groups.x;
    let row0 = (tile / across) * TILE;
    let col0 = (tile % across) * TILE;
    let my_row = (local / 16u) * 4u;
    let my_col = (local % 16u) * 4u;

    var sum: array<vec4<f32>, 4>;
    for (var r = 0u; r < 4u; r++) {
        for (var c = 0u; c < 4u; c++) {
            if (p.acc != ABSENT && row0 + my_row + r < p.m && col0 + my_col + c < p.n) {
                sum[r][c] = read_acc(row0 + my_row + r, col0 + my_col + c);
            }
        }
    }
    for (var visit = 0u; visit < p.segments; visit++) {
        let place = place_of_segment(visit);
        let length = length_of_segment(place);
        let start_a = p.a_start + place * p.a_segment;
        let start_b = p.b_start + place * p.b_segment;
        var total: array<vec4<f32>, 4>;
        for (var block = 0u; block < length; block += BLOCK) {
            var s: array<vec4<f32>, 4>;
            for (var start = block; start < min(block + BLOCK, length); start += DEPTH) {
                let depth = min(DEPTH, length - start);
                // Neighbouring invocations read neighbouring addresses, whichever way the matrix lies.
                for (var i = local; i < TILE * DEPTH; i += 256u) {
                    let k = select(i / TILE, i % DEPTH, p.a_k == 1u);
                    let row = select(i % TILE, i / DEPTH, p.a_k == 1u);
                    if (k < depth && row0 + row < p.m) {
                        tile_a[k * PITCH + row] = read_a(start_a + (row0 + row) * p.a_row + (start + k) * p.a_k);
                    }
                }
                for (var i = local; i < TILE * DEPTH; i += 256u) {
                    let k = select(i / TILE, i % DEPTH, p.b_k == 1u);
                    let col = select(i % TILE, i / DEPTH, p.b_k == 1u);
                    if (k < depth && col0 + col < p.n) {
                        tile_b[k * PITCH + col] = read_b(start_b + (col0 + col) * p.b_col + (start + k) * p.b_k);
                    }
                }
                workgroupBarrier();
                for (var k = 0u; k < depth; k++) {
                    let at_a = k * PITCH + my_row;
                    let at_b = k * PITCH + my_col;
                    let b4 = vec4(tile_b[at_b], tile_b[at_b + 1u], tile_b[at_b + 2u], tile_b[at_b + 3u]);
                    s[0] = FMA4(tile_a[at_a], b4, s[0]);
                    s[1] = FMA4(tile_a[at_a + 1u], b4, s[1]);
                    s[2] = FMA4(tile_a[at_a + 2u], b4, s[2]);
                    s[3] = FMA4(tile_a[at_a + 3u], b4, s[3]);
                }
                workgroupBarrier();
            }
            for (var r = 0u; r < 4u; r++) {
                total[r] = select(total[r] + s[r], s[r], block == 0u);
            }
        }
        for (var r = 0u; r < 4u; r++) {
            sum[r] = select(sum[r] + total[r], total[r], visit == 0u && p.acc == ABSENT);
        }
    }
    for (var r = 0u; r < 4u; r++) {
        for (var c = 0u; c < 4u; c++) {
            if (row0 + my_row + r < p.m && col0 + my_col + c < p.n) {
                write(row0 + my_row + r, col0 + my_col + c, sum[r][c]);
            }
        }
    }
}
