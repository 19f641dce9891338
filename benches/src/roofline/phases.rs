//! The least time of a case on a machine, as a sum over the phases of the case.
//!
//! A phase takes at least the largest of three times: its flops at peak throughput, its bytes at the bandwidth of the memory
//! level that they fit into, and its longest chain of dependent operations at the latency of a multiply-add. The roofline
//! time of a case is the sum over its phases.

use lstm_core::{CellKind, LayerSpec, Precision, arithmetic::DOT_BLOCK};
use serde::{Deserialize, Serialize};

use super::MachineLimits;
use crate::case::{Case, CaseKind};

/// Number of operations of a `sigmoid` as defined in `lstm_core::arithmetic`. An operation costs at most as much as a
/// multiply-add and counts as two flops.
const SIGMOID_OPS: f64 = 28.0;

/// Number of operations of a `tanh`, counted as for [`SIGMOID_OPS`].
const TANH_OPS: f64 = 33.0;

/// Number of operations of a hidden unit in a step besides matrix products and activations, counted as for
/// [`SIGMOID_OPS`]: additions, multiplications, snaps.
const CELL_OPS: f64 = 17.0;

/// Number of operations of a hidden unit in a backward step, counted as for [`SIGMOID_OPS`]: a tanh, and 33 for five
/// gradients.
const CELL_BACKWARD_OPS: f64 = TANH_OPS + 33.0;

/// Number of operations of a step that depend on each other and follow the recurrent product: adding the input term, a
/// sigmoid (19), two for the cell state, a tanh (19), and the product with the output gate.
const CELL_CHAIN_OPS: f64 = 43.0;

/// A phase of the computation of a case, such as the time loop.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Phase {
    /// Name of the phase.
    pub name: String,
    /// Number of times that the phase is repeated.
    pub times: f64,
    /// Flops of one repetition. Operations that are not multiply-adds count as two flops.
    pub flops: f64,
    /// Bytes read in one repetition.
    pub bytes: f64,
    /// Length of the longest chain of dependent operations in one repetition.
    pub chain: f64,
}

/// The resource that bounds a phase.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LimitingResource {
    /// Peak throughput of multiply-adds.
    Compute,
    /// Read bandwidth.
    Bandwidth,
    /// Latency of dependent operations.
    Latency,
}

/// Least time of a case on a machine.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Roofline {
    /// Sum of the times of all phases in seconds.
    pub seconds: f64,
    /// The resource that bounds the phase with the longest time.
    pub bound: LimitingResource,
    /// Bytes read in each repetition of the phase with the longest time.
    pub working_set: f64,
    /// Flops of the matrix products only, as usually reported.
    pub flops: f64,
    /// Number of bytes of weights that are read, over all phases and repetitions.
    pub bytes: f64,
    /// All phases, each with its least time in seconds and the resource that bounds it.
    pub phases: Vec<(Phase, f64, LimitingResource)>,
}

impl Phase {
    /// Least time of all repetitions in seconds, and the resource that determines this time.
    /// `products_per_s` is the throughput of matrix products.
    fn seconds(&self, limits: &MachineLimits, products_per_s: f64) -> (f64, LimitingResource) {
        let rate = if self.bytes > 0.0 { products_per_s } else { limits.flops_per_s };
        let compute_time = (self.flops / rate, LimitingResource::Compute);
        let bandwidth_time = (self.bytes / limits.bandwidth(self.bytes), LimitingResource::Bandwidth);
        let latency_time = (self.chain * limits.latency_s, LimitingResource::Latency);
        let longest_time =
            [bandwidth_time, latency_time].into_iter().fold(compute_time, |a, b| if b.0 > a.0 { b } else { a });
        (longest_time.0 * self.times, longest_time.1)
    }
}

/// Phases of the computation of a case with weights of a precision, in order.
pub fn phases(case: &Case, precision: Precision) -> Vec<Phase> {
    let specs = case.config().layer_specs();
    let directions = case.config().num_directions();
    let layer_phases = |(k, spec): (usize, &LayerSpec)| {
        // The gradient with respect to the input of the first layer is not computed.
        let input_gradient = k >= directions;
        forward_phases(case, spec, precision).into_iter().chain(
            (case.kind == CaseKind::Train).then(|| backward_phases(case, spec, input_gradient)).into_iter().flatten(),
        )
    };
    specs.iter().enumerate().flat_map(layer_phases).collect()
}

const F32_BYTES: f64 = size_of::<f32>() as f64;

/// Returns the number of steps, the batch size, and the input, hidden and state size of a layer, in this order.
fn sizes(case: &Case, spec: &LayerSpec) -> [f64; 5] {
    [case.seq, case.batch, spec.input_size, spec.hidden_size, spec.state_size()].map(|n| n as f64)
}

/// Phases of the forward pass of one layer in one direction.
fn forward_phases(case: &Case, spec: &LayerSpec, precision: Precision) -> [Phase; 3] {
    let [steps, batch, input, hidden, state] = sizes(case, spec);
    // The candidate gate of the dense peephole cell has no recurrent weights.
    let recurrent_weights = if spec.cell == CellKind::PeepholeDense { 3.0 } else { 4.0 } * hidden * state;
    let tanh_count = if spec.cell == CellKind::PeepholeDense { 1.0 } else { 2.0 };
    let activation_ops = (5.0 - tanh_count) * SIGMOID_OPS + tanh_count * TANH_OPS + CELL_OPS;
    let block_length = (state as usize).min(DOT_BLOCK);
    let bytes_per_weight = match precision {
        Precision::F32 => F32_BYTES,
        Precision::Int8 => 1.0,
        Precision::Int12 => 2.0,
    };
    // The order of an integer sum is free: the chain is one dot product, its conversion and the multiplication by the scale.
    let product_chain = match precision {
        Precision::F32 => (block_length + (state as usize).div_ceil(DOT_BLOCK) - 1) as f64,
        Precision::Int8 | Precision::Int12 => 3.0,
    };
    let phase = |name: &str, times, flops, weights: f64, chain| Phase {
        name: name.to_owned(),
        times,
        flops,
        bytes: weights * bytes_per_weight,
        chain,
    };
    [
        phase("input product", 1.0, 8.0 * hidden * input * steps * batch, 4.0 * hidden * input, 0.0),
        phase("time loop", steps, 2.0 * recurrent_weights * batch, recurrent_weights, product_chain + CELL_CHAIN_OPS),
        phase("activations", 1.0, 2.0 * activation_ops * hidden * steps * batch, 0.0, 0.0),
    ]
}

/// Phases of the backward pass of one layer in one direction.
fn backward_phases(case: &Case, spec: &LayerSpec, input_gradient: bool) -> [Phase; 3] {
    let [steps, batch, input, hidden, state] = sizes(case, spec);
    let recurrent_weights = if spec.cell == CellKind::PeepholeDense { 3.0 } else { 4.0 } * hidden * state;
    let input_products = 4.0 * hidden * input * if input_gradient { 2.0 } else { 1.0 };
    let phase = |name: &str, times, flops, weights: f64| Phase {
        name: name.to_owned(),
        times,
        flops,
        bytes: weights * F32_BYTES,
        chain: 0.0,
    };
    [
        phase("time loop, backward", steps, 2.0 * recurrent_weights * batch, recurrent_weights),
        phase(
            "weights' gradients",
            1.0,
            2.0 * (recurrent_weights + input_products) * steps * batch,
            recurrent_weights + input_products,
        ),
        phase("gates' gradients", 1.0, 2.0 * CELL_BACKWARD_OPS * hidden * steps * batch, 0.0),
    ]
}

/// Computes the least time of a case with weights of a precision, on a machine with these limits. `None` if the throughput
/// for the precision was not measured.
pub fn roofline(case: &Case, precision: Precision, limits: &MachineLimits) -> Option<Roofline> {
    let products_per_s = match precision {
        Precision::F32 => limits.flops_per_s,
        Precision::Int8 => limits.int8_ops_per_s?,
        Precision::Int12 => limits.int16_ops_per_s?,
    };
    let timed_phases = phases(case, precision).into_iter().map(|phase| {
        let (seconds, bound) = phase.seconds(limits, products_per_s);
        (phase, seconds, bound)
    });
    let phases: Vec<_> = timed_phases.collect();
    let longest_phase = phases.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let is_product = |(phase, _, _): &&(Phase, f64, LimitingResource)| phase.bytes > 0.0;
    Some(Roofline {
        seconds: phases.iter().map(|(_, seconds, _)| seconds).sum(),
        bound: longest_phase.2,
        working_set: longest_phase.0.bytes,
        flops: phases.iter().filter(is_product).map(|(phase, ..)| phase.times * phase.flops).sum(),
        bytes: phases.iter().map(|(phase, ..)| phase.times * phase.bytes).sum(),
        phases,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{case, roofline::Bandwidth};

    fn limits(flops_per_s: f64, bytes_per_s: f64, latency_s: f64) -> MachineLimits {
        let bandwidths = vec![Bandwidth { bytes: 1e4, bytes_per_s }];
        let [int8_ops_per_s, int16_ops_per_s] = [Some(4.0 * flops_per_s), Some(2.0 * flops_per_s)];
        MachineLimits {
            threads: 1,
            isa: String::new(),
            flops_per_s,
            int8_ops_per_s,
            int16_ops_per_s,
            latency_s,
            bandwidths,
        }
    }

    fn find_case(name: &str) -> Case {
        case::load(None).unwrap().into_iter().find(|case| case.name == name).unwrap()
    }

    fn f32_roofline(case: &str, limits: &MachineLimits) -> Roofline {
        roofline(&find_case(case), Precision::F32, limits).unwrap()
    }

    #[test]
    fn quantized_weights_need_fewer_bytes_and_less_time() {
        let limits = limits(1e9, 1e9, 1e-12);
        let [f32, int8, int12] =
            Precision::ALL.map(|precision| roofline(&find_case("single-h512"), precision, &limits).unwrap());
        assert_eq!((f32.bytes, f32.bytes), (4.0 * int8.bytes, 2.0 * int12.bytes));
        assert!(int8.seconds < int12.seconds && int12.seconds < f32.seconds);
        let without_instruction = MachineLimits { int8_ops_per_s: None, ..limits };
        assert_eq!(roofline(&find_case("single-h512"), Precision::Int8, &without_instruction), None);
    }

    #[test]
    fn flops_and_bytes_count_the_products() {
        // 8 H (I + H) flops per step and sequence. Training adds the same for the gradients of the weights, and again for
        // those of the states, but not of the input.
        let batch_roofline = f32_roofline("batch-h512", &limits(1e9, 1e9, 1e-9));
        assert_eq!(batch_roofline.flops, 8.0 * 512.0 * 768.0 * 1600.0);
        assert_eq!(batch_roofline.bytes, 4.0 * 2048.0 * (256.0 + 50.0 * 512.0));
        let train_roofline = f32_roofline("train-h256", &limits(1e9, 1e9, 1e-9));
        assert_eq!(train_roofline.flops, 8.0 * 256.0 * (3.0 * 384.0 - 128.0) * 1600.0);
        // Two layers with two directions. The input of the second layer is the outputs of both directions.
        let two_layer_roofline = f32_roofline("bi2-h256", &limits(1e9, 1e9, 1e-9));
        assert_eq!(two_layer_roofline.flops, 2.0 * 8.0 * 256.0 * ((128.0 + 256.0) + (512.0 + 256.0)) * 800.0);
    }

    #[test]
    fn the_slowest_resource_is_the_bound() {
        for (flops, rate, latency, want) in [
            (1e6, 1e15, 1e-15, LimitingResource::Compute),
            (1e15, 1e6, 1e-15, LimitingResource::Bandwidth),
            (1e15, 1e15, 1e-3, LimitingResource::Latency),
        ] {
            assert_eq!(f32_roofline("single-h512", &limits(flops, rate, latency)).bound, want);
        }
        // Calculated by hand for one flop and one byte per second and no latency.
        let step_roofline = f32_roofline("stream-h24", &limits(1.0, 1.0, 0.0));
        let [input, recurrent_weights] = [4.0 * 24.0, 4.0 * 24.0 * 24.0];
        let activation_ops = 2.0 * 24.0 * (3.0 * SIGMOID_OPS + 2.0 * TANH_OPS + CELL_OPS);
        assert_eq!(step_roofline.seconds, 4.0 * input + 4.0 * recurrent_weights + activation_ops);
    }
}
