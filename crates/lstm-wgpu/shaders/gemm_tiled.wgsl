// Matrix product in tiles of 64 x 64 in workgroup memory, with 4 x 4 elements per invocation.

const TILE: u32 = 64u;
// Depth of a tile in k: half a block.
const DEPTH: u32 = 16u;
// Row stride of a tile. The padding by one spreads a column over different memory banks.
const TILE_STRIDE: u32 = 65u;

var<workgroup> tile_a: array<f32, DEPTH * TILE_STRIDE>;
var<workgroup> tile_b: array<f32, DEPTH * TILE_STRIDE>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tiles_per_row = (p.n + TILE - 1u) / TILE;
    let tile = group.x + group.y * groups.x;
    let first_row = (tile / tiles_per_row) * TILE;
    let first_col = (tile % tiles_per_row) * TILE;
    let local_row = (local / 16u) * 4u;
    let local_col = (local % 16u) * 4u;

    var sum: array<vec4<f32>, 4>;
    for (var r = 0u; r < 4u; r++) {
        for (var c = 0u; c < 4u; c++) {
            if (p.acc_layout != ABSENT && first_row + local_row + r < p.m && first_col + local_col + c < p.n) {
                sum[r][c] = read_acc(first_row + local_row + r, first_col + local_col + c);
            }
        }
    }
    for (var order = 0u; order < p.segment_count; order++) {
        let segment = segment_index(order);
        let length = segment_length(segment);
        let start_a = p.a_offset + segment * p.a_segment_stride;
        let start_b = p.b_offset + segment * p.b_segment_stride;
        var total: array<vec4<f32>, 4>;
        for (var block = 0u; block < length; block += BLOCK) {
            var s: array<vec4<f32>, 4>;
            for (var start = block; start < min(block + BLOCK, length); start += DEPTH) {
                let depth = min(DEPTH, length - start);
                // The index order makes neighboring invocations read neighboring addresses for both memory layouts.
                for (var i = local; i < TILE * DEPTH; i += 256u) {
                    let k = select(i / TILE, i % DEPTH, p.a_k_stride == 1u);
                    let row = select(i % TILE, i / DEPTH, p.a_k_stride == 1u);
                    if (k < depth && first_row + row < p.m) {
                        tile_a[k * TILE_STRIDE + row] =
                            read_a(start_a + (first_row + row) * p.a_row_stride + (start + k) * p.a_k_stride);
                    }
                }
                for (var i = local; i < TILE * DEPTH; i += 256u) {
                    let k = select(i / TILE, i % DEPTH, p.b_k_stride == 1u);
                    let col = select(i % TILE, i / DEPTH, p.b_k_stride == 1u);
                    if (k < depth && first_col + col < p.n) {
                        tile_b[k * TILE_STRIDE + col] =
                            read_b(start_b + (first_col + col) * p.b_col_stride + (start + k) * p.b_k_stride);
                    }
                }
                workgroupBarrier();
                for (var k = 0u; k < depth; k++) {
                    let index_a = k * TILE_STRIDE + local_row;
                    let index_b = k * TILE_STRIDE + local_col;
                    let b4 = vec4(tile_b[index_b], tile_b[index_b + 1u], tile_b[index_b + 2u], tile_b[index_b + 3u]);
                    s[0] = FMA4(tile_a[index_a], b4, s[0]);
                    s[1] = FMA4(tile_a[index_a + 1u], b4, s[1]);
                    s[2] = FMA4(tile_a[index_a + 2u], b4, s[2]);
                    s[3] = FMA4(tile_a[index_a + 3u], b4, s[3]);
                }
                workgroupBarrier();
            }
            for (var r = 0u; r < 4u; r++) {
                total[r] = select(total[r] + s[r], s[r], block == 0u);
            }
        }
        for (var r = 0u; r < 4u; r++) {
            sum[r] = select(sum[r] + total[r], total[r], order == 0u && p.acc_layout == ABSENT);
        }
    }
    for (var r = 0u; r < 4u; r++) {
        for (var c = 0u; c < 4u; c++) {
            if (first_row + local_row + r < p.m && first_col + local_col + c < p.n) {
                write(first_row + local_row + r, first_col + local_col + c, sum[r][c]);
            }
        }
    }
}
