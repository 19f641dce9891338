//! Classifies generated film reviews of different lengths, and draws the training curves and a confusion matrix.
//!
//! `cargo run --release --example text_classifier`
//!
//! A review has one or two clauses, joined by "but". The verdict of a clause is a good or a bad word, which a "not"
//! anywhere before it turns around. The class is the verdict, or the two verdicts in their order. The model is an
//! embedding, a bidirectional LSTM, its final state, and a linear layer.

#[path = "text_classifier/chart.rs"]
mod chart;
mod charts;
#[path = "text_classifier/reviews.rs"]
mod reviews;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use lstm::{
    Cpu, Init, LstmConfig, Model, ModelInput, ModelLayer, ModelWeights, Weights,
    arithmetic::Digest,
    ndarray::{Array2, ArrayView1},
    train::{Batches, Clip, ModelTrainer, OptimizerConfig, Schedule, TrainerConfig, cross_entropy, part_of_mean},
};

use crate::reviews::{CLASSES, Reviews, VOCABULARY};

/// The error type of the program.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Size of the embedding and hidden size of each direction.
const EMBEDDING_SIZE: usize = 16;
const HIDDEN_SIZE: usize = 32;
const BATCH_SIZE: usize = 32;
const EPOCHS: u64 = 8;

/// The model with random weights: embeddings from -1 to 1, and PyTorch's distribution for the others.
fn new_model() -> Result<ModelWeights> {
    let config = LstmConfig::new(EMBEDDING_SIZE, HIDDEN_SIZE).bidirectional();
    let random = |k: usize| ((k as f64 * 0.618_033_988_7).fract() * 2.0 - 1.0) as f32;
    let embedding =
        Array2::from_shape_fn((VOCABULARY.len(), EMBEDDING_SIZE), |(k, j)| random(1 + k * EMBEDDING_SIZE + j));
    let bound = 1.0 / (2.0 * HIDDEN_SIZE as f32).sqrt();
    let head = Array2::from_shape_fn((CLASSES.len(), 2 * HIDDEN_SIZE), |(k, j)| bound * random(7 * k + 11 * j + 5));
    Ok(ModelWeights::new(vec![
        ModelLayer::Embedding { name: "embedding".into(), weight: embedding },
        ModelLayer::Lstm {
            name: "lstm".into(),
            weights: Weights::init(config, &Init::default(), 1)?.into(),
            initial_state: None,
        },
        ModelLayer::FinalState,
        ModelLayer::Linear { name: "head".into(), weight: head, bias: Some(vec![0.0; CLASSES.len()].into()) },
    ])?)
}

/// What the model says about reviews that it is not trained on.
struct Evaluation {
    /// Mean cross entropy.
    loss: f64,
    /// Number of reviews by true class and class that the model gives.
    confusion: Array2<usize>,
}

impl Evaluation {
    fn accuracy(&self) -> f64 {
        self.confusion.diag().sum() as f64 / self.confusion.sum() as f64
    }
}

/// Classifies all reviews. Each one is in one batch of an epoch.
fn evaluate(trainer: &ModelTrainer<Cpu>, reviews: &Reviews) -> Result<Evaluation> {
    let mut batches = Batches::new(reviews.tokens.iter().map(Vec::len), 100, 0)?;
    let (mut loss, mut confusion) = (0.0, Array2::zeros((CLASSES.len(), CLASSES.len())));
    while batches.position().0 == 0 {
        let batch = batches.next_batch()?;
        let (tokens, classes) = (batch.tokens(&reviews.tokens)?, batch.select(&reviews.classes)?);
        let y = trainer.predict(ModelInput::from(&tokens).lengths(&batch.lengths))?.y;
        loss += cross_entropy(y.view(), &classes)?.0 * classes.len() as f64;
        let best = |row: ArrayView1<'_, f32>| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
        y.rows().into_iter().zip(classes).for_each(|(row, class)| confusion[[class, best(row)]] += 1);
    }
    Ok(Evaluation { loss: loss / reviews.classes.len() as f64, confusion })
}

fn main() -> Result<()> {
    let (training, test) = (Reviews::generate(1500, 1), Reviews::generate(1000, 2));
    let mut batches = Batches::new(training.tokens.iter().map(Vec::len), BATCH_SIZE, 3)?;
    let schedule = Schedule::cosine(0.01, EPOCHS * batches.batches_per_epoch() as u64, 1e-4);
    let config = TrainerConfig::new(OptimizerConfig::adam(), schedule).clip(Clip::Norm(1.0));
    let mut trainer = ModelTrainer::new(Model::new(&Cpu::new(), new_model()?)?, config)?;
    println!("The first review, of class \"{}\": {}", CLASSES[training.classes[0]], training.text(0));

    let (start, mut used, mut padded) = (Instant::now(), 0, 0);
    let (mut losses, mut test_losses) = (Vec::new(), Vec::new());
    let mut evaluation = evaluate(&trainer, &test)?;
    test_losses.push((0, evaluation.loss));
    for epoch in 0..EPOCHS {
        while batches.position().0 == epoch {
            let batch = batches.next_batch()?;
            let (tokens, classes) = (batch.tokens(&training.tokens)?, batch.select(&training.classes)?);
            let input = ModelInput::from(&tokens).lengths(&batch.lengths);
            let report = trainer.step(input, |out, shard| {
                let mean = cross_entropy(out.last()?, &classes[shard.rows.clone()])?;
                Ok::<_, lstm::Error>(part_of_mean(mean, shard.own_count, shard.count))
            })?;
            losses.push(report.loss);
            used += batch.lengths.iter().sum::<usize>();
            padded += tokens.len();
        }
        evaluation = evaluate(&trainer, &test)?;
        test_losses.push((trainer.steps(), evaluation.loss));
        let (loss, accuracy) = (evaluation.loss, 100.0 * evaluation.accuracy());
        println!("epoch {}: test loss {loss:.4}, accuracy {accuracy:.1} %", epoch + 1);
    }
    let padding = 100.0 * (padded - used) as f64 / padded as f64;
    println!("Trained in {:.1} s; {padding:.1} % of the time steps are padding.", start.elapsed().as_secs_f64());

    let mut digest = Digest::default();
    test_losses.iter().for_each(|&(_, loss)| digest.add(loss as f32));
    println!("Digest of the test losses: {digest}");
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file: PathBuf = package.parent().unwrap_or(package).join("target/text_classifier.svg");
    file.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(&file, chart::draw(&losses, &test_losses, &evaluation)?)?;
    println!("Chart: {}", file.display());
    let accuracy = evaluation.accuracy();
    if accuracy < 0.95 {
        return Err(format!("expected an accuracy of at least 95 %, got {:.1} %", 100.0 * accuracy).into());
    }
    Ok(())
}
