// The arithmetic of `lstm_core::arithmetic`, the same operations in the same order. `constants.cuh` comes before.

DEVICE float value(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 bits_of(float v) { return __float_as_uint(v); }

DEVICE float snap(float v) { return (bits_of(v) & LSTM_MAGNITUDE_BITS) < LSTM_SNAP_BITS ? 0.0f : v; }

DEVICE float clip(float v, float bound) { return v > bound ? bound : v < -bound ? -bound : v; }

// min(|x|, bound), letting NaN through.
DEVICE float magnitude(float x, float bound) {
    const float z = value(bits_of(x) & LSTM_MAGNITUDE_BITS);
    return z > bound ? bound : z;
}

// exp(-z / scale) as s + s * m, with s a power of two, given -log2(e) * scale and the parts of -ln(2) / scale.
DEVICE float split(float z, float log2, float high, float low, float &s) {
    const u32 t = bits_of(__fmaf_rn(z, log2, value(LSTM_MAGIC)));
    const float n = __int2float_rn((int)(t - LSTM_MAGIC));
    s = value((t << 23) + 0x3f800000u);
    return __fmaf_rn(n, low, __fmaf_rn(n, high, -z));
}

DEVICE float sigmoid(float x) {
    const float z = magnitude(x, value(LSTM_SIGMOID_MAX));
    float s;
    const float r = split(z, -value(LSTM_LOG2_E), -value(LSTM_LN2_HIGH), -value(LSTM_LN2_LOW), s);
    float p = value(LSTM_EXP_4);
    p = __fmaf_rn(p, r, value(LSTM_EXP_3));
    p = __fmaf_rn(p, r, value(LSTM_EXP_2));
    p = __fmaf_rn(p, r, value(LSTM_EXP_1));
    p = __fmaf_rn(p, r, value(LSTM_EXP_0));
    const float m = __fmaf_rn(__fmul_rn(r, r), p, r), e = __fmaf_rn(s, m, s);
    float y = value(LSTM_SIGMOID_5);
    y = __fmaf_rn(y, e, value(LSTM_SIGMOID_4));
    y = __fmaf_rn(y, e, value(LSTM_SIGMOID_3));
    y = __fmaf_rn(y, e, value(LSTM_SIGMOID_2));
    y = __fmaf_rn(y, e, value(LSTM_SIGMOID_1));
    y = __fmaf_rn(y, e, value(LSTM_SIGMOID_0));
    const float num = bits_of(x) > LSTM_MAGNITUDE_BITS ? e : 1.0f;
    const float t = value(bits_of(__fmul_rn(num, y)) & LSTM_SPLIT_MASK);
    return __fmaf_rn(__fmaf_rn(-t, e, __fsub_rn(num, t)), y, t);
}

// Called so because `tanh` is CUDA's.
DEVICE float tanh_of(float x) {
    const float z = magnitude(x, value(LSTM_TANH_MAX));
    float s;
    const float r = split(z, __fmul_rn(-2.0f, value(LSTM_LOG2_E)), __fmul_rn(-0.5f, value(LSTM_LN2_HIGH)),
                          __fmul_rn(-0.5f, value(LSTM_LN2_LOW)), s);
    float p = value(LSTM_EXP_TWICE_4);
    p = __fmaf_rn(p, r, value(LSTM_EXP_TWICE_3));
    p = __fmaf_rn(p, r, value(LSTM_EXP_TWICE_2));
    p = __fmaf_rn(p, r, value(LSTM_EXP_TWICE_1));
    p = __fmaf_rn(p, r, value(LSTM_EXP_TWICE_0));
    const float m = __fmaf_rn(__fmul_rn(r, r), p, r);
    const float q = __fmaf_rn(-s, m, __fmaf_rn(s, -0.5f, 0.5f));
    float y = value(LSTM_TANH_5);
    y = __fmaf_rn(y, q, value(LSTM_TANH_4));
    y = __fmaf_rn(y, q, value(LSTM_TANH_3));
    y = __fmaf_rn(y, q, value(LSTM_TANH_2));
    y = __fmaf_rn(y, q, value(LSTM_TANH_1));
    y = __fmaf_rn(y, q, value(LSTM_TANH_0));
    const float t = value(bits_of(__fmul_rn(q, y)) & LSTM_SPLIT_MASK);
    y = __fmaf_rn(__fmaf_rn(t, q, __fsub_rn(q, t)), y, t);
    if ((bits_of(x) & LSTM_MAGNITUDE_BITS) < LSTM_TANH_LINEAR_BITS) return x;
    return value((bits_of(y) & LSTM_MAGNITUDE_BITS) | (bits_of(x) & ~LSTM_MAGNITUDE_BITS));
}
