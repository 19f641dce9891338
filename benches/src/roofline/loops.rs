//! Microbenchmark loops of fused multiply-adds and loads, for each vector type. The throughput loops have enough independent
//! operations to hide latency, and `black_box` keeps the compiler from removing them.

/// The loops of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Loops {
    /// Name of the instruction set.
    pub(super) name: &'static str,
    /// Runs independent multiply-adds on registers and returns their number of flops.
    pub(super) throughput: fn() -> f64,
    /// Runs a chain of multiply-adds, each dependent on the one before, and returns their number.
    pub(super) latency: fn() -> f64,
    /// Creates a loop over a buffer of the given size in bytes, read alternately forward and backward, with one load per
    /// multiply-add. Returns `None` if memory allocation fails.
    pub(super) reader: fn(usize) -> Option<Reader>,
}

/// A loop that reads a buffer and returns the number of bytes read.
pub(super) type Reader = Box<dyn FnMut() -> f64>;

/// Iterations per call of a loop on registers, which takes some microseconds.
const ITERATIONS: usize = 1000;

/// Least number of bytes that one call of a reader reads, so that the cost of reading the clock is negligible.
const MIN_READ: usize = 1 << 20;

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

            use super::{Loops, MIN_READ, ITERATIONS, Reader};

            type V = $vector;
            const N: usize = $registers;

            $(#[target_feature(enable = $feature)])?
            fn registers(chain: bool) {
                // The values converge to 1, so nothing overflows or becomes subnormal.
                let (a, b) = ($splat(black_box(0.5)), $splat(black_box(0.5)));
                let mut sums: [V; N] = [a; N];
                for _ in 0..ITERATIONS {
                    if chain {
                        for _ in 0..N {
                            sums[0] = $fma(sums[0], a, b);
                        }
                    } else {
                        for sum in &mut sums {
                            *sum = $fma(*sum, a, b);
                        }
                    }
                }
                black_box(sums);
            }

            $(#[target_feature(enable = $feature)])?
            fn read(data: &[V], passes: usize) {
                let a = $splat(black_box(0.5));
                let mut sums: [V; N] = [a; N];
                let (whole, rest) = data.as_chunks::<N>();
                for pass in 0..passes {
                    let mut add = |chunk: &[V; N]| {
                        for k in 0..N {
                            sums[k] = $fma(chunk[k], a, sums[k]);
                        }
                    };
                    if pass % 2 == 0 { whole.iter().for_each(&mut add) } else { whole.iter().rev().for_each(&mut add) }
                    for v in rest {
                        sums[0] = $fma(*v, a, sums[0]);
                    }
                }
                black_box(sums);
            }

            $(#[target_feature(enable = $feature)])?
            fn fill(data: &mut Vec<V>, vectors: usize) {
                data.resize(vectors, $splat(0.25));
            }

            fn reader(bytes: usize) -> Option<Reader> {
                let vectors = (bytes / size_of::<V>()).max(N);
                let mut data: Vec<V> = Vec::new();
                data.try_reserve_exact(vectors).ok()?;
                // SAFETY: `select` returns these loops only if the CPU supports the instruction set.
                #[allow(unused_unsafe, reason = "portable Rust needs no instruction set")]
                unsafe { fill(&mut data, vectors) };
                // An even number, so that each call starts at the end where the previous call stopped.
                let passes = MIN_READ.div_ceil(bytes).next_multiple_of(2);
                Some(Box::new(move || {
                    // SAFETY: `select` returns these loops only if the CPU supports the instruction set.
                    #[allow(unused_unsafe, reason = "portable Rust needs no instruction set")]
                    unsafe { read(&data, passes) };
                    (passes * data.len() * size_of::<V>()) as f64
                }))
            }

            /// Runs multiply-adds of vectors in registers and returns the number of vector operations. If `chain`, each
            /// operation depends on the one before.
            fn run(chain: bool) -> f64 {
                // SAFETY: `select` returns these loops only if the CPU supports the instruction set.
                #[allow(unused_unsafe, reason = "portable Rust needs no instruction set")]
                unsafe { registers(chain) };
                (ITERATIONS * N) as f64
            }

            pub(super) const LOOPS: Loops = Loops {
                name: $name,
                throughput: || run(false) * $lanes as f64 * 2.0,
                latency: || run(true),
                reader,
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
pub(super) fn select() -> Loops {
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
