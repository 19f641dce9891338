//! Tests of quantized layers: their kernels on every instruction set against the reference path, bit for bit.

use lstm_core::{
    Precision,
    ndarray::{Array3, Axis},
};
use lstm_cpu::{
    Backend, CellKind, Checkpointing, Cpu, Direction, Error, ExecutionPath, HostState, Init, Input, Isa, Lstm,
    LstmConfig, Reference, State, Weights,
};

const PRECISIONS: [Precision; 2] = [Precision::Int8, Precision::Int12];

/// One thread for each instruction set.
fn devices() -> impl Iterator<Item = Cpu> {
    Isa::available().into_iter().map(|isa| Cpu::builder().threads(1).isa(isa).build().unwrap())
}

/// Pseudo-random values in [-1, 1).
fn random(dim: (usize, usize, usize), seed: u32) -> Array3<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    Array3::from_shape_simple_fn(dim, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
}

/// The bits of values. All NaNs are the same: which of two a sum returns is up to the processor.
fn bits<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    values.into_iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// The bits of an output and a state.
fn result_bits((y, state): &(Array3<f32>, HostState)) -> [Vec<u32>; 3] {
    [bits(y), bits(&state.h), bits(&state.c)]
}

/// Quantized weights of a model, ten times as large as initial weights usually are, so that the gates saturate here and
/// there.
fn weights(config: LstmConfig, precision: Precision) -> Weights {
    let mut weights = Weights::init(config, &Init::default(), 5).unwrap();
    weights.iter_mut().for_each(|(_, values)| values.iter_mut().for_each(|v| *v *= 10.0));
    weights.quantize(precision).unwrap()
}

/// Inputs and an initial state whose sequences have zeros, or large, tiny or huge values. The first sequence has those
/// of number `variant`. If `with_not_finite`, the others have one value that is not finite.
fn inputs(
    config: &LstmConfig,
    (batch, steps): (usize, usize),
    variant: usize,
    with_not_finite: bool,
) -> (Array3<f32>, HostState) {
    let mut x = random((batch, steps, config.input_size), 1);
    let entries = config.num_layers * config.num_directions();
    let mut h = random((entries, batch, config.state_size()), 2);
    let mut c = random((entries, batch, config.hidden_size), 3);
    for row in 0..batch {
        let k = row + variant;
        let (factor, state_factor) =
            [(1.0, 1.0), (0.0, 0.0), (3.7, 100.0), (1e-11, 1e-13), (1e30, 2.5)].get(k % 9).unwrap_or(&(1.0, 1.0));
        x.index_axis_mut(Axis(0), row).mapv_inplace(|v| v * factor);
        for state in [&mut h, &mut c] {
            state.index_axis_mut(Axis(1), row).mapv_inplace(|v| v * state_factor);
        }
        if with_not_finite && k % 9 > 4 {
            let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX][k % 4];
            match k % 3 {
                0 => x[[row, steps / 2, row % config.input_size]] = value,
                1 => h[[0, row, row % config.state_size()]] = value,
                _ => c[[0, row, row % config.hidden_size]] = value,
            }
        }
    }
    (x, State { h, c })
}

/// Compares the kernels of each instruction set with the reference path: whole sequences, with and without lengths, and
/// streams of all and of some sequences.
fn check(config: LstmConfig, batch: usize, steps: usize) {
    for precision in PRECISIONS {
        let weights = weights(config.clone(), precision);
        let reference = Lstm::new(&Reference(Cpu::new()), weights.clone()).unwrap();
        let lengths: Vec<_> = (0..batch).map(|k| (k * 7 + 1) % (steps + 1)).collect();
        // Sequences with all kinds of values: in a batch, or one after the other.
        let variants = if batch == 1 { 0..9 } else { 0..1 };
        for (variant, with_not_finite) in variants.flat_map(|variant| [(variant, false), (variant, true)]) {
            let (x, state) = &inputs(&config, (batch, steps), variant, with_not_finite);
            let inputs = [Input::from(x).state(state), Input::from(x).state(state).lengths(&lengths)];
            let expected = inputs.map(|input| result_bits(&reference.forward(input).unwrap()));
            for cpu in devices() {
                let lstm = Lstm::new(&cpu, weights.clone()).unwrap();
                assert!(lstm.paths().iter().all(|path| matches!(path, ExecutionPath::Fused(_))));
                let actual = inputs.map(|input| result_bits(&lstm.forward(input).unwrap()));
                assert!(actual == expected, "{} {precision} {config}, batch {batch}", cpu.isa());
                if config.direction == Direction::Forward {
                    check_stream(&lstm, &reference, x, state);
                }
            }
        }
    }
}

/// Compares streams: a step of all sequences, then of some, then of all.
fn check_stream(lstm: &Lstm<Cpu>, reference: &Lstm<Reference<Cpu>>, x: &Array3<f32>, state: &HostState) {
    fn run<B: Backend>(lstm: &Lstm<B>, x: &Array3<f32>, state: &HostState) -> Vec<Vec<u32>> {
        let (batch, _, input) = x.dim();
        let (output, mut results) = (lstm.config().state_size(), Vec::new());
        let mut stream = lstm.stream(batch).unwrap();
        stream.set_state(state).unwrap();
        let some: Vec<_> = (0..batch).rev().step_by(2).collect();
        let all: Vec<_> = (0..batch).collect();
        for (t, sequences) in [&all, &some, &all].into_iter().enumerate() {
            let rows = sequences.iter().flat_map(|&b| (0..input).map(move |k| x[[b, t % x.dim().1, k]]));
            let mut y = vec![0.0; sequences.len() * output];
            stream.step_some(sequences, &rows.collect::<Vec<_>>(), &mut y).unwrap();
            results.push(bits(&y));
        }
        let state = stream.state().unwrap();
        results.extend([bits(&state.h), bits(&state.c)]);
        results
    }
    let (actual, expected) = (run(lstm, x, state), run(reference, x, state));
    assert!(actual == expected, "{} {}, batch {}", lstm.backend().isa(), lstm.config(), x.dim().0);
}

const CELLS: [CellKind; 4] = [CellKind::Fused, CellKind::Unfused, CellKind::PeepholeDense, CellKind::PeepholeDiagonal];

#[test]
fn cells_match_the_reference_path() {
    for cell in CELLS {
        for hidden in [1, 15, 24, 40, 65] {
            let config = LstmConfig::new(7, hidden).cell(cell);
            for batch in [1, 9] {
                check(config.clone(), batch, 5);
                check(config.clone().direction(Direction::Reverse).coupled(), batch, 3);
                check(config.clone().bidirectional().clip(0.75).layers(2), batch, 3);
            }
        }
    }
}

#[test]
fn projections_match_the_reference_path() {
    for cell in [CellKind::Fused, CellKind::PeepholeDiagonal] {
        for (hidden, proj) in [(5, 3), (24, 1), (70, 65)] {
            let config = LstmConfig::new(7, hidden).cell(cell).proj_size(proj);
            for batch in [1, 9] {
                check(config.clone().layers(2), batch, 5);
                check(config.clone().bidirectional(), batch, 3);
            }
        }
    }
}

/// The numbers of inputs are around those of words, vectors and blocks.
#[test]
fn sizes_match_the_reference_path() {
    for size in [1, 3, 4, 5, 15, 16, 17, 31, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025, 2049] {
        check(LstmConfig::new(size, 3), 1, 2);
        check(LstmConfig::new(size, 3), 7, 2);
    }
    for size in [16, 17, 48, 63, 64, 65, 129, 513, 1025] {
        check(LstmConfig::new(2, size), if size > 200 { 1 } else { 6 }, 2);
    }
}

/// With a block of several time steps, and a batch that fills no block.
#[test]
fn long_sequences_match_the_reference_path() {
    check(LstmConfig::new(3, 20), 1, 300);
    check(LstmConfig::new(3, 70), 1, 300);
    check(LstmConfig::new(3, 20).bidirectional(), 13, 70);
    check(LstmConfig::new(3, 5), 200, 2);
}

#[test]
fn training_is_an_error_that_names_the_precision() {
    for cpu in devices() {
        let lstm = Lstm::new(&cpu, weights(LstmConfig::new(2, 3), Precision::Int8)).unwrap();
        let x = random((1, 2, 2), 1);
        let result = lstm.forward_train(&x, Checkpointing::SaveEverything);
        assert!(matches!(result, Err(Error::Config { option: "precision", .. })));
    }
}
