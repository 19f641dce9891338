//! Kernels that run all steps of a sequence in a single launch.

use bytemuck::Pod;
use lstm_core::Result;

use super::{cluster::ClusterConfig, persistent::PersistentConfig};
use crate::driver::{Launch, kernel_size};

/// The kind of kernel that runs all steps of a batch in a single launch, and the size of its row groups.
#[derive(Clone, Copy)]
pub(crate) enum SingleLaunch {
    /// Each cluster runs some of the sequences. The number is that of the sequences per cluster.
    Clusters(ClusterConfig, usize),
    /// All blocks together run all sequences, and exchange results through global memory. The number is that of the
    /// sequences in a row group, which are processed together.
    Persistent(PersistentConfig, usize),
}

/// A block's part of the work, in the form of kernel arguments. The fields are those of
/// [`ForwardSequenceArgs`](crate::kernels::args::ForwardSequenceArgs).
pub(crate) struct Partition {
    pub(crate) units: u32,
    pub(crate) register_quads: u32,
    pub(crate) features: u32,
    pub(crate) group_rows: u32,
    pub(crate) tile_rows: u32,
}

impl SingleLaunch {
    /// Each block's part of the work.
    pub(crate) fn partition(&self, op: &'static str) -> Result<Partition> {
        let [units, register_quads, features, group_rows, tile_rows] = match *self {
            SingleLaunch::Clusters(c, rows) => [c.units, c.register_quads, c.units, rows, rows],
            SingleLaunch::Persistent(p, rows) => [p.units, 0, p.features, rows, p.tile_rows(rows)],
        };
        Ok(Partition {
            units: kernel_size(op, units)?,
            register_quads: kernel_size(op, register_quads)?,
            features: kernel_size(op, features)?,
            group_rows: kernel_size(op, group_rows)?,
            tile_rows: kernel_size(op, tile_rows)?,
        })
    }

    /// The launch for a batch of sequences.
    pub(crate) fn launch(&self, op: &'static str, batch: usize, args: impl Pod) -> Result<Launch> {
        match *self {
            SingleLaunch::Clusters(clusters, rows) => clusters.launch(op, rows, batch, args),
            SingleLaunch::Persistent(persistent, rows) => persistent.launch(op, rows, batch, args),
        }
    }
}
