//! Models can be shared between threads, and their futures can move between threads.

use lstm_cpu::{Cpu, Lstm, LstmConfig, Stream, ndarray::Array3};

fn is_send<T: Send>(_: &T) {}

#[test]
fn models_and_futures_are_send() {
    fn shared<T: Send + Sync>() {}
    shared::<Lstm<Cpu>>();
    shared::<Stream<Cpu>>();
    let lstm = Lstm::random(&Cpu::new(), LstmConfig::new(2, 3), 1).unwrap();
    let x = Array3::<f32>::zeros((1, 2, 2));
    is_send(&lstm.forward_async(&x));
    let (mut stream, mut y) = (lstm.stream(1).unwrap(), [0.0; 3]);
    is_send(&stream.step_async(&[0.0; 2], &mut y));
}

#[test]
fn concurrent_calls_are_bit_identical() {
    let cpu = Cpu::builder().threads(2).build().unwrap();
    // Large enough to use several threads of the pool.
    let models = [LstmConfig::new(40, 200), LstmConfig::new(40, 200).bidirectional()];
    let x = Array3::from_shape_fn((6, 20, 40), |(b, t, i)| ((b * 31 + t * 17 + i * 7) % 23) as f32 / 11.5 - 1.0);
    for config in models {
        let lstm = Lstm::random(&cpu, config, 7).unwrap();
        let want = lstm.forward(&x).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| assert!(lstm.forward(&x).unwrap() == want)));
            }
        });
    }
}
