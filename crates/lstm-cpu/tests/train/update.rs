//! `Optimizer::update` over several modules: it gives the trainers' bits, and an error changes nothing.

use lstm_cpu::{
    Checkpointing::SaveEverything,
    Cpu, Error, Init, Linear, Lstm, LstmConfig, Model, ModelLayer, ModelWeights, Precision, Result, Weights,
    ndarray::{Array, Array2, Array3, Dimension, array},
    train::{
        Clip, LossInput, ModelTrainer, Module, Optimizer, OptimizerConfig, Schedule, Trainable, Trainer, TrainerConfig,
        mean_squared_error,
    },
};

const RATE: f32 = 0.01;

fn config() -> TrainerConfig {
    TrainerConfig::new(OptimizerConfig::adamw(), Schedule::constant(RATE)).clip(Clip::Norm(0.1))
}

fn lstm_and_head() -> Result<(Lstm<Cpu>, Linear<Cpu>)> {
    let cpu = Cpu::new();
    Ok((Lstm::random(&cpu, LstmConfig::new(3, 5).layers(2).bidirectional(), 1)?, Linear::random(&cpu, 10, 2, 2)?))
}

fn wave<D: Dimension>(shape: impl lstm_cpu::ndarray::ShapeBuilder<Dim = D>) -> Array<f32, D> {
    let mut t = 0.0f32;
    Array::from_shape_simple_fn(shape, || {
        t += 0.7;
        t.sin()
    })
}

fn bits<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    values.into_iter().map(|v| v.to_bits()).collect()
}

fn state(optimizer: &Optimizer) -> Vec<(String, Vec<u32>)> {
    optimizer.state().map(|(name, values)| (name, bits(values))).collect()
}

#[test]
fn an_lstm_and_a_head_get_the_bits_of_the_trainer() -> Result<()> {
    let (x, target) = (wave((4, 7, 3)), wave((4, 7, 2)));
    let (mut lstm, mut head) = lstm_and_head()?;
    let mut trainer = Trainer::new(lstm.clone(), Some(head.clone()), config())?;
    let mut optimizer = Optimizer::new(OptimizerConfig::adamw())?;
    for _ in 0..5 {
        let report = trainer.step(&x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view()))?;

        let pass = lstm.forward_train(&x, SaveEverything)?;
        let (loss, dy) = mean_squared_error(head.forward(&pass.y)?.view(), target.view())?;
        let of_head = head.backward(&pass.y, &dy)?;
        let of_lstm = pass.tape.backward(&of_head.x)?;
        let modules = &mut [Module::new("lstm", &mut lstm, &of_lstm), Module::new("head", &mut head, &of_head)];
        let norm = optimizer.update(RATE, Some(Clip::Norm(0.1)), modules)?;
        assert_eq!((loss.to_bits(), norm.to_bits()), (report.loss.to_bits(), report.gradient_norm.to_bits()));
    }
    assert_eq!((lstm.weights(), optimizer.steps()), (trainer.lstm().weights(), 5));
    assert_ne!(lstm.weights(), lstm_and_head()?.0.weights());
    let trained = trainer.head().unwrap();
    assert_eq!((head.weight(), head.bias()), (trained.weight(), trained.bias()));
    assert_eq!(state(&optimizer).len(), 2 * (16 + 2));
    assert!(state(&optimizer).iter().any(|(name, _)| name == "exp_avg.lstm.weight_ih_l1_reverse"));
    Ok(())
}

fn model(name: &str, embedded: usize) -> Result<Model<Cpu>> {
    let lstm = Weights::init(LstmConfig::new(embedded, 5), &Init::default(), 1)?;
    let layers = vec![
        ModelLayer::Embedding { name: "emb".into(), weight: wave((7, embedded)) },
        ModelLayer::Lstm { name: name.into(), weights: lstm.into(), initial_state: None },
        ModelLayer::Linear { name: "out".into(), weight: wave((2, 5)), bias: Some(array![0.1, -0.1]) },
    ];
    Model::new(&Cpu::new(), ModelWeights::new(layers)?)
}

#[test]
fn a_model_gets_the_bits_of_its_trainer() -> Result<()> {
    let (tokens, target) = (array![[0i64, 3, 6], [2, 2, 1]], wave((2, 3, 2)));
    let mut trainer = ModelTrainer::new(model("rec", 4)?, config())?;
    let (mut model, mut optimizer) = (model("rec", 4)?, Optimizer::new(OptimizerConfig::adamw())?);
    for _ in 0..5 {
        trainer.step(&tokens, |out, _| mean_squared_error(out.y()?, target.view()))?;
        let pass = model.forward_train(&tokens, SaveEverything)?;
        let (_, dy) = mean_squared_error(pass.y.view(), target.view())?;
        let gradients = pass.tape.backward(&dy)?;
        optimizer.update(RATE, Some(Clip::Norm(0.1)), &mut [Module::new("model", &mut model, &gradients)])?;
    }
    assert_eq!(model.weights(), trainer.model().weights());
    assert!(state(&optimizer).iter().any(|(name, _)| name == "exp_avg_sq.model.emb.weight"));
    Ok(())
}

#[test]
fn arrays_of_any_layout_are_updated() -> Result<()> {
    let mut optimizer = Optimizer::new(OptimizerConfig::sgd())?;
    let (mut rows, gradient) = (array![[1.0, 2.0], [3.0, 4.0]].reversed_axes(), array![[1.0, 2.0], [3.0, 4.0]]);
    let norm = optimizer.update(0.5, None, &mut [Module::new("embedding", &mut rows, &gradient)])?;
    assert_eq!((rows, norm), (array![[0.5, 2.0], [0.5, 2.0]], 30f64.sqrt()));
    Ok(())
}

/// An array whose new values the device refuses.
#[derive(Clone, Debug, PartialEq)]
struct Refused(Array2<f32>);

impl Trainable<Array2<f32>> for Refused {
    fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>> {
        self.0.parameters()
    }

    fn gradients(&self, gradients: &Array2<f32>) -> Result<Vec<Vec<f32>>> {
        self.0.gradients(gradients)
    }

    fn with_parameters(&self, _: Vec<Vec<f32>>) -> Result<Self> {
        Err(Error::config("device", "out of memory"))
    }
}

#[test]
fn an_error_in_the_last_module_changes_nothing() -> Result<()> {
    let x: Array3<f32> = wave((4, 7, 3));
    let (mut lstm, mut head) = lstm_and_head()?;
    let pass = lstm.forward_train(&x, SaveEverything)?;
    let of_head = head.backward(&pass.y, &wave((4, 7, 2)))?;
    let of_lstm = pass.tape.backward(&of_head.x)?;
    let mut optimizer = Optimizer::new(OptimizerConfig::adam())?;
    let mut rows = Array2::<f32>::ones((2, 3));
    let right = Array2::<f32>::ones((2, 3));
    optimizer.update(
        RATE,
        None,
        &mut [
            Module::new("lstm", &mut lstm, &of_lstm),
            Module::new("head", &mut head, &of_head),
            Module::new("rows", &mut rows, &right),
        ],
    )?;

    let before = (lstm.weights().clone(), head.weight().clone(), rows.clone(), optimizer.clone());
    let (nan, overflow) = (array![[0.0, f32::NAN, 0.0], [0.0; 3]], Array2::<f32>::from_elem((2, 3), 1e30));
    let transposed = Array2::<f32>::ones((3, 2));
    let mut refused = Refused(rows.clone());
    let (other_lstm, other_head) = {
        let lstm = Lstm::random(&Cpu::new(), LstmConfig::new(3, 5).layers(2), 1)?;
        let pass = lstm.forward_train(&x, SaveEverything)?;
        (pass.tape.backward(&pass.y)?, Linear::random(&Cpu::new(), 10, 3, 2)?.backward(&wave((4, 10)), &wave((4, 3)))?)
    };
    let mut quantized = Lstm::new(&Cpu::new(), lstm.weights().quantize(Precision::Int8)?)?;
    let mut case = |rate: f32, clip: Option<Clip>, last: Module<'_>, parts: &[&str]| {
        let modules = [Module::new("lstm", &mut lstm, &of_lstm), Module::new("head", &mut head, &of_head), last];
        let error = optimizer.update(rate, clip, &mut { modules }).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
        assert_eq!((lstm.weights(), head.weight(), &optimizer), (&before.0, &before.1, &before.3), "{error}");
    };
    let mut head_of_another = Linear::random(&Cpu::new(), 10, 2, 9)?;
    let mut lstm_of_another = Lstm::random(&Cpu::new(), LstmConfig::new(3, 5).layers(2).bidirectional(), 9)?;
    case(-1.0, None, Module::new("rows", &mut rows, &right), &["rate", "-1"]);
    case(RATE, Some(Clip::Norm(0.0)), Module::new("rows", &mut rows, &right), &["clip"]);
    case(RATE, None, Module::new("rows", &mut rows, &nan), &["step 2", "the gradient of `rows`"]);
    case(RATE, None, Module::new("rows", &mut rows, &overflow), &["step 2", "exp_avg_sq.rows"]);
    case(RATE, None, Module::new("rows", &mut rows, &transposed), &["an array", "[2, 3]", "[3, 2]"]);
    case(RATE, None, Module::new("head.weight", &mut rows, &right), &["`head.weight`", "twice"]);
    case(RATE, None, Module::new("row", &mut rows, &right), &["`row`", "first step"]);
    case(RATE, None, Module::new("rows", &mut refused, &right), &["out of memory"]);
    case(RATE, None, Module::new("rows", &mut lstm_of_another, &other_lstm), &["an LSTM", "weight_ih_l0_reverse"]);
    case(RATE, None, Module::new("rows", &mut head_of_another, &other_head), &["a Linear", "[2, 10]", "[3, 10]"]);
    case(RATE, None, Module::new("rows", &mut quantized, &of_lstm), &["int8"]);
    assert_eq!(rows, before.2);
    Ok(())
}

#[test]
fn gradients_of_halves_add_up() -> Result<()> {
    let (lstm, head) = lstm_and_head()?;
    let (x, dy): (Array3<f32>, Array3<f32>) = (wave((4, 7, 3)), wave((4, 7, 2)));
    let gradients = |rows: std::ops::Range<usize>| {
        let (x, dy) =
            (x.slice(lstm_cpu::ndarray::s![rows.clone(), .., ..]), dy.slice(lstm_cpu::ndarray::s![rows, .., ..]));
        let pass = lstm.forward_train(x, SaveEverything)?;
        let of_head = head.backward(&pass.y, dy)?;
        Ok::<_, Error>((pass.tape.backward(&of_head.x)?, of_head))
    };
    let (whole, whole_head) = gradients(0..4)?;
    let ((mut sum, mut sum_head), (second, second_head)) = (gradients(0..2)?, gradients(2..4)?);
    let first = sum.clone();
    sum.add_scaled(1.0, &second)?;
    sum_head.add_scaled(1.0, &second_head)?;
    let values = |weights: &Weights| -> Vec<f32> {
        weights.layers().iter().flat_map(|layer| layer.iter()).flat_map(|(_, array)| array.iter().copied()).collect()
    };
    let close = |got: &[f32], expected: &[f32]| {
        let largest = expected.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        got.len() == expected.len() && got.iter().zip(expected).all(|(g, e)| (g - e).abs() <= 1e-6 * largest)
    };
    assert!(close(&values(&sum.weights), &values(&whole.weights)));
    assert!(!close(&values(&first.weights), &values(&whole.weights)));
    assert!(close(sum_head.weight.as_slice().unwrap(), whole_head.weight.as_slice().unwrap()));
    assert!(close(sum_head.bias.unwrap().as_slice().unwrap(), whole_head.bias.unwrap().as_slice().unwrap()));

    // The product is rounded before the sum.
    let mut thirds = first.clone();
    thirds.add_scaled(1.0 / 3.0, &second)?;
    let expected: Vec<f32> =
        values(&first.weights).iter().zip(values(&second.weights)).map(|(a, b)| a + 1.0 / 3.0 * b).collect();
    assert_eq!(bits(&values(&thirds.weights)), bits(&expected));

    let other = Lstm::random(&Cpu::new(), LstmConfig::new(3, 5).layers(2), 1)?;
    let pass = other.forward_train(&x, SaveEverything)?;
    let before = sum.clone();
    let error = sum.add_scaled(1.0, &pass.tape.backward(&pass.y)?).unwrap_err().to_string();
    assert!(error.contains("gradients of an LSTM"), "{error}");
    assert_eq!(sum, before);
    Ok(())
}

#[test]
fn gradients_of_models_add_up() -> Result<()> {
    let model_4 = model("rec", 4)?;
    let pass = model_4.forward_train(&array![[0i64, 3, 6]], SaveEverything)?;
    let gradients = pass.tape.backward(&pass.y)?;
    let mut sum = gradients.clone();
    sum.add_scaled(2.0, &gradients)?;
    let out = |gradients: &ModelWeights| match &gradients.layers()[2] {
        ModelLayer::Linear { weight, .. } => weight.clone(),
        layer => panic!("{layer}"),
    };
    let expected = out(&gradients.weights).mapv(|v| v + 2.0 * v);
    assert_eq!(out(&sum.weights), expected);

    let other = model("other", 4)?;
    let pass = other.forward_train(&array![[0i64, 3, 6]], SaveEverything)?;
    let error = sum.add_scaled(1.0, &pass.tape.backward(&pass.y)?).unwrap_err().to_string();
    assert!(error.contains("rec.weight_ih_l0") && error.contains("other.weight_ih_l0"), "{error}");
    assert_eq!(out(&sum.weights), expected);
    Ok(())
}
