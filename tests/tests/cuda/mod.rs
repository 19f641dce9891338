//! A device by the paths that its layers take only where those before are left out; and the kernels for what is large,
//! which on a large device no case is.

use lstm_cuda::{Cuda, KernelLimits};

use super::*;

pub(super) fn trials(trials: &mut Trials) {
    // Where it does not open at all, that was reported with the backend.
    if Cuda::new(0).is_err() {
        return;
    }
    let persistent = KernelLimits { clusters: false, ..KernelLimits::default() };
    let steps = KernelLimits { persistent: false, multiprocessors: Some(4), ..persistent };
    for (group, limits) in [("kernel-per-step", steps), ("persistent", persistent)] {
        let cuda = match Cuda::builder().limit_kernels(limits).build() {
            Ok(cuda) => cuda,
            Err(error) => {
                trials.add("cuda", group, "open", move || Err(error.into()));
                continue;
            }
        };
        trials.cases_and_training("cuda", group, &cuda);
    }
}
