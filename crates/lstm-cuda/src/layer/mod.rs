//! One layer in one direction: its weights on the device, the kernels that run it, and its scratch memory.

mod cluster;
mod pass;
mod persistent;
mod plan;
mod single_launch;

pub use plan::Plan;
pub(crate) use {pass::Pass, plan::GraphKey, single_launch::SingleLaunch};

use std::{fmt, sync::Arc};

use lstm_core::{CellKind, Error, LayerSpec, LayerWeights, Param, Result};

use self::{cluster::ClusterConfig, persistent::PersistentConfig};
use crate::{
    driver::{Address, Driver, checked_u32},
    launch::{MapFunction, map},
};

/// The weights of one layer in one direction in device memory, snapped: magnitudes below 2^-40 are replaced by zero.
/// Clones share the memory.
pub struct Layer<D: Driver>(pub(crate) Arc<DeviceWeights<D>>);

impl<D: Driver> Clone for Layer<D> {
    fn clone(&self) -> Self {
        Layer(self.0.clone())
    }
}

impl<D: Driver> fmt::Debug for Layer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layer({:?})", self.0.spec)
    }
}

/// A layer's weights in device memory, in the shapes of [`Param`], and the kernels that can run the layer.
pub(crate) struct DeviceWeights<D: Driver> {
    pub(crate) spec: LayerSpec,
    /// The input weights, `[4 * hidden, input]`.
    pub(crate) w: D::Memory,
    /// The recurrent weights, `[4 * hidden, state]`.
    pub(crate) u: D::Memory,
    /// The sum of both biases, `[4 * hidden]`.
    pub(crate) bias: Option<D::Memory>,
    /// The projection's weights, `[state, hidden]`.
    projection: Option<D::Memory>,
    /// The weights of diagonal peepholes, `[3, hidden]`.
    peephole: Option<D::Memory>,
    /// How the `persistent` kernels divide the layer among blocks, indexed by [`Pass`]; `None` if these kernels can't
    /// run the layer.
    pub(crate) persistent: [Option<PersistentConfig>; 2],
    /// How the `cluster` kernels divide the layer among the blocks of a cluster, indexed by [`Pass`]; `None` if these
    /// kernels can't run the layer.
    pub(crate) clusters: [Option<ClusterConfig>; 2],
    /// Least number of multiplications per step for which the steps run on tensor cores, with one launch per step, even
    /// if a single launch could run all steps. `None` without TF32.
    pub(crate) tensor_core_min_multiplications: Option<usize>,
}

/// Least number of multiplications per step and multiprocessor for which tensor cores should save more time than one
/// launch per step costs. The value is an estimate, not a measurement.
const TENSOR_CORE_MIN_MULTIPLICATIONS: usize = 2 << 20;

impl<D: Driver> DeviceWeights<D> {
    pub(crate) fn new(driver: &D, weights: &LayerWeights) -> Result<Self> {
        let spec = *weights.spec();
        let param_values = |param: Param| -> Result<&[f32]> {
            let values = weights.get(param).and_then(|v| v.as_slice());
            values.ok_or_else(|| Error::shape("load", format!("{param:?}"), "none"))
        };
        let load = |values: &[f32]| {
            // Kernels index the elements of a matrix with 32 bits.
            checked_u32("load", values.len())?;
            let memory = driver.alloc("load", values.len())?;
            driver.upload("load", &memory, values)?;
            let address = driver.address(&memory);
            driver.launch("load", &map("load", MapFunction::Snap, address, address, values.len(), 0.0)?)?;
            Ok::<_, Error>(memory)
        };
        let peephole = match spec.cell {
            CellKind::PeepholeDiagonal => Some(
                [param_values(Param::PeepholeI)?, param_values(Param::PeepholeF)?, param_values(Param::PeepholeO)?]
                    .concat(),
            ),
            _ => None,
        };
        let [forward, backward] = Pass::ALL;
        Ok(DeviceWeights {
            spec,
            w: load(param_values(Param::WeightIh)?)?,
            u: load(param_values(Param::WeightHh)?)?,
            bias: weights.bias()?.map(|bias| load(&bias)).transpose()?,
            projection: spec.proj_size.map(|_| load(param_values(Param::WeightHr)?)).transpose()?,
            peephole: peephole.map(|p| load(&p)).transpose()?,
            persistent: [
                PersistentConfig::new(driver, &spec, forward)?,
                PersistentConfig::new(driver, &spec, backward)?,
            ],
            clusters: [ClusterConfig::new(driver, &spec, forward)?, ClusterConfig::new(driver, &spec, backward)?],
            tensor_core_min_multiplications: driver
                .allows_tf32()
                .then(|| driver.multiprocessors().saturating_mul(TENSOR_CORE_MIN_MULTIPLICATIONS)),
        })
    }

    /// Returns the address of the projection's weights; 0 without a projection.
    pub(crate) fn projection_address(&self, driver: &D) -> Address {
        self.projection.as_ref().map_or(0, |p| driver.address(p))
    }

    /// Returns the address of the diagonal peepholes' weights; 0 without such peepholes.
    pub(crate) fn peephole_address(&self, driver: &D) -> Address {
        self.peephole.as_ref().map_or(0, |p| driver.address(p))
    }

    /// Chooses a kernel that runs all steps of a batch in a single launch. `None` if no kernel can, or if TF32 is
    /// allowed and a step is large enough for tensor cores. A single launch computes exact sums even with TF32.
    pub(crate) fn choose_single_launch(&self, pass: Pass, batch: usize) -> Option<SingleLaunch> {
        let multiplications_per_step =
            [4, self.spec.hidden_size, self.spec.state_size()].into_iter().fold(batch, usize::saturating_mul);
        // A batch that does not fit in 32 bits does not fit in memory either.
        if u32::try_from(batch).is_err()
            || self.tensor_core_min_multiplications.is_some_and(|minimum| multiplications_per_step >= minimum)
        {
            return None;
        }
        let clusters =
            self.clusters[pass as usize].and_then(|c| Some(SingleLaunch::Clusters(c, c.rows_per_cluster(batch)?)));
        let persistent =
            self.persistent[pass as usize].and_then(|p| Some(SingleLaunch::Persistent(p, p.rows_per_group(batch)?)));
        // Reading weights from shared memory in each step is slower than an exchange through global memory.
        match clusters {
            Some(SingleLaunch::Clusters(c, _)) if !c.holds_weights_in_registers() => persistent.or(clusters),
            _ => clusters.or(persistent),
        }
    }
}

impl<D: Driver> Layer<D> {
    /// Returns the execution paths of the forward and the backward pass for a batch of sequences. Each is `cluster`,
    /// `persistent` or `one kernel per step`.
    pub fn paths(&self, batch: usize) -> [&'static str; 2] {
        Pass::ALL.map(|pass| match self.0.choose_single_launch(pass, batch) {
            Some(SingleLaunch::Clusters(..)) => "cluster",
            Some(SingleLaunch::Persistent(..)) => "persistent",
            None => "one kernel per step",
        })
    }
}
