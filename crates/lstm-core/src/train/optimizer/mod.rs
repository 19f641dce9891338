//! An optimizer: its method, the steps it has taken, and what it keeps of each parameter between them.

mod config;
mod update;

use std::collections::{BTreeMap, BTreeSet};

pub use config::OptimizerConfig;

use crate::{
    config::check::check_not_negative,
    error::{Error, Result},
    shape::zeros,
};
use update::{Slots, update};

/// A parameter in one step: where its values are and what their gradient is.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// Its name, the same in every step.
    pub name: &'a str,
    /// Its elements, in any order that stays the same.
    pub value: &'a mut [f32],
    /// The loss's derivative by each element.
    pub gradient: &'a [f32],
}

/// Changes parameters against their gradients by a [`OptimizerConfig`].
///
/// What it keeps between steps has one f32 per element and belongs to a parameter's name: `momentum` for
/// [`OptimizerConfig::Sgd`] with momentum, `exp_avg` (m) and `exp_avg_sq` (v) for the two Adams. It can be saved and restored
/// in the middle of a run, which then goes on with the same bits:
///
/// ```
/// use lstm_core::train::{OptimizerConfig, Optimizer, Parameter};
/// let (mut value, gradient) = ([1.0f32, 2.0], [0.5f32, -0.5]);
/// let mut optimizer = Optimizer::new(OptimizerConfig::momentum(0.9))?;
/// optimizer.step(0.1, &mut [Parameter { name: "weight", value: &mut value, gradient: &gradient }])?;
/// assert_eq!(value, [1.0 - 0.1 * 0.5, 2.0 + 0.1 * 0.5]);
///
/// let state: Vec<_> = optimizer.state().map(|(name, values)| (name, values.to_vec())).collect();
/// assert_eq!(state, [("momentum.weight".to_string(), vec![0.5, -0.5])]);
/// let restored = Optimizer::restore(optimizer.method().clone(), optimizer.steps(), state)?;
/// assert_eq!(restored, optimizer);
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    method: OptimizerConfig,
    steps: u64,
    /// Empty before the first step, and for a method that keeps nothing.
    state: BTreeMap<String, Slots>,
}

impl Optimizer {
    /// An optimizer that has taken no step.
    ///
    /// # Errors
    /// A method that is not [valid](OptimizerConfig::validate).
    pub fn new(method: OptimizerConfig) -> Result<Self> {
        method.validate()?;
        Ok(Optimizer { method, steps: 0, state: BTreeMap::new() })
    }

    /// The method and its options.
    pub fn method(&self) -> &OptimizerConfig {
        &self.method
    }

    /// How many steps have been taken, those before a [`restore`](Self::restore) included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes one step with the learning rate `rate`: changes every parameter's values by the method's equations. The
    /// order of parameters does not matter. Values and gradients that are not finite are computed with as they are.
    ///
    /// # Errors
    /// Nothing is changed after any of these:
    /// - [`Error::Config`]: a rate that is negative or not finite.
    /// - [`Error::Shape`] naming the parameter: a gradient not as long as the value, a name that occurs twice, or, in
    ///   steps after the first, a name that is new or gone or a value of another length (a method that keeps nothing
    ///   takes any parameters); or no parameters at all.
    /// - [`Error::TooLarge`]: no memory for what is kept.
    pub fn step(&mut self, rate: f32, parameters: &mut [Parameter<'_>]) -> Result<()> {
        check_not_negative("rate", rate)?;
        check_parameters(parameters)?;
        if self.steps == 0 {
            self.state = fresh(&self.method, parameters)?;
        } else if !self.method.slots().is_empty() {
            self.check_known(parameters)?;
        }
        self.steps = self.steps.saturating_add(1);
        let mut nothing = Slots::default();
        for Parameter { name, value, gradient } in parameters {
            let slots = self.state.get_mut(*name).unwrap_or(&mut nothing);
            update(&self.method, rate, self.steps, value, gradient, slots);
        }
        Ok(())
    }

    /// What is kept of the parameters, to be saved with [`method`](Self::method) (as text) and
    /// [`steps`](Self::steps): names such as `exp_avg.NAME`, sorted by the parameter's name, and one number per element.
    pub fn state(&self) -> impl Iterator<Item = (String, &[f32])> {
        self.state.iter().flat_map(|(name, slots)| {
            self.method.slots().iter().zip(slots).map(move |(slot, kept)| (format!("{slot}.{name}"), &kept[..]))
        })
    }

    /// An optimizer as it was when its method, steps and [`state`](Self::state) were saved. The state may come in any
    /// order.
    ///
    /// # Errors
    /// A method that is not [valid](OptimizerConfig::validate); [`Error::UnusedTensors`] naming state that the method does not
    /// keep; [`Error::Format`] for a name that occurs twice; [`Error::MissingTensor`] and [`Error::TensorShape`] for a
    /// parameter of which one half is missing or of another length than the other; [`Error::Config`] naming `steps`
    /// for state without steps, or steps without the state that they leave.
    pub fn restore(
        method: OptimizerConfig,
        steps: u64,
        state: impl IntoIterator<Item = (String, Vec<f32>)>,
    ) -> Result<Self> {
        method.validate()?;
        let kept = method.slots();
        let mut found: BTreeMap<String, [Option<Vec<f32>>; 2]> = BTreeMap::new();
        let mut unused = Vec::new();
        for (full, values) in state {
            let split = full.split_once('.');
            let Some((at, name)) = split.and_then(|(s, name)| Some((kept.iter().position(|k| *k == s)?, name))) else {
                unused.push(full);
                continue;
            };
            let place = &mut found.entry(name.to_owned()).or_default()[at];
            if place.replace(values).is_some() {
                return Err(Error::format(format!("tensor `{full}`"), "the name is taken"));
            }
        }
        if !unused.is_empty() {
            return Err(Error::UnusedTensors { names: unused });
        }
        if (steps == 0) != found.is_empty() && !kept.is_empty() {
            let state = if found.is_empty() { "no state" } else { "the state of earlier steps" };
            let expected = if found.is_empty() { "0" } else { "at least 1" };
            return Err(Error::config("steps", format!("expected {expected} with {state}, got {steps}")));
        }
        let state = found.into_iter().map(|(name, halves)| complete(kept, name, halves)).collect::<Result<_>>()?;
        Ok(Optimizer { method, steps, state })
    }

    /// The parameters are those of the first step.
    fn check_known(&self, parameters: &[Parameter<'_>]) -> Result<()> {
        for Parameter { name, value, .. } in parameters {
            let Some([kept, _]) = self.state.get(*name) else {
                return Err(misfit(name, "a name of the first step", "a new one"));
            };
            if kept.len() != value.len() {
                let expected = format!("{} elements, as in the first step", kept.len());
                return Err(misfit(name, &expected, &value.len().to_string()));
            }
        }
        let gone = |kept: &&String| !parameters.iter().any(|p| p.name == **kept);
        match self.state.keys().find(gone) {
            Some(name) => Err(misfit(name, "value and gradient, as in the first step", "none")),
            None => Ok(()),
        }
    }
}

fn misfit(parameter: &str, expected: &str, got: &str) -> Error {
    Error::shape(format!("Optimizer::step: parameter `{parameter}`"), expected, got)
}

/// There are some, each has one name and one gradient.
fn check_parameters(parameters: &[Parameter<'_>]) -> Result<()> {
    if parameters.is_empty() {
        return Err(Error::shape("Optimizer::step: parameters", "at least one", "none"));
    }
    let mut names = BTreeSet::new();
    for Parameter { name, value, gradient } in parameters {
        if gradient.len() != value.len() {
            let expected = format!("a gradient of {} elements, as the value", value.len());
            return Err(misfit(name, &expected, &gradient.len().to_string()));
        }
        if !names.insert(*name) {
            return Err(misfit(name, "each name once", "it twice"));
        }
    }
    Ok(())
}

/// What is kept before the first step: zeros.
fn fresh(method: &OptimizerConfig, parameters: &[Parameter<'_>]) -> Result<BTreeMap<String, Slots>> {
    let mut state = BTreeMap::new();
    if method.slots().is_empty() {
        return Ok(state);
    }
    for Parameter { name, value, .. } in parameters {
        let mut slots = Slots::default();
        for slot in slots.iter_mut().take(method.slots().len()) {
            *slot = zeros("Optimizer::step", &[value.len()])?;
        }
        state.insert((*name).to_owned(), slots);
    }
    Ok(state)
}

/// All slots of a parameter, of one length.
fn complete(kept: &[&str], name: String, halves: [Option<Vec<f32>>; 2]) -> Result<(String, Slots)> {
    let mut slots = Slots::default();
    let len = halves.iter().flatten().next().map_or(0, Vec::len);
    for ((slot, half), place) in kept.iter().zip(halves).zip(&mut slots) {
        let full = format!("{slot}.{name}");
        let half = half.ok_or_else(|| Error::MissingTensor { name: full.clone(), expected: format!("[{len}]") })?;
        if half.len() != len {
            return Err(Error::TensorShape { name: full, expected: vec![len], found: vec![half.len()] });
        }
        *place = half;
    }
    Ok((name, slots))
}
