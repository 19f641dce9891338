//! Microbenchmark loops of fused multiply-adds and loads, for each vector type. The throughput loops have enough independent
//! operations to hide latency, and `black_box` keeps the compiler from removing them.

/// The loops of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Loops {
    /// Name of the instruction set.
    pub(super) name: &'static str,
    /// Runs independent multiply-adds on registers and returns the number of floating-point operations.
    pub(super) run_throughput_loop: fn() -> f64,
    /// Runs a chain of multiply-adds, each of which depends on the result of the previous one, and returns their number.
    pub(super) run_latency_loop: fn() -> f64,
    /// Creates a loop over a buffer of the given size in bytes, read alternately forward and backward, with one load per
    /// multiply-add. Returns `None` if memory allocation fails.
    pub(super) make_reader: fn(usize) -> Option<ReadLoop>,
}

/// A loop that reads a buffer and returns the number of bytes read.
pub(super) type ReadLoop = Box<dyn FnMut() -> f64>;

/// Number of iterations in each call of a loop on registers. A call takes some microseconds.
const ITERATIONS: usize = 1000;

/// Least number of bytes that one call of a reader reads, so that the cost of reading the clock is negligible.
const MIN_READ_BYTES: usize = 1 << 20;

macro_rules! loops {
    ($module:ident, $name:literal, $vector:ty, $lanes:literal, $registers:literal, $splat:path, $fma:path $(, $feature:literal)?) => {
        mod $module {
            use std::hint::black_box;
            #[allow(unused_imports, reason = "portable Rust needs no intrinsics")]
            #[cfg(target_arch = "aarch64")]
            use std::arch::aarch64::*;
            #[allow(unused_imports, reason = "portable Rust needs no intrinsics")]
            #[cfg(target_arch = "x86_64")]
            use std::arch::x86_64::*;

            use super::{Loops, MIN_READ_BYTES, ITERATIONS, ReadLoop};

            type V = $vector;
            const N: usize = $registers;

            $(#[target_feature(enable = $feature)])?
            fn run_on_registers(dependent: bool) {
                // The values converge to 1, so nothing overflows or becomes subnormal.
                let (a, b) = ($splat(black_box(0.5)), $splat(black_box(0.5)));
                let mut accumulators: [V; N] = [a; N];
                for _ in 0..ITERATIONS {
                    if dependent {
                        for _ in 0..N {
                            accumulators[0] = $fma(accumulators[0], a, b);
                        }
                    } else {
                        for sum in &mut accumulators {
                            *sum = $fma(*sum, a, b);
                        }
                    }
                }
                black_box(accumulators);
            }

            $(#[target_feature(enable = $feature)])?
            fn read_buffer(data: &[V], passes: usize) {
                let a = $splat(black_box(0.5));
                let mut accumulators: [V; N] = [a; N];
                let (chunks, remainder) = data.as_chunks::<N>();
                for pass in 0..passes {
                    let mut add_chunk = |chunk: &[V; N]| {
                        for k in 0..N {
                            accumulators[k] = $fma(chunk[k], a, accumulators[k]);
                        }
                    };
                    if pass % 2 == 0 { chunks.iter().for_each(&mut add_chunk) } else { chunks.iter().rev().for_each(&mut add_chunk) }
                    for v in remainder {
                        accumulators[0] = $fma(*v, a, accumulators[0]);
                    }
                }
                black_box(accumulators);
            }

            $(#[target_feature(enable = $feature)])?
            fn fill(data: &mut Vec<V>, vector_count: usize) {
                data.resize(vector_count, $splat(0.25));
            }

            fn make_reader(bytes: usize) -> Option<ReadLoop> {
                let vector_count = (bytes / size_of::<V>()).max(N);
                let mut data: Vec<V> = Vec::new();
                data.try_reserve_exact(vector_count).ok()?;
                // SAFETY: `select_loops` returns these loops only if the CPU supports the instruction set.
                #[allow(unused_unsafe, reason = "portable Rust needs no instruction set")]
                unsafe { fill(&mut data, vector_count) };
                // An even number, so that each call starts at the end where the previous call stopped.
                let passes = MIN_READ_BYTES.div_ceil(bytes).next_multiple_of(2);
                Some(Box::new(move || {
                    // SAFETY: `select_loops` returns these loops only if the CPU supports the instruction set.
                    #[allow(unused_unsafe, reason = "portable Rust needs no instruction set")]
                    unsafe { read_buffer(&data, passes) };
                    (passes * data.len() * size_of::<V>()) as f64
                }))
            }

            /// Runs multiply-adds of vectors in registers and returns the number of vector operations. If
            /// `dependent`, each operation depends on the result of the previous one.
            fn run(dependent: bool) -> f64 {
                // SAFETY: `select_loops` returns these loops only if the CPU supports the instruction set.
                #[allow(unused_unsafe, reason = "portable Rust needs no instruction set")]
                unsafe { run_on_registers(dependent) };
                (ITERATIONS * N) as f64
            }

            pub(super) const LOOPS: Loops = Loops {
                name: $name,
                run_throughput_loop: || run(false) * $lanes as f64 * 2.0,
                run_latency_loop: || run(true),
                make_reader,
            };
        }
    };
}

// Number of accumulators: at least FMA units times FMA latency (8 to 16), and few enough to stay in registers.
#[cfg(target_arch = "x86_64")]
loops!(avx512, "AVX-512", __m512, 16, 24, _mm512_set1_ps, _mm512_fmadd_ps, "avx512f");
#[cfg(target_arch = "x86_64")]
loops!(avx2, "AVX2", __m256, 8, 12, _mm256_set1_ps, _mm256_fmadd_ps, "avx2,fma");
#[cfg(target_arch = "aarch64")]
loops!(neon, "NEON", float32x4_t, 4, 24, vdupq_n_f32, vfmaq, "neon");
#[cfg(not(target_arch = "aarch64"))]
loops!(plain, "plain", f32, 1, 8, std::convert::identity, f32::mul_add);

/// `a * b + c` with NEON. The operands have the order of the intrinsics of the other instruction sets; NEON's
/// `vfmaq_f32` takes `c` first.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn vfmaq(
    a: std::arch::aarch64::float32x4_t,
    b: std::arch::aarch64::float32x4_t,
    c: std::arch::aarch64::float32x4_t,
) -> std::arch::aarch64::float32x4_t {
    std::arch::aarch64::vfmaq_f32(c, a, b)
}

/// Loops for the widest vectors that this CPU supports.
pub(super) fn select_loops() -> Loops {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return avx512::LOOPS;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return avx2::LOOPS;
        }
    }
    #[cfg(target_arch = "aarch64")]
    return neon::LOOPS;
    #[cfg(not(target_arch = "aarch64"))]
    plain::LOOPS
}

/// A loop of dot products of integers on registers, which returns the number of operations, two for each product.
#[cfg(target_arch = "x86_64")]
macro_rules! integer_loop {
    ($name:ident, $vector:ty, $products:literal, $splat:path, $dot:path, $xor:path, $feature:literal) => {
        fn $name() -> f64 {
            use std::arch::x86_64::*;
            const N: usize = 16;
            #[target_feature(enable = $feature)]
            fn run_on_registers() {
                use std::hint::black_box;
                let (a, b) = ($splat(black_box(3)), $splat(black_box(5)));
                let mut sums: [$vector; N] = [a; N];
                for _ in 0..ITERATIONS {
                    for sum in &mut sums {
                        *sum = $dot(*sum, a, b);
                    }
                }
                let all = sums.into_iter().reduce(|x, y| $xor(x, y));
                black_box(all);
            }
            // SAFETY: `select_int8_loop` and `select_int16_loop` return this loop only if the CPU supports the
            // instruction set.
            unsafe { run_on_registers() };
            (ITERATIONS * N * $products * 2) as f64
        }
    };
}

#[cfg(target_arch = "x86_64")]
integer_loop!(avx512_int8, __m512i, 64, _mm512_set1_epi8, _mm512_dpbusd_epi32, _mm512_xor_si512, "avx512f,avx512vnni");
#[cfg(target_arch = "x86_64")]
integer_loop!(
    avx512_int16,
    __m512i,
    32,
    _mm512_set1_epi16,
    _mm512_dpwssd_epi32,
    _mm512_xor_si512,
    "avx512f,avx512vnni"
);

/// The loop for dot products of 8-bit integers on this CPU; `None` without AVX-512 VNNI.
pub(super) fn select_int8_loop() -> Option<fn() -> f64> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        return Some(avx512_int8);
    }
    None
}

/// The loop for dot products of 16-bit integers on this CPU; `None` without AVX-512 VNNI.
pub(super) fn select_int16_loop() -> Option<fn() -> f64> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        return Some(avx512_int16);
    }
    None
}
