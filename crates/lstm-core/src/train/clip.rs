//! Gradient clipping.

use std::{fmt, hint::black_box, str::FromStr};

use crate::{
    config::text::{OptionValue, ParsedOptions, write_options},
    error::{Error, Result},
    float_environment::FloatEnvironment,
    shape::check_clip,
};

/// Gradient clipping, applied to the gradients of all parameters before an optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Clip {
    /// Scales all gradients by one factor so that their [`gradient_norm`] is at most this bound, as
    /// `torch.nn.utils.clip_grad_norm_` does.
    Norm(f32),
    /// Clips each element to `[-bound, bound]`, as `torch.nn.utils.clip_grad_value_` does.
    Value(f32),
}

impl Clip {
    /// Checks that the bound is positive and finite.
    ///
    /// # Errors
    /// [`Error::Config`] otherwise.
    pub fn validate(&self) -> Result<()> {
        let (Clip::Norm(bound) | Clip::Value(bound)) = *self;
        check_clip(bound)
    }

    /// Clips the gradients of all parameters in place. Returns their [`gradient_norm`] before clipping.
    ///
    /// - `Norm(bound)`: `factor = bound / (norm + 1e-6)`, computed in f64 and rounded to f32. If `factor < 1`, each
    ///   element becomes `g = factor * g`; otherwise no element changes.
    /// - `Value(bound)`: `g = min(max(g, -bound), bound)`.
    ///
    /// If the norm is infinite or NaN, the gradients stay unchanged. The caller should check the returned norm and may,
    /// for example, skip the step. (PyTorch differs: clipping by norm makes all gradients NaN or 0, and clipping by
    /// value replaces infinities by the bound.)
    ///
    /// # Errors
    /// [`Error::Config`] if the bound is not [valid](Self::validate). The gradients are then unchanged.
    pub fn apply(&self, gradients: &mut [&mut [f32]]) -> Result<f64> {
        self.validate()?;
        let _environment = FloatEnvironment::set_default();
        let norm = gradient_norm(gradients.iter().map(|gradient| &**gradient));
        if !norm.is_finite() {
            return Ok(norm);
        }
        let elements = gradients.iter_mut().flat_map(|gradient| gradient.iter_mut());
        match *self {
            Clip::Norm(bound) => {
                let factor = (f64::from(bound) / (norm + 1e-6)) as f32;
                if factor < 1.0 {
                    elements.for_each(|g| *g *= factor);
                }
            }
            Clip::Value(bound) => elements.for_each(|g| *g = g.clamp(-bound, bound)),
        }
        Ok(norm)
    }
}

/// Writes `norm bound=1.0` or `value bound=1.0`. Parsing the text gives an equal value.
impl fmt::Display for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clip::Norm(bound) => write_options(f, "norm", &[("bound", bound.to_text())]),
            Clip::Value(bound) => write_options(f, "value", &[("bound", bound.to_text())]),
        }
    }
}

/// Parses the text that [`Display`](fmt::Display) writes. Fails with [`Error::Format`] for any other text and with
/// [`Error::Config`] for a bound that [`Clip::validate`] rejects.
impl FromStr for Clip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = ParsedOptions::new("clip", text)?;
        let clip = match options.kind() {
            "norm" => Clip::Norm(options.read_required("bound")?),
            "value" => Clip::Value(options.read_required("bound")?),
            _ => return Err(options.unexpected_kind("norm or value")),
        };
        options.finish()?;
        clip.validate()?;
        Ok(clip)
    }
}

/// The Euclidean norm of all gradients, taken as one vector: the square root of the sum of squares, in f64, summed in
/// the order of the gradients and their elements. It is 0 without gradients, and infinite or NaN exactly if an element
/// is.
pub fn gradient_norm<'a>(gradients: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    let _environment = FloatEnvironment::set_default();
    let sum_of_squares =
        gradients.into_iter().flatten().fold(0.0, |sum_of_squares, &g| sum_of_squares + f64::from(g) * f64::from(g));
    // Computed before the settings are restored.
    black_box(libm::sqrt(sum_of_squares))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip_gradients(clip: Clip, mut a: Vec<f32>, mut b: Vec<f32>) -> (f64, Vec<f32>) {
        let norm = clip.apply(&mut [&mut a, &mut b]).unwrap();
        (norm, [a, b].concat())
    }

    #[test]
    fn norm_clipping_scales_all_gradients_by_one_factor() {
        let (norm, g) = clip_gradients(Clip::Norm(1.0), vec![3.0], vec![0.0, -4.0]);
        let factor = (1.0 / (5.0 + 1e-6)) as f32;
        assert_eq!((norm, g), (5.0, vec![3.0 * factor, 0.0, -4.0 * factor]));
    }

    #[test]
    fn gradients_below_the_bound_are_unchanged() {
        let (norm, g) = clip_gradients(Clip::Norm(5.1), vec![3.0], vec![-0.0, -4.0]);
        assert_eq!((norm, g[1].to_bits(), g), (5.0, (-0.0f32).to_bits(), vec![3.0, 0.0, -4.0]));
        assert_eq!(clip_gradients(Clip::Norm(1.0), vec![], vec![]), (0.0, vec![]));
    }

    #[test]
    fn value_clipping_bounds_each_element() {
        assert_eq!(clip_gradients(Clip::Value(2.0), vec![3.0], vec![1.0, -4.0]).1, [2.0, 1.0, -2.0]);
    }

    #[test]
    fn non_finite_gradients_are_unchanged() {
        for clip in [Clip::Norm(1.0), Clip::Value(1.0)] {
            for bad in [f32::NAN, f32::INFINITY] {
                let (norm, g) = clip_gradients(clip, vec![3.0], vec![bad, -4.0]);
                assert!(!norm.is_finite() && g[1].to_bits() == bad.to_bits());
                assert_eq!((g[0], g[2]), (3.0, -4.0));
            }
            assert!(clip_gradients(clip, vec![f32::MAX; 9], vec![]).0.is_finite());
        }
    }

    #[test]
    fn text_round_trip_is_exact() {
        for clip in [Clip::Norm(f32::from_bits(0x3dcc_ccce)), Clip::Value(f32::from_bits(1))] {
            assert_eq!(clip.to_string().parse::<Clip>().unwrap(), clip);
        }
        assert_eq!(Clip::Norm(1.0).to_string(), "norm bound=1.0");
    }

    #[test]
    fn rejects_other_text() {
        for (text, part) in [
            ("norm", "`norm` requires the option bound"),
            ("norm bound=NaN", "positive finite bound, got NaN"),
            ("most bound=1", "expected norm or value, got `most`"),
        ] {
            let error = text.parse::<Clip>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}: {part}");
        }
    }

    #[test]
    fn rejects_bounds_that_are_not_positive_and_finite() {
        for bound in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            for clip in [Clip::Norm(bound), Clip::Value(bound)] {
                let mut g = [9.0];
                assert!(matches!(clip.apply(&mut [&mut g]), Err(Error::Config { option: "clip", .. })));
                assert_eq!(g, [9.0]);
            }
        }
    }
}
