//! A layer's weights on the device, and how its steps are spread over invocations.

use std::sync::Arc;

use lstm_core::{
    Error, LayerSpec, LayerWeights, MatrixShape, Param, Result,
    arithmetic::{BLOCK, snap},
};

use crate::{
    gpu::Gpu,
    limits::{INVOCATIONS, WORKGROUP_BYTES},
    shader::{Options, Spread},
    tensor::{Memory, Tensor},
};

/// One layer-direction's weights, snapped. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Layer(pub(crate) Arc<Packed>);

#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) spec: LayerSpec,
    pub(crate) options: Options,
    /// `[4 * hidden, input]`
    pub(crate) w: Arc<Memory>,
    /// `[4 * hidden, state]`
    pub(crate) u: Arc<Memory>,
    /// `[state, hidden, 4]`: the four gates of a unit side by side.
    pub(crate) u_by_unit: Arc<Memory>,
    /// `[1, 4 * hidden]`
    pub(crate) bias: Option<Tensor>,
    pub(crate) projection: Option<Projection>,
    /// `p_i`, `p_f`, `p_o`, `[3, hidden]`.
    pub(crate) peephole: Option<Arc<Memory>>,
}

/// A projection's weights both ways.
#[derive(Debug)]
pub(crate) struct Projection {
    /// `[proj, hidden]`
    pub(crate) w: Arc<Memory>,
    /// `[hidden, proj]`
    pub(crate) transposed: Arc<Memory>,
}

/// Hidden sizes up to which one workgroup walks whole sequences. Beyond it, the weights no longer come fast enough
/// through one compute unit, and a dispatch for each step is faster.
const WHOLE: usize = 128;
/// The same on a CPU, where a dispatch costs more than a small step.
const WHOLE_ON_CPU: usize = 64;
impl Layer {
    pub(crate) fn new(gpu: &Gpu, weights: &LayerWeights) -> Result<Self> {
        let spec = *weights.spec();
        let (hidden, state) = (spec.hidden_size, spec.state_size());
        let snapped = |values: &[f32]| values.iter().map(|&v| snap(v)).collect::<Vec<_>>();
        let upload = |values: &[f32]| gpu.upload("load", bytemuck::cast_slice(values));
        let get = |param| weights.get(param).and_then(|v| v.as_slice()).map(snapped);
        let needed = |param| get(param).ok_or_else(|| Error::shape("load", format!("{param:?}"), "none"));
        let u = needed(Param::WeightHh)?;
        let mut by_unit = Vec::with_capacity(u.len());
        for (k, unit) in (0..state).flat_map(|k| (0..hidden).map(move |unit| (k, unit))) {
            by_unit.extend((0..4).map(|gate| u[(gate * hidden + unit) * state + k]));
        }
        let bias = match weights.bias() {
            Some(bias) => Some(Tensor { shape: MatrixShape::new(1, 4 * hidden), memory: upload(&snapped(&bias))? }),
            None => None,
        };
        let projection = match get(Param::WeightHr) {
            Some(w) => {
                let transposed: Vec<f32> = (0..hidden).flat_map(|k| w[k..].iter().step_by(hidden)).copied().collect();
                Some(Projection { w: upload(&w)?, transposed: upload(&transposed)? })
            }
            None => None,
        };
        let peephole = [Param::PeepholeI, Param::PeepholeF, Param::PeepholeO].map(get);
        let peephole: Vec<f32> = peephole.into_iter().flatten().flatten().collect();
        Ok(Layer(Arc::new(Packed {
            spec,
            options: Options::of(&spec),
            w: upload(&needed(Param::WeightIh)?)?,
            u: upload(&u)?,
            u_by_unit: upload(&by_unit)?,
            bias,
            projection,
            peephole: if peephole.is_empty() { None } else { Some(upload(&peephole)?) },
        })))
    }

    /// What the forward pass does, in words.
    pub(crate) fn path(&self, gpu: &Gpu) -> &'static str {
        if self.0.walks_whole(gpu) { "one dispatch a sequence" } else { "one dispatch a step" }
    }
}

impl Packed {
    /// Whether one workgroup has all units of its sequences.
    pub(crate) fn walks_whole(&self, gpu: &Gpu) -> bool {
        let most = if gpu.is_cpu { WHOLE_ON_CPU } else { WHOLE };
        self.spec.hidden_size <= most && self.projection.is_none()
    }

    /// How the products of `units` sums over `length` are spread, for `batch` sequences.
    pub(crate) fn spread(&self, gpu: &Gpu, batch: usize, units: usize, length: usize) -> Spread {
        let whole = self.walks_whole(gpu);
        let units = if whole { units.next_multiple_of(32) } else { 32 };
        // Threads of a CPU have nothing to share: a barrier only stops them.
        let lanes = if gpu.is_cpu {
            1
        } else {
            let lanes = length.div_ceil(BLOCK).next_power_of_two().min(8).min(INVOCATIONS / units);
            1 << lanes.ilog2()
        };
        let fit = WORKGROUP_BYTES / (lanes * units * 16);
        let most = if gpu.is_cpu { 8 } else { 4 };
        let rows = batch.next_power_of_two().min(most).min(1 << fit.max(1).ilog2());
        Spread { units: units as u32, lanes: lanes as u32, rows: rows as u32 }
    }
}

/// Workgroups for `batch` sequences of `units`.
pub(crate) fn workgroups(spread: Spread, batch: usize, units: usize) -> usize {
    batch.div_ceil(spread.rows as usize) * units.div_ceil(spread.units as usize)
}
