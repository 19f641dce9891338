//! The table of test cases: models and their inputs. Seeds determine all values.

use lstm_core::{
    Bias, CellKind, Direction, Dropout, GateActivation, GateActivations, HostState, Init, Input, LstmConfig,
    OutputGradients, Precision, Result, State, Weights, ndarray::Array3,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// A model and its input.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique name, which is also the name of the snapshot.
    pub name: String,
    /// Group of the case: `cells`, `options`, `sizes`, `activations` or `precision`.
    pub group: &'static str,
    /// Configuration of the model.
    pub config: LstmConfig,
    /// Number of sequences.
    pub batch: usize,
    /// Number of time steps of the input, padding included.
    pub steps: usize,
    /// Length of each sequence in steps. `None`: every sequence has `steps` steps.
    pub lengths: Option<Vec<usize>>,
    /// Whether the model starts from a random state instead of zeros. An initial state of zeros hides errors, so few
    /// cases use it.
    pub initial_state: bool,
    /// Power of two by which inputs and states are multiplied.
    pub magnitude: f32,
    /// Seed of the dropout masks in training mode. `None`: inference mode.
    pub dropout_seed: Option<u64>,
    /// Seed of weights, inputs and states.
    pub seed: u64,
}

/// The inputs of a case.
#[derive(Clone, Debug)]
pub struct CaseData {
    /// Input, shape `(batch, steps, input)`.
    pub x: Array3<f32>,
    /// Initial state; `None` means zeros.
    pub state: Option<HostState>,
    /// Length of each sequence, as in [`Case::lengths`].
    pub lengths: Option<Vec<usize>>,
    /// Seed of the dropout masks, as in [`Case::dropout_seed`].
    pub dropout_seed: Option<u64>,
    /// Gradient of the loss with respect to the outputs, shape `(batch, steps, output)`.
    pub dy: Array3<f32>,
    /// Gradient of the loss with respect to the final state.
    pub dstate: HostState,
}

impl CaseData {
    /// The gradients that a backward pass starts from, with a request to compute the gradient of the input too.
    pub fn output_gradients(&self) -> OutputGradients<'_> {
        OutputGradients::from(&self.dy).state(&self.dstate).with_input_gradient()
    }

    /// The input for `Lstm::forward`: `x`, the initial state, the lengths and the dropout seed.
    pub fn input(&self) -> Input<'_> {
        self.with_options(Input::from(&self.x))
    }

    /// Adds the initial state, lengths and dropout seed of the case to an input that holds `x`, possibly in another
    /// layout.
    pub fn with_options<'a>(&'a self, input: Input<'a>) -> Input<'a> {
        let input = self.state.iter().fold(input, |input, state| input.state(state));
        let input = self.lengths.iter().fold(input, |input, lengths| input.lengths(lengths));
        input.dropout(self.dropout_seed.map_or(Dropout::Off, Dropout::Seed))
    }
}

impl Case {
    /// Creates a case with small sizes, a random initial state and no further options. The sizes 5, 7 and 3 are no
    /// multiples of any block or vector length.
    pub fn new(group: &'static str, name: impl Into<String>, cell: CellKind) -> Self {
        let config = LstmConfig::new(5, 7).cell(cell);
        // The cell of the original notebook has one bias.
        let config = if cell == CellKind::PeepholeDense { config.bias(Bias::One) } else { config };
        Case {
            name: name.into(),
            group,
            config,
            batch: 3,
            steps: 6,
            lengths: None,
            initial_state: true,
            magnitude: 1.0,
            dropout_seed: None,
            seed: 1,
        }
    }

    /// Sets the sizes, and a seed that depends on them, so that cases of different sizes have different values.
    pub fn sizes(self, input: usize, hidden: usize, batch: usize, steps: usize) -> Self {
        let seed = [input, hidden, batch, steps].into_iter().fold(0, |seed, n| seed * 1000 + n as u64);
        let set_sizes = |mut config: LstmConfig| {
            (config.input_size, config.hidden_size) = (input, hidden);
            config
        };
        Case { batch, steps, seed, ..self.map_config(set_sizes) }
    }

    /// Changes the configuration of the model.
    pub fn map_config(self, change: impl Fn(LstmConfig) -> LstmConfig) -> Self {
        Case { config: change(self.config), ..self }
    }

    /// Sets a batch of 6 sequences with unsorted lengths: one empty, one of a single step, two of full length.
    fn mixed_lengths(self) -> Self {
        let steps = self.steps;
        Case { batch: 6, lengths: Some(vec![3, 0, steps, 1, steps, steps - 1]), ..self }
    }

    /// The weights, from PyTorch's default initializer.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn weights(&self) -> Result<Weights> {
        Weights::init(self.config.clone(), &Init::default(), self.seed)
    }

    /// Generates the inputs, states and output gradients of the case.
    pub fn data(&self) -> CaseData {
        // The weights use the same seed, so this generator needs a different one.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x7e57);
        let state = HostState::zeros(&self.config, self.batch).expect("the sizes of cases fit in memory");
        let dstate = state.clone();
        let mut fill_with_random = |mut array: Array3<f32>, magnitude: f32| {
            array.iter_mut().for_each(|v| *v = random_value(&mut rng) * magnitude);
            array
        };
        let magnitude = self.magnitude;
        let x = fill_with_random(Array3::zeros((self.batch, self.steps, self.config.input_size)), magnitude);
        let state = self
            .initial_state
            .then(|| State { h: fill_with_random(state.h, magnitude), c: fill_with_random(state.c, magnitude) });
        // Gradients of many magnitudes, because the backward pass scales them.
        let magnitude = 2f32.powi((self.seed % 80) as i32 - 60);
        CaseData {
            x,
            state,
            dy: fill_with_random(Array3::zeros((self.batch, self.steps, self.config.output_size())), magnitude),
            dstate: State { h: fill_with_random(dstate.h, magnitude), c: fill_with_random(dstate.c, magnitude) },
            lengths: self.lengths.clone(),
            dropout_seed: self.dropout_seed,
        }
    }
}

/// Draws a random input value: a multiple of 2^-22 in [-2, 2), or with a probability of 1/256 each zero, negative zero, a
/// subnormal number, and the values just below and just above the threshold below which `snap` returns zero.
pub fn random_value(rng: &mut ChaCha8Rng) -> f32 {
    let bits = rng.next_u32();
    match bits & 0xff {
        0 => 0.0,
        1 => -0.0,
        2 => f32::from_bits(bits >> 16),
        3 => f32::from_bits(0x2b7f_ffff),
        4 => f32::from_bits(0xab80_0001),
        // A 24-bit integer times a power of two is exact.
        _ => ((bits >> 8) as i32 - (1 << 23)) as f32 * 2f32.powi(-22),
    }
}

/// Each kind of cell, with the word for it in the names of cases.
pub const CELLS: [(&str, CellKind); 4] = [
    ("fused", CellKind::Fused),
    ("unfused", CellKind::Unfused),
    ("dense", CellKind::PeepholeDense),
    ("diagonal", CellKind::PeepholeDiagonal),
];

/// Sizes around multiples of the block length (32) and the vector lengths (4, 8, 16).
pub const SIZES: [usize; 20] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 200];

/// Batch sizes around the numbers of rows that kernels process together.
pub const BATCH_SIZES: [usize; 9] = [1, 2, 3, 4, 5, 6, 7, 13, 64];

/// The table: all cases of all groups.
pub fn all_cases() -> Vec<Case> {
    [cell_cases(), option_cases(), size_cases(), activation_cases(), precision_cases()].concat()
}

/// Cases that test each cell with its basic options.
fn cell_cases() -> Vec<Case> {
    let cases_of_cell = |(name, cell)| {
        let case = |suffix| Case::new("cells", format!("{name}{suffix}"), cell);
        [
            case(""),
            Case { initial_state: false, ..case("-zero-state").sizes(2, 2, 1, 3) },
            case("-larger").sizes(17, 33, 5, 9),
            // All values are near 2^-40, the threshold of `snap`.
            Case { magnitude: 2f32.powi(-36), ..case("-tiny").map_config(|c| c.bias(Bias::None)) },
            Case { magnitude: 64.0, ..case("-saturated") },
        ]
    };
    CELLS.into_iter().flat_map(cases_of_cell).collect()
}

/// Cases that test each option with each cell.
fn option_cases() -> Vec<Case> {
    // Every case of the fused cell also runs the unfused cell, which therefore has no cases here.
    let tested_cells = CELLS.into_iter().filter(|(_, cell)| *cell != CellKind::Unfused);
    tested_cells.flat_map(|(name, cell)| option_cases_of(name, cell)).collect()
}

/// Cases that test each option with one cell.
fn option_cases_of(name: &str, cell: CellKind) -> Vec<Case> {
    let case = |suffix: &str| Case::new("options", format!("{name}-{suffix}"), cell);
    let mut cases = vec![
        case("stacked").map_config(|c| c.layers(3)),
        case("bidirectional").map_config(LstmConfig::bidirectional),
        case("reverse").map_config(|c| c.direction(Direction::Reverse)),
        case("no-bias").map_config(|c| c.bias(Bias::None)),
        case("one-bias").map_config(|c| c.bias(Bias::One)),
        case("two-biases").map_config(|c| c.bias(Bias::Two)),
        case("lengths").mixed_lengths(),
        case("lengths-reverse").mixed_lengths().map_config(|c| c.direction(Direction::Reverse)),
        Case { lengths: Some(vec![0; 3]), ..case("lengths-all-empty") },
        case("coupled").map_config(LstmConfig::coupled),
        case("clip").map_config(|c| c.clip(0.25)),
        case("coupled-clip").map_config(|c| c.coupled().clip(0.5)),
        case("stacked-bidirectional-lengths").mixed_lengths().map_config(|c| c.layers(2).bidirectional()),
        Case { dropout_seed: Some(5), ..case("dropout").map_config(|c| c.layers(3).dropout(0.5)) },
        // Weight gradients are summed in chunks of 32 steps: these cases have more than two chunks.
        case("long").sizes(3, 6, 2, 70),
        case("long-lengths").sizes(3, 5, 6, 66).mixed_lengths().map_config(|c| c.layers(2).bidirectional()),
        // Dropout has no effect in inference mode.
        case("dropout-inference").map_config(|c| c.layers(3).dropout(0.5)),
    ];
    let set_all_options = |c: LstmConfig| c.layers(2).bidirectional().coupled().clip(0.75).dropout(0.25);
    cases.push(Case {
        dropout_seed: Some(9),
        ..case("all-options").sizes(9, 17, 6, 8).mixed_lengths().map_config(set_all_options)
    });
    if cell != CellKind::PeepholeDense {
        cases.push(case("projection").map_config(|c| c.proj_size(3)));
        cases.push(case("projection-stacked-bidirectional").map_config(|c| c.proj_size(3).layers(3).bidirectional()));
        let set_all_options = |c| set_all_options(c).proj_size(5);
        cases.push(Case {
            dropout_seed: Some(9),
            ..case("all-options-projection").sizes(9, 17, 6, 8).mixed_lengths().map_config(set_all_options)
        });
    }
    cases
}

/// Cases that test sizes around block and vector lengths, large tiles and long sequences.
fn size_cases() -> Vec<Case> {
    let fused_case = |name: String| Case::new("sizes", name, CellKind::Fused);
    let mut cases = Vec::new();
    for (k, hidden) in SIZES.into_iter().enumerate() {
        // The other sizes advance at different rates, so that the combinations vary.
        let (input, batch) = (SIZES[(k * 7 + 3) % SIZES.len()], BATCH_SIZES[k % 8]);
        cases.push(fused_case(format!("hidden-{hidden}")).sizes(input, hidden, batch, 3));
        cases.push(fused_case(format!("input-{hidden}")).sizes(hidden, 10, batch, 2));
    }
    for batch in BATCH_SIZES {
        cases.push(fused_case(format!("batch-{batch}")).sizes(17, 33, batch, 3));
    }
    for steps in [1, 2, 40] {
        cases.push(fused_case(format!("steps-{steps}")).sizes(6, 24, 2, steps));
    }
    for (name, cell) in [("dense", CellKind::PeepholeDense), ("diagonal", CellKind::PeepholeDiagonal)] {
        for (hidden, batch) in [(1, 2), (8, 1), (15, 6), (16, 7), (17, 1), (33, 13), (65, 5)] {
            cases.push(Case::new("sizes", format!("{name}-hidden-{hidden}"), cell).sizes(11, hidden, batch, 4));
        }
    }
    for (hidden, proj, batch) in [(2, 1, 1), (17, 16, 6), (33, 32, 5), (65, 33, 2), (40, 15, 13)] {
        let case = fused_case(format!("hidden-{hidden}-projected-{proj}")).sizes(12, hidden, batch, 4);
        cases.push(case.map_config(|c| c.proj_size(proj)));
    }
    // Many rows: products in large tiles, with sizes that are multiples of four and sizes that are not.
    cases.push(fused_case("rows-40".to_owned()).sizes(20, 56, 40, 2));
    cases.push(fused_case("rows-40-wide".to_owned()).sizes(20, 112, 40, 2));
    cases.push(Case::new("sizes", "dense-rows-41", CellKind::PeepholeDense).sizes(21, 57, 41, 2));
    cases.push(Case::new("sizes", "diagonal-rows-40", CellKind::PeepholeDiagonal).sizes(20, 56, 40, 2));
    for (hidden, proj) in [(112, 56), (128, 112)] {
        let case = fused_case(format!("rows-40-hidden-{hidden}-projected-{proj}")).sizes(20, hidden, 40, 2);
        cases.push(case.map_config(|c| c.proj_size(proj)));
    }
    let diagonal_case = Case::new("sizes", "diagonal-rows-40-hidden-112-projected-56", CellKind::PeepholeDiagonal);
    cases.push(diagonal_case.sizes(20, 112, 40, 2).map_config(|c| c.proj_size(56)));
    // Several chunks of steps: 70 steps are two full chunks of 32 and a partial one.
    let diagonal_case = Case::new("sizes", "diagonal-steps-70", CellKind::PeepholeDiagonal);
    cases.push(diagonal_case.sizes(5, 9, 6, 70).mixed_lengths().map_config(LstmConfig::bidirectional));
    cases.push(fused_case("steps-70-batch-8".to_owned()).sizes(129, 33, 8, 70).map_config(LstmConfig::bidirectional));
    // Large enough to be split among several threads.
    cases.push(fused_case("large".to_owned()).sizes(70, 260, 67, 2));
    cases.push(
        fused_case("large-stacked-bidirectional".to_owned())
            .sizes(33, 130, 35, 3)
            .map_config(|c| c.layers(2).bidirectional()),
    );
    cases
}

/// ONNX's and Keras 2's hard sigmoid.
pub const HARD_SIGMOID: GateActivation = GateActivation::HardSigmoid { alpha: 0.2, beta: 0.5 };

/// Cases that test activation functions, which run by the reference path, with each cell and with all other options.
fn activation_cases() -> Vec<Case> {
    // Every case of the fused cell also runs the unfused cell, which therefore has no cases here.
    let tested_cells = CELLS.into_iter().filter(|(_, cell)| *cell != CellKind::Unfused);
    tested_cells.flat_map(|(name, cell)| activation_cases_of(name, cell)).collect()
}

/// Cases that test activation functions with one cell.
fn activation_cases_of(name: &str, cell: CellKind) -> Vec<Case> {
    use GateActivation::{HardSigmoid, Relu, Sigmoid, Tanh};
    // The dense peephole cell has no function of its own for the candidate.
    let activations = |gate, candidate, output| {
        let candidate = if cell == CellKind::PeepholeDense { Tanh } else { candidate };
        GateActivations { gate, candidate, output }
    };
    let case = |suffix: &str, activations: GateActivations| {
        Case::new("activations", format!("{name}-{suffix}"), cell).map_config(|c| c.activations(activations))
    };
    let falling = HardSigmoid { alpha: -0.75, beta: 0.25 };
    let tiny = case("tanh-gates-tiny", activations(Tanh, Relu, Sigmoid)).map_config(|c| c.bias(Bias::None));
    let all_options = |c: LstmConfig| c.layers(2).bidirectional().coupled().clip(0.75).dropout(0.25);
    let mut cases = vec![
        case("hard-sigmoid", activations(HARD_SIGMOID, Tanh, Tanh)),
        case("relu", activations(Sigmoid, Relu, Relu)).map_config(|c| c.layers(2)),
        case("relu-gates", activations(Relu, Sigmoid, HARD_SIGMOID)).map_config(LstmConfig::bidirectional),
        // Gates near 2^-40, the threshold of `snap`.
        Case { magnitude: 2f32.powi(-36), ..tiny },
        case("clipped-falling-hard-sigmoid", activations(falling, falling, Sigmoid)).map_config(|c| c.clip(0.5)),
        // Saturates hard sigmoids at both ends.
        Case { magnitude: 64.0, ..case("hard-sigmoid-saturated", activations(HARD_SIGMOID, HARD_SIGMOID, falling)) },
        case("relu-long", activations(HARD_SIGMOID, Relu, Tanh)).sizes(3, 5, 6, 66).mixed_lengths(),
        Case {
            dropout_seed: Some(9),
            ..case("relu-all-options", activations(HARD_SIGMOID, Relu, Relu))
                .sizes(9, 17, 6, 8)
                .mixed_lengths()
                .map_config(all_options)
        },
    ];
    if cell != CellKind::PeepholeDense {
        let case = case("relu-projection", activations(HARD_SIGMOID, Relu, Relu));
        cases.push(case.map_config(|c| c.proj_size(3).direction(Direction::Reverse)));
    }
    cases
}

/// Cases that test quantized weights, with each cell, the options, and input sizes just below, at and above the tile
/// sizes of kernels.
fn precision_cases() -> Vec<Case> {
    [Precision::Int8, Precision::Int12].into_iter().flat_map(precision_cases_of).collect()
}

fn precision_cases_of(precision: Precision) -> Vec<Case> {
    let case = |suffix: String, cell| {
        Case::new("precision", format!("{precision}-{suffix}"), cell).map_config(|c| c.precision(precision))
    };
    let mut cases = Vec::new();
    // Every case of the fused cell also runs the unfused cell, which therefore has no cases here.
    for (name, cell) in CELLS.into_iter().filter(|(_, cell)| *cell != CellKind::Unfused) {
        let case = |suffix: &str| case(format!("{name}{suffix}"), cell);
        let all_options = |c: LstmConfig| c.layers(2).bidirectional().coupled().clip(0.75).dropout(0.25);
        let tiny = case("-tiny").map_config(|c| c.bias(Bias::None));
        let relu = GateActivations { output: GateActivation::Relu, ..GateActivations::default() };
        cases.extend([
            case("").sizes(17, 33, 5, 9),
            Case { initial_state: false, ..case("-zero-state").sizes(2, 2, 1, 3) },
            Case { magnitude: 2f32.powi(-36), ..tiny },
            // The initial hidden states are far above 1.
            Case { magnitude: 64.0, ..case("-saturated") },
            case("-stacked").map_config(|c| c.layers(3)),
            case("-lengths-reverse").mixed_lengths().map_config(|c| c.direction(Direction::Reverse)),
            case("-bidirectional-lengths").mixed_lengths().map_config(LstmConfig::bidirectional),
            case("-all-options").sizes(9, 17, 6, 8).mixed_lengths().map_config(all_options),
            case("-relu").sizes(6, 20, 3, 12).map_config(|c| c.activations(relu)),
        ]);
        if cell != CellKind::PeepholeDense {
            cases.push(case("-projection").map_config(|c| c.proj_size(3).layers(2).bidirectional()));
            cases.push(case("-wide-projection").sizes(12, 65, 6, 4).map_config(|c| c.proj_size(33)));
        }
    }
    let fused_case = |suffix: String| case(suffix, CellKind::Fused);
    for (k, size) in [1, 3, 4, 5, 15, 16, 24, 31, 32, 40, 63, 64, 65, 127, 129].into_iter().enumerate() {
        let batch = BATCH_SIZES[k % BATCH_SIZES.len()];
        cases.push(fused_case(format!("hidden-{size}")).sizes(SIZES[(k * 7 + 3) % SIZES.len()], size, batch, 3));
    }
    for (k, size) in [511, 512, 513, 1023, 1024, 1025, 2049].into_iter().enumerate() {
        cases.push(fused_case(format!("input-{size}")).sizes(size, 5, [1, 2, 7][k % 3], 2));
    }
    for (size, batch) in [(513, 1), (513, 2), (1025, 1)] {
        cases.push(fused_case(format!("hidden-{size}-batch-{batch}")).sizes(3, size, batch, 2));
    }
    cases.push(fused_case("steps-70".into()).sizes(129, 33, 8, 70).map_config(LstmConfig::bidirectional));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_configurations_are_valid() {
        let mut names = std::collections::HashSet::new();
        for case in all_cases() {
            assert!(case.config.validate().is_ok(), "{case:?}");
            assert!(case.lengths.as_ref().is_none_or(|lengths| lengths.len() == case.batch), "{case:?}");
            assert!(names.insert(case.name.clone()), "duplicate name {}", case.name);
        }
    }
}
