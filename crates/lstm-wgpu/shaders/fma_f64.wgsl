// fma emulated in f64. The product is exact. The sum is rounded to odd, so that rounding it again to f32 is correct.
// (Boldo & Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.)
fn FMA(a: f32, b: f32, c: f32) -> f32 {
    let p = f64(a) * f64(b);
    let z = f64(c);
    let s = p + z;
    let v = s - p;
    let error = (z - v) + (p - (s - v));
    var u = bitcast<u64>(s);
    let away_from_zero = (error > 0.0lf) == (s > 0.0lf);
    // If the sum is infinite, the error is NaN and the sum stays as it is.
    if ((error > 0.0lf || error < 0.0lf) && (u & 1lu) == 0lu) {
        u = select(u - 1lu, u + 1lu, away_from_zero);
    }
    return f32(bitcast<f64>(u));
}
