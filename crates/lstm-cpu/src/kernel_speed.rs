//! How fast the kernels are by themselves, beside the machine's peak, turn by turn. Says rather than tests:
//! `cargo test --release -p lstm-cpu --lib kernel_speed -- --ignored --nocapture`

use std::{arch::x86_64::__m512, hint::black_box, ptr::null_mut, time::Instant};

use lstm_core::{CellKind, arithmetic::BLOCK};

use crate::{
    Isa,
    buffer::Buffer,
    kernels::{Kernels, Strided, TileArgs},
    layer::GATES,
    pool::{Pool, Shared},
    simd::Simd,
    step::{Apart, CellArgs, SoloArgs},
};

/// Independent multiply-adds, or a chain of them; returns how many vectors there were.
///
/// # Safety
/// AVX-512 is there.
#[target_feature(enable = "avx512f")]
unsafe fn multiply_adds(chain: bool) -> f64 {
    const ROUNDS: usize = 10_000;
    // SAFETY: the caller's promise.
    unsafe {
        let half = __m512::splat(black_box(0.5));
        let mut sums = [half; 24];
        for _ in 0..ROUNDS {
            for k in 0..24 {
                let at = if chain { 0 } else { k };
                sums[at] = sums[at].fma(half, half);
            }
        }
        black_box(sums);
    }
    (24 * ROUNDS) as f64
}

/// Small values.
fn buffer(n: usize) -> Buffer {
    let mut out = Buffer::zeros("speed", &[n]).unwrap();
    out.as_mut_slice().iter_mut().enumerate().for_each(|(k, v)| *v = (k % 7) as f32 * 0.01);
    out
}

/// Seconds of each: the best and the median of many turns.
fn turns(all: &mut [(&str, &mut dyn FnMut() -> f64)]) -> Vec<(f64, f64)> {
    let mut times = vec![Vec::new(); all.len()];
    for _ in 0..60 {
        for ((_, run), times) in all.iter_mut().zip(&mut times) {
            let start = Instant::now();
            let operations = run();
            times.push(start.elapsed().as_secs_f64() / operations);
        }
    }
    let mut of = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        (times[0], times[times.len() / 2])
    };
    times.iter_mut().map(&mut of).collect()
}

/// Products of `rows` rows with `panels` panels, each `k` deep; returns how many vectors were multiplied and added.
fn tiles(kernels: &Kernels, rows: usize, k: usize, panels: usize, a: Strided, u: &Buffer, out: &mut Buffer) -> f64 {
    for p in 0..panels {
        // SAFETY: AVX-512 is there; the buffers are as long as the largest product below takes.
        unsafe {
            let panel = u.as_ptr().add(p * k * kernels.panel());
            kernels.rows(rows, TileArgs::new(k, a, panel, out.as_mut_ptr(), kernels.panel()));
        }
    }
    (rows * k * panels * 4) as f64
}

#[test]
#[ignore = "prints times"]
fn kernel_speed() {
    let Some(kernels) = Isa::Avx512.kernels() else {
        println!("not run: no AVX-512");
        return;
    };
    let (lanes, width) = (kernels.lanes, kernels.panel());
    let (u, a, mut outs) = (buffer(64 * 1024 * width), buffer(1024 * 1024), [(); 7].map(|()| buffer(64 * width)));
    let rows = |stride| Strided::rows(a.as_ptr(), stride);
    // A block of units of a thousand rows of gates' gradients, as the weights' gradients take them.
    let gradients = Strided { at: a.as_ptr(), row: 1, col: BLOCK, block: BLOCK * BLOCK };
    let [o0, o1, o2, o3, o4, o5, o6] = &mut outs;
    // SAFETY: as above.
    let peak = &mut || unsafe { multiply_adds(false) };
    let all: &mut [(&str, &mut dyn FnMut() -> f64)] = &mut [
        ("multiply-adds", peak),
        ("tiles, all in L1: 6 rows, depth 96", &mut || {
            (0..50).map(|_| tiles(kernels, 6, 96, 1, rows(96), &u, o0)).sum()
        }),
        ("tiles, a panel in L2: 64 rows, depth 1024", &mut || tiles(kernels, 64, 1024, 1, rows(1024), &u, o1)),
        ("tiles, panels in L3: 64 rows, depth 1024", &mut || tiles(kernels, 64, 1024, 64, rows(1024), &u, o2)),
        ("tiles, panels in L2: 32 rows, depth 256", &mut || tiles(kernels, 32, 256, 16, rows(256), &u, o3)),
        ("tiles, panels in L2: 8 rows, depth 256", &mut || tiles(kernels, 8, 256, 16, rows(256), &u, o4)),
        ("a row, panels in L2: depth 128, 131 kB", &mut || {
            (0..20).map(|_| tiles(kernels, 1, 128, 4, rows(128), &u, o6)).sum()
        }),
        ("tiles of gradients: 32 units, depth 1024", &mut || tiles(kernels, 32, 1024, 4, gradients, &u, o5)),
    ];
    let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
    let times = turns(all);
    println!("\nvectors multiplied and added: best and median speed, and the part of the peak's");
    for (name, (best, median)) in names.into_iter().zip(&times) {
        let rate = |seconds: f64| 32e-9 / seconds;
        let part = times[0].1 / median * 100.0;
        println!("{name:45} {:5.0} {:5.0} GFLOP/s {part:4.0} %", rate(*best), rate(*median));
    }

    let (x, bias, peephole) = (buffer(64 * width), buffer(4 * width), buffer(12 * lanes));
    let [mut c, mut h] = [(); 2].map(|()| buffer(64 * lanes));
    let (c, h) = (c.as_mut_ptr(), h.as_mut_ptr());
    let args = &CellArgs {
        count: 32,
        apart: Apart::rows(kernels, lanes, 0),
        x: x.as_ptr(),
        z: GATES.map(|gate| x.as_ptr().wrapping_add(gate * lanes)),
        bias: bias.as_ptr(),
        peephole: peephole.as_ptr(),
        c_old: c,
        c_new: c,
        h,
        y: null_mut(),
        units: 0,
        gates: null_mut(),
        cell: CellKind::Fused,
        coupled: false,
        clip: None,
    };
    let small = |units: usize, chained: bool| {
        let panels = units.div_ceil(lanes);
        for step in 0..100 {
            let (old, new) = (step % 2 * 4 * lanes, (step + 1) % 2 * 4 * lanes);
            // SAFETY: as above: up to four panels of one row.
            unsafe {
                let operand = if chained { h.add(old).cast_const() } else { x.as_ptr() };
                let (cell, u) =
                    (CellArgs { apart: Apart::panels(kernels, 0, 0, 0), h: h.add(new), ..*args }, u.as_ptr());
                let (n, input, w) = (1, x.as_ptr(), u);
                (kernels.solo[panels - 1])(&SoloArgs { k: units, operand, u, cell, n, input, w });
            }
        }
        100.0
    };
    let all: &mut [(&str, &mut dyn FnMut() -> f64)] = &mut [
        // SAFETY: as above.
        ("a multiply-add that waits for the one before", &mut || unsafe { multiply_adds(true) }),
        ("the gates of a row and panel, of 32 rows", &mut || {
            // SAFETY: as above.
            (0..100).for_each(|_| unsafe { (kernels.cell)(args) });
            3200.0
        }),
        ("a step of 16 units", &mut || small(16, true)),
        ("a step of 24 units", &mut || small(24, true)),
        ("a step of 24 units that waits for nothing", &mut || small(24, false)),
        ("a step of 64 units", &mut || small(64, true)),
    ];
    let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
    let times = turns(all);
    println!("\nlatency: best and median time, in multiply-adds that wait");
    for (name, (best, median)) in names.into_iter().zip(&times) {
        println!("{name:45} {:6.1} {:6.1} ns {:5.0}", best * 1e9, median * 1e9, median / times[0].1);
    }

    let pool = Pool::new(2).unwrap();
    let mut h = buffer(4 * 128);
    let (weights, h) = (Shared(u.as_ptr()), Shared(h.as_mut_ptr()));
    // What steps of hidden size 128 on two threads are made of: each writes half of `h`, and reads all of it or just its own.
    let together = |products: bool, exchange: bool| {
        const STEPS: usize = 1000;
        pool.run(2, &|member| {
            let mut z = [0.0f32; 64];
            for step in 0..STEPS {
                let own = if exchange { 0 } else { member.rank * 256 };
                // SAFETY: AVX-512 is there; what a thread writes the other reads after the barrier, if at all.
                unsafe {
                    let old = h.get().add(own + step % 2 * 128).cast_const();
                    for p in 4 * member.rank..4 * member.rank + 4 {
                        if products {
                            let panel = weights.get().add(p * 128 * width);
                            let args = TileArgs::new(128, Strided::rows(old, 128), panel, z.as_mut_ptr(), width);
                            kernels.rows(1, args);
                        } else {
                            (0..32).for_each(|k| z[k] = *old.add(p % 4 * 32 + k));
                        }
                    }
                    let new = h.get().add(own + (step + 1) % 2 * 128 + member.rank * 64);
                    (0..64).for_each(|k| *new.add(k) = 1e-3 * z[k]);
                }
                member.barrier();
            }
        });
        STEPS as f64
    };
    let all: &mut [(&str, &mut dyn FnMut() -> f64)] = &mut [
        ("a barrier of two threads", &mut || together(false, false)),
        ("and half of h from the other", &mut || together(false, true)),
        ("a barrier and products", &mut || together(true, false)),
        ("a barrier, products, and half of h", &mut || together(true, true)),
    ];
    let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
    println!("\na step of 128 units: best and median time");
    for (name, (best, median)) in names.into_iter().zip(turns(all)) {
        println!("{name:45} {:6.0} {:6.0} ns", best * 1e9, median * 1e9);
    }
}
