//! Fails the n-th large allocation of an operation, for every n until the operation succeeds. Each time the operation
//! returns an error or succeeds, leaks nothing, and then gives the same bits as ever on the same objects.
//!
//! Sizes are chosen so that every array whose size depends on the caller has at least 1024 bytes, and everything of a
//! fixed size has fewer. An allocation that cannot fail ends the process, so a child process runs the operations of a
//! case.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::RefCell,
    collections::BTreeMap,
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::SeqCst},
};

use lstm_cpu::{
    Activation, Bias, CellKind, Checkpointing, ConcatAxis, Cpu, Dropout, Error, GateActivation, GateActivations,
    HostState, Init, InitKind, Input, Linear, Lstm, LstmConfig, MatrixShape, Model, ModelInput, ModelLayer,
    ModelStream, ModelWeights, Ops, OutputGradients, Precision, Result, StateDict, StateDictWriter, TensorNames,
    Weights,
    ndarray::{Array, Array1, Array2, Array3, ArrayView3, Dimension, s},
    train::{
        Batches, LossInput, ModelTrainer, OptimizerConfig, Schedule, Trainer, TrainerConfig, cross_entropy, ctc_loss,
        gaussian_nll_loss, mean_squared_error, shuffled_indices, squared_error, weighted_pointwise_loss,
    },
};

/// Minimum size of an allocation that is counted and made to fail.
const MIN_BYTES: usize = 1024;

/// That size for files: the header and the buffers of other libraries are smaller, every matrix is larger.
const MIN_FILE_BYTES: usize = 1 << 14;

/// The system allocator, with one allocation that fails.
struct FailingAllocator;

/// Number of large allocations until the one that fails; negative if none does.
static UNTIL_FAILURE: AtomicIsize = AtomicIsize::new(-1);

/// The minimum size in the operation that runs.
static MIN_SIZE: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Number of bytes in use.
static BYTES: AtomicIsize = AtomicIsize::new(0);

/// Set in a child: the folder of its files.
const FOLDER: &str = "LSTM_ALLOCATION_FAILURE_FOLDER";

/// The case in which some failures lose the states of a stream.
const REFERENCE_STREAM: &str = "model stream other functions";

/// Set in a child: the operation, from which allocation on, and whether to print where that one is.
const CHILD: &str = "LSTM_ALLOCATION_FAILURE";

// SAFETY: every call is passed on to the system allocator unchanged, or returns null, which reports a failure.
unsafe impl GlobalAlloc for FailingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= MIN_SIZE.load(SeqCst)
            && UNTIL_FAILURE.load(SeqCst) >= 0
            && UNTIL_FAILURE.fetch_sub(1, SeqCst) == 0
        {
            if env::var_os(CHILD).is_some_and(|text| text.to_string_lossy().ends_with(" show")) {
                eprintln!("{}", Backtrace::force_capture());
            }
            return std::ptr::null_mut();
        }
        BYTES.fetch_add(layout.size() as isize, SeqCst);
        // SAFETY: the requirements on the caller are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as isize, SeqCst);
        // SAFETY: the requirements on the caller are the same.
        unsafe { System.dealloc(at, layout) }
    }

    // `realloc` and `alloc_zeroed` go through `alloc` by default.
}

#[global_allocator]
static ALLOCATOR: FailingAllocator = FailingAllocator;

/// A hash of results, which allocates nothing.
#[derive(Default)]
struct Digest(DefaultHasher);

impl Digest {
    fn add<'a>(mut self, values: impl IntoIterator<Item = &'a f32>) -> Self {
        values.into_iter().for_each(|v| v.to_bits().hash(&mut self.0));
        self
    }

    fn array<D: Dimension>(self, array: &Array<f32, D>) -> Self {
        self.add(array)
    }

    fn state(self, state: &HostState) -> Self {
        self.array(&state.h).array(&state.c)
    }

    fn weights(self, weights: &Weights) -> Self {
        weights.layers().iter().flat_map(|layer| layer.iter()).fold(self, |digest, (_, v)| digest.add(v))
    }

    fn model(self, weights: &ModelWeights) -> Self {
        weights.layers().iter().fold(self, |digest, layer| match layer {
            ModelLayer::Embedding { weight, .. } => digest.array(weight),
            ModelLayer::Lstm { weights, .. } => digest.weights(weights),
            ModelLayer::Linear { weight, bias, .. } => {
                bias.iter().fold(digest.array(weight), |digest, bias| digest.array(bias))
            }
            _ => digest,
        })
    }

    fn finish(self) -> Result<u64> {
        Ok(self.0.finish())
    }
}

/// One operation on objects that exist: returns the digest of its results.
type Operation = Box<dyn FnMut() -> Result<u64>>;

/// An operation with its name; the function makes the objects.
type Case = (&'static str, fn() -> Operation);

fn cpu() -> Cpu {
    Cpu::builder().threads(2).build().unwrap()
}

fn x((batch, steps, features): (usize, usize, usize)) -> Array3<f32> {
    Array3::from_shape_fn((batch, steps, features), |(b, t, k)| ((b * 31 + t * 7 + k) % 17) as f32 * 0.1 - 0.8)
}

/// A layer of 260 units: weights, states and rows of features are large, but not by much, as every step takes time.
fn wide() -> LstmConfig {
    LstmConfig::new(260, 260)
}

/// A stack of which only the batch of [`many`] sequences is large.
fn small() -> LstmConfig {
    LstmConfig::new(4, 9).layers(2)
}

/// As many sequences as make their order and lengths large.
const MANY: usize = 130;

fn lengths(steps: usize) -> Vec<usize> {
    (0..MANY).map(|b| b * 7 % (steps + 1)).collect()
}

thread_local! {
    /// The weights that cases begin with, which take longer to make than to use.
    static WEIGHTS: RefCell<BTreeMap<String, Weights>> = RefCell::default();
}

fn weights(config: LstmConfig, seed: u64) -> Weights {
    let init = || Weights::init(config.clone(), &Init::default(), seed).unwrap();
    // A copy, so that its owner changes it in place.
    WEIGHTS.with_borrow_mut(|cache| cache.entry(format!("{config:?} {seed}")).or_insert_with(init).clone())
}

fn lstm(config: LstmConfig) -> Lstm<Cpu> {
    Lstm::new(&cpu(), weights(config, 1)).unwrap()
}

fn other_functions() -> GateActivations {
    GateActivations {
        gate: GateActivation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        candidate: GateActivation::Relu,
        output: GateActivation::Tanh,
    }
}

fn init(kind: InitKind, config: LstmConfig) -> Operation {
    Box::new(move || Digest::default().weights(&Weights::init(config.clone(), &Init::new(kind), 3)?).finish())
}

fn forward(config: LstmConfig, shape: (usize, usize, usize), lengths: Option<Vec<usize>>) -> Operation {
    let (lstm, x) = (lstm(config), x(shape));
    let state = HostState::zeros(lstm.config(), shape.0).unwrap();
    Box::new(move || {
        let input = Input::from(&x).state(&state);
        let (y, state) = lstm.forward(match &lengths {
            Some(lengths) => input.lengths(lengths),
            None => input,
        })?;
        Digest::default().array(&y).state(&state).finish()
    })
}

fn train(
    config: LstmConfig,
    shape: (usize, usize, usize),
    lengths: Option<Vec<usize>>,
    checkpointing: Checkpointing,
) -> Operation {
    let (lstm, x) = (lstm(config), x(shape));
    Box::new(move || {
        let input = Input::from(&x).dropout(Dropout::Seed(3));
        let input = match &lengths {
            Some(lengths) => input.lengths(lengths),
            None => input,
        };
        let pass = lstm.forward_train(input, checkpointing)?;
        let gradients = pass.tape.backward(OutputGradients::from(&pass.y).state(&pass.state).with_input_gradient())?;
        let x_gradient = gradients.x.as_ref().unwrap();
        Digest::default().array(x_gradient).state(&gradients.state).weights(&gradients.weights).finish()
    })
}

/// Steps of a stream. The state goes back at the end.
fn stream(config: LstmConfig, batch: usize) -> Operation {
    let lstm = lstm(config);
    let (mut stream, start) = (lstm.stream(batch).unwrap(), HostState::zeros(lstm.config(), batch).unwrap());
    let (x, mut y) = (x((batch, 1, lstm.config().input_size)), vec![0.0; batch * lstm.config().output_size()]);
    let all_but_one: Vec<usize> = (0..batch).rev().skip(1).collect();
    Box::new(move || {
        stream.set_state(&start)?;
        stream.step(x.as_slice().unwrap(), &mut y)?;
        let (inputs, outputs) = (x.len() / batch * (batch - 1), y.len() / batch * (batch - 1));
        stream.step_some(&all_but_one, &x.as_slice().unwrap()[..inputs], &mut y[..outputs])?;
        let state = stream.state()?;
        let one = stream.take_state(0)?;
        stream.put_state(0, &one)?;
        stream.reset_sequences(&[0])?;
        Digest::default().add(&y).state(&state).state(&one).finish()
    })
}

fn chunk(config: LstmConfig, shape: (usize, usize, usize)) -> Operation {
    let lstm = lstm(config);
    let (mut stream, start) = (lstm.stream(shape.0).unwrap(), HostState::zeros(lstm.config(), shape.0).unwrap());
    let x = x(shape);
    Box::new(move || {
        stream.set_state(&start)?;
        let y = stream.chunk(x.view());
        if y.is_err() {
            assert_eq!(stream.state()?, start, "a chunk that fails changes nothing");
        }
        Digest::default().array(&y?).state(&stream.state()?).finish()
    })
}

/// A model with a layer of every kind that its input and its last layer allow.
fn model(last_step: bool) -> ModelWeights {
    let weights = weights(LstmConfig::new(258, 260), 4);
    let initial_state = HostState::zeros(weights.config(), 1).unwrap();
    let array =
        |rows: usize, cols: usize| Array2::from_shape_fn((rows, cols), |(r, c)| ((r + 3 * c) % 7) as f32 * 0.01);
    let mut layers = vec![
        ModelLayer::Embedding { name: "embedding".into(), weight: array(256, 258) },
        ModelLayer::Lstm { name: "lstm".into(), weights: weights.into(), initial_state: Some(initial_state) },
        ModelLayer::Activation(Activation::Relu),
        ModelLayer::Dropout(0.25),
        ModelLayer::Linear { name: "linear".into(), weight: array(256, 260), bias: Some(Array1::zeros(256)) },
    ];
    if last_step {
        layers.push(ModelLayer::LastStep);
    }
    layers.push(ModelLayer::Activation(Activation::LogSoftmax));
    ModelWeights::new(layers).unwrap()
}

fn tokens(batch: usize, steps: usize) -> Array2<i64> {
    Array2::from_shape_fn((batch, steps), |(b, t)| ((b * 13 + t * 5) % 256) as i64)
}

fn trainer(optimizer: OptimizerConfig) -> Trainer<Cpu> {
    let head = Linear::random(&cpu(), 260, 256, 5).unwrap();
    Trainer::new(lstm(wide()), Some(head), TrainerConfig::new(optimizer, Schedule::constant(0.01))).unwrap()
}

fn model_trainer() -> ModelTrainer<Cpu> {
    let config = TrainerConfig::new(OptimizerConfig::adamw(), Schedule::constant(0.01));
    ModelTrainer::new(Model::new(&cpu(), model(false)).unwrap(), config).unwrap()
}

/// A path for a file of a case, in the folder that the parent process makes and removes.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env::var_os(FOLDER).unwrap()).join(name)
}

/// Whether the states of a stream were lost in the operation that failed.
static LOST_STATES: AtomicBool = AtomicBool::new(false);

/// Checks a stream after a failed call: the states are as before, or all calls fail until the states are set.
fn check_after_error(stream: &mut ModelStream<Cpu>, before: &[HostState], x: &[f32], y: &mut [f32]) {
    match stream.states() {
        Ok(states) => assert_eq!(states, before, "a call that fails changes nothing, or the states are lost"),
        Err(error) => {
            LOST_STATES.store(true, SeqCst);
            for error in [error, stream.step(x, y).unwrap_err()] {
                let text = error.to_string();
                assert!(matches!(error, Error::Device { .. }) && text.contains("an earlier call failed"), "{text}");
            }
            stream.set_states(before).unwrap();
        }
    }
    assert_eq!(stream.states().unwrap(), before);
}

/// Steps of a stream of two LSTMs whose functions the kernels do not have, so that a step allocates.
fn step_model_on_reference_path() -> Operation {
    let layer = |inputs: usize, seed: u64| {
        let config = LstmConfig::new(inputs, 9).activations(other_functions());
        let weights = weights(config, seed).into();
        ModelLayer::Lstm { name: format!("lstm{seed}"), weights, initial_state: None }
    };
    let model = Model::new(&cpu(), ModelWeights::new(vec![layer(4, 1), layer(9, 2)]).unwrap()).unwrap();
    let (mut stream, x, mut y) = (model.stream(MANY).unwrap(), x((MANY, 1, 4)), vec![0.0; MANY * 9]);
    let start = stream.states().unwrap();
    Box::new(move || {
        let x = x.as_slice().unwrap();
        stream.set_states(&start)?;
        if let Err(error) = stream.step(x, &mut y) {
            check_after_error(&mut stream, &start, x, &mut y);
            return Err(error);
        }
        stream.states()?.iter().fold(Digest::default().add(&y), Digest::state).finish()
    })
}

fn read_digest(path: &PathBuf) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let saved = UNTIL_FAILURE.swap(-1, SeqCst);
    fs::read(path).unwrap().hash(&mut hasher);
    UNTIL_FAILURE.store(saved, SeqCst);
    Ok(hasher.finish())
}

const CASES: &[Case] = &[
    ("init uniform", || init(InitKind::Uniform, wide())),
    ("init xavier", || init(InitKind::Xavier, wide().cell(CellKind::PeepholeDiagonal))),
    ("init orthogonal", || init(InitKind::Orthogonal, LstmConfig::new(8, 130).bias(Bias::One))),
    ("init int8", || init(InitKind::Uniform, wide().precision(Precision::Int8))),
    ("random", || Box::new(|| Digest::default().weights(Lstm::random(&cpu(), wide(), 1)?.weights()).finish())),
    ("random int12", || {
        let config = || wide().precision(Precision::Int12).proj_size(257);
        Box::new(move || Digest::default().weights(Lstm::random(&cpu(), config(), 1)?.weights()).finish())
    }),
    ("random other functions", || {
        let config = || wide().activations(other_functions()).coupled();
        Box::new(move || Digest::default().weights(Lstm::random(&cpu(), config(), 1)?.weights()).finish())
    }),
    ("linear", || {
        let (linear, x) = (Linear::random(&cpu(), 260, 256, 5).unwrap(), x((2, 3, 260)));
        let dy = Array3::from_elem((2, 3, 256), 0.5);
        Box::new(move || {
            let y = linear.forward(&x)?;
            let gradients = linear.backward(&x, &dy)?;
            let new = Linear::random(linear.backend(), 260, 256, 6)?;
            Digest::default().array(&y).array(&gradients.x).array(&gradients.weight).array(new.weight()).finish()
        })
    }),
    ("forward wide", || forward(wide(), (2, 3, 260), None)),
    ("forward bidirectional", || forward(wide().bidirectional(), (2, 3, 260), None)),
    ("forward projected", || forward(wide().proj_size(257), (2, 3, 260), None)),
    ("forward int8", || forward(wide().precision(Precision::Int8), (3, 3, 260), None)),
    ("forward other functions", || forward(wide().activations(other_functions()), (2, 2, 260), None)),
    ("forward many", || forward(small(), (MANY, 3, 4), Some(lengths(3)))),
    ("forward many other functions", || {
        forward(small().activations(other_functions()), (MANY, 3, 4), Some(lengths(3)))
    }),
    ("forward long", || forward(small(), (1, MANY, 4), None)),
    ("forward long other functions", || forward(small().activations(other_functions()), (1, 40, 4), None)),
    ("forward time-major", || {
        let (lstm, x) = (lstm(small()), x((3, MANY, 4)));
        Box::new(move || {
            let y = lstm.forward(Input::from(&x).time_major())?.0;
            let z = lstm.forward(ArrayView3::from(&x).permuted_axes([1, 0, 2]))?.0;
            Digest::default().array(&y).array(&z).finish()
        })
    }),
    ("forward empty", || {
        let (lstm, x) = (lstm(small()), x((MANY, 0, 4)));
        Box::new(move || Digest::default().state(&lstm.forward(&x)?.1).finish())
    }),
    ("train wide", || train(wide(), (2, 3, 260), None, Checkpointing::SaveEverything)),
    ("train peephole", || {
        let config = wide().cell(CellKind::PeepholeDiagonal).proj_size(257).clip(2.0);
        train(config, (2, 3, 260), None, Checkpointing::SaveEverything)
    }),
    ("train many", || {
        let config = small().dropout(0.5).bidirectional();
        train(config, (MANY, 3, 4), Some(lengths(3)), Checkpointing::SaveEverything)
    }),
    // As many segments as make lists of them large.
    ("train segments", || train(LstmConfig::new(4, 9), (4, 1024, 4), None, Checkpointing::Segments(32))),
    ("train other functions", || {
        train(small().activations(other_functions()), (1, 40, 4), None, Checkpointing::SaveEverything)
    }),
    ("train many other functions", || {
        let config = small().activations(other_functions());
        train(config, (MANY, 2, 4), Some(lengths(2)), Checkpointing::SaveEverything)
    }),
    ("stream wide", || stream(wide(), 2)),
    ("stream many", || stream(small(), MANY)),
    ("stream other functions", || stream(small().activations(other_functions()), MANY)),
    ("stream new", || {
        let lstm = lstm(small());
        Box::new(move || Digest::default().state(&lstm.stream(MANY)?.state()?).finish())
    }),
    ("chunk wide", || chunk(wide(), (2, 3, 260))),
    ("chunk many", || chunk(small(), (MANY, 3, 4))),
    ("chunk other functions", || chunk(small().activations(other_functions()), (MANY, 2, 4))),
    ("quantize", || {
        let weights = weights(wide(), 3);
        Box::new(move || {
            let quantized = weights.quantize(Precision::Int8)?;
            let back = quantized.quantize(Precision::F32)?;
            Digest::default().weights(&quantized).weights(&back).finish()
        })
    }),
    ("quantize model", || {
        let weights = model(false);
        Box::new(move || Digest::default().model(&weights.quantize(Precision::Int8)?).finish())
    }),
    ("model new", || {
        let weights: std::sync::Arc<_> = model(false).quantize(Precision::Int12).unwrap().into();
        Box::new(move || Digest::default().model(Model::new(&cpu(), weights.clone())?.weights()).finish())
    }),
    ("model forward", || {
        let (model, tokens) = (Model::new(&cpu(), model(false)).unwrap(), tokens(2, 3));
        Box::new(move || {
            let output = model.forward(&tokens)?;
            output.states.iter().fold(Digest::default().array(&output.y), Digest::state).finish()
        })
    }),
    ("model forward many", || {
        let (model, tokens, lengths) = (Model::new(&cpu(), model(true)).unwrap(), tokens(MANY, 2), lengths(2));
        Box::new(move || {
            Digest::default().array(&model.forward(ModelInput::from(&tokens).lengths(&lengths))?.y).finish()
        })
    }),
    ("model gains", || {
        let layer =
            |weights: Weights| ModelLayer::Lstm { name: "lstm".into(), weights: weights.into(), initial_state: None };
        let weights = weights(wide(), 3);
        let weights =
            ModelWeights::new(vec![layer(weights)]).unwrap().with_skip().unwrap().with_gains(0.5, 2.0).unwrap();
        let (model, x) = (Model::new(&cpu(), weights).unwrap(), x((1, 3, 260)));
        Box::new(move || {
            let pass = model.forward_train(&x, Checkpointing::SaveEverything)?;
            let gradients = pass.tape.backward(OutputGradients::from(&pass.y).with_input_gradient())?;
            Digest::default().array(&pass.y).array(gradients.x.as_ref().unwrap()).model(&gradients.weights).finish()
        })
    }),
    ("model train", || {
        let (model, tokens) = (Model::new(&cpu(), model(true)).unwrap(), tokens(2, 3));
        Box::new(move || {
            let input = ModelInput::from(&tokens).dropout(Dropout::Seed(1));
            let pass = model.forward_train(input, Checkpointing::SaveEverything)?;
            Digest::default().array(&pass.y).model(&pass.tape.backward(&pass.y)?.weights).finish()
        })
    }),
    ("model train many", || {
        let (model, tokens, lengths) = (Model::new(&cpu(), model(true)).unwrap(), tokens(MANY, 2), lengths(2));
        Box::new(move || {
            let input = ModelInput::from(&tokens).lengths(&lengths).dropout(Dropout::Off);
            let pass = model.forward_train(input, Checkpointing::SaveEverything)?;
            Digest::default().array(&pass.y).model(&pass.tape.backward(&pass.y)?.weights).finish()
        })
    }),
    ("model stream", || {
        let model = Model::new(&cpu(), model(false)).unwrap();
        let (mut stream, tokens, mut y) = (model.stream(2).unwrap(), tokens(2, 3), vec![0.0; 2 * 256]);
        Box::new(move || {
            stream.reset()?;
            stream.step_tokens(&[3, 4], &mut y)?;
            let before = stream.states()?;
            let chunk = stream.chunk(&tokens);
            if chunk.is_err() {
                assert_eq!(stream.states()?, before, "a chunk that fails before its end changes nothing");
            }
            Digest::default().add(&y).array(&chunk?).finish()
        })
    }),
    (REFERENCE_STREAM, step_model_on_reference_path),
    ("model stream new", || {
        let model = Model::new(&cpu(), model(false)).unwrap();
        Box::new(move || model.stream(2)?.states()?.iter().fold(Digest::default(), Digest::state).finish())
    }),
    ("losses", || {
        let (y, targets) = (x((MANY, 2, 4)), vec![1; 2 * MANY]);
        let weights = y.mapv(f32::abs);
        Box::new(move || {
            let (_, squared) = mean_squared_error(y.view(), y.view())?;
            let (_, entropy) = cross_entropy(y.view(), &targets)?;
            let (_, weighted) = weighted_pointwise_loss(y.view(), y.view(), weights.view(), squared_error)?;
            let (_, gaussian) = gaussian_nll_loss(y.view(), y.slice(s![.., .., ..2]))?;
            let (_, ctc) = ctc_loss(y.slice(s![..1, .., ..]), None, &[&[1]], 0)?;
            let order = shuffled_indices(1, 2, MANY)?;
            let digest =
                Digest::default().array(&squared).array(&entropy).array(&weighted).array(&gaussian).array(&ctc);
            digest.add(&[order[0] as f32]).finish()
        })
    }),
    ("trainer step", || {
        let (x, target) = (x((2, 3, 260)), Array3::from_elem((2, 3, 256), 0.25));
        let mut kept = trainer(OptimizerConfig::adam());
        Box::new(move || {
            let steps = kept.steps();
            let result = kept.step(&x, LossInput::Both, |outputs, _| {
                let (loss, dy) = mean_squared_error(outputs.y()?, target.view())?;
                let (_, last) = mean_squared_error(outputs.last()?, outputs.last()?)?;
                Ok::<_, Error>((loss, (dy, last)))
            });
            match result {
                Ok(_) => {
                    let digest = Digest::default().weights(kept.lstm().weights()).array(kept.head().unwrap().weight());
                    // Each success is the first step of a run.
                    let saved = UNTIL_FAILURE.swap(-1, SeqCst);
                    kept = trainer(OptimizerConfig::adam());
                    UNTIL_FAILURE.store(saved, SeqCst);
                    digest.finish()
                }
                Err(error) => {
                    assert_eq!(kept.steps(), steps);
                    Err(error)
                }
            }
        })
    }),
    ("trainer accumulate", || {
        let (x, target) = (x((2, 3, 260)), Array3::from_elem((2, 3, 256), 0.25));
        let mut kept = trainer(OptimizerConfig::adam());
        Box::new(move || {
            let mut step = || {
                for _ in 0..2 {
                    kept.accumulate(&x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view()))?;
                }
                kept.apply()
            };
            match step() {
                Ok(_) => {
                    let digest = Digest::default().weights(kept.lstm().weights()).array(kept.head().unwrap().weight());
                    let saved = UNTIL_FAILURE.swap(-1, SeqCst);
                    kept = trainer(OptimizerConfig::adam());
                    UNTIL_FAILURE.store(saved, SeqCst);
                    digest.finish()
                }
                Err(error) => {
                    assert_eq!(kept.steps(), 0);
                    kept.discard_accumulated();
                    Err(error)
                }
            }
        })
    }),
    ("batches", || {
        let data: Vec<_> = (1..40).map(|length| Array2::from_elem((length, 4), length as f32)).collect();
        let lengths: Vec<_> = (0..64 * MANY).map(|k| 1 + k % 39).collect();
        Box::new(move || {
            let mut many = Batches::new(lengths.iter().copied(), MANY, 1)?;
            let first = many.next_batch()?.indices[0];
            let batch = Batches::new(data.iter().map(|x| x.nrows()), 39, 1)?.next_batch()?;
            Digest::default().array(&batch.features(&data)?).add(&[first as f32]).finish()
        })
    }),
    ("model trainer step", || {
        let (tokens, targets) = (tokens(2, 3), vec![1; 6]);
        let mut kept = model_trainer();
        Box::new(move || {
            let result = kept.step(&tokens, |outputs, _| cross_entropy(outputs.y()?, &targets));
            match result {
                Ok(_) => {
                    let digest = Digest::default().model(kept.model().weights());
                    let saved = UNTIL_FAILURE.swap(-1, SeqCst);
                    kept = model_trainer();
                    UNTIL_FAILURE.store(saved, SeqCst);
                    digest.finish()
                }
                Err(error) => {
                    assert_eq!(kept.steps(), 0);
                    Err(error)
                }
            }
        })
    }),
    ("trainer config", || {
        let mut trainer = trainer(OptimizerConfig::adam());
        let (x, target) = (x((2, 3, 260)), Array3::from_elem((2, 3, 256), 0.25));
        let loss = LossInput::Outputs;
        trainer.step(&x, loss, |outputs, _| mean_squared_error(outputs.y()?, target.view())).unwrap();
        Box::new(move || {
            trainer.set_config(trainer.config().clone())?;
            Ok(trainer.steps())
        })
    }),
    ("primitives", || {
        let cpu = cpu();
        let x = cpu.upload(MatrixShape::new(2, 260), &[0.25; 520]).unwrap();
        Box::new(move || {
            let parts = [
                cpu.tanh(x.clone())?,
                cpu.sigmoid(x.clone())?,
                cpu.snap(x.clone())?,
                cpu.clip(x.clone(), 0.125)?,
                cpu.mul_add(2.0, &x, None, Some(&x))?,
                cpu.select_between(x.clone(), &x, &cpu.slice(&x, 0..1, 0..260)?, &cpu.slice(&x, 1..2, 0..260)?)?,
                cpu.gemm((&x).into(), lstm_cpu::MatrixRef::from(&x).t(), None)?,
            ];
            let all = cpu.concat(ConcatAxis::Cols, &parts)?;
            let rows = cpu.concat(ConcatAxis::Rows, &[all.clone(), all])?;
            Digest::default().add(rows.as_slice()).finish()
        })
    }),
    ("save lstm", || {
        let (weights, path) = (weights(wide(), 3), path("lstm"));
        Box::new(move || {
            StateDictWriter::new().lstm("", &weights, TensorNames::PyTorch)?.save(&path)?;
            read_digest(&path)
        })
    }),
    ("open lstm", || {
        let (weights, path) = (weights(wide(), 3), path("open-lstm"));
        StateDictWriter::new().lstm("", &weights, TensorNames::PyTorch).unwrap().save(&path).unwrap();
        Box::new(move || {
            let mut dict = StateDict::open(&path)?;
            Digest::default().weights(&dict.take_lstm("")?).finish()
        })
    }),
    ("save model", || {
        let (weights, path) = (model(false).quantize(Precision::Int8).unwrap(), path("model"));
        Box::new(move || {
            weights.save(&path)?;
            read_digest(&path)
        })
    }),
    ("open model", || {
        let path = path("open-model");
        model(false).quantize(Precision::Int8).unwrap().save(&path).unwrap();
        Box::new(move || Digest::default().model(&ModelWeights::open(&path)?).finish())
    }),
    ("save run", || {
        let (trainer, path) = (trainer(OptimizerConfig::adam()), path("run"));
        Box::new(move || {
            trainer.save(&path)?;
            read_digest(&path)
        })
    }),
    ("resume run", || {
        let (mut trainer, path) = (trainer(OptimizerConfig::adam()), path("resume"));
        let (x, target) = (x((2, 3, 260)), Array3::from_elem((2, 3, 256), 0.25));
        let loss = LossInput::Outputs;
        trainer.step(&x, loss, |outputs, _| mean_squared_error(outputs.y()?, target.view())).unwrap();
        trainer.save(&path).unwrap();
        let cpu = cpu();
        Box::new(move || Digest::default().weights(Trainer::resume(&cpu, &path)?.0.lstm().weights()).finish())
    }),
];

/// Runs a case, with the failure of each allocation from number `first` on.
fn run_case((name, prepare): Case, first: isize) {
    let reads_files = ["save", "open", "resume"].iter().any(|verb| name.starts_with(verb));
    MIN_SIZE.store(if reads_files { MIN_FILE_BYTES } else { MIN_BYTES }, SeqCst);
    let expected = prepare()().unwrap_or_else(|error| panic!("{name}: {error}"));
    let (mut n, mut is_second_try) = (first, false);
    loop {
        println!("at {n}");
        let bytes = BYTES.load(SeqCst);
        let mut operation = prepare();
        UNTIL_FAILURE.store(n, SeqCst);
        let result = operation();
        let has_failed = UNTIL_FAILURE.swap(-1, SeqCst) < 0;
        match &result {
            Ok(digest) => assert_eq!(*digest, expected, "{name}: succeeds without allocation {n}, with other bits"),
            Err(Error::TooLarge { .. }) => {}
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::OutOfMemory => {}
            Err(error) => panic!("{name}: allocation {n}: {error}"),
        }
        drop(result);
        match operation() {
            Ok(digest) => assert_eq!(digest, expected, "{name}: other bits after the failure of allocation {n}"),
            Err(error) => panic!("{name}: after the failure of allocation {n}: {error}"),
        }
        drop(operation);
        let leaked = BYTES.load(SeqCst) - bytes;
        // Meanwhile the thread of the test harness may have allocated what it needs to wait. It does so once.
        if leaked != 0 && !is_second_try {
            is_second_try = true;
            continue;
        }
        assert_eq!(leaked, 0, "{name}: allocation {n} leaks");
        if !has_failed {
            println!("done after {n}");
            let loses_states = name == REFERENCE_STREAM;
            assert!(first > 0 || LOST_STATES.load(SeqCst) == loses_states, "{name}: whether states were lost");
            return;
        }
        (n, is_second_try) = (n + 1, false);
    }
}

/// Runs a case in a child process, from allocation `first` on. Returns its last allocation, whether all was well, and
/// what it wrote to stderr.
fn run_child(name: &str, first: isize, show: bool) -> (isize, bool, String) {
    let folder = env::temp_dir().join(format!("lstm-allocation-failure-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "every_large_allocation_may_fail", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{name}/{first}{}", if show { " show" } else { "" }))
        .env(FOLDER, &folder)
        .output()
        .unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let numbers = stdout.lines().filter_map(|line| line.strip_prefix("at ")?.parse().ok());
    (numbers.fold(first, isize::max), output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_large_allocation_may_fail() {
    if let Ok(child) = env::var(CHILD) {
        let (name, first) = child.trim_end_matches(" show").split_once('/').unwrap();
        return run_case(*CASES.iter().find(|case| case.0 == name).unwrap(), first.parse().unwrap());
    }
    let mut faults = Vec::new();
    for (name, _) in CASES {
        let mut first = 0;
        loop {
            let (last, success, stderr) = run_child(name, first, false);
            if success {
                println!("{name}: {last} large allocations");
                break;
            }
            let (_, _, backtrace) = run_child(name, last, true);
            let frames =
                backtrace.lines().filter(|line| line.contains("lstm_") && !line.contains("allocation_failure"));
            let frames: Vec<_> = frames.take(6).map(str::trim).collect();
            faults.push(format!("{name}, allocation {last}:\n    {}\n{}", frames.join("\n    "), stderr.trim()));
            first = last + 1;
            if !stderr.contains("memory allocation of") {
                break;
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}
