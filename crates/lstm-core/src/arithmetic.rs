//! The arithmetic, version [`VERSION`], as scalar functions: every device must return these results, bit for bit.
//!
//! `docs/specification.md` describes the same in words. All numbers are IEEE-754 binary32, rounded to nearest even. A
//! `mul_add` is a fused multiply-add. A change of any constant, order or formula is a new version.

/// Version of the arithmetic, that of `docs/specification.md`. Another version may give other bits.
pub const VERSION: u32 = 1;

/// Number of products in one partial sum of [`dot`].
pub const DOT_BLOCK: usize = 32;

/// Number of time steps per chunk. A backward pass computes the gradient of a weight matrix as a sum of matrix
/// products, one for each chunk of consecutive time steps.
pub const CHUNK_STEPS: usize = 32;

/// Bit pattern of the f32 2^-40. [`snap`] replaces numbers of smaller magnitude by +0.
pub const SNAP_THRESHOLD_BITS: u32 = 0x2b80_0000;

/// Bit mask that selects all bits of an f32 except its sign.
pub const MAGNITUDE_BITS: u32 = 0x7fff_ffff;

/// Bit mask that clears the low 4 bits of a product in [`sigmoid`] and [`tanh`]. The subtraction that follows is then
/// exact, and a compiler cannot fuse the two operations.
pub const CLEAR_LOW_BITS_MASK: u32 = 0xffff_fff0;

const fn f32_array_from_bits<const N: usize>(bits: [u32; N]) -> [f32; N] {
    let mut out = [0.0; N];
    let mut i = 0;
    while i < N {
        out[i] = f32::from_bits(bits[i]);
        i += 1;
    }
    out
}

/// The float `1.5 * 2^23`. Adding it to a number of magnitude below 2^22 rounds the number to an integer, which is then
/// in the low bits of the sum.
pub const ROUNDING_MAGIC: f32 = f32::from_bits(0x4b40_0000);
/// The base-2 logarithm of e.
pub const LOG2_E: f32 = f32::from_bits(0x3fb8_aa3b);
/// ln(2) rounded to f32. [`LN2_LOW`] is its rounding error.
pub const LN2_HIGH: f32 = f32::from_bits(0x3f31_7218);
/// The rounding error of [`LN2_HIGH`]: ln(2) minus [`LN2_HIGH`], rounded to f32.
pub const LN2_LOW: f32 = f32::from_bits(0xb102_e308);
/// Coefficients of a polynomial that approximates `(exp(r) - 1 - r) / r^2` on `|r| <= ln(2)/2`, lowest power first.
pub const EXP_POLYNOMIAL: [f32; 5] = f32_array_from_bits([0x3f000000, 0x3e2aaa2e, 0x3d2aaa24, 0x3c092ac3, 0x3ab6bb82]);
/// Coefficients, lowest power first, of a polynomial that approximates `1 / (1 + e)` on `0 <= e <= 1`. [`sigmoid`]
/// refines this approximation.
pub const SIGMOID_POLYNOMIAL: [f32; 6] =
    f32_array_from_bits([0x3f7ffc61, 0xbf7efc9e, 0x3f738c1c, 0xbf43a50a, 0x3ed1f390, 0xbdcf03e9]);
/// Coefficients, lowest power first, of a polynomial that approximates `1 / (1 - q)` on `0 <= q <= 1/2`. [`tanh`]
/// refines this approximation.
pub const TANH_POLYNOMIAL: [f32; 6] =
    f32_array_from_bits([0x3f7ffca8, 0x3f80ef0f, 0x3f55fbf4, 0x40131d37, 0xc055fbf4, 0x40d5fbf4]);
/// Coefficients of a polynomial that approximates `(exp(2r) - 1 - 2r) / (2 r^2)`: coefficient k is that of
/// [`EXP_POLYNOMIAL`] multiplied by `2^(k+1)`.
pub const EXP_2R_POLYNOMIAL: [f32; 5] = [
    EXP_POLYNOMIAL[0] * 2.0,
    EXP_POLYNOMIAL[1] * 4.0,
    EXP_POLYNOMIAL[2] * 8.0,
    EXP_POLYNOMIAL[3] * 16.0,
    EXP_POLYNOMIAL[4] * 32.0,
];
/// Largest magnitude of the argument of [`sigmoid`]. A larger argument is clamped to it.
pub const SIGMOID_MAX: f32 = 56.0;
/// Largest magnitude of the argument of [`tanh`]. A larger argument is clamped to it.
pub const TANH_MAX: f32 = 10.0;
/// Bit pattern of the f32 2^-12. For arguments of smaller magnitude, `tanh(x)` is `x`.
pub const TANH_LINEAR_BITS: u32 = 0x3980_0000;

/// Replaces small numbers by zero: returns +0 for `|v| < 2^-40`, else `v`. NaN stays NaN.
///
/// Weights, inputs and states are snapped before they are multiplied. Every product is then a multiple of 2^-126, so no
/// result is subnormal, and a device that flushes subnormals gives bit-identical results. Negative zero becomes +0.
pub fn snap(v: f32) -> f32 {
    if v.to_bits() & MAGNITUDE_BITS < SNAP_THRESHOLD_BITS { 0.0 } else { v }
}

/// The dot product, the sum over `k` of `a(k) * b(k)`, in a fixed order: each block of [`DOT_BLOCK`] products is summed
/// by `fma` with ascending `k`, starting at +0; then the sums of the blocks are added from left to right. An empty sum
/// is +0.
pub fn dot(len: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> f32 {
    let block_sum = |start: usize| (start..len.min(start + DOT_BLOCK)).fold(0.0, |s, k| a(k).mul_add(b(k), s));
    (DOT_BLOCK..len).step_by(DOT_BLOCK).fold(block_sum(0), |total, start| total + block_sum(start))
}

/// `v` limited to `[-bound, bound]`. NaN stays NaN.
pub fn clip(v: f32, bound: f32) -> f32 {
    if v > bound {
        bound
    } else if v < -bound {
        -bound
    } else {
        v
    }
}

/// Evaluates a polynomial by Horner's method.
fn horner<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    coefficients[..N - 1].iter().rev().fold(coefficients[N - 1], |sum, &c| sum.mul_add(x, c))
}

/// `min(|x|, bound)`. NaN stays NaN.
fn bounded_magnitude(x: f32, bound: f32) -> f32 {
    let z = f32::from_bits(x.to_bits() & MAGNITUDE_BITS);
    if z > bound { bound } else { z }
}

/// Range reduction of `exp(-z)`: returns `(s, r)` with `s` a power of two and `exp(-z) = s * exp(r)`. `minus_log2_e` is
/// `-log2(e)`; `minus_ln2_high` and `minus_ln2_low` are the two parts of `-ln(2)`. If a caller doubles `minus_log2_e`
/// and halves the two parts, as [`tanh`] does, the result satisfies `exp(-2z) = s * exp(2r)`.
fn reduce_range(z: f32, minus_log2_e: f32, minus_ln2_high: f32, minus_ln2_low: f32) -> (f32, f32) {
    let t = z.mul_add(minus_log2_e, ROUNDING_MAGIC);
    let n = (t.to_bits().wrapping_sub(ROUNDING_MAGIC.to_bits()) as i32) as f32;
    let s = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
    (s, n.mul_add(minus_ln2_low, n.mul_add(minus_ln2_high, -z)))
}

/// The logistic function `1 / (1 + exp(-x))`. Monotonic; the error is at most 1.508 ULP for x > -56.
pub fn sigmoid(x: f32) -> f32 {
    let z = bounded_magnitude(x, SIGMOID_MAX);
    let (s, r) = reduce_range(z, -LOG2_E, -LN2_HIGH, -LN2_LOW);
    let m = (r * r).mul_add(horner(&EXP_POLYNOMIAL, r), r);
    let e = s.mul_add(m, s);
    let numerator = if x.to_bits() > MAGNITUDE_BITS { e } else { 1.0 };
    let y0 = horner(&SIGMOID_POLYNOMIAL, e);
    let t0 = f32::from_bits((numerator * y0).to_bits() & CLEAR_LOW_BITS_MASK);
    let d = numerator - t0;
    (-t0).mul_add(e, d).mul_add(y0, t0)
}

/// The hyperbolic tangent. Monotonic and odd; the error is at most 1.906 ULP.
pub fn tanh(x: f32) -> f32 {
    let z = bounded_magnitude(x, TANH_MAX);
    let (s, r) = reduce_range(z, -2.0 * LOG2_E, -0.5 * LN2_HIGH, -0.5 * LN2_LOW);
    let m = (r * r).mul_add(horner(&EXP_2R_POLYNOMIAL, r), r);
    let h = s.mul_add(-0.5, 0.5);
    let q = (-s).mul_add(m, h);
    let y0 = horner(&TANH_POLYNOMIAL, q);
    let t0 = f32::from_bits((q * y0).to_bits() & CLEAR_LOW_BITS_MASK);
    let d = q - t0;
    let y = t0.mul_add(q, d).mul_add(y0, t0);
    if x.to_bits() & MAGNITUDE_BITS < TANH_LINEAR_BITS {
        return x;
    }
    f32::from_bits(y.to_bits() & MAGNITUDE_BITS | x.to_bits() & !MAGNITUDE_BITS)
}

/// `max(x, 0)` of the [snapped](snap) argument: +0 if `x < 2^-40`, else `x`. NaN stays NaN.
pub fn relu(x: f32) -> f32 {
    if snap(x) <= 0.0 { 0.0 } else { x }
}

/// `min(max(alpha * x + beta, 0), 1)` of the [snapped](snap) argument. NaN stays NaN.
///
/// It is computed as `clip(alpha * x + (beta - 0.5), 0.5) + 0.5`, with each operation rounded on its own.
pub fn hard_sigmoid(x: f32, alpha: f32, beta: f32) -> f32 {
    clip(alpha * snap(x) + (beta - 0.5), 0.5) + 0.5
}

/// A power of two that scales gradients: a backward pass multiplies the gradients that it receives by this factor, and
/// divides its results by it.
///
/// With this factor the largest gradient is near 1, so that [`snap`] sets only relatively small gradients to zero,
/// whatever the scale of the loss. All layers of a model use the same factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientScale(i32);

/// Bit pattern of the f32 2^-100. A backward pass replaces gradients of smaller magnitude by +0, both among those that
/// it receives and among those that it returns.
pub const FLUSH_THRESHOLD_BITS: u32 = 0x0d80_0000;

impl GradientScale {
    /// The factor that brings the largest finite magnitude of `values` into [1, 2); 1 if all are below 2^-100.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a f32>) -> Self {
        // A signed comparison, because vector instructions have no unsigned one.
        let zero_if_not_finite = |bits: i32| if bits < 0x7f80_0000 { bits } else { 0 };
        let largest_bits = values
            .into_iter()
            .fold(0, |most: i32, v| most.max(zero_if_not_finite((v.to_bits() & MAGNITUDE_BITS) as i32)));
        GradientScale(if largest_bits < FLUSH_THRESHOLD_BITS as i32 { 0 } else { 127 - (largest_bits >> 23) })
    }

    /// `v` times the factor; +0 for `|v| < 2^-100`.
    pub fn scale_value(self, v: f32) -> f32 {
        if v.to_bits() & MAGNITUDE_BITS < FLUSH_THRESHOLD_BITS { 0.0 } else { mul_power_of_two(v, self.0) }
    }

    /// `v` divided by the factor; +0 if the magnitude of the result is below 2^-100.
    pub fn unscale_value(self, v: f32) -> f32 {
        let v = mul_power_of_two(v, -self.0);
        if v.to_bits() & MAGNITUDE_BITS < FLUSH_THRESHOLD_BITS { 0.0 } else { v }
    }
}

/// `v * 2^exponent`, rounded once. If `2^exponent` is subnormal as an f32, the product is computed in f64.
fn mul_power_of_two(v: f32, exponent: i32) -> f32 {
    if exponent > -127 {
        return v * f32::from_bits(((127 + exponent) as u32) << 23);
    }
    (f64::from(v) * f64::from_bits(((1023 + exponent) as u64) << 52)) as f32
}

/// A 64-bit FNV-1a hash of the bits of f32 values, with one multiplication per value. Reports and the expected results
/// of tests contain it in place of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Default for Digest {
    fn default() -> Self {
        Digest(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Computes the digest of `values` in their order.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a f32>) -> Self {
        let mut digest = Digest::default();
        values.into_iter().for_each(|&v| digest.add(v));
        digest
    }

    /// Updates the digest with the next value.
    pub fn add(&mut self, value: f32) {
        self.0 = (self.0 ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_and_tanh_match_specified_values() {
        for (x, s, t) in [
            (0x3a83126f, 0x3f001062, 0x3a83126c),
            (0x3f000000, 0x3f1f597f, 0x3eec9a9e),
            (0xbf000000, 0x3ec14d03, 0xbeec9a9e),
            (0x3f800000, 0x3f3b26a8, 0x3f42f7d6),
            (0x40500000, 0x3f7671bf, 0x3f7f3b3c),
            (0xc0f00000, 0x3a10e859, 0xbf7ffff6),
            (0xc2700000, 0x1713f623, 0xbf800000),
            (0x80000000, 0x3f000000, 0x80000000),
        ] {
            let x = f32::from_bits(x);
            assert_eq!((sigmoid(x).to_bits(), tanh(x).to_bits()), (s, t), "at {x}");
        }
        assert!(sigmoid(f32::NAN).is_nan() && tanh(f32::NAN).is_nan() && snap(f32::NAN).is_nan());
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, f32::from_bits(0x1713_f623)));
    }

    #[test]
    fn dot_adds_blocks_left_to_right() {
        // 2^24 + 1 is not an f32, so the result depends on the order of the additions.
        let a = |k: usize| if k == 0 { 16_777_216.0 } else { 1.0 };
        assert_eq!(dot(DOT_BLOCK + 2, a, |_| 1.0), 16_777_218.0);
        assert_eq!(dot(DOT_BLOCK, a, |_| 1.0), 16_777_216.0);
        assert_eq!(dot(0, a, a).to_bits(), 0);
    }

    #[test]
    fn gradient_scale_brings_largest_value_into_one_to_two() {
        let tiny = f32::from_bits(FLUSH_THRESHOLD_BITS - 1);
        for (values, expected) in [
            (&[3.0, -5.0, 0.0][..], -1.25),
            (&[f32::MAX, 1.0], f32::from_bits(0x3fff_ffff)),
            (&[f32::NAN, f32::INFINITY, 0.75], 1.5),
            (&[f32::from_bits(FLUSH_THRESHOLD_BITS)], 1.0),
        ] {
            let scale = GradientScale::of(values);
            let largest = values.iter().copied().filter(|v| v.is_finite()).max_by(|a, b| a.abs().total_cmp(&b.abs()));
            let scaled = scale.scale_value(largest.unwrap());
            assert_eq!(scaled, expected);
            assert_eq!(scale.unscale_value(scaled), largest.unwrap());
        }
        assert_eq!(GradientScale::of(&[tiny, 0.0]), GradientScale::of(&[1.0]));
        assert_eq!(GradientScale::of(&[1.0]).scale_value(-tiny).to_bits(), 0);
        assert_eq!(GradientScale::of(&[2f32.powi(-90)]).unscale_value(-(2f32.powi(-11))).to_bits(), 0);
        assert!(GradientScale::of(&[4.0]).scale_value(f32::NAN).is_nan());
    }

    #[test]
    fn relu_and_hard_sigmoid_match_their_definitions() {
        let threshold = f32::from_bits(SNAP_THRESHOLD_BITS);
        for (x, want) in [(2.5, 2.5), (-2.5, 0.0), (-0.0, 0.0), (threshold / 2.0, 0.0), (threshold, threshold)] {
            assert_eq!(relu(x).to_bits(), f32::to_bits(want), "relu({x})");
        }
        assert_eq!((relu(f32::INFINITY), relu(f32::NEG_INFINITY)), (f32::INFINITY, 0.0));
        for (x, alpha, want) in [(0.0, 0.2, 0.5), (1.0, 0.2, 0.7), (-1.0, 0.2, 0.3), (3.0, 0.2, 1.0), (-9.0, 0.2, 0.0)]
        {
            assert!((hard_sigmoid(x, alpha, 0.5) - want).abs() < 1e-7, "hard_sigmoid({x})");
        }
        assert_eq!((hard_sigmoid(f32::INFINITY, 0.2, 0.5), hard_sigmoid(f32::MIN, 0.2, 0.5)), (1.0, 0.0));
        assert!(relu(f32::NAN).is_nan() && hard_sigmoid(f32::NAN, 0.2, 0.5).is_nan());
    }

    #[test]
    fn snap_and_clip_are_bit_exact() {
        assert_eq!(snap(-0.0).to_bits(), 0);
        assert_eq!(snap(f32::from_bits(SNAP_THRESHOLD_BITS - 1)).to_bits(), 0);
        assert_eq!(snap(-f32::from_bits(SNAP_THRESHOLD_BITS)), -f32::from_bits(SNAP_THRESHOLD_BITS));
        assert_eq!((clip(3.0, 2.0), clip(-3.0, 2.0), clip(1.0, 2.0)), (2.0, -2.0, 1.0));
        assert!(clip(f32::NAN, 2.0).is_nan());
    }
}
