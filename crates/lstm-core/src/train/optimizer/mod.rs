//! The optimizer: an algorithm with its options, the number of steps, and the state of each parameter.

mod config;
mod group;
mod update;

use std::collections::{BTreeMap, BTreeSet};

pub use config::OptimizerConfig;
pub use group::ParameterGroup;

use crate::{
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    shape::zeros,
    train::{
        check::{check_finite, check_not_negative},
        clip::{Clip, gradient_norm},
    },
};
use group::group_of_each;
use update::{ParameterState, update};

/// One parameter and its gradient, as arguments of [`Optimizer::step`].
#[derive(Debug)]
pub struct Parameter<'a> {
    /// Name of the parameter. It identifies the parameter across steps.
    pub name: &'a str,
    /// Elements of the parameter, in an order that is the same in every step.
    pub value: &'a mut [f32],
    /// Gradient of the loss with respect to each element.
    pub gradient: &'a [f32],
}

/// An optimizer: updates parameters by their gradients, as its [`OptimizerConfig`] defines.
///
/// The optimizer state has one f32 per element of a parameter: `momentum` for [`OptimizerConfig::Sgd`] with momentum,
/// `exp_avg` (`m`) and `exp_avg_sq` (`v`) for [`OptimizerConfig::Adam`] and [`OptimizerConfig::AdamW`]. It can be saved
/// and restored between two steps; the later steps are then bit-identical:
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
/// let restored = Optimizer::restore(optimizer.config().clone(), optimizer.steps(), state)?;
/// assert_eq!(restored, optimizer);
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<ParameterGroup>,
    steps: u64,
    /// State of each parameter by its name. Empty before the first step, and for an optimizer without state.
    state: BTreeMap<String, ParameterState>,
}

impl Optimizer {
    /// Creates an optimizer before its first step.
    ///
    /// # Errors
    /// [`Error::Config`] if the options are not [valid](OptimizerConfig::validate).
    pub fn new(config: OptimizerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Optimizer { config, groups: Vec::new(), steps: 0, state: BTreeMap::new() })
    }

    /// Sets the options of groups of parameters, in place of earlier ones. Each parameter of a step may be in one group,
    /// and each group must have a parameter.
    ///
    /// ```
    /// use lstm_core::train::{OptimizerConfig, Optimizer, Parameter, ParameterGroup};
    /// let groups = vec![ParameterGroup::new("encoder").frozen(), ParameterGroup::new("*bias").rate_factor(2.0)];
    /// let mut optimizer = Optimizer::new(OptimizerConfig::sgd())?.with_groups(groups)?;
    /// let (mut encoder, mut bias) = ([1.0], [1.0]);
    /// optimizer.step(0.25, &mut [
    ///     Parameter { name: "encoder", value: &mut encoder, gradient: &[1.0] },
    ///     Parameter { name: "head.bias", value: &mut bias, gradient: &[1.0] },
    /// ])?;
    /// assert_eq!((encoder, bias), ([1.0], [0.5]));
    /// # Ok::<(), lstm_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] if the options are not [valid](ParameterGroup::validate).
    pub fn with_groups(self, groups: Vec<ParameterGroup>) -> Result<Self> {
        groups.iter().try_for_each(ParameterGroup::validate)?;
        Ok(Optimizer { groups, ..self })
    }

    /// The parameter groups.
    pub fn groups(&self) -> &[ParameterGroup] {
        &self.groups
    }

    /// Checks that each parameter is in at most one group, and each group has a parameter.
    ///
    /// # Errors
    /// [`Error::Config`] otherwise.
    pub(in crate::train) fn check_groups<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<()> {
        let names: Vec<_> = names.into_iter().map(String::as_str).collect();
        group_of_each(&self.groups, &names).map(drop)
    }

    /// The algorithm and its options.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// A copy of the optimizer and its state.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not fit in memory.
    fn try_clone(&self) -> Result<Self> {
        let copy = |array: &Vec<f32>| memory::copy("optimizer", array);
        let state = self.state.iter().map(|(name, [first, second])| Ok((name.clone(), [copy(first)?, copy(second)?])));
        let (config, groups) = (self.config.clone(), self.groups.clone());
        Ok(Optimizer { config, groups, steps: self.steps, state: state.collect::<Result<_>>()? })
    }

    /// Number of steps so far, including those before a [`restore`](Self::restore).
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates all parameters in one step with the learning rate `rate`. The order of the parameters does not matter.
    /// Values and gradients may be infinite or NaN; the equations apply to them as well.
    ///
    /// # Errors
    /// The parameters and the optimizer are unchanged after an error.
    /// - [`Error::Config`] if the rate is negative or not finite, a parameter is in two groups, or a group has none.
    /// - [`Error::Shape`] if there are no parameters, a gradient does not have the length of its value, or a name
    ///   occurs twice. For an optimizer with state, also if the names and lengths differ from those of the first step.
    /// - [`Error::TooLarge`] if the memory for the optimizer state cannot be allocated.
    pub fn step(&mut self, rate: f32, parameters: &mut [Parameter<'_>]) -> Result<()> {
        check_not_negative("rate", rate)?;
        check_parameters(parameters)?;
        let names: Vec<_> = parameters.iter().map(|parameter| parameter.name).collect();
        let groups = group_of_each(&self.groups, &names)?;
        if self.steps == 0 {
            self.state = zero_state(&self.config, parameters)?;
        } else if !self.config.state_names().is_empty() {
            self.check_same_as_first_step(parameters)?;
        }
        let _environment = FloatEnvironment::set_default();
        self.steps = self.steps.saturating_add(1);
        let mut empty_state = ParameterState::default();
        for (Parameter { name, value, gradient }, group) in parameters.iter_mut().zip(groups) {
            let state = self.state.get_mut(*name).unwrap_or(&mut empty_state);
            let Some(group) = group else {
                update(&self.config, rate, self.steps, value, gradient, state);
                continue;
            };
            if !group.frozen {
                let config = match group.weight_decay {
                    Some(weight_decay) => self.config.clone().weight_decay(weight_decay),
                    None => self.config.clone(),
                };
                update(&config, group.rate_factor * rate, self.steps, value, gradient, state);
            }
        }
        Ok(())
    }

    /// Clips the gradients and updates `values`, which have the given names. Returns the optimizer after the step, and
    /// the norm of the gradients before clipping, without those of frozen parameters. If it fails, `values` and `gradients` may have changed, but not `self`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a gradient, a new value or a state of the optimizer; the errors of [`step`](Self::step).
    pub(in crate::train) fn clipped_step(
        &self,
        clip: Option<Clip>,
        rate: f32,
        names: &[String],
        values: Vec<&mut [f32]>,
        mut gradients: Vec<&mut [f32]>,
    ) -> Result<(Self, f64)> {
        let step = self.steps.saturating_add(1);
        let groups = group_of_each(&self.groups, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let is_frozen = groups.into_iter().map(|group| group.is_some_and(|group| group.frozen));
        let with_names = names.iter().zip(&mut gradients).zip(is_frozen);
        let (names_of_updated, mut updated): (Vec<_>, Vec<_>) =
            with_names.filter(|(_, is_frozen)| !is_frozen).map(|((name, gradient), _)| (name, &mut **gradient)).unzip();
        for (name, gradient) in names_of_updated.into_iter().zip(&updated) {
            check_finite(step, || format!("the gradient of `{name}`"), gradient)?;
        }
        let gradient_norm = match clip {
            Some(clip) => clip.apply(&mut updated)?,
            None => gradient_norm(updated.iter().map(|gradient| &**gradient)),
        };
        let mut optimizer = self.try_clone()?;
        let mut parameters: Vec<_> = names
            .iter()
            .zip(values)
            .zip(&gradients)
            .map(|((name, value), gradient)| Parameter { name, value, gradient })
            .collect();
        optimizer.step(rate, &mut parameters)?;
        for Parameter { name, value, .. } in &parameters {
            check_finite(step, || format!("the new value of `{name}`"), value)?;
        }
        for (name, array) in optimizer.state() {
            check_finite(step, || format!("the optimizer's `{name}`"), array)?;
        }
        Ok((optimizer, gradient_norm))
    }

    /// The names and elements of all state arrays, sorted by parameter. Each name joins those of the state and
    /// the parameter, such as `exp_avg.head.weight`. Each array is as long as its parameter. [`restore`](Self::restore)
    /// also needs the [`config`](Self::config) and the number of [`steps`](Self::steps).
    pub fn state(&self) -> impl Iterator<Item = (String, &[f32])> {
        self.state.iter().flat_map(|(parameter, arrays)| {
            let names = self.config.state_names().iter();
            names.zip(arrays).map(move |(name, array)| (format!("{name}.{parameter}"), &array[..]))
        })
    }

    /// Restores an optimizer from its config, number of steps and [`state`](Self::state). The order of the state arrays
    /// does not matter. [Parameter groups](Self::with_groups) are set afterwards.
    ///
    /// # Errors
    /// - [`Error::Config`] if the options are not [valid](OptimizerConfig::validate), or, naming `steps`, if there is
    ///   state although `steps` is 0, or no state although it is not.
    /// - [`Error::UnusedTensors`], which names arrays that the optimizer does not have.
    /// - [`Error::Format`] if a name occurs twice.
    /// - [`Error::MissingTensor`] or [`Error::TensorShape`] if a parameter lacks one of its arrays, or its arrays
    ///   differ in length.
    pub fn restore(
        config: OptimizerConfig,
        steps: u64,
        state: impl IntoIterator<Item = (String, Vec<f32>)>,
    ) -> Result<Self> {
        config.validate()?;
        let names = config.state_names();
        let mut arrays_by_parameter: BTreeMap<String, [Option<Vec<f32>>; 2]> = BTreeMap::new();
        let mut unused_names = Vec::new();
        for (full_name, array) in state {
            let name_and_parameter = full_name.split_once('.');
            let index_and_parameter = name_and_parameter
                .and_then(|(name, parameter)| Some((names.iter().position(|n| *n == name)?, parameter)));
            let Some((index, parameter)) = index_and_parameter else {
                unused_names.push(full_name);
                continue;
            };
            let array_slot = &mut arrays_by_parameter.entry(parameter.to_owned()).or_default()[index];
            if array_slot.replace(array).is_some() {
                return Err(Error::format(format!("tensor `{full_name}`"), "the name occurs twice"));
            }
        }
        if !unused_names.is_empty() {
            let advice = "they are the state of another optimizer; restore it with the config with which it was saved";
            return Err(Error::UnusedTensors { names: unused_names, advice: Some(advice) });
        }
        if (steps == 0) != arrays_by_parameter.is_empty() && !names.is_empty() {
            let (expected, state_presence) = if arrays_by_parameter.is_empty() {
                ("0", "without optimizer state")
            } else {
                ("at least 1", "with optimizer state")
            };
            return Err(Error::config("steps", format!("expected {expected} {state_presence}, got {steps}")));
        }
        let state =
            arrays_by_parameter.into_iter().map(|(parameter, arrays)| check_state_complete(names, parameter, arrays));
        Ok(Optimizer { config, groups: Vec::new(), steps, state: state.collect::<Result<_>>()? })
    }

    /// Checks that the parameters have the names and lengths of those in the first step.
    fn check_same_as_first_step(&self, parameters: &[Parameter<'_>]) -> Result<()> {
        for Parameter { name, value, .. } in parameters {
            let Some([array, _]) = self.state.get(*name) else {
                return Err(parameter_error(name, "a name of the first step", "a new one"));
            };
            if array.len() != value.len() {
                let expected = format!("{} elements, as in the first step", array.len());
                return Err(parameter_error(name, &expected, &value.len().to_string()));
            }
        }
        let is_missing = |name: &&String| !parameters.iter().any(|p| p.name == **name);
        match self.state.keys().find(is_missing) {
            Some(name) => Err(parameter_error(name, "value and gradient, as in the first step", "none")),
            None => Ok(()),
        }
    }
}

/// An [`Error::Shape`] about one parameter of [`Optimizer::step`].
fn parameter_error(parameter: &str, expected: &str, got: &str) -> Error {
    Error::shape(format!("Optimizer::step: parameter `{parameter}`"), expected, got)
}

/// Checks that there is a parameter, that names are unique, and that each gradient has the length of its value.
fn check_parameters(parameters: &[Parameter<'_>]) -> Result<()> {
    if parameters.is_empty() {
        return Err(Error::shape("Optimizer::step: parameters", "at least one", "none"));
    }
    let mut names = BTreeSet::new();
    for Parameter { name, value, gradient } in parameters {
        if gradient.len() != value.len() {
            let expected = format!("a gradient of {} elements, the length of the value", value.len());
            return Err(parameter_error(name, &expected, &gradient.len().to_string()));
        }
        if !names.insert(*name) {
            return Err(parameter_error(name, "each name once", "it twice"));
        }
    }
    Ok(())
}

/// The optimizer state before the first step: zeros.
fn zero_state(config: &OptimizerConfig, parameters: &[Parameter<'_>]) -> Result<BTreeMap<String, ParameterState>> {
    let mut state = BTreeMap::new();
    let arrays_per_parameter = config.state_names().len();
    if arrays_per_parameter == 0 {
        return Ok(state);
    }
    for Parameter { name, value, .. } in parameters {
        let mut arrays = ParameterState::default();
        for array in arrays.iter_mut().take(arrays_per_parameter) {
            *array = zeros("Optimizer::step", &[value.len()])?;
        }
        state.insert((*name).to_owned(), arrays);
    }
    Ok(state)
}

/// Checks that a restored parameter has all its state arrays and that they have the same length.
fn check_state_complete(
    names: &[&str],
    parameter: String,
    arrays: [Option<Vec<f32>>; 2],
) -> Result<(String, ParameterState)> {
    let mut state = ParameterState::default();
    let len = arrays.iter().flatten().next().map_or(0, Vec::len);
    for ((name, array), array_slot) in names.iter().zip(arrays).zip(&mut state) {
        let full_name = format!("{name}.{parameter}");
        let array =
            array.ok_or_else(|| Error::MissingTensor { name: full_name.clone(), expected: format!("[{len}]") })?;
        if array.len() != len {
            return Err(Error::TensorShape { name: full_name, expected: vec![len], found: vec![array.len()] });
        }
        *array_slot = array;
    }
    Ok((parameter, state))
}
