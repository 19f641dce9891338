// The adapter's own fma, used where the probe found that it rounds once.
fn FMA(a: f32, b: f32, c: f32) -> f32 { return fma(a, b, c); }
