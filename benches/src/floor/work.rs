//! What a case has to do at least, phase by phase, and how long the machine needs for it.
//!
//! A phase takes no less than its flops at the peak, its bytes at the bandwidth of the memory that they fit into, and its
//! longest chain of operations that wait for one another. The floor is the sum over phases of the largest of the three.

use lstm_core::{CellKind, LayerSpec, arithmetic::BLOCK};
use serde::{Deserialize, Serialize};

use super::Floor;
use crate::case::{Case, Kind};

/// Operations of `sigmoid` and `tanh` as `lstm_core::arithmetic` writes them, and of the rest of a cell's step: sums,
/// products, snaps. None is dearer than a multiply-add, and each stands for two flops of the peak.
const SIGMOID: f64 = 28.0;
const TANH: f64 = 33.0;
const CELL: f64 = 17.0;

/// Operations of a unit's backward step, counted likewise: a tanh, and 33 for five gradients.
const CELL_BACKWARD: f64 = TANH + 33.0;

/// Of a step, the operations that wait for one another besides those of the product: a sum with the input's part, a
/// sigmoid (19), two for the cell state, a tanh (19) and the product with the output gate.
const CHAIN: f64 = 43.0;

/// A part of a case.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Phase {
    /// What it is.
    pub name: String,
    /// How often it is done.
    pub times: f64,
    /// Floating-point operations of one time, as slots of the peak.
    pub flops: f64,
    /// Bytes that one time reads.
    pub bytes: f64,
    /// Operations of one time that wait for one another.
    pub chain: f64,
}

/// What holds a phase back.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The peak.
    Compute,
    /// Reading what it needs.
    Bandwidth,
    /// Operations that wait for one another.
    Latency,
}

/// The least time of a case.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Roofline {
    /// Seconds of all phases.
    pub seconds: f64,
    /// What holds back the longest phase.
    pub bound: Bound,
    /// Bytes that this phase reads again and again.
    pub working_set: f64,
    /// Floating-point operations of the products, as papers count them.
    pub flops: f64,
    /// Bytes of weights that are read.
    pub bytes: f64,
    /// The phases, and seconds and bound of each.
    pub phases: Vec<(Phase, f64, Bound)>,
}

impl Phase {
    fn seconds(&self, floor: &Floor) -> (f64, Bound) {
        let compute = (self.flops / floor.flops, Bound::Compute);
        let bandwidth = (self.bytes / floor.bandwidth(self.bytes), Bound::Bandwidth);
        let latency = (self.chain * floor.latency_s, Bound::Latency);
        let largest = [bandwidth, latency].into_iter().fold(compute, |a, b| if b.0 > a.0 { b } else { a });
        (largest.0 * self.times, largest.1)
    }
}

/// The phases of a case.
pub fn phases(case: &Case) -> Vec<Phase> {
    let specs = case.config().layer_specs();
    let directions = case.config().num_directions();
    let layer = |(k, spec): (usize, &LayerSpec)| {
        // A first layer's input has no gradient in these cases.
        let inner = k >= directions;
        forward(case, spec)
            .into_iter()
            .chain((case.kind == Kind::Train).then(|| backward(case, spec, inner)).into_iter().flatten())
    };
    specs.iter().enumerate().flat_map(layer).collect()
}

const F32: f64 = size_of::<f32>() as f64;

fn sizes(case: &Case, spec: &LayerSpec) -> [f64; 5] {
    [case.seq, case.batch, spec.input_size, spec.hidden_size, spec.state_size()].map(|n| n as f64)
}

fn forward(case: &Case, spec: &LayerSpec) -> [Phase; 3] {
    let [steps, batch, input, hidden, state] = sizes(case, spec);
    // The dense peephole's candidate sees no state.
    let recurrent = if spec.cell == CellKind::PeepholeDense { 3.0 } else { 4.0 } * hidden * state;
    let tanhs = if spec.cell == CellKind::PeepholeDense { 1.0 } else { 2.0 };
    let activations = (5.0 - tanhs) * SIGMOID + tanhs * TANH + CELL;
    let block = (state as usize).min(BLOCK);
    let phase = |name: &str, times, flops, weights: f64, chain| Phase {
        name: name.to_owned(),
        times,
        flops,
        bytes: weights * F32,
        chain,
    };
    [
        phase("input product", 1.0, 8.0 * hidden * input * steps * batch, 4.0 * hidden * input, 0.0),
        phase(
            "time loop",
            steps,
            2.0 * recurrent * batch,
            recurrent,
            (block + (state as usize).div_ceil(BLOCK) - 1) as f64 + CHAIN,
        ),
        phase("activations", 1.0, 2.0 * activations * hidden * steps * batch, 0.0, 0.0),
    ]
}

fn backward(case: &Case, spec: &LayerSpec, inner: bool) -> [Phase; 3] {
    let [steps, batch, input, hidden, state] = sizes(case, spec);
    let recurrent = if spec.cell == CellKind::PeepholeDense { 3.0 } else { 4.0 } * hidden * state;
    let inputs = 4.0 * hidden * input * if inner { 2.0 } else { 1.0 };
    let phase = |name: &str, times, flops, weights: f64| Phase {
        name: name.to_owned(),
        times,
        flops,
        bytes: weights * F32,
        chain: 0.0,
    };
    [
        phase("time loop, backward", steps, 2.0 * recurrent * batch, recurrent),
        phase("weights' gradients", 1.0, 2.0 * (recurrent + inputs) * steps * batch, recurrent + inputs),
        phase("gates' gradients", 1.0, 2.0 * CELL_BACKWARD * hidden * steps * batch, 0.0),
    ]
}

/// How long the machine needs at least.
pub fn roofline(case: &Case, floor: &Floor) -> Roofline {
    let timed = phases(case).into_iter().map(|phase| {
        let (seconds, bound) = phase.seconds(floor);
        (phase, seconds, bound)
    });
    let phases: Vec<_> = timed.collect();
    let longest = phases.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("a case has phases");
    let products = |(phase, _, _): &&(Phase, f64, Bound)| phase.bytes > 0.0;
    Roofline {
        seconds: phases.iter().map(|(_, seconds, _)| seconds).sum(),
        bound: longest.2,
        working_set: longest.0.bytes,
        flops: phases.iter().filter(products).map(|(phase, ..)| phase.times * phase.flops).sum(),
        bytes: phases.iter().map(|(phase, ..)| phase.times * phase.bytes).sum(),
        phases,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{case, floor::Step};

    fn floor(flops: f64, rate: f64, latency_s: f64) -> Floor {
        Floor { threads: 1, isa: String::new(), flops, latency_s, ladder: vec![Step { bytes: 1e4, rate }] }
    }

    fn named(name: &str) -> Case {
        case::load(None).unwrap().into_iter().find(|case| case.name == name).unwrap()
    }

    #[test]
    fn flops_and_bytes_are_those_of_the_products() {
        // 8 H (I + H) a step and sequence; in training the same again for each of the two gradients, but not of the input.
        let batch = roofline(&named("batch-h512"), &floor(1e9, 1e9, 1e-9));
        assert_eq!(batch.flops, 8.0 * 512.0 * 768.0 * 1600.0);
        assert_eq!(batch.bytes, 4.0 * 2048.0 * (256.0 + 50.0 * 512.0));
        let train = roofline(&named("train-h256"), &floor(1e9, 1e9, 1e-9));
        assert_eq!(train.flops, 8.0 * 256.0 * (3.0 * 384.0 - 128.0) * 1600.0);
        // Four layer-directions, two of them fed with both directions of the first.
        let bi2 = roofline(&named("bi2-h256"), &floor(1e9, 1e9, 1e-9));
        assert_eq!(bi2.flops, 2.0 * 8.0 * 256.0 * ((128.0 + 256.0) + (512.0 + 256.0)) * 800.0);
    }

    #[test]
    fn the_slowest_resource_bounds() {
        for (flops, rate, latency, want) in [
            (1e6, 1e15, 1e-15, Bound::Compute),
            (1e15, 1e6, 1e-15, Bound::Bandwidth),
            (1e15, 1e15, 1e-3, Bound::Latency),
        ] {
            assert_eq!(roofline(&named("single-h512"), &floor(flops, rate, latency)).bound, want);
        }
        // By hand: one flop and one byte a second, and no latency.
        let step = roofline(&named("stream-h24"), &floor(1.0, 1.0, 0.0));
        let [input, recurrent] = [4.0 * 24.0, 4.0 * 24.0 * 24.0];
        let activations = 2.0 * 24.0 * (3.0 * SIGMOID + 2.0 * TANH + CELL);
        assert_eq!(step.seconds, 4.0 * input + 4.0 * recurrent + activations);
    }
}
