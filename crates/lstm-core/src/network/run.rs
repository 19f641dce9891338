//! The layers of a model on the device.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    backend::{
        Backend, State,
        shape::{ConcatAxis, MatrixShape, zeros},
    },
    error::{Error, Result},
    memory,
    model::{BatchLayout, DeviceBatch, Dropout, Lstm, StackOutput, Tape, nth_seed},
    network::{
        model::{DeviceLayer, Model},
        weights::ModelLayer,
    },
};

/// A batch of sequences on the device.
pub(super) struct DeviceInput<'a, T> {
    pub(super) layout: &'a BatchLayout,
    /// The features or the rows of the embedding, `[steps * batch, size]`; `None` without time steps.
    pub(super) x: Option<T>,
    /// The initial state of each layer and direction of each LSTM.
    pub(super) initial_states: Vec<Vec<State<T>>>,
    pub(super) dropout: Option<Dropout>,
}

/// The result of [`Model::run`]. The device may still be computing it.
pub(super) struct DeviceOutput<T> {
    /// The output of the layers, `[steps * batch, output_size]` or `[batch, output_size]`; `None` without time steps,
    /// if the model returns all of them.
    pub(super) y: Option<T>,
    /// The final state of each layer and direction of each LSTM.
    pub(super) states: Vec<Vec<State<T>>>,
}

/// What a forward pass saves of a layer for the backward pass.
pub(super) enum LayerRecord<B: Backend> {
    /// The pass of an LSTM.
    Lstm(Tape<B>),
    /// The snapped input of a fully connected layer.
    Linear(B::Tensor),
    /// The output of an activation.
    Activation(B::Tensor),
    /// The mask of a dropout layer.
    Dropout(B::Tensor),
    /// A layer that saves nothing.
    Nothing,
}

/// Saves what the backward pass needs while [`Model::run`] runs the layers.
pub(super) struct Recorder<B: Backend> {
    /// Number of time steps per segment, as in [`Lstm::record`].
    pub(super) segment_len: Option<usize>,
    /// One entry for each layer.
    pub(super) records: Vec<LayerRecord<B>>,
}

impl<B: Backend> Model<B> {
    /// Enqueues the forward pass of all layers on the device. The recorder, if given, saves what the backward pass
    /// needs; the input then has time steps.
    pub(super) fn run(
        &self,
        input: DeviceInput<'_, B::Tensor>,
        mut recorder: Option<&mut Recorder<B>>,
    ) -> Result<DeviceOutput<B::Tensor>> {
        let DeviceInput { layout, mut x, initial_states, dropout } = input;
        let b = self.backend();
        let mut initial_states = initial_states.into_iter();
        let mut states: Vec<Vec<State<B::Tensor>>> = memory::with_capacity("forward", &[initial_states.len()])?;
        // Dropout after the last step has a mask for one time step.
        let mut rows_layout = layout.try_clone()?;
        let mut size = self.weights().input_size();
        for (k, (layer, device_layer)) in self.weights().layers().iter().zip(self.device_layers()).enumerate() {
            let layer_dropout = match dropout {
                Some(Dropout::Seed(seed)) => Some(Dropout::Seed(nth_seed(seed, k as u64 + 1))),
                other => other,
            };
            let mut record = LayerRecord::Nothing;
            match (layer, device_layer) {
                (ModelLayer::Lstm { .. }, DeviceLayer::Lstm(lstm)) => {
                    let initial_states = initial_states.next().unwrap_or_default();
                    states.push(match x.take() {
                        None => initial_states,
                        Some(rows) => {
                            let batch = DeviceBatch { layout, x: rows, initial_states, dropout: layer_dropout };
                            let output = match &recorder {
                                Some(recorder) => {
                                    let (output, tape) = lstm.record(batch, recorder.segment_len)?;
                                    record = LayerRecord::Lstm(tape);
                                    output
                                }
                                None => run_lstm(lstm, batch)?,
                            };
                            x = Some(output.y);
                            output.states
                        }
                    });
                }
                (ModelLayer::Linear { .. }, DeviceLayer::Linear(linear)) => {
                    if let Some(rows) = x.take() {
                        let rows = b.snap(rows)?;
                        x = Some(linear.as_ref().multiply(b, &rows)?);
                        record = LayerRecord::Linear(rows);
                    }
                }
                (ModelLayer::Activation(activation), _) => {
                    x = x.map(|x| activation.apply(b, x)).transpose()?;
                    if let (Some(y), true) = (&x, recorder.is_some()) {
                        record = LayerRecord::Activation(y.clone());
                    }
                }
                (ModelLayer::LastStep, _) => {
                    x = Some(match x {
                        Some(rows) => last_rows(b, layout, &rows)?,
                        None => zero_rows(b, layout.batch, size)?,
                    });
                    rows_layout = layout.single_step()?;
                }
                (ModelLayer::FinalState, _) => {
                    // This layer follows an LSTM, whose states are the last ones.
                    let states = states.last().map_or(&[][..], Vec::as_slice);
                    x = Some(final_state(b, states, size)?);
                    rows_layout = layout.single_step()?;
                }
                (ModelLayer::Dropout(p), _) => {
                    if let (Some(Dropout::Seed(seed)), Some(rows)) = (layer_dropout, &x) {
                        let mask = rows_layout.dropout_mask(&mut ChaCha8Rng::seed_from_u64(seed), *p, size)?;
                        let mask = b.upload_vec(b.shape(rows), mask)?;
                        x = Some(b.mul_add(1.0, rows, Some(&mask), None)?);
                        record = LayerRecord::Dropout(mask);
                    }
                }
                _ => {}
            }
            if let Some(recorder) = &mut recorder {
                recorder.records.push(record);
            }
            size = layer.output_size().unwrap_or(size);
        }
        Ok(DeviceOutput { y: x, states })
    }
}

/// Runs an LSTM without recording it.
fn run_lstm<B: Backend>(lstm: &Lstm<B>, batch: DeviceBatch<'_, B::Tensor>) -> Result<StackOutput<B::Tensor>> {
    let mut plans = lstm.take_plans(batch.layout)?;
    let result = lstm.run(batch, &mut plans, None);
    lstm.put_back_plans(plans);
    result
}

/// The gradient of the input of [`last_rows`] from that of its result.
pub(super) fn last_rows_gradient<B: Backend>(b: &B, layout: &BatchLayout, dy: &B::Tensor) -> Result<B::Tensor> {
    let cols = b.shape(dy).cols;
    let groups = layout.groups_of_equal_length()?;
    // Zeros before each group, and at the end.
    let (mut parts, mut num_rows) = (memory::with_capacity("backward", &[2 * groups.len() + 1])?, 0);
    let mut pad_to = |parts: &mut Vec<B::Tensor>, row: usize, next: usize| {
        if row > num_rows {
            parts.push(zero_rows(b, row - num_rows, cols)?);
        }
        num_rows = next;
        Ok::<_, Error>(())
    };
    // From the shortest sequences to the longest, which is the order of the rows.
    for (length, sequences) in groups.into_iter().rev().filter(|(length, _)| *length > 0) {
        let first_row = (length - 1) * layout.batch;
        pad_to(&mut parts, first_row + sequences.start, first_row + sequences.end)?;
        parts.push(b.slice(dy, sequences, 0..cols)?);
    }
    let end = layout.steps * layout.batch;
    pad_to(&mut parts, end, end)?;
    if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { b.concat(ConcatAxis::Rows, &parts) }
}

/// The row of each sequence's last time step, in device order; +0 for a sequence of length 0.
fn last_rows<B: Backend>(b: &B, layout: &BatchLayout, x: &B::Tensor) -> Result<B::Tensor> {
    let cols = b.shape(x).cols;
    let groups = layout.groups_of_equal_length()?;
    let mut parts = memory::with_capacity("forward", &[groups.len()])?;
    for (length, sequences) in groups {
        parts.push(match length {
            0 => zero_rows(b, sequences.len(), cols)?,
            _ => {
                let first_row = (length - 1) * layout.batch;
                b.slice(x, first_row + sequences.start..first_row + sequences.end, 0..cols)?
            }
        });
    }
    if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { b.concat(ConcatAxis::Rows, &parts) }
}

/// The final hidden state of the last layer of an LSTM with `size` outputs, the directions side by side. `states` holds
/// the state of each layer and direction.
fn final_state<B: Backend>(b: &B, states: &[State<B::Tensor>], size: usize) -> Result<B::Tensor> {
    let state_size = states.last().map_or(size, |state| b.shape(&state.h).cols);
    let last_layer = &states[states.len() - size / state_size..];
    let parts: Vec<_> = last_layer.iter().map(|state| b.snap(state.h.clone())).collect::<Result<_>>()?;
    if let [h] = &parts[..] { Ok(h.clone()) } else { b.concat(ConcatAxis::Cols, &parts) }
}

pub(super) fn zero_rows<B: Backend>(b: &B, rows: usize, cols: usize) -> Result<B::Tensor> {
    b.upload_vec(MatrixShape::new(rows, cols), zeros("forward", &[rows, cols])?)
}
