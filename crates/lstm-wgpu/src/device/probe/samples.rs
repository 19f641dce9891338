//! Inputs of the probe's checks.

/// Pseudorandom number generator. The probe does not use a library for this, so that its inputs do not change with the
/// version of the library.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next_bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// A random multiple of 2^-23, uniform in [-1, 1).
    pub(super) fn next_float(&mut self) -> f32 {
        (self.next_bits() >> 8) as f32 / 8_388_608.0 - 1.0
    }

    /// A normal float with random sign and significand. Its biased exponent is `exponent`, clamped to [1, 254].
    pub(super) fn float_with_exponent(&mut self, exponent: u32) -> f32 {
        f32::from_bits(self.next_bits() & 0x807f_ffff | exponent.clamp(1, 254) << 23)
    }
}

/// Operands of fma as consecutive triples: special values, operands of any size, sums that cancel, and sums near a tie,
/// whose result is wrong if it is rounded twice.
pub(super) fn fma_operands() -> Vec<f32> {
    let mut random = Random(99);
    let mut operand_triples =
        vec![f32::NAN, 1.0, 1.0, 1.0, 1.0, f32::NAN, 0.0, -1.0, 0.0, 0.0, -1.0, -0.0, 3.0, -0.0, 5.0];
    for k in 0..8192 {
        let (a_exponent, b_exponent) = (100 + random.next_bits() % 54, 100 + random.next_bits() % 54);
        let (mut a, mut b) = (random.float_with_exponent(a_exponent), random.float_with_exponent(b_exponent));
        let product_exponent = (a * b).to_bits() >> 23 & 0xff;
        let c = match k % 4 {
            0 => {
                let exponent = 60 + random.next_bits() % 130;
                random.float_with_exponent(exponent)
            }
            1 => -(a * b),
            2 => {
                // With q = 2^-n, the product a b is (1 - q^2) times a power of two. Added to a larger c, it is just off
                // a tie.
                let q = 2f32.powi(-(15 + (random.next_bits() % 3) as i32));
                let (u, v) = (random.next_bits() % 20, random.next_bits() % 20);
                let sign = if random.next_bits() & 1 == 1 { -1.0 } else { 1.0 };
                (a, b) = ((1.0 + q) * 2f32.powi(u as i32), (1.0 - q) * 2f32.powi(v as i32) * sign);
                random.float_with_exponent(127 + 24 + u + v)
            }
            _ => {
                let exponent = product_exponent.max(30) - 28 + random.next_bits() % 54;
                random.float_with_exponent(exponent)
            }
        };
        operand_triples.extend([a, b, c]);
    }
    operand_triples
}

/// Inputs of the activations: all exponents with both signs, and many values where the functions are not saturated.
pub(super) fn activation_inputs() -> Vec<f32> {
    let mut random = Random(11);
    let mut samples: Vec<f32> = Vec::new();
    for high in 0..512u32 {
        samples.extend([0, 1, 0x40_0000, 0x7f_ffff].map(|low| f32::from_bits(high << 23 | low)));
    }
    samples.extend((0..6000).map(|_| random.next_float() * 16.0));
    samples
}
