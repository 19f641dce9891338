//! Kernels that run all steps of a sequence in a single launch.

use bytemuck::Pod;
use lstm_core::Result;

use super::{cluster::ClusterConfig, persistent::PersistentConfig};
use crate::driver::{Launch, checked_u32};

/// The kind of kernel that runs all steps of a batch in a single launch, and the size of its row groups.
#[derive(Clone, Copy)]
pub(crate) enum SingleLaunch {
    /// Each cluster runs some of the sequences. The second field is the number of sequences per cluster.
    Clusters(ClusterConfig, usize),
    /// All blocks together run all sequences, and exchange results through global memory. The second field is the
    /// number of sequences in a row group, which are processed together.
    Persistent(PersistentConfig, usize),
}

/// A block's part of the work, in the form of kernel arguments. The fields are those of
/// [`ForwardSequenceArgs`](crate::kernels::args::ForwardSequenceArgs).
pub(crate) struct Partition {
    pub(crate) units_per_block: u32,
    pub(crate) quads_in_registers: u32,
    pub(crate) features_per_block: u32,
    pub(crate) group_rows: u32,
    pub(crate) tile_rows: u32,
}

impl SingleLaunch {
    /// Returns each block's part of the work.
    pub(crate) fn partition(&self, op: &'static str) -> Result<Partition> {
        let [units_per_block, quads_in_registers, features_per_block, group_rows, tile_rows] = match *self {
            SingleLaunch::Clusters(c, rows) => [c.units_per_block, c.quads_in_registers, c.units_per_block, rows, rows],
            SingleLaunch::Persistent(p, rows) => [p.units_per_block, 0, p.features_per_block, rows, p.tile_rows(rows)],
        };
        Ok(Partition {
            units_per_block: checked_u32(op, units_per_block)?,
            quads_in_registers: checked_u32(op, quads_in_registers)?,
            features_per_block: checked_u32(op, features_per_block)?,
            group_rows: checked_u32(op, group_rows)?,
            tile_rows: checked_u32(op, tile_rows)?,
        })
    }

    /// Returns the launch of the kernel for a batch of sequences.
    pub(crate) fn launch(&self, op: &'static str, batch: usize, args: impl Pod) -> Result<Launch> {
        match *self {
            SingleLaunch::Clusters(clusters, rows) => clusters.launch(op, rows, batch, args),
            SingleLaunch::Persistent(persistent, rows) => persistent.launch(op, rows, batch, args),
        }
    }
}
