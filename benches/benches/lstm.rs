//! Criterion benchmarks of all cases on every backend in this build: `cargo bench -p lstm-benches`. Times include the
//! download of the outputs to the host.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lstm_benches::{backends, case};

fn all_cases(criterion: &mut Criterion) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cases = case::load(None).expect("the built-in table is valid");
    for info in backends::backends() {
        let uses_threads = backends::uses_threads(info);
        let mut counts = if uses_threads { vec![1, cores] } else { vec![1] };
        counts.dedup();
        for threads in counts {
            let device = match backends::open(info.name, threads) {
                Ok(device) => device,
                Err(why) => {
                    eprintln!("{}: not run: {why:#}", info.name);
                    continue;
                }
            };
            for case in &cases {
                let mut job = device
                    .prepare(case, lstm_core::Precision::F32)
                    .unwrap_or_else(|why| panic!("{}: {why:#}", case.name));
                let mut group = criterion.benchmark_group(&case.name);
                group.sample_size(20).throughput(Throughput::Elements(case.total_steps() as u64));
                let name =
                    if uses_threads { format!("{}, {threads} threads", info.name) } else { info.name.to_owned() };
                group.bench_function(name, |bencher| {
                    bencher.iter(|| job.run().unwrap_or_else(|why| panic!("{}: {why:#}", case.name)));
                });
            }
        }
    }
}

criterion_group!(benches, all_cases);
criterion_main!(benches);
