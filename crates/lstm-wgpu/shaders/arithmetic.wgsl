// The arithmetic of docs/specification.md. The constants and the polynomials (exp_poly, exp_twice_poly, sigmoid_poly,
// tanh_poly) are written above this file by `shader.rs`, from `lstm_core::arithmetic`; so is `FMA`, in one of three ways.
// Below it come a kernel's parameters, `p`, from `parameters.rs`, and its own files.
// NaN is told by bits: comparisons with NaN may be folded.

fn bits(x: f32) -> u32 { return bitcast<u32>(x); }

fn from_bits(x: u32) -> f32 { return bitcast<f32>(x); }

fn negated(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ SIGN_BIT); }

// `f` where x is a number, x where it is NaN.
fn unless_nan(x: f32, f: f32) -> f32 {
    return from_bits(select(bits(f), bits(x), (bits(x) & MAGNITUDE_BITS) > INFINITY_BITS));
}

fn snap(x: f32) -> f32 {
    return from_bits(select(bits(x), 0u, (bits(x) & MAGNITUDE_BITS) < SNAP_BITS));
}

fn clip(x: f32, bound: f32) -> f32 {
    let clipped = select(bits(bound) | (bits(x) & SIGN_BIT), bits(x), (bits(x) & MAGNITUDE_BITS) <= bits(bound));
    return unless_nan(x, from_bits(clipped));
}

// x where low < by < high, and where `by` is NaN; else +0.
fn within(x: f32, by: f32, low: f32, high: f32) -> f32 {
    let nan = (bits(by) & MAGNITUDE_BITS) > INFINITY_BITS;
    return from_bits(select(0u, bits(x), nan || (by > low && by < high)));
}

// The lesser of |x| and the bound.
fn magnitude(x: f32, bound: f32) -> f32 {
    return from_bits(min(bits(x) & MAGNITUDE_BITS, bits(bound)));
}

struct Split { power: f32, rest: f32 }

// exp(-z / scale) as `power + power * m`, where `m` comes from `rest`.
fn split(z: f32, log2: f32, high: f32, low: f32) -> Split {
    let t = bits(FMA(z, log2, MAGIC));
    // Taken from the bits: `(x + MAGIC) - MAGIC` may be folded.
    let n = f32(bitcast<i32>(t - bits(MAGIC)));
    return Split(from_bits((t << 23u) + bits(1.0)), FMA(n, low, FMA(n, high, negated(z))));
}

fn sigmoid(x: f32) -> f32 {
    let s = split(magnitude(x, SIGMOID_MAX), -LOG2_E, -LN2_HIGH, -LN2_LOW);
    let m = FMA(s.rest * s.rest, exp_poly(s.rest), s.rest);
    let e = FMA(s.power, m, s.power);
    let num = select(1.0, e, (bits(x) & SIGN_BIT) != 0u);
    let y = sigmoid_poly(e);
    let t = from_bits(bits(num * y) & SPLIT_MASK);
    return unless_nan(x, FMA(FMA(negated(t), e, num - t), y, t));
}

fn tanh_of(x: f32) -> f32 {
    let s = split(magnitude(x, TANH_MAX), -2.0 * LOG2_E, -0.5 * LN2_HIGH, -0.5 * LN2_LOW);
    let m = FMA(s.rest * s.rest, exp_twice_poly(s.rest), s.rest);
    let q = FMA(negated(s.power), m, FMA(s.power, -0.5, 0.5));
    let y = tanh_poly(q);
    let t = from_bits(bits(q * y) & SPLIT_MASK);
    let r = bits(FMA(FMA(t, q, q - t), y, t)) | (bits(x) & SIGN_BIT);
    return unless_nan(x, from_bits(select(r, bits(x), (bits(x) & MAGNITUDE_BITS) < TANH_LINEAR_BITS)));
}
