//! The one list of backends, and how to visit those that can run here.

use std::fmt;

use lstm_core::Backend;

/// What is done with each backend. A trait because a closure can't be generic.
pub trait Visit {
    /// Called once per backend that opened.
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, backend: B);
}

/// A backend that did not run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRun {
    /// The backend's name.
    pub name: String,
    /// The reason, in words.
    pub why: String,
}

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: not run: {}", self.name, self.why)
    }
}

macro_rules! backends {
    ($($name:literal => $open:expr,)*) => {
        /// The backends that this build holds, the CPU first: it defines the snapshots.
        pub const COMPILED: &[&str] = &[$(#[cfg(feature = $name)] $name),*];

        fn open(name: &str, visitor: &mut impl Visit) -> Result<(), NotRun> {
            let not_run = |why: String| NotRun { name: name.to_owned(), why };
            match name {
                $(#[cfg(feature = $name)]
                $name => visitor.visit(name, $open.map_err(|e: lstm_core::Error| not_run(e.to_string()))?),)*
                _ => return Err(not_run(format!("not in this build, which holds: {}", COMPILED.join(", ")))),
            }
            Ok(())
        }
    };
}

// A backend's feature, and an expression that opens it or says why it can't run here.
backends! {
    "cpu" => lstm_core::Result::Ok(lstm_cpu::Cpu::new()),
    "cuda" => lstm_cuda::Cuda::new(0),
    "cuda-host" => lstm_cuda_sim::Host::builder().build(),
    "wgpu" => lstm_wgpu::Wgpu::blocking(),
    "toy" => lstm_core::Result::Ok(crate::toy::Toy),
}

/// Opens each of the `wanted` backends, or every compiled one, for `visitor`; returns those that did not run.
pub fn for_each(wanted: Option<&[String]>, visitor: &mut impl Visit) -> Vec<NotRun> {
    let compiled: Vec<String> = COMPILED.iter().map(|&name| name.to_owned()).collect();
    wanted.unwrap_or(&compiled).iter().filter_map(|name| open(name, visitor).err()).collect()
}

/// What the environment variable `LSTM_BACKENDS` asks for, such as `cpu,wgpu`; `None`: every compiled backend.
pub fn wanted() -> Option<Vec<String>> {
    let list = std::env::var("LSTM_BACKENDS").ok()?;
    Some(list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TensorNames(Vec<String>);

    impl Visit for TensorNames {
        fn visit<B: Backend + Send + 'static>(&mut self, name: &str, backend: B) {
            assert_eq!(name, backend.name());
            self.0.push(name.to_owned());
        }
    }

    #[test]
    fn a_backend_that_is_not_there_is_reported() {
        let mut names = TensorNames(Vec::new());
        let missed = for_each(Some(&["abacus".to_owned()]), &mut names);
        assert!(names.0.is_empty());
        assert_eq!(missed.len(), 1);
        assert!(missed[0].to_string().starts_with("abacus: not run: not in this build"), "{}", missed[0]);
    }

    #[test]
    fn every_compiled_backend_has_its_feature_s_name() {
        let mut names = TensorNames(Vec::new());
        let missed = for_each(None, &mut names);
        assert_eq!(names.0.len() + missed.len(), COMPILED.len());
    }
}
