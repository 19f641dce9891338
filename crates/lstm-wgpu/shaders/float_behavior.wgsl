// Measures how the adapter rounds single float operations. `device/probe.rs` has the inputs and interprets the outputs.

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(1)
fn main() {
    y[0] = fma(x[0], x[0], x[1]);
    y[1] = x[0] * x[0] + x[1];
    y[2] = (x[2] + x[3]) - x[3];
    y[3] = (x[4] + x[5]) - x[4];
    y[4] = x[5] + x[6];
    y[5] = x[7] * x[5];
    y[6] = x[8] * x[9];
}
