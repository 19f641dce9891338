//! The list of backends, and a function that opens each one that can run on this machine.

use std::fmt;

use lstm_core::Backend;

/// A function that is generic over the backend. It is a trait because closures can't be generic.
pub trait Visit {
    /// Called once for each backend that opened.
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, backend: B);
}

/// A backend that did not run, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRun {
    /// Name of the backend.
    pub name: String,
    /// The reason as text.
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
        pub const COMPILED: &[&str] = &[$(#[cfg(feature = $name)] $name),*];

        fn open(name: &str, visitor: &mut impl Visit) -> Result<(), NotRun> {
            let not_run = |reason: String| NotRun { name: name.to_owned(), reason };
            match name {
                $(#[cfg(feature = $name)]
                $name => visitor.visit(name, $open.map_err(|e: lstm_core::Error| not_run(e.to_string()))?),)*
                _ => return Err(not_run(format!("not in this build, which contains: {}", COMPILED.join(", ")))),
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

/// Opens each of the `wanted` backends, or every backend of this build if `None`, and passes it to `visitor`. Returns
/// the backends that did not run.
pub fn for_each(wanted: Option<&[String]>, visitor: &mut impl Visit) -> Vec<NotRun> {
    let compiled: Vec<String> = COMPILED.iter().map(|&name| name.to_owned()).collect();
    wanted.unwrap_or(&compiled).iter().filter_map(|name| open(name, visitor).err()).collect()
}

/// Names of the backends to test, from the environment variable `LSTM_BACKENDS`, such as `cpu,wgpu`. `None` means every
/// backend of this build.
pub fn wanted() -> Option<Vec<String>> {
    let list = std::env::var("LSTM_BACKENDS").ok()?;
    Some(list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct BackendNames(Vec<String>);

    impl Visit for BackendNames {
        fn visit<B: Backend + Send + 'static>(&mut self, name: &str, backend: B) {
            assert_eq!(name, backend.name());
            self.0.push(name.to_owned());
        }
    }

    #[test]
    fn reports_unknown_backend() {
        let mut names = BackendNames(Vec::new());
        let not_run = for_each(Some(&["abacus".to_owned()]), &mut names);
        assert!(names.0.is_empty());
        assert_eq!(not_run.len(), 1);
        assert!(not_run[0].to_string().starts_with("abacus: not run: not in this build"), "{}", not_run[0]);
    }

    #[test]
    fn backend_names_match_feature_names() {
        let mut names = BackendNames(Vec::new());
        let not_run = for_each(None, &mut names);
        assert_eq!(names.0.len() + not_run.len(), COMPILED.len());
    }
}
