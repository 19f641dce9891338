//! Loops that do nothing but fused multiply-adds or loads, once for each vector type, with the operations kept apart far
//! enough that neither latency nor the compiler is in the way.

/// The loops of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Loops {
    /// The instruction set.
    pub(super) name: &'static str,
    /// Independent multiply-adds on registers; returns how many flops they were.
    pub(super) peak: fn() -> f64,
    /// Multiply-adds of which each waits for the one before; returns how many there were.
    pub(super) chain: fn() -> f64,
    /// A loop over so many bytes, walked back and forth, one load to one multiply-add; `None` if there is not the memory.
    pub(super) reader: fn(usize) -> Option<Reader>,
}

/// Returns how many bytes it has read.
pub(super) type Reader = Box<dyn FnMut() -> f64>;

/// Rounds of one call of a loop on registers: some microseconds.
const ROUNDS: usize = 1000;

/// Bytes of one call of a reader at least, so that reading the clock does not matter.
const READ: usize = 1 << 20;

macro_rules! loops {
    ($module:ident, $name:literal, $vector:ty, $lanes:literal, $registers:literal, $splat:path, $fma:path $(, $feature:literal)?) => {
        mod $module {
            use std::hint::black_box;
            #[allow(unused_imports, reason = "plain Rust needs none of it")]
            #[cfg(target_arch = "aarch64")]
            use std::arch::aarch64::*;
            #[allow(unused_imports, reason = "plain Rust needs none of it")]
            #[cfg(target_arch = "x86_64")]
            use std::arch::x86_64::*;

            use super::{Loops, READ, ROUNDS, Reader};

            type V = $vector;
            const N: usize = $registers;

            $(#[target_feature(enable = $feature)])?
            fn registers(chain: bool) {
                // Towards 1, so that nothing overflows or becomes subnormal.
                let (a, b) = ($splat(black_box(0.5)), $splat(black_box(0.5)));
                let mut sums: [V; N] = [a; N];
                for _ in 0..ROUNDS {
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
                // SAFETY: `pick` hands this out only where the CPU has the instruction set; so below.
                #[allow(unused_unsafe, reason = "plain Rust needs no instruction set")]
                unsafe { fill(&mut data, vectors) };
                // An even number, so that each call begins where the one before ended.
                let passes = READ.div_ceil(bytes).next_multiple_of(2);
                Some(Box::new(move || {
                    // SAFETY: as above.
                    #[allow(unused_unsafe, reason = "plain Rust needs no instruction set")]
                    unsafe { read(&data, passes) };
                    (passes * data.len() * size_of::<V>()) as f64
                }))
            }

            fn run(chain: bool) -> f64 {
                // SAFETY: as above.
                #[allow(unused_unsafe, reason = "plain Rust needs no instruction set")]
                unsafe { registers(chain) };
                (ROUNDS * N) as f64
            }

            pub(super) const LOOPS: Loops = Loops {
                name: $name,
                peak: || run(false) * $lanes as f64 * 2.0,
                chain: || run(true),
                reader,
            };
        }
    };
}

// Registers: enough that as many multiply-adds are under way as units times latency (8 to 16), few enough to be registers.
#[cfg(target_arch = "x86_64")]
loops!(avx512, "AVX-512", __m512, 16, 24, _mm512_set1_ps, _mm512_fmadd_ps, "avx512f");
#[cfg(target_arch = "x86_64")]
loops!(avx2, "AVX2", __m256, 8, 12, _mm256_set1_ps, _mm256_fmadd_ps, "avx2,fma");
#[cfg(target_arch = "aarch64")]
loops!(neon, "NEON", float32x4_t, 4, 24, vdupq_n_f32, vfmaq, "neon");
#[cfg(not(target_arch = "aarch64"))]
loops!(plain, "plain", f32, 1, 8, std::convert::identity, f32::mul_add);

/// NEON's, with its operands in the order of the others.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn vfmaq(
    a: std::arch::aarch64::float32x4_t,
    b: std::arch::aarch64::float32x4_t,
    c: std::arch::aarch64::float32x4_t,
) -> std::arch::aarch64::float32x4_t {
    std::arch::aarch64::vfmaq_f32(c, a, b)
}

/// The loops of the widest vectors that this CPU has.
pub(super) fn pick() -> Loops {
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
