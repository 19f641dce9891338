//! The list of backends, and a function that opens each one that can run on this machine.

use std::fmt;

use lstm_core::Backend;

/// A function that is called with each backend. It is a trait because closures can't be generic over the type of the backend.
pub trait BackendVisitor {
    /// Is called once for each backend that could be opened.
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

macro_rules! backends {
    ($($name:literal => $open:expr,)*) => {
        /// Names of the backends that this build contains. The CPU comes first: it defines the snapshots.
        pub const COMPILED_BACKENDS: &[&str] = &[$(#[cfg(feature = $name)] $name),*];

        fn open(name: &str, visitor: &mut impl BackendVisitor) -> Result<(), NotRun> {
            let not_run = |reason: String| NotRun { name: name.to_owned(), reason };
            match name {
                $(#[cfg(feature = $name)]
                $name => visitor.visit(name, $open.map_err(|e: lstm_core::Error| not_run(e.to_string()))?),)*
                _ => return Err(not_run(format!("not in this build, which contains: {}", COMPILED_BACKENDS.join(", ")))),
            }
            Ok(())
        }
    };
}

// The feature of each backend, and an expression that opens the backend or returns why it can't run here.
backends! {
    "cpu" => lstm_core::Result::Ok(lstm_cpu::Cpu::new()),
    "cuda" => lstm_cuda::Cuda::new(0),
    "cuda-host" => lstm_cuda_sim::Host::builder().build(),
    "wgpu" => lstm_wgpu::Wgpu::new(),
    "toy" => lstm_core::Result::Ok(crate::toy::Toy),
}

/// Opens each of the backends in `names`, or every backend of this build if `None`, and passes it to `visitor`. Returns
/// the backends that did not run.
pub fn for_each_backend(names: Option<&[String]>, visitor: &mut impl BackendVisitor) -> Vec<NotRun> {
    let compiled: Vec<String> = COMPILED_BACKENDS.iter().map(|&name| name.to_owned()).collect();
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
        assert_eq!(names.0.len() + not_run.len(), COMPILED_BACKENDS.len());
    }
}
