//! Checks of sigmoid and tanh on samples, and on all 2^32 inputs.

use anyhow::{Result, ensure};
use lstm_core::{Backend, MatrixShape, arithmetic, arithmetic::Digest};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{compare::check_same_slices, primitives::download};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The logistic function.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// All activation functions.
    pub const ALL: [Activation; 2] = [Activation::Sigmoid, Activation::Tanh];

    /// Name of the function in reports.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Sigmoid => "sigmoid",
            Activation::Tanh => "tanh",
        }
    }

    /// The value of the function for one input, computed as the specification defines it (`lstm_core::arithmetic`).
    pub fn specified_value(self, x: f32) -> f32 {
        match self {
            Activation::Sigmoid => arithmetic::sigmoid(x),
            Activation::Tanh => arithmetic::tanh(x),
        }
    }

    /// Applies the function to every value of `x` with the primitive of a backend.
    ///
    /// # Errors
    /// The backend returns an error.
    pub fn run<B: Backend>(self, b: &B, x: &[f32]) -> Result<Vec<f32>> {
        let x = b.upload(MatrixShape::new(1, x.len()), x)?;
        download(
            b,
            &match self {
                Activation::Sigmoid => b.sigmoid(x)?,
                Activation::Tanh => b.tanh(x)?,
            },
        )
    }

    /// The value of the mathematical function, computed in f64 with the standard library.
    fn exact_value(self, x: f64) -> f64 {
        match self {
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        }
    }

    /// The digest that the values of all 2^32 inputs must have, from the specification.
    fn digest(self) -> Digest {
        Digest(match self {
            Activation::Sigmoid => 0x614a_2369_3483_a476,
            Activation::Tanh => 0x871c_0ddb_32e7_df05,
        })
    }

    /// Whether the error limit of the function applies to the input `x`. It applies to all inputs except those of
    /// sigmoid at or below `-SIGMOID_MAX`, where sigmoid returns its smallest value.
    fn has_error_limit_at(self, x: f32) -> bool {
        self == Activation::Tanh || x > -arithmetic::SIGMOID_MAX
    }
}

/// Sample inputs: values with every exponent and sign (which includes zeros, subnormals, infinities and NaNs), the
/// neighbors of every value at which the formula changes, and 20,000 random values in [-16, 16).
pub fn samples() -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0xac7);
    let mut sample_bits = Vec::new();
    for sign_and_exponent in 0..512u32 {
        let mantissas = [0, 1, 2, 0x3f_ffff, 0x40_0000, 0x40_0001, 0x7f_fffe, 0x7f_ffff];
        sample_bits.extend(mantissas.map(|mantissa| sign_and_exponent << 23 | mantissa));
        sample_bits.extend((0..24).map(|_| sign_and_exponent << 23 | rng.next_u32() >> 9));
    }
    let boundaries = [arithmetic::SNAP_THRESHOLD_BITS, arithmetic::TANH_LINEAR_BITS]
        .into_iter()
        .chain([arithmetic::SIGMOID_MAX, arithmetic::TANH_MAX].map(f32::to_bits))
        // Values at which x / ln(2) rounds to the next integer.
        .chain((0..82).map(|n| ((n as f32 + 0.5) * std::f32::consts::LN_2).to_bits()));
    for boundary in boundaries {
        sample_bits.extend((boundary - 3..=boundary + 3).flat_map(|b| [b, b | 1 << 31]));
    }
    let random_values = (0..20_000).map(|_| ((rng.next_u32() >> 8) as f32 - 8_388_608.0) * 2f32.powi(-19));
    sample_bits.into_iter().map(f32::from_bits).chain(random_values).collect()
}

/// Checks that a backend is bit-identical to the specification on the samples.
///
/// # Errors
/// Some value differs, or the backend returns an error.
pub fn check_samples<B: Backend>(b: &B, activation: Activation) -> Result<()> {
    let x = samples();
    let want: Vec<f32> = x.iter().map(|&x| activation.specified_value(x)).collect();
    check_same_slices(activation.name(), &want, &activation.run(b, &x)?)
}

/// The error of `got` in units in the last place (ULP) of an f32 near `want`.
pub fn ulps(got: f32, want: f64) -> f64 {
    let exponent = ((want.abs().to_bits() >> 52) as i64 - 1023).max(-126);
    (f64::from(got) - want).abs() / f64::from_bits(((exponent - 23 + 1023) as u64) << 52)
}

/// Number of inputs in each call of the primitive when all inputs are checked.
const INPUTS_PER_CALL: u32 = 1 << 22;

/// The largest allowed error in ULP.
const MAX_ULPS: f64 = 2.0;

/// Checks all 2^32 inputs: NaN gives NaN and nothing else does, and the digest of all values is that of the
/// specification, so that the backend is bit-identical to all others. With `check_accuracy`, also checks that the
/// function is monotonic and that no error exceeds 2 ULP. Returns the digest and the largest error as text.
///
/// # Errors
/// An input violates one of the rules, or the digest differs.
pub fn check_all<B: Backend>(b: &B, activation: Activation, check_accuracy: bool) -> Result<String> {
    let name = activation.name();
    let mut digest = Digest::default();
    let (mut max_error, mut max_error_x) = (0.0, 0.0);
    let mut previous_point: Option<(f32, f32)> = None;
    for start in (0..=u32::MAX).step_by(INPUTS_PER_CALL as usize) {
        let x: Vec<f32> = (start..=start + (INPUTS_PER_CALL - 1)).map(f32::from_bits).collect();
        let y = activation.run(b, &x)?;
        for (&x, &y) in x.iter().zip(&y) {
            ensure!(x.is_nan() == y.is_nan(), "{name} of {:08x} ({x:e}) is {y:e}", x.to_bits());
            if x.is_nan() {
                continue;
            }
            digest.add(y);
            if !check_accuracy {
                continue;
            }
            // Among values of one sign, the bits ascend with the magnitude.
            if let Some((x0, y0)) = previous_point.filter(|(x0, _)| x0.is_sign_negative() == x.is_sign_negative()) {
                let is_monotonic = if x > x0 { y >= y0 } else { y <= y0 };
                ensure!(is_monotonic, "{name} is not monotonic: {y0:e} at {x0:e}, {y:e} at {x:e}");
            }
            previous_point = Some((x, y));
            let error = ulps(y, activation.exact_value(f64::from(x)));
            if activation.has_error_limit_at(x) && error > max_error {
                (max_error, max_error_x) = (error, x);
            }
        }
    }
    ensure!(digest == activation.digest(), "{name}: digest {digest}, expected {}", activation.digest());
    if !check_accuracy {
        return Ok(format!("{name}: digest {digest}"));
    }
    ensure!(max_error <= MAX_ULPS, "{name}: {max_error:.3} ULP at {max_error_x:e}");
    Ok(format!("{name}: digest {digest}, at most {max_error:.3} ULP, at {max_error_x:e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulps_counts_neighboring_floats() {
        assert_eq!(ulps(1.0 + f32::EPSILON, 1.0), 1.0);
        assert_eq!(ulps(1.0, 1.0), 0.0);
        assert_eq!(ulps(f32::from_bits(3), 0.0), 3.0);
    }

    #[test]
    fn specification_is_accurate_to_two_ulps_on_the_samples() {
        for activation in Activation::ALL {
            for x in samples().into_iter().filter(|x| !x.is_nan() && activation.has_error_limit_at(*x)) {
                let error = ulps(activation.specified_value(x), activation.exact_value(f64::from(x)));
                assert!(error <= MAX_ULPS, "{activation:?}({x:e}): {error} ULP");
            }
        }
    }
}
