// Applies the operation OPERATION to each element.

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i >= p.len) { return; }
    switch OPERATION {
        case 0u: { y[i] = snap(x[i]); }
        case 1u: { y[i] = sigmoid(x[i]); }
        case 2u: { y[i] = tanh_exact(x[i]); }
        default: { y[i] = clip(x[i], p.bound); }
    }
}
