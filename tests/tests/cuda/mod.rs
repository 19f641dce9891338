//! Trials of a CUDA device on the execution paths that its layers would not use by default, and with the kernels for
//! large problems, which no case of the table is large enough for on a large device.

use lstm::Device;
use lstm_cuda::{Cuda, KernelLimits};

use super::*;

pub(super) fn trials(trials: &mut Trials) {
    // If there is no device, the backend's own trials report it.
    if Cuda::new().is_err() {
        return;
    }
    let persistent = KernelLimits::default().allow_clusters(false);
    let kernel_per_step = persistent.allow_persistent(false).max_multiprocessors(4);
    for (group, limits) in [("kernel-per-step", kernel_per_step), ("persistent", persistent)] {
        let cuda = match Cuda::builder().limit_kernels(limits).build() {
            Ok(cuda) => cuda,
            Err(error) => {
                trials.add("cuda", group, "open", move || Err(error.into()));
                continue;
            }
        };
        trials.cases_and_training("cuda", group, &Device::from(cuda));
    }
}
