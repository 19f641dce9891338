//! Counts what a training step moves between the host and the device.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use lstm_cpu::{
    Arithmetic, ConcatAxis, Cpu, Init, Linear, Lstm, LstmConfig, MatrixRef, MatrixShape, Model, ModelLayer,
    ModelWeights, Ops, QuantizedMatrix, ReferencePath, Result, Weights,
    ndarray::{Array2, Array3},
    quantized::OperandRange,
    train::{LossInput, ModelTrainer, OptimizerConfig, Schedule, Trainer, TrainerConfig, mean_squared_error},
};

/// What happened, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Upload(MatrixShape),
    Download(MatrixShape),
    /// The loss function was called.
    Loss,
}

/// The primitives of the CPU, which record downloads, and uploads of what is not one repeated number, such as zeros.
#[derive(Clone, Debug)]
struct Recording {
    cpu: Cpu,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recording {
    fn new() -> Self {
        Recording { cpu: Cpu::new(), events: Arc::default() }
    }

    fn record(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    /// Removes and returns the events before the call of the loss, and those after it.
    fn take(&self) -> (Vec<Event>, Vec<Event>) {
        let mut before = std::mem::take(&mut *self.events.lock().unwrap());
        let loss = before.iter().position(|event| *event == Event::Loss).unwrap();
        let after = before.split_off(loss);
        (before, after)
    }
}

type Tensor = <Cpu as Ops>::Tensor;

impl Ops for Recording {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        "recording"
    }

    fn arithmetic(&self) -> Arithmetic {
        self.cpu.arithmetic()
    }

    fn shape(&self, x: &Tensor) -> MatrixShape {
        self.cpu.shape(x)
    }

    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Tensor> {
        if data.windows(2).any(|pair| pair[0] != pair[1]) {
            self.record(Event::Upload(shape));
        }
        self.cpu.upload(shape, data)
    }

    async fn download(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        self.record(Event::Download(self.shape(x)));
        self.cpu.download(x, out).await
    }

    fn snap(&self, x: Tensor) -> Result<Tensor> {
        self.cpu.snap(x)
    }

    fn gemm(&self, a: MatrixRef<'_, Tensor>, b: MatrixRef<'_, Tensor>, acc: Option<&Tensor>) -> Result<Tensor> {
        self.cpu.gemm(a, b, acc)
    }

    fn gemm_quantized(
        &self,
        a: &Tensor,
        w: &QuantizedMatrix<Tensor>,
        range: OperandRange,
        acc: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.cpu.gemm_quantized(a, w, range, acc)
    }

    fn mul_add(&self, alpha: f32, a: &Tensor, b: Option<&Tensor>, c: Option<&Tensor>) -> Result<Tensor> {
        self.cpu.mul_add(alpha, a, b, c)
    }

    fn sigmoid(&self, x: Tensor) -> Result<Tensor> {
        self.cpu.sigmoid(x)
    }

    fn tanh(&self, x: Tensor) -> Result<Tensor> {
        self.cpu.tanh(x)
    }

    fn clip(&self, x: Tensor, bound: f32) -> Result<Tensor> {
        self.cpu.clip(x, bound)
    }

    fn select_between(&self, x: Tensor, selector: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
        self.cpu.select_between(x, selector, low, high)
    }

    fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor> {
        self.cpu.slice(x, rows, cols)
    }

    fn concat(&self, axis: ConcatAxis, parts: &[Tensor]) -> Result<Tensor> {
        self.cpu.concat(axis, parts)
    }
}

impl ReferencePath for Recording {}

/// Numbers of rows and columns.
type Shapes = Vec<(usize, usize)>;

/// The shapes of the downloads, and of the uploads, sorted.
fn shapes(events: &[Event]) -> (Shapes, Shapes) {
    let sorted = |pick: fn(&Event) -> Option<MatrixShape>| {
        let mut shapes: Vec<_> = events.iter().filter_map(pick).map(|shape| (shape.rows, shape.cols)).collect();
        shapes.sort_unstable();
        shapes
    };
    let downloads = sorted(|event| match event {
        Event::Download(shape) => Some(*shape),
        _ => None,
    });
    let uploads = sorted(|event| match event {
        Event::Upload(shape) => Some(*shape),
        _ => None,
    });
    (downloads, uploads)
}

const BATCH: usize = 3;
const STEPS: usize = 7;
const ROWS: usize = BATCH * STEPS;
const HIDDEN: usize = 5;

fn input() -> Array3<f32> {
    Array3::from_shape_fn((BATCH, STEPS, 2), |(b, t, k)| (b + 2 * t + 3 * k) as f32 * 0.1)
}

fn config() -> TrainerConfig {
    TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01))
}

/// In a model with two LSTMs, a layer between them and a head, only these move: the input up, the outputs and final states
/// down; the gradient of the loss up, those of the parameters and initial states down, the new parameters up.
#[test]
fn passes_of_a_model_stay_on_the_device() {
    let device = Recording::new();
    let lstm = |input, seed| Weights::init(LstmConfig::new(input, HIDDEN), &Init::default(), seed).unwrap().into();
    let layers = vec![
        ModelLayer::Lstm { name: "first".into(), weights: lstm(2, 1), initial_state: None },
        ModelLayer::Linear { name: "between".into(), weight: Array2::from_elem((4, HIDDEN), 0.1), bias: None },
        ModelLayer::Lstm { name: "second".into(), weights: lstm(4, 2), initial_state: None },
        ModelLayer::Linear { name: "head".into(), weight: Array2::from_elem((1, HIDDEN), 0.1), bias: None },
    ];
    let model = Model::new(&device, ModelWeights::new(layers).unwrap()).unwrap();
    let mut trainer = ModelTrainer::new(model, config()).unwrap();
    let (x, target) = (input(), Array3::zeros((BATCH, STEPS, 1)));
    for _ in 0..2 {
        device.events.lock().unwrap().clear();
        trainer
            .step(&x, |out, _| {
                device.record(Event::Loss);
                mean_squared_error(out.y()?, target.view())
            })
            .unwrap();
        let (before, after) = device.take();
        let state = (BATCH, HIDDEN);
        let (downloads, uploads) = shapes(&before);
        // h and c of both LSTMs, and the outputs.
        assert_eq!(downloads, [state, state, state, state, (ROWS, 1)]);
        assert_eq!(uploads, [(ROWS, 2)]);

        let (downloads, uploads) = shapes(&after);
        let is_of_all_steps = |shape: &&(usize, usize)| shape.0 == ROWS;
        assert_eq!(downloads.iter().find(is_of_all_steps), None);
        // Of the initial states of both LSTMs, of two weights and two biases of each, and of the weights of two layers.
        assert_eq!(downloads.len(), 4 + 2 * 4 + 2, "{downloads:?}");
        assert_eq!(uploads.iter().filter(is_of_all_steps).collect::<Vec<_>>(), [&(ROWS, 1)]);
    }
}

/// The same of an LSTM without a head. With a head, its outputs go through the host, once in each direction.
#[test]
fn passes_of_an_lstm_stay_on_the_device() {
    for has_head in [false, true] {
        let device = Recording::new();
        let lstm = Lstm::random(&device, LstmConfig::new(2, HIDDEN).layers(2), 1).unwrap();
        let head = has_head.then(|| Linear::random(&device, HIDDEN, 1, 2).unwrap());
        let mut trainer = Trainer::new(lstm, head, config()).unwrap();
        let x = input();
        device.events.lock().unwrap().clear();
        trainer
            .step(&x, LossInput::Outputs, |out, _| {
                device.record(Event::Loss);
                let y = out.y()?;
                mean_squared_error(y, Array3::zeros(y.dim()).view())
            })
            .unwrap();
        let (before, after) = device.take();
        let of_all_steps = |events: &[Event]| {
            let (mut downloads, mut uploads) = shapes(events);
            downloads.retain(|shape| shape.0 == ROWS);
            uploads.retain(|shape| shape.0 == ROWS);
            (downloads, uploads)
        };
        let (outputs, hidden) = ((ROWS, 1), (ROWS, HIDDEN));
        if has_head {
            assert_eq!(of_all_steps(&before), (vec![outputs, hidden], vec![(ROWS, 2), hidden]));
            assert_eq!(of_all_steps(&after), (vec![hidden], vec![outputs, hidden, hidden]));
        } else {
            assert_eq!(of_all_steps(&before), (vec![hidden], vec![(ROWS, 2)]));
            assert_eq!(of_all_steps(&after), (vec![], vec![hidden]));
        }
    }
}
