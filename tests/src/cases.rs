//! The case table that drives everything: which models over which inputs. All of it is determined by seeds.

use lstm_core::{
    Bias, CellKind, Direction, HostState, Init, Input, LstmConfig, OutputGradients, Result, State, Weights,
    ndarray::Array3,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// One model over one input.
#[derive(Clone, Debug)]
pub struct Case {
    /// Names the snapshot; unique.
    pub name: String,
    /// Part of the table: `cells`, `options` or `sizes`.
    pub group: &'static str,
    /// The model.
    pub config: LstmConfig,
    /// Number of sequences.
    pub batch: usize,
    /// Steps in the longest sequence.
    pub steps: usize,
    /// Each sequence's steps.
    pub lengths: Option<Vec<usize>>,
    /// Whether it starts from a given state instead of zeros. Zeros hide errors: few cases start there.
    pub initial_state: bool,
    /// Factor on inputs and states, a power of two.
    pub magnitude: f32,
    /// Seed of the dropout masks, to run as in training.
    pub training: Option<u64>,
    /// Determines weights, inputs and states.
    pub seed: u64,
}

/// What a case runs over.
#[derive(Clone, Debug)]
pub struct Data {
    /// `(batch, steps, input)`
    pub x: Array3<f32>,
    /// The initial state, if any.
    pub state: Option<HostState>,
    /// As in [`Case`].
    pub lengths: Option<Vec<usize>>,
    /// As in [`Case`].
    pub training: Option<u64>,
    /// A loss's gradient with respect to the outputs, `(batch, steps, output)`.
    pub dy: Array3<f32>,
    /// And to the final states.
    pub dstate: HostState,
}

impl Data {
    /// What a backward pass starts from; it asks for the input's gradient.
    pub fn upstream(&self) -> OutputGradients<'_> {
        OutputGradients::from(&self.dy).state(&self.dstate).with_input()
    }

    /// As an argument of `Lstm::forward`.
    pub fn input(&self) -> Input<'_> {
        self.options(Input::from(&self.x))
    }

    /// Another view of the same steps with this case's state, lengths and training.
    pub fn options<'a>(&'a self, input: Input<'a>) -> Input<'a> {
        let input = self.state.iter().fold(input, |input, state| input.state(state));
        let input = self.lengths.iter().fold(input, |input, lengths| input.lengths(lengths));
        self.training.iter().fold(input, |input, &seed| input.training(seed))
    }
}

impl Case {
    /// A case of the table with sizes that divide nothing, an initial state, and nothing else.
    pub fn new(group: &'static str, name: impl Into<String>, cell: CellKind) -> Self {
        let config = LstmConfig::new(5, 7).cell(cell);
        // The notebook's cell has one bias.
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
            training: None,
            seed: 1,
        }
    }

    /// Other sizes; the seed follows, so that no two sizes share numbers.
    pub fn sizes(self, input: usize, hidden: usize, batch: usize, steps: usize) -> Self {
        let seed = [input, hidden, batch, steps].into_iter().fold(0, |seed, n| seed * 1000 + n as u64);
        let resized = |mut config: LstmConfig| {
            (config.input_size, config.hidden_size) = (input, hidden);
            config
        };
        Case { batch, steps, seed, ..self.with(resized) }
    }

    /// Other options.
    pub fn with(self, change: impl Fn(LstmConfig) -> LstmConfig) -> Self {
        Case { config: change(self.config), ..self }
    }

    /// Lengths in no order, with an empty, a single and two full sequences.
    fn uneven(self) -> Self {
        let steps = self.steps;
        Case { batch: 6, lengths: Some(vec![3, 0, steps, 1, steps, steps - 1]), ..self }
    }

    /// The weights, PyTorch's default initialisation.
    ///
    /// # Errors
    /// A configuration that is not valid.
    pub fn weights(&self) -> Result<Weights> {
        Weights::init(self.config.clone(), &Init::default(), self.seed)
    }

    /// The inputs and states.
    pub fn data(&self) -> Data {
        // A stream of its own: the weights are drawn from the same seed.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x7e57);
        let state = HostState::zeros(&self.config, self.batch).expect("cases are small");
        let dstate = state.clone();
        let mut fill = |mut array: Array3<f32>, magnitude: f32| {
            array.iter_mut().for_each(|v| *v = number(&mut rng) * magnitude);
            array
        };
        let size = self.magnitude;
        let x = fill(Array3::zeros((self.batch, self.steps, self.config.input_size)), size);
        let state = self.initial_state.then(|| State { h: fill(state.h, size), c: fill(state.c, size) });
        // Gradients of all sizes: they are scaled on their way in and out.
        let size = 2f32.powi((self.seed % 80) as i32 - 60);
        Data {
            x,
            state,
            dy: fill(Array3::zeros((self.batch, self.steps, self.config.output_size())), size),
            dstate: State { h: fill(dstate.h, size), c: fill(dstate.c, size) },
            lengths: self.lengths.clone(),
            training: self.training,
        }
    }
}

/// The next of the numbers that all inputs are made of: multiples of 2^-22 in [-2, 2), with a zero, a negative zero, a
/// subnormal and two magnitudes around the one below which `snap` gives zero among every few hundred.
pub fn number(rng: &mut ChaCha8Rng) -> f32 {
    let bits = rng.next_u32();
    match bits & 0xff {
        0 => 0.0,
        1 => -0.0,
        2 => f32::from_bits(bits >> 16),
        3 => f32::from_bits(0x2b7f_ffff),
        4 => f32::from_bits(0xab80_0001),
        // 24 bits and a power of two: exact.
        _ => ((bits >> 8) as i32 - (1 << 23)) as f32 * 2f32.powi(-22),
    }
}

/// The cells under the names that cases carry.
pub const CELLS: [(&str, CellKind); 4] = [
    ("fused", CellKind::Fused),
    ("unfused", CellKind::Unfused),
    ("dense", CellKind::PeepholeDense),
    ("diagonal", CellKind::PeepholeDiagonal),
];

/// Sizes around every block (32) and vector length (4, 8, 16).
pub const SIZES: [usize; 20] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 200];

/// Batches around what kernels take at a time.
pub const BATCHES: [usize; 9] = [1, 2, 3, 4, 5, 6, 7, 13, 64];

/// The whole table.
pub fn table() -> Vec<Case> {
    [cells(), options(), sizes()].concat()
}

fn cells() -> Vec<Case> {
    let of = |(name, cell)| {
        let case = |suffix| Case::new("cells", format!("{name}{suffix}"), cell);
        [
            case(""),
            Case { initial_state: false, ..case("-zero-state").sizes(2, 2, 1, 3) },
            case("-larger").sizes(17, 33, 5, 9),
            // All that moves here passes 2^-40 on its way down, where `snap` decides.
            Case { magnitude: 2f32.powi(-36), ..case("-tiny").with(|c| c.bias(Bias::None)) },
            Case { magnitude: 64.0, ..case("-saturated") },
        ]
    };
    CELLS.into_iter().flat_map(of).collect()
}

fn options() -> Vec<Case> {
    // The unfused cell is compared with the fused one in every case: it needs none of its own here.
    let kinds = CELLS.into_iter().filter(|(_, cell)| *cell != CellKind::Unfused);
    kinds.flat_map(|(name, cell)| options_of(name, cell)).collect()
}

fn options_of(name: &str, cell: CellKind) -> Vec<Case> {
    let case = |suffix: &str| Case::new("options", format!("{name}-{suffix}"), cell);
    let mut cases = vec![
        case("stacked").with(|c| c.layers(3)),
        case("bidirectional").with(LstmConfig::bidirectional),
        case("reverse").with(|c| c.direction(Direction::Reverse)),
        case("no-bias").with(|c| c.bias(Bias::None)),
        case("one-bias").with(|c| c.bias(Bias::One)),
        case("two-biases").with(|c| c.bias(Bias::Two)),
        case("lengths").uneven(),
        case("lengths-reverse").uneven().with(|c| c.direction(Direction::Reverse)),
        Case { lengths: Some(vec![0; 3]), ..case("lengths-all-empty") },
        case("coupled").with(LstmConfig::coupled),
        case("clip").with(|c| c.clip(0.25)),
        case("coupled-clip").with(|c| c.coupled().clip(0.5)),
        case("stacked-bidirectional-lengths").uneven().with(|c| c.layers(2).bidirectional()),
        Case { training: Some(5), ..case("dropout").with(|c| c.layers(3).dropout(0.5)) },
        // More than two of the chunks in which the weights' gradients are summed.
        case("long").sizes(3, 6, 2, 70),
        case("long-lengths").sizes(3, 5, 6, 66).uneven().with(|c| c.layers(2).bidirectional()),
        // Without training, dropout does nothing.
        case("dropout-inference").with(|c| c.layers(3).dropout(0.5)),
    ];
    let all = |c: LstmConfig| c.layers(2).bidirectional().coupled().clip(0.75).dropout(0.25);
    cases.push(Case { training: Some(9), ..case("everything").sizes(9, 17, 6, 8).uneven().with(all) });
    if cell != CellKind::PeepholeDense {
        cases.push(case("projection").with(|c| c.proj_size(3)));
        cases.push(case("projection-stacked-bidirectional").with(|c| c.proj_size(3).layers(3).bidirectional()));
        let all = |c| all(c).proj_size(5);
        cases.push(Case { training: Some(9), ..case("everything-projected").sizes(9, 17, 6, 8).uneven().with(all) });
    }
    cases
}

fn sizes() -> Vec<Case> {
    let fused = |name: String| Case::new("sizes", name, CellKind::Fused);
    let mut cases = Vec::new();
    for (k, hidden) in SIZES.into_iter().enumerate() {
        // Other sizes walk along at their own pace, so that all meet all kinds of neighbours.
        let (input, batch) = (SIZES[(k * 7 + 3) % SIZES.len()], BATCHES[k % 8]);
        cases.push(fused(format!("hidden-{hidden}")).sizes(input, hidden, batch, 3));
        cases.push(fused(format!("input-{hidden}")).sizes(hidden, 10, batch, 2));
    }
    for batch in BATCHES {
        cases.push(fused(format!("batch-{batch}")).sizes(17, 33, batch, 3));
    }
    for steps in [1, 2, 40] {
        cases.push(fused(format!("steps-{steps}")).sizes(6, 24, 2, steps));
    }
    for (name, cell) in [("dense", CellKind::PeepholeDense), ("diagonal", CellKind::PeepholeDiagonal)] {
        for (hidden, batch) in [(1, 2), (8, 1), (15, 6), (16, 7), (17, 1), (33, 13), (65, 5)] {
            cases.push(Case::new("sizes", format!("{name}-hidden-{hidden}"), cell).sizes(11, hidden, batch, 4));
        }
    }
    for (hidden, proj, batch) in [(2, 1, 1), (17, 16, 6), (33, 32, 5), (65, 33, 2), (40, 15, 13)] {
        let case = fused(format!("hidden-{hidden}-projected-{proj}")).sizes(12, hidden, batch, 4);
        cases.push(case.with(|c| c.proj_size(proj)));
    }
    // Many rows: products by large tiles, of sizes that can be read by fours and of others.
    cases.push(fused("rows-40".to_owned()).sizes(20, 56, 40, 2));
    cases.push(fused("rows-40-wide".to_owned()).sizes(20, 112, 40, 2));
    cases.push(Case::new("sizes", "dense-rows-41", CellKind::PeepholeDense).sizes(21, 57, 41, 2));
    cases.push(Case::new("sizes", "diagonal-rows-40", CellKind::PeepholeDiagonal).sizes(20, 56, 40, 2));
    for (hidden, proj) in [(112, 56), (128, 112)] {
        let case = fused(format!("rows-40-hidden-{hidden}-projected-{proj}")).sizes(20, hidden, 40, 2);
        cases.push(case.with(|c| c.proj_size(proj)));
    }
    let diagonal = Case::new("sizes", "diagonal-rows-40-hidden-112-projected-56", CellKind::PeepholeDiagonal);
    cases.push(diagonal.sizes(20, 112, 40, 2).with(|c| c.proj_size(56)));
    // Several chunks of steps, with one that is not whole, and without.
    let diagonal = Case::new("sizes", "diagonal-steps-70", CellKind::PeepholeDiagonal);
    cases.push(diagonal.sizes(5, 9, 6, 70).uneven().with(LstmConfig::bidirectional));
    cases.push(fused("steps-70-batch-8".to_owned()).sizes(129, 33, 8, 70).with(LstmConfig::bidirectional));
    // Large enough that several threads share it.
    cases.push(fused("large".to_owned()).sizes(70, 260, 67, 2));
    cases.push(
        fused("large-stacked-bidirectional".to_owned()).sizes(33, 130, 35, 3).with(|c| c.layers(2).bidirectional()),
    );
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_configurations_valid() {
        let mut names = std::collections::HashSet::new();
        for case in table() {
            assert!(case.config.validate().is_ok(), "{case:?}");
            assert!(case.lengths.as_ref().is_none_or(|lengths| lengths.len() == case.batch), "{case:?}");
            assert!(names.insert(case.name.clone()), "{} twice", case.name);
        }
    }
}
