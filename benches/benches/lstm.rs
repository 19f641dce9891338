//! Criterion over the table: `cargo bench -p lstm-benches`.

use criterion::{Criterion, criterion_group, criterion_main};
use lstm_benches::cases;
use lstm_cpu::Cpu;

fn table(criterion: &mut Criterion) {
    for threads in [1, Cpu::new().threads()] {
        let cpu = Cpu::builder().threads(threads).build().expect("as many threads as the machine has");
        for case in cases() {
            let mut job = case.prepare(&cpu).expect("the CPU runs every case");
            let mut group = criterion.benchmark_group(&case.name);
            group.sample_size(20);
            group.bench_function(format!("cpu, {threads} threads"), |bencher| {
                bencher.iter(|| job.run().expect("the CPU runs every case"));
            });
        }
    }
}

criterion_group!(benches, table);
criterion_main!(benches);
