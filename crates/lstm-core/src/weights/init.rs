//! Initialization of parameters from a seed: uniform (PyTorch's default), Xavier, orthogonal.
//!
//! A seed gives bit-identical parameters on every machine and in every version. The generator is ChaCha8. Its output is
//! converted to floats by the formulas in this module, because the distributions of a library may change between
//! versions. One generator fills the layers in the order of [`LstmConfig::layer_specs`], the parameters of a layer in
//! the order of [`LayerSpec::params`](crate::LayerSpec::params), and the elements of a parameter in row-major order.

use ndarray::{Array2, ArrayD, Ix2, IxDyn};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    config::{Bias, LstmConfig, Param, Precision},
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    weights::{LayerWeights, Weights},
};

/// The distribution of initial parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InitKind {
    /// `U(-k, k)` with `k = 1 / sqrt(hidden_size)` for every parameter, including biases, as in `torch.nn.LSTM`.
    #[default]
    Uniform,
    /// `U(-k, k)` with `k = sqrt(6 / (rows + columns))` for each matrix, in the shape of [`LayerSpec::params`] (Glorot
    /// & Bengio 2010; `torch.nn.init.xavier_uniform_`). Biases and diagonal peepholes are 0.
    ///
    /// [`LayerSpec::params`]: crate::LayerSpec::params
    Xavier,
    /// Recurrent weights with orthonormal columns (Saxe et al. 2013; `torch.nn.init.orthogonal_`). All other parameters
    /// are initialized as by [`Xavier`](InitKind::Xavier).
    Orthogonal,
}

/// Options of [`Weights::init`]. [`Init::default`] is [`InitKind::Uniform`] without a forget bias.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct Init {
    /// Distribution of the parameters.
    pub kind: InitKind,
    /// Initial bias of the forget gate; with `None`, it is initialized like the other biases. 1 is a common choice
    /// (Jozefowicz et al. 2015). With two bias vectors, the first gets this value and the second gets 0.
    pub forget_bias: Option<f32>,
}

impl Init {
    /// Options with the given distribution and without a forget bias.
    pub fn new(kind: InitKind) -> Self {
        Init { kind, forget_bias: None }
    }

    /// Sets the initial bias of the forget gate.
    pub fn forget_bias(self, value: f32) -> Self {
        Init { forget_bias: Some(value), ..self }
    }
}

impl Weights {
    /// Initializes the parameters of a model from a seed. A seed gives bit-identical parameters on every machine.
    ///
    /// ```
    /// use lstm_core::{Init, InitKind, LstmConfig, Weights};
    /// let init = Init::new(InitKind::Orthogonal).forget_bias(1.0);
    /// let weights = Weights::init(LstmConfig::new(3, 5), &init, 42)?;
    /// assert_eq!(weights, Weights::init(LstmConfig::new(3, 5), &init, 42)?);
    /// assert_eq!(weights.layers()[0].bias()?.map(|b| b[5]), Some(1.0));
    /// # Ok::<(), lstm_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](LstmConfig::validate), or if a forget bias is given that
    /// is not finite, or for a model without biases or with coupled gates.
    pub fn init(config: LstmConfig, init: &Init, seed: u64) -> Result<Weights> {
        config.validate()?;
        if let Some(value) = init.forget_bias {
            let expected = match config.bias {
                _ if !value.is_finite() => Some("a finite value"),
                Bias::None => Some("none for a model without biases"),
                _ if config.coupled => Some("none for coupled gates, whose forget gate 1 - i has no bias"),
                _ => None,
            };
            if let Some(expected) = expected {
                return Err(Error::config("forget_bias", format!("expected {expected}, got {value}")));
            }
        }
        let _environment = FloatEnvironment::set_default();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let precision = config.precision;
        let config = config.precision(Precision::F32);
        let layers = config.layer_specs().into_iter().map(|spec| {
            let hidden = spec.hidden_size;
            let draw_values = |(param, shape): (Param, Vec<usize>)| {
                let mut value = draw_param(init.kind, param, &shape, hidden, &mut rng)?;
                let forget_bias = match param {
                    Param::Bias | Param::BiasIh => init.forget_bias,
                    Param::BiasHh => init.forget_bias.map(|_| 0.0),
                    _ => None,
                };
                if let Some(bias) = forget_bias {
                    value.iter_mut().skip(hidden).take(hidden).for_each(|v| *v = bias);
                }
                Ok(value)
            };
            let values = spec.params().into_iter().map(draw_values).collect::<Result<_>>()?;
            LayerWeights::new(spec, values)
        });
        let layers = layers.collect::<Result<_>>()?;
        let weights = Weights::new(config, layers)?;
        if precision == Precision::F32 { Ok(weights) } else { weights.quantize(precision) }
    }
}

/// The operation that errors name.
const OP: &str = "Weights::init";

/// Draws one parameter of the given shape.
fn draw_param(
    kind: InitKind,
    param: Param,
    shape: &[usize],
    hidden: usize,
    rng: &mut ChaCha8Rng,
) -> Result<ArrayD<f32>> {
    let mut draw_uniform = |squared_bound: f64| {
        let uniform = SymmetricUniform::with_squared_bound(squared_bound);
        let mut value = memory::zero_array(OP, IxDyn(shape))?;
        value.iter_mut().for_each(|v| *v = uniform.sample(rng));
        Ok(value)
    };
    match (kind, param, shape) {
        (InitKind::Uniform, ..) => draw_uniform(1.0 / hidden as f64),
        (InitKind::Orthogonal, Param::WeightHh, &[rows, cols]) => {
            random_orthonormal(rows, cols, rng).map(Array2::into_dyn)
        }
        (_, _, &[rows, cols]) => draw_uniform(6.0 / (rows + cols) as f64),
        _ => memory::zero_array(OP, IxDyn(shape)),
    }
}

/// The uniform distribution on `[-bound, bound)`, with 2^24 possible values: `((n - 2^23) / 2^23) * bound`, where `n`
/// is the high 24 bits of a 32-bit random number. The quotient is exact. The product is rounded once and is always less
/// than `bound`.
pub(crate) struct SymmetricUniform {
    bound: f32,
}

impl SymmetricUniform {
    /// The distribution with the bound `sqrt(squared_bound)`, rounded to f32.
    pub(crate) fn with_squared_bound(squared_bound: f64) -> Self {
        SymmetricUniform { bound: libm::sqrt(squared_bound) as f32 }
    }

    /// Draws one value.
    pub(crate) fn sample(&self, rng: &mut impl RngCore) -> f32 {
        const TWO_POW_23: i32 = 1 << 23;
        let n = (rng.next_u32() >> 8) as i32 - TWO_POW_23;
        n as f32 / TWO_POW_23 as f32 * self.bound
    }
}

/// Draws from the standard normal distribution, by the cosine half of the Box-Muller transform:
/// `sqrt(-2 * ln((a + 1) / 2^53)) * cos(2 * pi * b / 2^53)`, where `a` and `b` are the high 53 bits of two 64-bit
/// random numbers. Logarithm and cosine are those of the `libm` crate.
fn sample_standard_normal(rng: &mut impl RngCore) -> f64 {
    const TWO_POW_MINUS_53: f64 = 1.0 / (1u64 << 53) as f64;
    let uniform_radius = ((rng.next_u64() >> 11) + 1) as f64 * TWO_POW_MINUS_53;
    let uniform_angle = (rng.next_u64() >> 11) as f64 * TWO_POW_MINUS_53;
    libm::sqrt(-2.0 * libm::log(uniform_radius)) * libm::cos(2.0 * std::f64::consts::PI * uniform_angle)
}

/// Draws a matrix with orthonormal columns, uniformly among all such matrices; `rows >= cols`. Normally distributed
/// columns are orthogonalized one after the other by the modified Gram-Schmidt process. The diagonal of R in this QR
/// decomposition is positive.
fn random_orthonormal(rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> Result<Array2<f32>> {
    // The columns one after the other. The random numbers are drawn row by row.
    let mut columns = memory::filled(OP, &[cols, rows], 0.0)?;
    (0..rows).for_each(|r| columns.iter_mut().skip(r).step_by(rows).for_each(|v| *v = sample_standard_normal(rng)));
    for k in 0..cols {
        let (earlier_columns, remaining_columns) = columns.split_at_mut(k * rows);
        let column = &mut remaining_columns[..rows];
        // A second pass removes the rounding errors of the first.
        for other in earlier_columns.chunks_exact(rows).chain(earlier_columns.chunks_exact(rows)) {
            let projection = dot(other, column);
            column.iter_mut().zip(other).for_each(|(v, o)| *v -= projection * o);
        }
        let norm = libm::sqrt(dot(column, column));
        column.iter_mut().for_each(|v| *v /= norm);
    }
    let mut matrix = memory::zero_array(OP, Ix2(rows, cols))?;
    matrix.indexed_iter_mut().for_each(|((r, c), v)| *v = columns[c * rows + r] as f32);
    Ok(matrix)
}

/// Dot product with eight partial sums, which are added at the end. The order of additions is fixed, and SIMD
/// instructions can compute it.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut partial_sums = [0.0; 8];
    let ((a, a_remainder), (b, b_remainder)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for k in 0..8 {
            partial_sums[k] += a[k] * b[k];
        }
    }
    for ((sum, a), b) in partial_sums.iter_mut().zip(a_remainder).zip(b_remainder) {
        *sum += a * b;
    }
    partial_sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CellKind;

    fn values(weights: &Weights, layer: usize, param: Param) -> Vec<f32> {
        weights.layers()[layer].get(param).unwrap().iter().copied().collect()
    }

    fn init(kind: InitKind, config: LstmConfig, seed: u64) -> Weights {
        Weights::init(config, &Init::new(kind), seed).unwrap()
    }

    #[test]
    fn parameters_for_a_seed_are_unchanged() {
        for (kind, ih, hh) in [
            (InitKind::Uniform, [0xbe7c_b66f, 0x3e26_98f5, 0xbea1_efb0], [0x3c39_f5aa, 0x3e1f_9968, 0x3ea6_6677]),
            (InitKind::Xavier, [0xbe90_4f21, 0x3e3e_448b, 0xbeb8_f1bb], [0x3c4b_b564, 0x3e2e_d50b, 0x3eb6_4847]),
            (InitKind::Orthogonal, [0xbe90_4f21, 0x3e3e_448b, 0xbeb8_f1bb], [0x3e15_e6a3, 0x3d50_f9cd, 0xbddc_2fb4]),
        ] {
            let weights = init(kind, LstmConfig::new(3, 5), 42);
            let first_bits = |param| values(&weights, 0, param).iter().take(3).map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                (first_bits(Param::WeightIh), first_bits(Param::WeightHh)),
                (ih.to_vec(), hh.to_vec()),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn one_generator_fills_all_parameters_in_order() {
        let config = LstmConfig::new(3, 4).layers(2).bidirectional().proj_size(2).cell(CellKind::PeepholeDiagonal);
        let weights = init(InitKind::Uniform, config, 7);
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for value in weights.layers().iter().flat_map(|l| l.iter()).flat_map(|(_, v)| v.iter()) {
            let n = i64::from(rng.next_u32() >> 8) - (1 << 23);
            assert_eq!(*value, (n as f64 / f64::from(1 << 23) * 0.5) as f32);
        }
        assert_ne!(weights, init(InitKind::Uniform, weights.config().clone(), 8));
    }

    #[test]
    fn uniform_and_xavier_values_cover_their_range() {
        let config = LstmConfig::new(40, 64).proj_size(16).cell(CellKind::PeepholeDiagonal);
        for kind in [InitKind::Uniform, InitKind::Xavier] {
            let weights = init(kind, config.clone(), 1);
            for (param, value) in weights.layers()[0].iter() {
                let bound = match (kind, value.shape()) {
                    (InitKind::Uniform, _) => 0.125,
                    (_, &[rows, cols]) => (6.0 / (rows + cols) as f64).sqrt() as f32,
                    _ => 0.0,
                };
                let (low, high) = value.iter().fold((0.0f32, 0.0f32), |(l, h), v| (l.min(*v), h.max(*v)));
                assert!(-bound <= low && (high < bound || bound == 0.0), "{kind:?} {param:?}");
                assert!(low <= -0.9 * bound && high >= 0.9 * bound, "{kind:?} {param:?}: {low} to {high}");
            }
        }
        struct ConstantRng(u32);
        impl RngCore for ConstantRng {
            fn next_u32(&mut self) -> u32 {
                self.0
            }
            fn next_u64(&mut self) -> u64 {
                0
            }
            fn fill_bytes(&mut self, _: &mut [u8]) {}
        }
        for bound in [1.0, 0.1, 0.57735026, 1.9999999, f32::MIN_POSITIVE] {
            assert_eq!(SymmetricUniform { bound }.sample(&mut ConstantRng(0)), -bound);
            assert!(SymmetricUniform { bound }.sample(&mut ConstantRng(u32::MAX)) < bound);
        }
    }

    #[test]
    fn orthogonal_recurrent_weights_have_orthonormal_columns() {
        for config in [
            LstmConfig::new(3, 1),
            LstmConfig::new(3, 67),
            LstmConfig::new(3, 30).proj_size(7).layers(2),
            LstmConfig::new(3, 16).cell(CellKind::PeepholeDense),
        ] {
            let weights = init(InitKind::Orthogonal, config, 3);
            for layer in weights.layers() {
                let q = layer.get(Param::WeightHh).unwrap().mapv(f64::from);
                let q = q.into_dimensionality::<ndarray::Ix2>().unwrap();
                for ((r, c), v) in q.t().dot(&q).indexed_iter() {
                    assert!((v - f64::from(u8::from(r == c))).abs() < 1e-6, "{r}, {c}: {v}");
                }
                assert!(layer.bias().unwrap().unwrap().iter().all(|b| *b == 0.0));
            }
        }
    }

    #[test]
    fn forget_biases_add_up_to_the_given_value() {
        let init_with_forget_bias = |config, value| Weights::init(config, &Init::default().forget_bias(value), 5);
        for bias in [Bias::One, Bias::Two] {
            let config = LstmConfig::new(3, 4).layers(2).bias(bias);
            let (uniform_weights, weights) =
                (init(InitKind::Uniform, config.clone(), 5), init_with_forget_bias(config, 1.5).unwrap());
            for (layer, uniform_layer) in weights.layers().iter().zip(uniform_weights.layers()) {
                let (bias, uniform_bias) = (layer.bias().unwrap().unwrap(), uniform_layer.bias().unwrap().unwrap());
                assert_eq!(bias[4..8], [1.5; 4]);
                assert_eq!(
                    (&bias[..4], &bias[8..]),
                    (&uniform_bias[..4], &uniform_bias[8..]),
                    "the other biases are unchanged"
                );
            }
        }
        for (config, value) in [
            (LstmConfig::new(3, 4).bias(Bias::None), 1.0),
            (LstmConfig::new(3, 4).coupled(), 1.0),
            (LstmConfig::new(3, 4), f32::NAN),
        ] {
            assert!(matches!(init_with_forget_bias(config, value), Err(Error::Config { option: "forget_bias", .. })));
        }
        assert!(matches!(
            init_with_forget_bias(LstmConfig::new(0, 4), 1.0),
            Err(Error::Config { option: "input_size", .. })
        ));
    }
}
