//! A device by the paths that its layers take only where those before are left out; and the kernels for what is large,
//! which on a large device no case is.

use lstm_cuda::{Cuda, Limits};

use super::*;

pub(super) fn trials(trials: &mut Trials) {
    // Where it does not open at all, that was reported with the backend.
    if Cuda::new(0).is_err() {
        return;
    }
    let persistent = Limits { clusters: false, ..Limits::default() };
    let steps = Limits { persistent: false, multiprocessors: Some(4), ..persistent };
    for (group, limits) in [("kernel-a-step", steps), ("persistent", persistent)] {
        let cuda = match Cuda::within(0, limits) {
            Ok(cuda) => cuda,
            Err(error) => {
                trials.add("cuda", group, "open", move || Err(error.into()));
                continue;
            }
        };
        trials.cases_and_training("cuda", group, &cuda);
    }
}
