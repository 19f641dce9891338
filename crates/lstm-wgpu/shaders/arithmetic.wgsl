// The arithmetic of docs/specification.md. `shader/source.rs` writes three things above this file: the constants and
// the polynomials of `lstm_core::arithmetic` (exp_poly, exp_twice_poly, sigmoid_poly, tanh_poly), and a definition of
// `FMA`. After this file come the kernel's parameters `p` (from `shader/parameters.rs`) and the kernel's own files.
// NaN is detected by its bits because a compiler may fold comparisons with NaN.

fn bits(x: f32) -> u32 { return bitcast<u32>(x); }

fn from_bits(x: u32) -> f32 { return bitcast<f32>(x); }

fn negate(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ SIGN_BIT); }

// Returns x if x is NaN, else `result`.
fn propagate_nan(x: f32, result: f32) -> f32 {
    return from_bits(select(bits(result), bits(x), (bits(x) & MAGNITUDE_BITS) > INFINITY_BITS));
}

// Returns +0 if |x| is below the snap threshold, else x.
fn snap(x: f32) -> f32 {
    return from_bits(select(bits(x), 0u, (bits(x) & MAGNITUDE_BITS) < SNAP_BITS));
}

// Clamps x to [-bound, bound]. NaN stays NaN.
fn clip(x: f32, bound: f32) -> f32 {
    let clipped = select(bits(bound) | (bits(x) & SIGN_BIT), bits(x), (bits(x) & MAGNITUDE_BITS) <= bits(bound));
    return propagate_nan(x, from_bits(clipped));
}

// Returns x if low < key < high or if `key` is NaN, else +0.
fn select_between(x: f32, key: f32, low: f32, high: f32) -> f32 {
    let nan = (bits(key) & MAGNITUDE_BITS) > INFINITY_BITS;
    return from_bits(select(0u, bits(x), nan || (key > low && key < high)));
}

// min(|x|, bound)
fn bounded_magnitude(x: f32, bound: f32) -> f32 {
    return from_bits(min(bits(x) & MAGNITUDE_BITS, bits(bound)));
}

// Result of a range reduction: a power of two, and the remainder, which is the polynomial's argument.
struct Reduced { power: f32, rest: f32 }

// Reduces exp(-k z) to power * exp(k * rest), given log2 = -k * log2(e) and high + low = -ln(2) / k.
fn reduce(z: f32, log2: f32, high: f32, low: f32) -> Reduced {
    let t = bits(FMA(z, log2, MAGIC));
    // n is taken from the bits because a compiler may fold `(x + MAGIC) - MAGIC`.
    let n = f32(bitcast<i32>(t - bits(MAGIC)));
    return Reduced(from_bits((t << 23u) + bits(1.0)), FMA(n, low, FMA(n, high, negate(z))));
}

fn sigmoid(x: f32) -> f32 {
    let s = reduce(bounded_magnitude(x, SIGMOID_MAX), -LOG2_E, -LN2_HIGH, -LN2_LOW);
    let m = FMA(s.rest * s.rest, exp_poly(s.rest), s.rest);
    let e = FMA(s.power, m, s.power);
    let num = select(1.0, e, (bits(x) & SIGN_BIT) != 0u);
    let y = sigmoid_poly(e);
    let t = from_bits(bits(num * y) & SPLIT_MASK);
    return propagate_nan(x, FMA(FMA(negate(t), e, num - t), y, t));
}

fn tanh_exact(x: f32) -> f32 {
    let s = reduce(bounded_magnitude(x, TANH_MAX), -2.0 * LOG2_E, -0.5 * LN2_HIGH, -0.5 * LN2_LOW);
    let m = FMA(s.rest * s.rest, exp_twice_poly(s.rest), s.rest);
    let q = FMA(negate(s.power), m, FMA(s.power, -0.5, 0.5));
    let y = tanh_poly(q);
    let t = from_bits(bits(q * y) & SPLIT_MASK);
    let r = bits(FMA(FMA(t, q, q - t), y, t)) | (bits(x) & SIGN_BIT);
    return propagate_nan(x, from_bits(select(r, bits(x), (bits(x) & MAGNITUDE_BITS) < TANH_LINEAR_BITS)));
}
