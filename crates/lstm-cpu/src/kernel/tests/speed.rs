//! Measures the speed of single AVX-512 kernels in relation to the peak of the processor, and prints it:
//! `cargo test --release -p lstm-cpu --lib kernel::tests::speed -- --ignored --nocapture`

use std::{arch::x86_64::__m512, hint::black_box, ptr::null_mut, time::Instant};

use lstm_core::{CellKind, arithmetic::DOT_BLOCK};

use crate::{
    Isa,
    kernel::{
        cell::{CellArgs, CellStrides},
        simd::Simd,
        single_row::SingleRowArgs,
        strided::StridedMatrix,
        table::Kernels,
        tile::TileArgs,
    },
    layer::ALL_GATES,
    memory::buffer::Buffer,
    pool::{SyncPtr, ThreadPool},
};

/// A measurement: its name, and a function that runs the measured code once and returns its number of operations.
type Measurement<'a> = (&'a str, &'a mut dyn FnMut() -> f64);

/// Runs independent multiply-adds, or a chain of dependent ones if `dependent`. Returns their number.
///
/// # Safety
/// The processor supports AVX-512.
#[target_feature(enable = "avx512f")]
unsafe fn multiply_adds(dependent: bool) -> f64 {
    const ROUNDS: usize = 10_000;
    // SAFETY: guaranteed by the caller.
    unsafe {
        let half = __m512::splat(black_box(0.5));
        let mut sums = [half; 24];
        for _ in 0..ROUNDS {
            for k in 0..24 {
                let index = if dependent { 0 } else { k };
                sums[index] = sums[index].fma(half, half);
            }
        }
        black_box(sums);
    }
    (24 * ROUNDS) as f64
}

/// A buffer of `n` small values.
fn small_values(n: usize) -> Buffer {
    let mut out = Buffer::zeros("speed", &[n]).unwrap();
    out.as_mut_slice().iter_mut().enumerate().for_each(|(k, v)| *v = (k % 7) as f32 * 0.01);
    out
}

/// Minimum and median seconds per operation of each measurement. The measurements run alternately, many times, so that
/// changes of the clock frequency affect all alike.
fn measure(measurements: &mut [Measurement<'_>]) -> Vec<(f64, f64)> {
    let mut times = vec![Vec::new(); measurements.len()];
    for _ in 0..60 {
        for ((_, run), times) in measurements.iter_mut().zip(&mut times) {
            let start = Instant::now();
            let operations = run();
            times.push(start.elapsed().as_secs_f64() / operations);
        }
    }
    let min_and_median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        (times[0], times[times.len() / 2])
    };
    times.iter_mut().map(min_and_median).collect()
}

/// Multiplies `rows` rows of `k` elements by `panels` panels. Returns the number of vector multiply-adds.
fn run_tiles(
    kernels: &Kernels,
    rows: usize,
    k: usize,
    panels: usize,
    a: StridedMatrix,
    u: &Buffer,
    out: &mut Buffer,
) -> f64 {
    for p in 0..panels {
        // SAFETY: the processor supports AVX-512; the buffers are long enough for the largest product below.
        unsafe {
            let panel = u.as_ptr().add(p * k * kernels.panel_width());
            kernels.multiply_panel(rows, TileArgs::new(k, a, panel, out.as_mut_ptr(), kernels.panel_width()));
        }
    }
    (rows * k * panels * 4) as f64
}

#[test]
#[ignore = "a measurement, not a test"]
fn kernel_speed() {
    let Some(kernels) = Isa::Avx512.kernels() else {
        println!("not run: no AVX-512");
        return;
    };
    let (lanes, width) = (kernels.lanes, kernels.panel_width());
    let (u, a, mut outputs) =
        (small_values(64 * 1024 * width), small_values(1024 * 1024), [(); 7].map(|()| small_values(64 * width)));
    let row_major_a = |stride| StridedMatrix::row_major(a.as_ptr(), stride);
    // One block of units in a thousand rows of gate gradients, transposed, as in the products of the weight gradients.
    let gradients =
        StridedMatrix { ptr: a.as_ptr(), row_stride: 1, col_stride: DOT_BLOCK, block_stride: DOT_BLOCK * DOT_BLOCK };
    let [o0, o1, o2, o3, o4, o5, o6] = &mut outputs;
    // SAFETY: the processor supports AVX-512.
    let run_multiply_adds = &mut || unsafe { multiply_adds(false) };
    let measurements: &mut [Measurement<'_>] = &mut [
        ("multiply-adds", run_multiply_adds),
        ("tiles, all in L1: 6 rows, k 96", &mut || {
            (0..50).map(|_| run_tiles(kernels, 6, 96, 1, row_major_a(96), &u, o0)).sum()
        }),
        ("tiles, one panel in L2: 64 rows, k 1024", &mut || run_tiles(kernels, 64, 1024, 1, row_major_a(1024), &u, o1)),
        ("tiles, panels in L3: 64 rows, k 1024", &mut || run_tiles(kernels, 64, 1024, 64, row_major_a(1024), &u, o2)),
        ("tiles, panels in L2: 32 rows, k 256", &mut || run_tiles(kernels, 32, 256, 16, row_major_a(256), &u, o3)),
        ("tiles, panels in L2: 8 rows, k 256", &mut || run_tiles(kernels, 8, 256, 16, row_major_a(256), &u, o4)),
        ("one row, panels in L2: k 128, 131 kB", &mut || {
            (0..20).map(|_| run_tiles(kernels, 1, 128, 4, row_major_a(128), &u, o6)).sum()
        }),
        ("tiles of gate gradients: 32 units, k 1024", &mut || run_tiles(kernels, 32, 1024, 4, gradients, &u, o5)),
    ];
    let names: Vec<_> = measurements.iter().map(|(name, _)| *name).collect();
    let times = measure(measurements);
    println!("\nthroughput: best and median, and median in % of peak");
    for (name, (best, median)) in names.into_iter().zip(&times) {
        let gflop_per_s = |seconds: f64| 32e-9 / seconds;
        let percent_of_peak = times[0].1 / median * 100.0;
        println!("{name:45} {:5.0} {:5.0} GFLOP/s {percent_of_peak:4.0} %", gflop_per_s(*best), gflop_per_s(*median));
    }

    let (x, bias, peephole) = (small_values(64 * width), small_values(4 * width), small_values(12 * lanes));
    let [mut c, mut h] = [(); 2].map(|()| small_values(64 * lanes));
    let (c, h) = (c.as_mut_ptr(), h.as_mut_ptr());
    let args = &CellArgs {
        item_count: 32,
        strides: CellStrides::for_rows(kernels, lanes, 0),
        wx: x.as_ptr(),
        uh: ALL_GATES.map(|gate| x.as_ptr().wrapping_add(gate * lanes)),
        bias: bias.as_ptr(),
        peephole: peephole.as_ptr(),
        c_old: c,
        c_new: c,
        h,
        y: null_mut(),
        units: 0,
        gates: null_mut(),
        kind: CellKind::Fused,
        coupled: false,
        clip: None,
    };
    // A whole time step with the single-row kernel; if `dependent`, each step depends on the previous one.
    let run_small_steps = |units: usize, dependent: bool| {
        let panels = units.div_ceil(lanes);
        for step in 0..100 {
            let (old_offset, new_offset) = (step % 2 * 4 * lanes, (step + 1) % 2 * 4 * lanes);
            // SAFETY: the processor supports AVX-512; the buffers are long enough for four panels of one row.
            unsafe {
                let strides = CellStrides::for_panels(kernels, 0, 0, 0);
                (kernels.single_row_kernels[panels - 1])(&SingleRowArgs {
                    recurrent_operand: if dependent { h.add(old_offset).cast_const() } else { x.as_ptr() },
                    recurrent_operand_len: units,
                    u: u.as_ptr(),
                    cell_args: CellArgs { strides, h: h.add(new_offset), ..*args },
                    input: x.as_ptr(),
                    input_len: 1,
                    w: u.as_ptr(),
                });
            }
        }
        100.0
    };
    let measurements: &mut [Measurement<'_>] = &mut [
        // SAFETY: the processor supports AVX-512.
        ("a multiply-add in a dependent chain", &mut || unsafe { multiply_adds(true) }),
        ("the gates of one panel, per row of 32", &mut || {
            // SAFETY: the processor supports AVX-512; the buffers are long enough for 32 rows.
            (0..100).for_each(|_| unsafe { (kernels.cell_forward)(args) });
            3200.0
        }),
        ("a dependent step of 16 units", &mut || run_small_steps(16, true)),
        ("a dependent step of 24 units", &mut || run_small_steps(24, true)),
        ("an independent step of 24 units", &mut || run_small_steps(24, false)),
        ("a dependent step of 64 units", &mut || run_small_steps(64, true)),
    ];
    let names: Vec<_> = measurements.iter().map(|(name, _)| *name).collect();
    let times = measure(measurements);
    println!("\nlatency: best and median time, and median in latencies of a multiply-add");
    for (name, (best, median)) in names.into_iter().zip(&times) {
        println!("{name:45} {:6.1} {:6.1} ns {:5.0}", best * 1e9, median * 1e9, median / times[0].1);
    }

    let pool = ThreadPool::new(2, false).unwrap();
    let mut h = small_values(4 * 128);
    let (weights, h) = (SyncPtr(u.as_ptr()), SyncPtr(h.as_mut_ptr()));
    // The parts of a time step of 128 units on two threads. Each thread writes half of `h`. If `exchange_h`, it reads
    // all of `h`, else only its own half.
    let run_two_threads = |with_products: bool, exchange_h: bool| {
        const STEPS: usize = 1000;
        pool.run(2, &|member| {
            let mut sums = [0.0f32; 64];
            for step in 0..STEPS {
                let thread_offset = if exchange_h { 0 } else { member.rank * 256 };
                // SAFETY: the processor supports AVX-512. A thread reads what the other wrote only after the barrier.
                unsafe {
                    let h_old = h.get().add(thread_offset + step % 2 * 128).cast_const();
                    for p in 4 * member.rank..4 * member.rank + 4 {
                        if with_products {
                            let panel = weights.get().add(p * 128 * width);
                            let a = StridedMatrix::row_major(h_old, 128);
                            let args = TileArgs::new(128, a, panel, sums.as_mut_ptr(), width);
                            kernels.multiply_panel(1, args);
                        } else {
                            (0..32).for_each(|k| sums[k] = *h_old.add(p % 4 * 32 + k));
                        }
                    }
                    let h_new = h.get().add(thread_offset + (step + 1) % 2 * 128 + member.rank * 64);
                    (0..64).for_each(|k| *h_new.add(k) = 1e-3 * sums[k]);
                }
                member.barrier();
            }
        });
        STEPS as f64
    };
    let measurements: &mut [Measurement<'_>] = &mut [
        ("a barrier of two threads", &mut || run_two_threads(false, false)),
        ("a barrier, half of h from the other thread", &mut || run_two_threads(false, true)),
        ("a barrier and products", &mut || run_two_threads(true, false)),
        ("a barrier, products, half of h", &mut || run_two_threads(true, true)),
    ];
    let names: Vec<_> = measurements.iter().map(|(name, _)| *name).collect();
    println!("\ntime step of 128 units: best and median time");
    for (name, (best, median)) in names.into_iter().zip(measure(measurements)) {
        println!("{name:45} {:6.0} {:6.0} ns", best * 1e9, median * 1e9);
    }
}
