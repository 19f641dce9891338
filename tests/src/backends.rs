//! The list of backends, and a function that opens each one that can run on this machine.

use std::fmt;

use lstm::{BACKENDS, Backend, Device};

/// A function that is called with each backend. It is a trait because closures can't be generic over the type of the backend.
pub trait BackendVisitor {
    /// Called once for each backend that could be opened.
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, backend: B);
}

/// A backend that did not run, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRun {
    /// Name of the backend.
    pub name: String,
    /// Why the backend did not run.
    pub reason: String,
}

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: not run: {}", self.name, self.reason)
    }
}

/// Names of the backends that the tests of this build run: those of `lstm::BACKENDS` that run by default, and those
/// that exist only for tests. The CPU is first, because the tests compare all other backends with its results.
pub fn compiled_backends() -> Vec<&'static str> {
    let default_backends = BACKENDS.iter().filter(|info| info.is_compiled && info.is_default).map(|info| info.name);
    default_backends.chain(TEST_BACKENDS.iter().copied()).collect()
}

/// Backends that exist only for tests: the kernels of `cuda` run on the CPU, and the example backend of
/// `CONTRIBUTING.md`.
const TEST_BACKENDS: &[&str] = &[
    #[cfg(feature = "cuda-host")]
    "cuda-host",
    #[cfg(feature = "toy")]
    "toy",
];

fn open(name: &str, visitor: &mut impl BackendVisitor) -> Result<(), NotRun> {
    let not_run = |reason: String| NotRun { name: name.to_owned(), reason };
    if !compiled_backends().contains(&name) {
        return Err(not_run(format!("not in this build, which contains: {}", compiled_backends().join(", "))));
    }
    match name {
        #[cfg(feature = "cuda-host")]
        "cuda-host" => {
            let host = lstm_cuda_sim::Host::builder().build();
            visitor.visit(name, host.map_err(|error| not_run(error.to_string()))?);
        }
        #[cfg(feature = "toy")]
        "toy" => visitor.visit(name, crate::toy::Toy),
        // As programs use them that choose at run time.
        // WebAssembly has only the asynchronous function.
        _ => {
            let device = pollster::block_on(Device::builder().backend(name).open_async());
            visitor.visit(name, device.map_err(|error| not_run(error.to_string()))?);
        }
    }
    Ok(())
}

/// Opens each of the backends in `names`, or every backend of this build if `None`, and passes it to `visitor`. Returns
/// the backends that did not run.
pub fn for_each_backend(names: Option<&[String]>, visitor: &mut impl BackendVisitor) -> Vec<NotRun> {
    let compiled: Vec<String> = compiled_backends().iter().map(|&name| name.to_owned()).collect();
    names.unwrap_or(&compiled).iter().filter_map(|name| open(name, visitor).err()).collect()
}

/// Names of the backends to test, from the environment variable `LSTM_BACKENDS`, such as `cpu,wgpu`. `None` means every
/// backend of this build.
pub fn wanted_backends() -> Option<Vec<String>> {
    let backend_list = std::env::var("LSTM_BACKENDS").ok()?;
    Some(backend_list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct BackendNames(Vec<String>);

    impl BackendVisitor for BackendNames {
        fn visit<B: Backend + Send + 'static>(&mut self, name: &str, backend: B) {
            assert_eq!(name, backend.name());
            self.0.push(name.to_owned());
        }
    }

    #[test]
    fn reports_unknown_backend() {
        let mut names = BackendNames(Vec::new());
        let not_run = for_each_backend(Some(&["abacus".to_owned()]), &mut names);
        assert!(names.0.is_empty());
        assert_eq!(not_run.len(), 1);
        assert!(not_run[0].to_string().starts_with("abacus: not run: not in this build"), "{}", not_run[0]);
    }

    #[test]
    fn backend_names_match_feature_names() {
        let mut names = BackendNames(Vec::new());
        let not_run = for_each_backend(None, &mut names);
        assert_eq!(names.0.len() + not_run.len(), compiled_backends().len());
    }
}
