//! Broadcast views may have any number of elements. They are rejected before their elements are read.

use std::time::{Duration, Instant};

use lstm_cpu::{
    Checkpointing, Cpu, Error, Linear, Lstm, LstmConfig, Model, ModelLayer, ModelWeights, Result,
    ndarray::{Array2, Array3},
};

/// Checks that a call fails, and soon.
#[track_caller]
fn rejects<T>(call: impl FnOnce() -> Result<T>) {
    let start = Instant::now();
    let result = call().map(|_| ());
    assert!(matches!(&result, Err(Error::Shape { expected, .. }) if expected.contains("broadcast")), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn large_broadcast_views_are_rejected_at_once() {
    let b = Cpu::new();
    let one = Array3::<f32>::ones((1, 1, 1));
    let (steps, rows) = (one.broadcast((1, 1 << 30, 1)).unwrap(), one.broadcast((1 << 30, 1, 1)).unwrap());
    let lstm = Lstm::random(&b, LstmConfig::new(1, 1), 1).unwrap();
    let head = Linear::random(&b, 1, 1, 1).unwrap();

    let layer = ModelLayer::Lstm { name: "rec".into(), weights: lstm.weights().clone().into(), initial_state: None };
    let model = Model::new(&b, ModelWeights::new(vec![layer.clone()]).unwrap()).unwrap();
    for x in [steps, rows] {
        rejects(|| lstm.forward(x));
        rejects(|| lstm.forward_train(x, Checkpointing::SaveEverything));
        rejects(|| head.forward(x));
        rejects(|| model.forward(x));
    }
    rejects(|| lstm.stream(1).unwrap().chunk(steps));
    rejects(|| model.stream(1).unwrap().chunk(steps));
    let embedding = ModelLayer::Embedding { name: "emb".into(), weight: Array2::ones((3, 1)) };
    let model = Model::new(&b, ModelWeights::new(vec![embedding, layer]).unwrap()).unwrap();
    let token = Array2::<i64>::ones((1, 1));
    rejects(|| model.forward(token.broadcast((1, 1 << 30)).unwrap()));
    // A constant input of a usual size.
    assert_eq!(lstm.forward(one.broadcast((2, 100, 1)).unwrap()).unwrap().0.dim(), (2, 100, 1));
}
