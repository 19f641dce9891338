//! Weights of a layer on the device, and how its steps are divided among workgroups.

use std::sync::Arc;

use lstm_core::{
    Error, LayerSpec, LayerWeights, MatrixShape, Param, Result,
    arithmetic::{DOT_BLOCK, snap},
};

use crate::{
    device::{Gpu, MAX_INVOCATIONS, MAX_WORKGROUP_BYTES},
    memory::{DeviceMemory, Tensor},
    shader::{KernelOptions, StepTiling},
};

/// Snapped weights of one direction of one layer, in device memory. Clones share them.
#[derive(Clone, Debug)]
pub struct Layer(pub(crate) Arc<PackedWeights>);

/// Weights of a layer in the layouts that the kernels read.
#[derive(Debug)]
pub(crate) struct PackedWeights {
    pub(crate) spec: LayerSpec,
    pub(crate) options: KernelOptions,
    /// Input weights, `[4 * hidden, input]`.
    pub(crate) weight_ih: Arc<DeviceMemory>,
    /// Recurrent weights, `[4 * hidden, state]`.
    pub(crate) weight_hh: Arc<DeviceMemory>,
    /// Recurrent weights, `[state, hidden, 4]`: the weights of a unit's four gates are adjacent.
    pub(crate) weight_hh_by_unit: Arc<DeviceMemory>,
    /// Sum of the biases, `[1, 4 * hidden]`.
    pub(crate) bias: Option<Tensor>,
    pub(crate) projection: Option<Projection>,
    /// Diagonal peephole weights `p_i`, `p_f`, `p_o`, `[3, hidden]`.
    pub(crate) peephole: Option<Arc<DeviceMemory>>,
}

/// Projection weights and their transpose.
#[derive(Debug)]
pub(crate) struct Projection {
    /// Projection weights, `[proj, hidden]`.
    pub(crate) weight_hr: Arc<DeviceMemory>,
    /// Transposed projection weights, `[hidden, proj]`.
    pub(crate) weight_hr_transposed: Arc<DeviceMemory>,
}

/// Largest hidden size for which one dispatch runs many steps. Above it, a dispatch per step is faster, because one
/// compute unit reads the weights too slowly.
const MAX_MULTI_STEP_HIDDEN: usize = 128;
/// Largest hidden size for which one dispatch runs many steps on a CPU, where a dispatch costs more than a small step.
const MAX_MULTI_STEP_HIDDEN_ON_CPU: usize = 64;

impl Layer {
    /// Snaps and uploads the weights.
    pub(crate) fn new(gpu: &Gpu, weights: &LayerWeights) -> Result<Self> {
        let spec = *weights.spec();
        let (hidden, state) = (spec.hidden_size, spec.state_size());
        let snap_all = |values: &[f32]| values.iter().map(|&v| snap(v)).collect::<Vec<_>>();
        let upload = |values: &[f32]| gpu.upload("load", bytemuck::cast_slice(values));
        let snapped_param = |param| weights.get(param).and_then(|v| v.as_slice()).map(snap_all);
        let required_param =
            |param| snapped_param(param).ok_or_else(|| Error::shape("load", format!("{param:?}"), "none"));
        let weight_hh = required_param(Param::WeightHh)?;
        let mut weight_hh_by_unit = Vec::with_capacity(weight_hh.len());
        for (k, unit) in (0..state).flat_map(|k| (0..hidden).map(move |unit| (k, unit))) {
            weight_hh_by_unit.extend((0..4).map(|gate| weight_hh[(gate * hidden + unit) * state + k]));
        }
        let bias = match weights.bias()? {
            Some(bias) => Some(Tensor { shape: MatrixShape::new(1, 4 * hidden), memory: upload(&snap_all(&bias))? }),
            None => None,
        };
        let projection = match snapped_param(Param::WeightHr) {
            Some(w) => {
                let transposed: Vec<f32> = (0..hidden).flat_map(|k| w[k..].iter().step_by(hidden)).copied().collect();
                Some(Projection { weight_hr: upload(&w)?, weight_hr_transposed: upload(&transposed)? })
            }
            None => None,
        };
        let peephole = [Param::PeepholeI, Param::PeepholeF, Param::PeepholeO].map(snapped_param);
        let peephole: Vec<f32> = peephole.into_iter().flatten().flatten().collect();
        Ok(Layer(Arc::new(PackedWeights {
            spec,
            options: KernelOptions::new(&spec),
            weight_ih: upload(&required_param(Param::WeightIh)?)?,
            weight_hh: upload(&weight_hh)?,
            weight_hh_by_unit: upload(&weight_hh_by_unit)?,
            bias,
            projection,
            peephole: if peephole.is_empty() { None } else { Some(upload(&peephole)?) },
        })))
    }

    /// Describes how the passes run this layer's steps.
    pub(crate) fn path(&self, gpu: &Gpu) -> &'static str {
        if self.0.is_multi_step(gpu) { "many steps per dispatch" } else { "one dispatch per step" }
    }
}

impl PackedWeights {
    /// Whether one dispatch runs many steps. If so, each workgroup computes all hidden units of its sequences.
    pub(crate) fn is_multi_step(&self, gpu: &Gpu) -> bool {
        let max_hidden = if gpu.is_cpu { MAX_MULTI_STEP_HIDDEN_ON_CPU } else { MAX_MULTI_STEP_HIDDEN };
        self.spec.hidden_size <= max_hidden && self.projection.is_none()
    }

    /// Tiling of a step's matrix product for `batch` sequences. The result has `units` columns, and each of its
    /// elements is a sum of `inner_size` products.
    pub(crate) fn step_tiling(&self, gpu: &Gpu, batch: usize, units: usize, inner_size: usize) -> StepTiling {
        let units = if self.is_multi_step(gpu) { units.next_multiple_of(32) } else { 32 };
        // On a CPU, sharing a unit only adds barriers.
        let lanes = if gpu.is_cpu {
            1
        } else {
            let lanes = inner_size.div_ceil(DOT_BLOCK).next_power_of_two().min(8).min(MAX_INVOCATIONS / units);
            1 << lanes.ilog2()
        };
        let max_rows_in_memory = MAX_WORKGROUP_BYTES / (lanes * units * 16);
        let max_rows = if gpu.is_cpu { 8 } else { 4 };
        let rows = batch.next_power_of_two().min(max_rows).min(1 << max_rows_in_memory.max(1).ilog2());
        StepTiling { units: units as u32, lanes: lanes as u32, rows: rows as u32 }
    }
}

/// Number of workgroups for `batch` sequences of `units` units.
pub(super) fn workgroup_count(tiling: StepTiling, batch: usize, units: usize) -> usize {
    batch.div_ceil(tiling.rows as usize) * units.div_ceil(tiling.units as usize)
}
