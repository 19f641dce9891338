// The functions of `lstm_core::arithmetic`: the same operations in the same order, so that results are bit-identical.
// Needs `constants.cuh`.

DEVICE float from_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 to_bits(float v) { return __float_as_uint(v); }

DEVICE float snap(float v) { return (to_bits(v) & LSTM_MAGNITUDE_BITS) < LSTM_SNAP_BITS ? 0.0f : v; }

DEVICE float clip(float v, float bound) { return v > bound ? bound : v < -bound ? -bound : v; }

// min(|x|, bound); NaN for NaN.
DEVICE float clamped_magnitude(float x, float bound) {
    const float z = from_bits(to_bits(x) & LSTM_MAGNITUDE_BITS);
    return z > bound ? bound : z;
}

// exp(-z / scale) as s + s * m, with s a power of two. Returns the reduced argument r, from which m is computed. The
// other arguments are -log2(e) * scale and the two parts of -ln(2) / scale.
DEVICE float reduce_exp(float z, float log2, float high, float low, float &s) {
    const u32 t = to_bits(__fmaf_rn(z, log2, from_bits(LSTM_MAGIC)));
    const float n = __int2float_rn((int)(t - LSTM_MAGIC));
    s = from_bits((t << 23) + 0x3f800000u);
    return __fmaf_rn(n, low, __fmaf_rn(n, high, -z));
}

DEVICE float sigmoid(float x) {
    const float z = clamped_magnitude(x, from_bits(LSTM_SIGMOID_MAX));
    float s;
    const float r = reduce_exp(z, -from_bits(LSTM_LOG2_E), -from_bits(LSTM_LN2_HIGH), -from_bits(LSTM_LN2_LOW), s);
    float p = from_bits(LSTM_EXP_4);
    p = __fmaf_rn(p, r, from_bits(LSTM_EXP_3));
    p = __fmaf_rn(p, r, from_bits(LSTM_EXP_2));
    p = __fmaf_rn(p, r, from_bits(LSTM_EXP_1));
    p = __fmaf_rn(p, r, from_bits(LSTM_EXP_0));
    const float m = __fmaf_rn(__fmul_rn(r, r), p, r), e = __fmaf_rn(s, m, s);
    float y = from_bits(LSTM_SIGMOID_5);
    y = __fmaf_rn(y, e, from_bits(LSTM_SIGMOID_4));
    y = __fmaf_rn(y, e, from_bits(LSTM_SIGMOID_3));
    y = __fmaf_rn(y, e, from_bits(LSTM_SIGMOID_2));
    y = __fmaf_rn(y, e, from_bits(LSTM_SIGMOID_1));
    y = __fmaf_rn(y, e, from_bits(LSTM_SIGMOID_0));
    const float num = to_bits(x) > LSTM_MAGNITUDE_BITS ? e : 1.0f;
    const float t = from_bits(to_bits(__fmul_rn(num, y)) & LSTM_SPLIT_MASK);
    return __fmaf_rn(__fmaf_rn(-t, e, __fsub_rn(num, t)), y, t);
}

// The hyperbolic tangent. The name `tanh` belongs to CUDA.
DEVICE float lstm_tanh(float x) {
    const float z = clamped_magnitude(x, from_bits(LSTM_TANH_MAX));
    float s;
    const float r = reduce_exp(z, __fmul_rn(-2.0f, from_bits(LSTM_LOG2_E)), __fmul_rn(-0.5f, from_bits(LSTM_LN2_HIGH)),
                          __fmul_rn(-0.5f, from_bits(LSTM_LN2_LOW)), s);
    float p = from_bits(LSTM_EXP_TWICE_4);
    p = __fmaf_rn(p, r, from_bits(LSTM_EXP_TWICE_3));
    p = __fmaf_rn(p, r, from_bits(LSTM_EXP_TWICE_2));
    p = __fmaf_rn(p, r, from_bits(LSTM_EXP_TWICE_1));
    p = __fmaf_rn(p, r, from_bits(LSTM_EXP_TWICE_0));
    const float m = __fmaf_rn(__fmul_rn(r, r), p, r);
    const float q = __fmaf_rn(-s, m, __fmaf_rn(s, -0.5f, 0.5f));
    float y = from_bits(LSTM_TANH_5);
    y = __fmaf_rn(y, q, from_bits(LSTM_TANH_4));
    y = __fmaf_rn(y, q, from_bits(LSTM_TANH_3));
    y = __fmaf_rn(y, q, from_bits(LSTM_TANH_2));
    y = __fmaf_rn(y, q, from_bits(LSTM_TANH_1));
    y = __fmaf_rn(y, q, from_bits(LSTM_TANH_0));
    const float t = from_bits(to_bits(__fmul_rn(q, y)) & LSTM_SPLIT_MASK);
    y = __fmaf_rn(__fmaf_rn(t, q, __fsub_rn(q, t)), y, t);
    if ((to_bits(x) & LSTM_MAGNITUDE_BITS) < LSTM_TANH_LINEAR_BITS) return x;
    return from_bits((to_bits(y) & LSTM_MAGNITUDE_BITS) | (to_bits(x) & ~LSTM_MAGNITUDE_BITS));
}
