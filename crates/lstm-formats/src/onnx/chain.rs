//! The stages of a chain: what the nodes of a graph compute, layer by layer.
//!
//! Each stage has outputs at positions, one for each sequence and time step, with a number of features at each. The
//! labels of a tensor say from which stage, position and feature each element comes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ndarray::{Array1, Array2, ArrayD, IxDyn};

use super::{
    data::{Budget, Label, Shared},
    layout::Origin,
    lstm_stage::LstmStage,
    sizes::{ShapeConstraint, Size, Sizes, TRIALS},
};
use lstm_core::Activation;

/// Labels, one array for each trial.
pub(crate) type Labels = [Shared<Label>; TRIALS];

/// The result of a step, with the reason why it is not possible.
pub(crate) type Step<T> = std::result::Result<T, String>;

/// What a label's source refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A graph input, by index.
    Input(usize),
    /// The outputs of a stage.
    Stage(usize),
    /// The final `h` of an LSTM stage, or its final `c`. The position is the index of the sequence.
    Final { stage: usize, is_c: bool },
}

/// A graph input that is not a constant.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) name: String,
    /// Whether its elements are INT32 or INT64.
    pub(crate) is_int: bool,
    /// The size of each axis.
    pub(crate) shape: Vec<Size>,
}

/// What a stage computes from the outputs of the stage before it.
#[derive(Clone, Debug)]
pub(crate) enum StageKind {
    /// A graph input, which holds the features. In each trial the index of each feature relative to the first one.
    Features {
        input: usize,
        offsets: [Vec<i64>; TRIALS],
    },
    /// Rows of a table, selected by the tokens in a graph input.
    Embedding {
        input: usize,
        weight: Array2<f32>,
    },
    Lstm(Box<LstmStage>),
    /// The final `h` of the LSTM before it.
    FinalState,
    /// `W x[columns] + b`, where `columns` selects features of the stage before it.
    Linear {
        columns: Vec<usize>,
        weight: Array2<f32>,
        bias: Option<Array1<f32>>,
    },
    Activation(Activation),
    Dropout(f32),
}

/// A layer, or one of the inputs at the start of the chain.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// The stage before it; `None` for the first one.
    pub(crate) parent: Option<usize>,
    pub(crate) kind: StageKind,
    /// The label of the node, for error messages, or its name, for names of layers.
    pub(crate) label: String,
}

/// Which sequence and time step each position is. The first LSTM determines it.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    pub(crate) batch: Size,
    pub(crate) steps: Size,
    /// In each trial the sequence and time step of each position.
    pub(crate) places: [HashMap<u32, (usize, usize)>; TRIALS],
}

/// A tensor of which each row holds features of one stage at one position. A position is a sequence and time step, or
/// after a final state a sequence.
pub(crate) struct Rows {
    pub(crate) stage: usize,
    /// The feature of the stage in each column.
    pub(crate) features: Vec<usize>,
    /// In each trial the position of each row. The shape is that of the tensor without its last axis.
    pub(crate) positions: [ArrayD<u32>; TRIALS],
}

/// All stages of a graph, and what labels refer to.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) inputs: Vec<Input>,
    pub(crate) stages: Vec<Stage>,
    sources: Vec<Source>,
    pub(crate) grid: Option<Grid>,
    pub(crate) sizes: Sizes,
    /// A constraint that was found. The evaluation must start again with it.
    pub(crate) new_constraint: Option<ShapeConstraint>,
}

impl Chain {
    /// Returns the index of `source`, by which labels refer to it. Adds it if it is new.
    pub(crate) fn source_index(&mut self, source: Source) -> u32 {
        let index = self.sources.iter().position(|&known| known == source);
        index.unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        }) as u32
    }

    /// What a label refers to; `None` for a constant.
    pub(crate) fn resolve(&self, label: Label) -> Option<Source> {
        self.sources.get(label.source as usize).copied()
    }

    /// Whether all elements come from integer graph inputs, so that no cast has truncated them.
    pub(crate) fn are_integer_inputs(&self, labels: &Shared<Label>) -> bool {
        let is_int = |input: usize| self.inputs[input].is_int;
        labels.iter().all(|&label| matches!(self.resolve(label), Some(Source::Input(input)) if is_int(input)))
    }

    /// Adds a graph input and returns its labels.
    pub(crate) fn add_input(&mut self, input: Input, budget: &mut Budget) -> Step<Labels> {
        let shape = |k: usize| input.shape.iter().map(|size| size[k]).collect::<Vec<usize>>();
        for k in 0..TRIALS {
            budget.charge::<Label>(&shape(k))?;
            if shape(k).iter().product::<usize>() > u32::MAX as usize {
                return Err(format!("the shape {:?} is too large", shape(k)));
            }
        }
        let source = self.source_index(Source::Input(self.inputs.len()));
        let labels = std::array::from_fn(|k| {
            let mut position = 0;
            let next = || {
                position += 1;
                Label { source, position: position - 1, feature: 0 }
            };
            ArrayD::from_shape_simple_fn(IxDyn(&shape(k)), next).into_shared()
        });
        self.inputs.push(input);
        Ok(labels)
    }

    /// Requires that two sizes are equal. If a size that the file does not fix can be chosen so, the evaluation starts
    /// again.
    pub(crate) fn require_equal(&mut self, got: Size, expected: Size, what: &str) -> Step<()> {
        self.sizes.compare(got, expected).map_err(|constraint| {
            self.new_constraint = self.new_constraint.take().or(constraint);
            let text =
                |size: Size| if size[0] == size[1] { size[0].to_string() } else { "a size that is not fixed".into() };
            format!("expected {} {what}, got {}", text(expected), text(got))
        })
    }

    /// Number of features of a stage.
    pub(crate) fn width(&self, stage: usize) -> usize {
        let Stage { parent, kind, .. } = &self.stages[stage];
        match kind {
            StageKind::Features { offsets, .. } => offsets[0].len(),
            StageKind::Embedding { weight, .. } => weight.ncols(),
            StageKind::Lstm(lstm) => lstm.hidden * lstm.directions.len(),
            StageKind::Linear { weight, .. } => weight.nrows(),
            StageKind::FinalState | StageKind::Activation(_) | StageKind::Dropout(_) => {
                parent.map_or(0, |parent| self.width(parent))
            }
        }
    }

    /// Adds a stage and returns its index.
    pub(crate) fn push(&mut self, parent: Option<usize>, kind: StageKind, label: &str) -> usize {
        self.stages.push(Stage { parent, kind, label: label.to_owned() });
        self.stages.len() - 1
    }

    /// The stages up to this one, the first one first.
    pub(crate) fn path(&self, stage: usize) -> Vec<usize> {
        let mut path: Vec<usize> = std::iter::successors(Some(stage), |&stage| self.stages[stage].parent).collect();
        path.reverse();
        path
    }

    /// Describes labels in words, for error messages.
    pub(crate) fn describe(&self, labels: &Labels) -> String {
        let sources: BTreeSet<String> = labels[0].iter().map(|&label| self.describe_source(label)).collect();
        let sources: Vec<String> = sources.into_iter().collect();
        match &sources[..] {
            [] => "no elements".into(),
            _ => sources[..sources.len().min(4)].join(" and "),
        }
    }

    fn describe_source(&self, label: Label) -> String {
        match self.resolve(label) {
            None => "constants".into(),
            Some(Source::Input(input)) => format!("the input `{}`", self.inputs[input].name),
            Some(Source::Stage(stage)) => match &self.stages[stage].kind {
                StageKind::Features { input, .. } => format!("the input `{}`", self.inputs[*input].name),
                _ => format!("the outputs of {}", self.stages[stage].label),
            },
            Some(Source::Final { stage, is_c }) => {
                format!("the final {} of {}", if is_c { "c" } else { "h" }, self.stages[stage].label)
            }
        }
    }

    /// The labels as those of the final `h` of an LSTM, if they are: the last step of its forward direction or the
    /// first step of its reverse direction is the same.
    pub(crate) fn as_final(&mut self, labels: &Labels) -> Option<Labels> {
        let grid = self.grid.clone()?;
        let convert = |trial: usize, label: Label, chain: &Chain| -> Option<(usize, u32, u32)> {
            match chain.resolve(label)? {
                Source::Final { stage, is_c: false } => Some((stage, label.position, label.feature)),
                Source::Stage(stage) => {
                    let StageKind::Lstm(lstm) = &chain.stages[stage].kind else { return None };
                    let direction = &lstm.directions[label.feature as usize / lstm.hidden];
                    let &(batch, step) = grid.places[trial].get(&label.position)?;
                    let last = if direction.reverse { 0 } else { grid.steps[trial] - 1 };
                    (lstm.is_full_length() && step == last).then_some((stage, batch as u32, label.feature))
                }
                _ => None,
            }
        };
        let stage = convert(0, *labels[0].first()?, self)?.0;
        let source = self.source_index(Source::Final { stage, is_c: false });
        let mut converted = Vec::new();
        for (trial, array) in labels.iter().enumerate() {
            let values = array.iter().map(|&label| {
                let (of, position, feature) = convert(trial, label, self)?;
                (of == stage).then_some(Label { source, position, feature })
            });
            let values = values.collect::<Option<Vec<_>>>()?;
            converted.push(ArrayD::from_shape_vec(array.raw_dim(), values).ok()?.into_shared());
        }
        converted.try_into().ok()
    }

    /// The stage that labels come from, all from the same one, and its labels. A graph input becomes the start of the
    /// chain, with its features along the last axis.
    fn staged(&mut self, labels: &Labels) -> Step<(usize, Labels)> {
        let first = *labels[0].first().ok_or("expected elements, got an empty tensor")?;
        let is_single = labels.iter().flatten().all(|label| label.source == first.source);
        match self.resolve(first) {
            Some(Source::Stage(stage)) if is_single => Ok((stage, labels.clone())),
            Some(Source::Input(input)) if is_single => self.start(input, labels),
            Some(Source::Final { stage, is_c: false }) if is_single => {
                let is_known = |s: &Stage| matches!(s.kind, StageKind::FinalState) && s.parent == Some(stage);
                let known = self.stages.iter().position(is_known);
                let label = self.stages[stage].label.clone();
                let stage = known.unwrap_or_else(|| self.push(Some(stage), StageKind::FinalState, &label));
                let source = self.source_index(Source::Stage(stage));
                let relabel = |array: &Shared<Label>| array.mapv(|label| Label { source, ..label }).into_shared();
                Ok((stage, labels.each_ref().map(relabel)))
            }
            _ if !is_single => match self.as_final(labels) {
                Some(labels) => self.staged(&labels),
                None => Err(format!("expected values of one layer, got {}", self.describe(labels))),
            },
            _ => Err(format!("expected outputs of a layer, got {}", self.describe(labels))),
        }
    }

    /// Makes a graph input the start of the chain.
    fn start(&mut self, input: usize, labels: &Labels) -> Step<(usize, Labels)> {
        let mut offsets: [Vec<i64>; TRIALS] = Default::default();
        for (array, offsets) in labels.iter().zip(&mut offsets) {
            let row_len = array.shape().last().copied().ok_or("expected features, got a scalar")?;
            let positions: Vec<i64> = array.iter().map(|label| i64::from(label.position)).collect();
            let mut rows = positions.chunks(row_len);
            let row_offsets = |row: &[i64]| row.iter().map(|&p| p - row[0]).collect::<Vec<_>>();
            *offsets = rows.next().map(row_offsets).unwrap_or_default();
            if !rows.all(|row| row_offsets(row) == *offsets) {
                let name = &self.inputs[input].name;
                return Err(format!("expected features along the last axis of `{name}`, got them elsewhere"));
            }
        }
        let is_start = |stage: &Stage| matches!(stage.kind, StageKind::Features { input: i, .. } if i == input);
        let stage = match self.stages.iter().position(is_start) {
            Some(stage) => match &self.stages[stage].kind {
                StageKind::Features { offsets: known, .. } if *known == offsets => stage,
                _ => return Err(format!("expected the features of `{}` in one order", self.inputs[input].name)),
            },
            None => {
                let label = self.inputs[input].name.clone();
                self.push(None, StageKind::Features { input, offsets }, &label)
            }
        };
        let source = self.source_index(Source::Stage(stage));
        let relabel = |array: &Shared<Label>| {
            let row_len = array.shape().last().copied().unwrap_or(1);
            let old: Vec<u32> = array.iter().map(|label| label.position).collect();
            let new = (0..old.len()).map(|k| {
                let feature = k % row_len;
                Label { source, position: old[k - feature], feature: feature as u32 }
            });
            ArrayD::from_shape_vec(array.raw_dim(), new.collect()).expect("the shape did not change").into_shared()
        };
        Ok((stage, labels.each_ref().map(relabel)))
    }

    /// Reads a tensor as rows of features along its last axis.
    pub(crate) fn rows(&mut self, labels: &Labels) -> Step<Rows> {
        let (stage, staged) = self.staged(labels)?;
        match self.split_into_rows(stage, &staged) {
            Ok(rows) => Ok(rows),
            Err(why) => {
                let labels = self.as_final(&staged).ok_or(why)?;
                let (stage, staged) = self.staged(&labels)?;
                self.split_into_rows(stage, &staged)
            }
        }
    }

    fn split_into_rows(&self, stage: usize, labels: &Labels) -> Step<Rows> {
        let row_len = labels[0].shape().last().copied().ok_or("expected features, got a scalar")?;
        if labels[1].shape().last() != Some(&row_len) {
            return Err("expected a fixed number of features along the last axis".into());
        }
        let mut features: Vec<usize> = Vec::new();
        let mut positions = Vec::new();
        for array in labels {
            let values: Vec<Label> = array.iter().copied().collect();
            for row in values.chunks(row_len.max(1)) {
                if row.iter().any(|label| label.position != row[0].position) {
                    let from = self.describe(labels);
                    return Err(format!(
                        "expected features of one time step along the last axis, got several of {from}"
                    ));
                }
                let row_features = row.iter().map(|label| label.feature as usize);
                if features.is_empty() {
                    features.extend(row_features);
                } else if !row_features.eq(features.iter().copied()) {
                    return Err(format!("expected the same features of {} at each time step", self.describe(labels)));
                }
            }
            let rows = values.chunks(row_len.max(1)).map(|row| row[0].position).collect();
            let shape = IxDyn(&array.shape()[..array.ndim() - 1]);
            positions.push(ArrayD::from_shape_vec(shape, rows).map_err(|_| "expected elements, got an empty tensor")?);
        }
        let positions = positions.try_into().map_err(|_| "expected one array for each trial")?;
        Ok(Rows { stage, features, positions })
    }

    /// The labels of rows of all features of a stage at these positions.
    pub(crate) fn emit(
        &mut self,
        stage: usize,
        positions: &[ArrayD<u32>; TRIALS],
        budget: &mut Budget,
    ) -> Step<Labels> {
        let (source, width) = (self.source_index(Source::Stage(stage)), self.width(stage));
        let mut arrays = Vec::new();
        for positions in positions {
            let shape = [positions.shape(), &[width]].concat();
            budget.charge::<Label>(&shape)?;
            let labels = positions
                .iter()
                .flat_map(|&position| (0..width as u32).map(move |feature| Label { source, position, feature }));
            let array = ArrayD::from_shape_vec(IxDyn(&shape), labels.collect()).map_err(|e| e.to_string())?;
            arrays.push(array.into_shared());
        }
        arrays.try_into().map_err(|_| "expected one array for each trial".into())
    }

    /// Adds a linear layer without a bias: `weight` has a column for each feature of the rows.
    pub(crate) fn linear(
        &mut self,
        label: &str,
        labels: &Labels,
        weight: Array2<f32>,
        budget: &mut Budget,
    ) -> Step<Labels> {
        let last = |k: usize| labels[k].shape().last().copied().unwrap_or(0);
        self.require_equal([last(0), last(1)], [weight.ncols(); TRIALS], "features")?;
        let Rows { stage, features, positions } = self.rows(labels)?;
        let kind = StageKind::Linear { columns: features, weight, bias: None };
        let stage = self.push(Some(stage), kind, label);
        self.emit(stage, &positions, budget)
    }

    /// Adds an embedding, whose tokens are a graph input.
    pub(crate) fn embedding(
        &mut self,
        label: &str,
        tokens: &Labels,
        weight: Array2<f32>,
        budget: &mut Budget,
    ) -> Step<Labels> {
        let first = *tokens[0].first().ok_or("expected tokens, got an empty tensor")?;
        let input = match self.resolve(first) {
            Some(Source::Input(input)) if tokens.iter().flatten().all(|label| label.source == first.source) => input,
            _ => return Err(format!("expected tokens from a graph input, got {}", self.describe(tokens))),
        };
        if self.stages.iter().any(|stage| stage.parent.is_none()) {
            return Err("expected a single input of features or tokens".into());
        }
        let stage = self.push(None, StageKind::Embedding { input, weight }, label);
        let positions = tokens.each_ref().map(|array| array.mapv(|label| label.position));
        self.emit(stage, &positions, budget)
    }

    /// Adds an activation, a dropout or another layer that keeps each feature in its place.
    pub(crate) fn elementwise(&mut self, label: &str, labels: &Labels, kind: StageKind) -> Step<Labels> {
        let (parent, staged) = self.staged(labels)?;
        let stage = self.push(Some(parent), kind, label);
        let source = self.source_index(Source::Stage(stage));
        Ok(staged.each_ref().map(|array| array.mapv(|label| Label { source, ..label }).into_shared()))
    }

    /// Adds a softmax over the groups of elements that differ only in the axes from `axis` to `end`.
    pub(crate) fn softmax(
        &mut self,
        label: &str,
        labels: &Labels,
        axes: std::ops::Range<usize>,
        activation: Activation,
    ) -> Step<Labels> {
        let (parent, staged) = self.staged(labels)?;
        let width = self.width(parent);
        for array in &staged {
            // The features of each group must be all features of one position.
            let mut groups: BTreeMap<Vec<usize>, (u32, BTreeSet<u32>, usize)> = BTreeMap::new();
            for (index, label) in array.indexed_iter() {
                let index = ndarray::Dimension::as_array_view(&index).to_vec();
                let key = [&index[..axes.start], &index[axes.end..]].concat();
                let (position, features, len) = groups.entry(key).or_insert((label.position, BTreeSet::new(), 0));
                features.insert(label.feature);
                *len += 1;
                if *position != label.position || *len > width {
                    return Err("expected a softmax over the features of each time step".into());
                }
            }
            if groups.values().any(|(_, features, len)| features.len() != width || *len != width) {
                return Err(format!("expected a softmax over all {width} features"));
            }
        }
        let stage = self.push(Some(parent), StageKind::Activation(activation), label);
        let source = self.source_index(Source::Stage(stage));
        Ok(staged.each_ref().map(|array| array.mapv(|label| Label { source, ..label }).into_shared()))
    }

    /// Multiplies each feature by a constant, or adds a constant to it. `constants` has the shape of the labels.
    pub(crate) fn affine(
        &mut self,
        label: &str,
        labels: &Labels,
        constants: &[Shared<f32>; TRIALS],
        is_sum: bool,
        budget: &mut Budget,
    ) -> Step<Labels> {
        let (stage, staged) = self.staged(labels)?;
        let width = self.width(stage);
        let mut values: Vec<Option<f32>> = vec![None; width];
        for (array, constants) in staged.iter().zip(constants) {
            for (label, &constant) in array.iter().zip(constants) {
                let value = values[label.feature as usize].get_or_insert(constant);
                if value.to_bits() != constant.to_bits() {
                    return Err("expected a constant for each feature, the same at each time step".into());
                }
            }
        }
        let neutral = if is_sum { 0.0 } else { 1.0 };
        let values: Array1<f32> = values.into_iter().map(|value| value.unwrap_or(neutral)).collect();
        let parent = self.stages[stage].parent;
        // A bias or a scale directly after a linear layer becomes part of it.
        let kind = match &self.stages[stage].kind {
            StageKind::Linear { columns, weight, bias } if is_sum => {
                budget.charge::<f32>(weight.shape())?;
                let bias = bias.as_ref().map_or_else(|| values.clone(), |bias| bias + &values);
                Some(StageKind::Linear { columns: columns.clone(), weight: weight.clone(), bias: Some(bias) })
            }
            StageKind::Linear { columns, weight, bias } => {
                budget.charge::<f32>(weight.shape())?;
                let scale = values.view().insert_axis(ndarray::Axis(1));
                let bias = bias.as_ref().map(|bias| bias * &values);
                Some(StageKind::Linear { columns: columns.clone(), weight: weight * &scale, bias })
            }
            _ => None,
        };
        let stage = match kind {
            Some(kind) => self.push(parent, kind, label),
            None => {
                budget.charge::<f32>(&[width, width])?;
                let (weight, bias) = match is_sum {
                    true => (Array2::eye(width), Some(values)),
                    false => (Array2::from_diag(&values), None),
                };
                self.push(Some(stage), StageKind::Linear { columns: (0..width).collect(), weight, bias }, label)
            }
        };
        let source = self.source_index(Source::Stage(stage));
        Ok(staged.each_ref().map(|array| array.mapv(|label| Label { source, ..label }).into_shared()))
    }

    /// Adds up tensors of features at the same positions, each multiplied by a factor, such as both directions.
    pub(crate) fn sum(&mut self, label: &str, terms: &[(f32, Labels)], budget: &mut Budget) -> Step<Labels> {
        let mut rows = Vec::new();
        for (factor, labels) in terms {
            rows.push((*factor, self.rows(labels)?));
        }
        let (_, first) = rows.first().ok_or("expected a sum of at least one tensor")?;
        let (stage, positions, len) = (first.stage, first.positions.clone(), first.features.len());
        let matches = |row: &Rows| row.stage == stage && row.positions == positions && row.features.len() == len;
        if let Some((_, other)) = rows.iter().find(|(_, row)| !matches(row)) {
            let (a, b) = (&self.stages[stage].label, &self.stages[other.stage].label);
            return Err(match other.stage == stage {
                true => format!("expected a sum of features of {a} at the same time step"),
                false => format!("a sum of the outputs of {a} and of {b} is not a chain of layers"),
            });
        }
        let width = self.width(stage);
        budget.charge::<f32>(&[len, width])?;
        let mut weight = Array2::zeros((len, width));
        for (factor, row) in &rows {
            for (k, &feature) in row.features.iter().enumerate() {
                weight[[k, feature]] += factor;
            }
        }
        let kind = StageKind::Linear { columns: (0..width).collect(), weight, bias: None };
        let stage = self.push(Some(stage), kind, label);
        self.emit(stage, &positions, budget)
    }

    /// From which sequence, time step and feature each element of a tensor of this stage comes.
    pub(crate) fn origins(&self, labels: &Labels) -> Option<[ArrayD<Origin<Label>>; TRIALS]> {
        let mut arrays = Vec::new();
        for (trial, array) in labels.iter().enumerate() {
            let origins = array.iter().map(|&label| {
                let element = Label { position: 0, ..label };
                let (batch, step) = match self.resolve(label) {
                    Some(Source::Stage(stage)) if !self.is_final(stage) => {
                        *self.grid.as_ref()?.places[trial].get(&label.position)?
                    }
                    Some(Source::Input(_)) => return None,
                    Some(_) => (label.position as usize, 0),
                    None => (0, 0),
                };
                Some(Origin { element, batch, step })
            });
            let origins = origins.collect::<Option<Vec<_>>>()?;
            arrays.push(ArrayD::from_shape_vec(array.raw_dim(), origins).ok()?);
        }
        arrays.try_into().ok()
    }

    /// Whether a stage has one position for each sequence, because it or one before it is the final state.
    pub(crate) fn is_final(&self, stage: usize) -> bool {
        self.path(stage).iter().any(|&stage| matches!(self.stages[stage].kind, StageKind::FinalState))
    }

    /// Index of feature `feature` of a stage in the output of the imported layer. The two indices differ only for a
    /// bidirectional LSTM whose reverse direction comes first.
    pub(crate) fn output_index(&self, stage: usize, feature: usize) -> usize {
        match &self.stages[stage].kind {
            StageKind::Lstm(lstm) => lstm.output_index(feature),
            StageKind::FinalState | StageKind::Activation(_) | StageKind::Dropout(_) => {
                self.stages[stage].parent.map_or(feature, |parent| self.output_index(parent, feature))
            }
            _ => feature,
        }
    }

    /// Scatters the columns of a matrix, which belong to the features `columns` of a stage, into a matrix with one column for
    /// each output of the stage. Columns of the same output are added.
    pub(crate) fn scatter_columns(&self, stage: usize, columns: &[usize], weight: &Array2<f32>) -> Array2<f32> {
        let indices: Vec<usize> = columns.iter().map(|&feature| self.output_index(stage, feature)).collect();
        let width = self.width(stage);
        if indices.iter().copied().eq(0..width) {
            return weight.clone();
        }
        let mut scattered = Array2::zeros((weight.nrows(), width));
        for (column, &index) in weight.columns().into_iter().zip(&indices) {
            let mut target = scattered.column_mut(index);
            target += &column;
        }
        scattered
    }
}
