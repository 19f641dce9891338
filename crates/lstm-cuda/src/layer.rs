//! One layer-direction's weights on the device, and what a pass over a sequence needs besides.

use std::{fmt, sync::Arc};

use bytemuck::Pod;
use lstm_core::{CellKind, Error, LayerSpec, LayerWeights, Param, Result, shape::checked_len};

use crate::{
    args::Address,
    cluster::Clusters,
    driver::{Driver, Launch, size},
    launches::{Map, map},
    persistent::{Geometry, Way},
};

/// Snapped weights; clones share them.
pub struct Layer<D: Driver>(pub(crate) Arc<Loaded<D>>);

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

/// In the layout of [`Param`].
pub(crate) struct Loaded<D: Driver> {
    pub(crate) spec: LayerSpec,
    pub(crate) w: D::Memory,
    pub(crate) u: D::Memory,
    pub(crate) bias: Option<D::Memory>,
    projection: Option<D::Memory>,
    /// `[3, hidden]`
    peephole: Option<D::Memory>,
    /// How the units are shared out where all blocks can be there at once; by [`Way`].
    pub(crate) persistent: [Option<Geometry>; 2],
    /// The same, where a cluster has all units; by [`Way`].
    pub(crate) clusters: [Option<Clusters>; 2],
    /// In the fast mode, from how many multiplications on a step goes to tensor cores even so.
    pub(crate) large_step: Option<usize>,
}

/// For each multiprocessor: where the start of a kernel should no longer count. An estimate, not measured.
const LARGE_STEP: usize = 2 << 20;

impl<D: Driver> Loaded<D> {
    pub(crate) fn new(driver: &D, weights: &LayerWeights) -> Result<Self> {
        let spec = *weights.spec();
        let param = |param: Param| -> Result<&[f32]> {
            let values = weights.get(param).and_then(|v| v.as_slice());
            values.ok_or_else(|| Error::shape("load", format!("{param:?}"), "none"))
        };
        let load = |values: &[f32]| {
            // Kernels count a matrix's elements in 32 bits.
            size("load", values.len())?;
            let memory = driver.alloc("load", values.len())?;
            driver.upload("load", &memory, values)?;
            let address = driver.address(&memory);
            driver.launch("load", &map("load", Map::Snap, address, address, values.len(), 0.0)?)?;
            Ok::<_, Error>(memory)
        };
        let peephole = match spec.cell {
            CellKind::PeepholeDiagonal => {
                Some([param(Param::PeepholeI)?, param(Param::PeepholeF)?, param(Param::PeepholeO)?].concat())
            }
            _ => None,
        };
        Ok(Loaded {
            spec,
            w: load(param(Param::WeightIh)?)?,
            u: load(param(Param::WeightHh)?)?,
            bias: weights.bias().map(|bias| load(&bias)).transpose()?,
            projection: spec.proj_size.map(|_| load(param(Param::WeightHr)?)).transpose()?,
            peephole: peephole.map(|p| load(&p)).transpose()?,
            persistent: [Geometry::new(driver, &spec, Way::Forward)?, Geometry::new(driver, &spec, Way::Back)?],
            clusters: [Clusters::new(driver, &spec, Way::Forward)?, Clusters::new(driver, &spec, Way::Back)?],
            large_step: driver.fast().then(|| driver.multiprocessors().saturating_mul(LARGE_STEP)),
        })
    }

    /// The projection's address, or 0.
    pub(crate) fn projection(&self, driver: &D) -> Address {
        self.projection.as_ref().map_or(0, |p| driver.address(p))
    }

    /// How one kernel does all steps of a batch, if it can. Its sums are exact in the fast mode as well, where it leaves large
    /// steps to others.
    pub(crate) fn in_one(&self, way: Way, batch: usize) -> Option<InOne> {
        let step = [4, self.spec.hidden_size, self.spec.state_size()].into_iter().fold(batch, usize::saturating_mul);
        // No memory has a batch that kernels' numbers don't.
        if u32::try_from(batch).is_err() || self.large_step.is_some_and(|large| step >= large) {
            return None;
        }
        let clusters = self.clusters[way as usize].and_then(|c| Some(InOne::Clusters(c, c.rows(batch)?)));
        let persistent = self.persistent[way as usize].and_then(|g| Some(InOne::Persistent(g, g.rows(batch)?)));
        // To read weights from shared memory in each step takes longer than what others pass on through memory.
        match clusters {
            Some(InOne::Clusters(c, _)) if !c.is_in_registers() => persistent.or(clusters),
            _ => clusters.or(persistent),
        }
    }

    /// The peephole's address, or 0.
    pub(crate) fn peephole(&self, driver: &D) -> Address {
        self.peephole.as_ref().map_or(0, |p| driver.address(p))
    }
}

/// A kernel that does all steps of a batch.
#[derive(Clone, Copy)]
pub(crate) enum InOne {
    /// Each cluster has so many sequences.
    Clusters(Clusters, usize),
    /// All blocks together take so many sequences at a time, and pass on what steps give through memory.
    Persistent(Geometry, usize),
}

/// A block's part of the work, as kernels take it.
pub(crate) struct Shares {
    pub(crate) units: u32,
    pub(crate) held: u32,
    pub(crate) features: u32,
    pub(crate) rows: u32,
    pub(crate) part: u32,
}

impl InOne {
    pub(crate) fn shares(&self, op: &'static str) -> Result<Shares> {
        let [units, held, features, rows, part] = match *self {
            InOne::Clusters(c, rows) => [c.units, c.held, c.units, rows, rows],
            InOne::Persistent(g, rows) => [g.units, 0, g.features, rows, g.part(rows)],
        };
        Ok(Shares {
            units: size(op, units)?,
            held: size(op, held)?,
            features: size(op, features)?,
            rows: size(op, rows)?,
            part: size(op, part)?,
        })
    }

    pub(crate) fn launch(&self, op: &'static str, batch: usize, args: impl Pod) -> Result<Launch> {
        match *self {
            InOne::Clusters(clusters, rows) => clusters.launch(op, rows, batch, args),
            InOne::Persistent(geometry, rows) => geometry.launch(op, rows, batch, args),
        }
    }
}

impl<D: Driver> Layer<D> {
    /// How all steps of so many sequences go, forward and back: `cluster`, `persistent` or `a kernel a step`.
    pub fn paths(&self, batch: usize) -> [&'static str; 2] {
        [Way::Forward, Way::Back].map(|way| match self.0.in_one(way, batch) {
            Some(InOne::Clusters(..)) => "cluster",
            Some(InOne::Persistent(..)) => "persistent",
            None => "a kernel a step",
        })
    }
}

/// Memory for a batch of sequences, and the prepared launches of the last one.
pub struct Plan<D: Driver> {
    pub(crate) spec: LayerSpec,
    pub(crate) batch: usize,
    pub(crate) steps: usize,
    /// `bias + W x`, `[steps * batch, 4 * hidden]`.
    pub(crate) z: D::Memory,
    /// Two places `[batch, state]`, of which steps read one and write the other in turns.
    pub(crate) h: D::Memory,
    /// Two places `[batch, hidden]`.
    pub(crate) c: D::Memory,
    /// With a projection, `[batch, hidden]`.
    pub(crate) unprojected: Option<D::Memory>,
    /// `[steps * batch, state]`, for prepared launches; none where one kernel does all steps.
    pub(crate) y: Option<D::Memory>,
    /// What the last sequence's launches depended on, and they themselves from the second such sequence on.
    pub(crate) graph: Option<(Key, Option<D::Graph>)>,
}

/// Two sequences with the same key have the same launches.
#[derive(Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) steps: usize,
    pub(crate) lengths: Option<Vec<usize>>,
    pub(crate) weights: [Address; 3],
}

impl<D: Driver> fmt::Debug for Plan<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({:?}, batch {}, at most {} steps)", self.spec, self.batch, self.steps)
    }
}

impl<D: Driver> Plan<D> {
    pub(crate) fn new(driver: &D, layer: &Loaded<D>, batch: usize, steps: usize) -> Result<Self> {
        let spec = &layer.spec;
        let alloc = |sizes: &[usize]| driver.alloc("plan", checked_len("plan", sizes)?);
        size("plan", checked_len("plan", &[steps, batch])?)?;
        Ok(Plan {
            spec: *spec,
            batch,
            steps,
            z: alloc(&[steps, batch, 4, spec.hidden_size])?,
            h: alloc(&[2, batch, spec.state_size()])?,
            c: alloc(&[2, batch, spec.hidden_size])?,
            unprojected: spec.proj_size.map(|_| alloc(&[batch, spec.hidden_size])).transpose()?,
            y: match layer.in_one(Way::Forward, batch) {
                Some(_) => None,
                None => Some(alloc(&[steps, batch, spec.state_size()])?),
            },
            graph: None,
        })
    }

    /// # Errors
    /// Unless it was made for such a layer, this batch and at least as many steps.
    pub(crate) fn check(&self, op: &'static str, spec: &LayerSpec, batch: usize, steps: usize) -> Result<()> {
        if self.spec == *spec && self.batch == batch && self.steps >= steps {
            return Ok(());
        }
        let want = format!("one for {spec:?}, batch {batch} and {steps} steps");
        Err(Error::shape(format!("{op}: plan"), want, format!("{self:?}")))
    }
}
